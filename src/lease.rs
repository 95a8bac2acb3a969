//! Leader election by one `coordination.k8s.io` Lease.
//!
//! ```text
//!   task: get, then create or replace the Lease (compare-and-swap) ──watch channel──> until when we may write
//! ```
//!
//! The leader stops writing [`RENEW_DEADLINE`] after its last renewal, and nobody takes the Lease before
//! [`LEASE_DURATION`] has passed since: the two never overlap, whatever happens to the network (A6). Nobody's clock
//! is compared with another's: a follower counts from when it saw the Lease change.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{info, warn};

const LEASE_DURATION: Duration = Duration::from_secs(8);
const RENEW_DEADLINE: Duration = Duration::from_secs(5);
const RENEW: Duration = Duration::from_secs(2);
/// How often a follower looks.
const LOOK: Duration = Duration::from_secs(1);
const ATTEMPT: Duration = Duration::from_secs(3);

/// Until when we may act as the leader; None while another does.
#[derive(Clone, Debug)]
pub struct Leadership(watch::Receiver<Option<Instant>>);

impl Leadership {
    /// To be asked before each write.
    pub fn holds(&self) -> bool {
        self.0.borrow().is_some_and(|deadline| Instant::now() < deadline)
    }

    /// Waits for a renewal, for leadership or for its loss.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await // the campaign is over: nothing will change any more
        }
    }
}

/// The task that keeps trying; dropping it leaves the Lease to expire.
pub struct Campaign {
    task: JoinHandle<()>,
    stop: oneshot::Sender<()>,
}

impl Campaign {
    /// `identity` is unique to this process.
    pub fn start(client: Client, namespace: &str, name: &str, identity: &str) -> (Campaign, Leadership) {
        let (deadline, leadership) = watch::channel(None);
        let (stop, stopped) = oneshot::channel();
        let api = Api::namespaced(client, namespace);
        let candidate = Candidate {
            api,
            name: name.into(),
            identity: identity.into(),
            seen: None,
            trouble: None,
            deadline,
        };
        let task = tokio::spawn(candidate.run(stopped));
        (Campaign { task, stop }, Leadership(leadership))
    }

    /// Gives the Lease up, so that another takes over at once.
    pub async fn release(self) {
        let _ = self.stop.send(()); // refused only when the task has ended
        if tokio::time::timeout(ATTEMPT, self.task).await.is_err() {
            warn!("the Lease could not be released; it expires");
        }
    }
}

struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    /// The version of another's Lease, and when it was first seen.
    seen: Option<(Option<String>, Instant)>,
    trouble: Option<String>,
    deadline: watch::Sender<Option<Instant>>,
}

impl Candidate {
    async fn run(mut self, mut stopped: oneshot::Receiver<()>) {
        loop {
            let start = Instant::now();
            let held = tokio::time::timeout(ATTEMPT, self.attempt()).await;
            self.note(start, held.unwrap_or_else(|_| Err(anyhow::anyhow!("no answer in {ATTEMPT:?}"))));
            let pause = if self.deadline.borrow().is_some() { RENEW } else { LOOK };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = &mut stopped => break,
            }
        }
        if self.deadline.send_replace(None).is_some()
            && let Err(error) = self.give_up().await
        {
            warn!(%error, "the Lease could not be released; it expires");
        }
    }

    /// A failed attempt does not end leadership, the deadline does.
    fn note(&mut self, start: Instant, held: anyhow::Result<bool>) {
        let before = *self.deadline.borrow();
        let after = match held {
            Ok(held) => {
                self.trouble = None;
                held.then_some(start + RENEW_DEADLINE)
            }
            Err(error) => {
                let text = format!("{error:#}");
                if self.trouble.as_ref() != Some(&text) {
                    warn!(lease = self.name, "{text}");
                    self.trouble = Some(text);
                }
                before.filter(|deadline| Instant::now() < *deadline)
            }
        };
        match (before, after) {
            (None, Some(_)) => info!(lease = self.name, identity = self.identity, "leading"),
            (Some(_), None) => warn!(lease = self.name, identity = self.identity, "no longer leading"),
            _ => {}
        }
        self.deadline.send_replace(after);
    }

    /// Whether the Lease is ours now.
    async fn attempt(&mut self) -> anyhow::Result<bool> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(&LeaseSpec::default())) };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        if !self.is_ours(&spec) && !self.has_expired(&lease, &spec) {
            return Ok(false);
        }
        let lease = Lease { spec: Some(self.spec(&spec)), ..lease };
        won(self.api.replace(&self.name, &PostParams::default(), &lease).await)
    }

    fn is_ours(&self, spec: &LeaseSpec) -> bool {
        spec.holder_identity.as_ref() == Some(&self.identity)
    }

    /// Released, or not renewed for its duration while we looked on.
    fn has_expired(&mut self, lease: &Lease, spec: &LeaseSpec) -> bool {
        if spec.holder_identity.as_deref().is_none_or(str::is_empty) {
            return true;
        }
        let version = &lease.metadata.resource_version;
        let since = match &self.seen {
            Some((seen, since)) if seen == version => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((version.clone(), now));
                now
            }
        };
        let secs = spec.lease_duration_seconds.and_then(|secs| u64::try_from(secs).ok());
        since.elapsed() >= secs.map_or(LEASE_DURATION, Duration::from_secs)
    }

    fn spec(&self, old: &LeaseSpec) -> LeaseSpec {
        let now = Some(MicroTime(Timestamp::now()));
        let ours = self.is_ours(old);
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(LEASE_DURATION.as_secs()).ok(),
            acquire_time: if ours { old.acquire_time.clone() } else { now.clone() },
            renew_time: now,
            lease_transitions: Some(old.lease_transitions.unwrap_or(0) + i32::from(!ours)),
            ..LeaseSpec::default()
        }
    }

    async fn give_up(&self) -> anyhow::Result<()> {
        let lease = self.api.get(&self.name).await?;
        let spec = lease.spec.clone().unwrap_or_default();
        if self.is_ours(&spec) {
            let spec = LeaseSpec { holder_identity: None, lease_duration_seconds: Some(1), ..spec };
            let released = Lease { spec: Some(spec), ..lease };
            won(self.api.replace(&self.name, &PostParams::default(), &released).await)?;
        }
        Ok(())
    }
}

/// A conflict means that another was faster.
fn won<T>(written: kube::Result<T>) -> anyhow::Result<bool> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error.into()),
    }
}
