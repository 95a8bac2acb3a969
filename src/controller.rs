//! `portolan controller`: the leader gives addresses to Services and says so in their status.
//!
//! ```text
//!   watches ──Change──> Desk ──Job──> Writer ──> API server        bootstrap: objects of the chart's values
//!                        ^              │                          lease:     who may write at all
//!                        └───Outcome────┘  (what was written is known before the watch says it)
//! ```
//!
//! One task owns the [`Desk`](desk::Desk) and decides; writes of one round go out side by side, each with the version
//! it was decided on. Followers watch too, so that a new leader starts with what it needs in memory.

mod bootstrap;
mod desk;
mod policy_status;
mod sessions;
mod writer;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt;
use kube::Client;
use portolan_index::Change;
use portolan_model::ServiceId;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::config::Config;
use crate::events::Events;
use crate::lease::{Campaign, Leadership};
use crate::{cli, http, watch};
use desk::Desk;
use policy_status::PolicyStatus;
use sessions::Sessions;
use writer::{Failure, Outcome, Writer};

const LEASE_NAME: &str = "portolan-controller";
const FIELD_MANAGER: &str = "portolan-controller";
/// Services decided for in one round, and how many of those are written for at a time.
const ROUND: usize = 128;
const WRITES: usize = 16;
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_LONGEST: Duration = Duration::from_secs(60);

pub struct Options {
    pub client: Client,
    /// Unique to this process, for example the pod's name.
    pub identity: String,
    /// Where the Lease is.
    pub namespace: String,
    pub config: Config,
    /// A YAML stream of objects to keep applied.
    pub bootstrap: Option<PathBuf>,
    /// Where to serve /healthz and /readyz.
    pub http: Option<SocketAddr>,
}

/// The command line's controller.
pub async fn command(arguments: cli::Controller) -> anyhow::Result<()> {
    let config = match &arguments.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let client = watch::client(arguments.api.kubeconfig.as_deref()).await?;
    let cli::Controller { identity, namespace, bootstrap, http, .. } = arguments;
    run(Options { client, identity, namespace, config, bootstrap, http }).await
}

/// Runs until SIGTERM or SIGINT, then gives leadership up. An error means that it could not go on.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Options { client, identity, namespace, config, bootstrap, http } = options;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let (ready, readiness) = tokio::sync::watch::channel(Some("the API server's objects are not listed yet"));
    if let Some(address) = http {
        http::serve(address, readiness).await?;
    }
    let changes = watch::start(&client, &desk::KINDS, config.proxy.service_proxy_name.as_deref());
    let events = Events::start(client.clone(), FIELD_MANAGER, &identity);
    let (campaign, leadership) = Campaign::start(client.clone(), &namespace, LEASE_NAME, &identity);
    if let Some(path) = bootstrap {
        tokio::spawn(bootstrap::keep_applied(client.clone(), path, leadership.clone()));
    }
    let controller = Controller {
        desk: Desk::new((&config.classes).into(), config.proxy.service_proxy_name),
        writer: Writer { client: client.clone(), leadership: leadership.clone(), events: events.clone() },
        statuses: PolicyStatus::new(client.clone(), events, config.bgp.asn),
        sessions: Sessions::watch(&client),
        changes,
        ready,
        leadership,
        leading: false,
        retries: BTreeMap::new(),
        trouble: None,
    };
    let ended = tokio::select! {
        ended = controller.run() => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    info!("stopping");
    campaign.release().await;
    ended
}

struct Controller {
    desk: Desk,
    writer: Writer,
    statuses: PolicyStatus,
    sessions: Sessions,
    changes: mpsc::Receiver<Change>,
    /// Why we could not lead now.
    ready: tokio::sync::watch::Sender<Option<&'static str>>,
    leadership: Leadership,
    /// Whether the desk was told that we lead.
    leading: bool,
    /// Services whose writes failed.
    retries: BTreeMap<ServiceId, Retry>,
    /// What was last complained of, so that it is said once.
    trouble: Option<String>,
}

#[derive(Default)]
struct Retry {
    /// In a row.
    failures: u32,
    /// Not before; None while it is being tried.
    at: Option<Instant>,
}

impl Controller {
    async fn run(mut self) -> anyhow::Result<()> {
        loop {
            while let Ok(change) = self.changes.try_recv() {
                self.desk.apply(change);
            }
            self.follow_leadership();
            if self.leading && self.round().await {
                continue;
            }
            let wake = self.wake();
            tokio::select! {
                change = self.changes.recv() => match change {
                    Some(change) => self.desk.apply(change),
                    None => anyhow::bail!("the watches of the API server ended"),
                },
                () = self.leadership.changed() => {}
                () = self.sessions.changed() => self.desk.statuses_are_stale = true,
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn follow_leadership(&mut self) {
        // Before the first complete lists there is nothing to lead with (A2).
        let synced = self.desk.index.snapshot().is_some();
        if synced {
            self.ready.send_if_modified(|why| why.take().is_some());
        }
        let leads = self.leadership.holds() && synced;
        if leads && !self.leading {
            self.desk.start_over();
            self.statuses.forget();
            self.retries.clear();
        }
        self.leading = leads;
    }

    /// Decides and writes; whether there may be more to do at once.
    async fn round(&mut self) -> bool {
        self.touch_retries();
        let retries = &self.retries;
        let may = |service: &ServiceId| retries.get(service).is_none_or(|retry| retry.at.is_none());
        let jobs = self.desk.decide(now_secs(), ROUND, may);
        if jobs.is_empty() {
            if self.desk.is_idle() {
                self.write_statuses().await;
            }
            return !self.desk.is_idle();
        }
        let writer = &self.writer;
        let writes = futures::stream::iter(jobs).map(|job| writer.carry_out(job)).buffer_unordered(WRITES);
        let outcomes: Vec<Outcome> = writes.collect().await;
        outcomes.into_iter().for_each(|outcome| self.settle(outcome));
        true
    }

    async fn write_statuses(&mut self) {
        if let Some(supply) = self.desk.supply()
            && self.desk.statuses_are_stale
            && self.statuses.is_due()
        {
            let written = self.statuses.write(&self.desk, supply, self.sessions.established()).await;
            self.desk.statuses_are_stale = !written;
        }
    }

    fn settle(&mut self, outcome: Outcome) {
        outcome.changes.into_iter().for_each(|change| self.desk.apply(change));
        match outcome.failure {
            None => {
                self.retries.remove(&outcome.service);
                return;
            }
            Some(Failure::Refused(why)) if self.trouble.as_ref() != Some(&why) => {
                warn!(service = %outcome.service, "{why}");
                self.trouble = Some(why);
            }
            Some(Failure::Refused(_) | Failure::Outdated | Failure::NotLeading) => {}
        }
        let retry = self.retries.entry(outcome.service).or_default();
        retry.at =
            Some(Instant::now() + (RETRY_FIRST * 2u32.saturating_pow(retry.failures)).min(RETRY_LONGEST));
        retry.failures = (retry.failures + 1).min(16);
    }

    fn touch_retries(&mut self) {
        let now = Instant::now();
        for (service, retry) in &mut self.retries {
            if retry.at.is_some_and(|at| at <= now) {
                retry.at = None;
                self.desk.touch(service.clone());
            }
        }
    }

    /// When there is something to do even if nothing happens.
    fn wake(&self) -> Instant {
        let now = Instant::now();
        let retry = self.retries.values().filter_map(|retry| retry.at).min();
        let rested = self.desk.next_expiry().map(|at| {
            let secs = u64::try_from(at.saturating_sub(now_secs())).unwrap_or(0);
            now + Duration::from_secs(secs.clamp(1, 3600))
        });
        let status = self.desk.statuses_are_stale.then(|| self.statuses.due());
        let wakes = [retry, rested, status].into_iter().flatten();
        wakes.min().unwrap_or(now + RETRY_LONGEST).max(now + Duration::from_millis(5))
    }
}

fn now_secs() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// What the API server says, without the client's wrapping.
fn sentence(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
