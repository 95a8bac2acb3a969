//! The task that owns index, plans and kernel: it takes everything that has queued up at once and makes one turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use portolan_bgp::Prefix;
use portolan_dataplane::{Dataplane, Settings};
use portolan_index::{Change, Dirty, Index};
use portolan_model::{Name, Node, Problem, ServiceId, ServicePlan, Snapshot};
use portolan_plan::flows::Flows;
use portolan_plan::health::Ports;
use portolan_plan::linger::Linger;
use portolan_plan::{Classes, NodeView, peers, routes, service};
use tokio::sync::{mpsc, watch};

use super::announcer::{self, Announcer};
use super::meter::Meter;
use super::node_routes::NodeRoutes;
use super::report::LineReport;
use crate::config::Config;
use crate::config::NodeRoutes as Routing;
use crate::dataplane::conntrack::{self, Conntrack};
use crate::dataplane::kernel::Kernel;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::speaker::Intent;

/// Changes taken over in one turn.
const BATCH: usize = 1024;
/// Between two attempts after the kernel refused something.
const RETRY: Duration = Duration::from_secs(1);

pub struct Line {
    node: Name,
    config: Config,
    index: Index,
    linger: Linger,
    dataplane: Dataplane,
    kernel: Kernel,
    conntrack: Conntrack,
    flows: Flows,
    /// Services whose endpoints may have changed since `flows` saw them.
    unseen: BTreeSet<ServiceId>,
    node_routes: NodeRoutes,
    announcer: Announcer,
    view: NodeView,
    /// What the kernel runs of each Service.
    programmed: BTreeMap<ServiceId, Arc<ServicePlan>>,
    /// What it should run instead, while it does not yet.
    pending: BTreeMap<ServiceId, Option<Arc<ServicePlan>>>,
    announced: Arc<Vec<Prefix>>,
    retry_at: Option<Instant>,
    error: Option<String>,
    /// No turn was made yet.
    is_new: bool,
    /// `dataplane` knows what the kernel holds.
    is_observed: bool,
    reported: BTreeSet<Problem>,
    intent: watch::Sender<Arc<Intent>>,
    report: watch::Sender<LineReport>,
    ready: watch::Sender<Option<&'static str>>,
    health_ports: Ports,
    health: watch::Sender<Health>,
    meter: Meter,
}

/// Where the line's outcome goes.
pub struct Outlets {
    pub intent: watch::Sender<Arc<Intent>>,
    pub report: watch::Sender<LineReport>,
    pub ready: watch::Sender<Option<&'static str>>,
    pub health: watch::Sender<Health>,
    pub metrics: Arc<Metrics>,
}

/// What one turn has to look at.
#[derive(Default)]
struct Touched {
    services: BTreeSet<ServiceId>,
    /// Facts that no Service decides: nodes, pools, advertisements, peers.
    cluster: bool,
    /// Every Service is to be planned again.
    all: bool,
    addresses: bool,
}

impl Line {
    /// Opens the kernel; fails when that cannot be done (no root, no nf_tables).
    pub async fn new(node: &str, config: Config, index: Index, outlets: Outlets) -> anyhow::Result<Line> {
        let Outlets { intent, report, ready, health, metrics } = outlets;
        let classes = Classes::from(&config.classes);
        conntrack::tune(&(&config.proxy.conntrack).into());
        Ok(Line {
            node: node.into(),
            index,
            linger: Linger::default(),
            dataplane: Dataplane::new(Settings::default()),
            kernel: Kernel::open()?,
            conntrack: Conntrack::open()?,
            flows: Flows::new(config.proxy.conntrack.cut_vanished_tcp),
            unseen: BTreeSet::new(),
            node_routes: NodeRoutes::open().await?,
            announcer: Announcer::new(node.into(), config.bgp.asn, classes),
            config,
            view: NodeView::default(),
            programmed: BTreeMap::new(),
            pending: BTreeMap::new(),
            announced: Arc::default(),
            retry_at: None,
            error: None,
            is_new: true,
            is_observed: false,
            reported: BTreeSet::new(),
            intent,
            report,
            ready,
            health_ports: Ports::default(),
            health,
            meter: Meter::new(metrics),
        })
    }

    /// Ends only when the watchers are gone.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Change>) -> anyhow::Result<()> {
        let mut batch = Vec::new();
        loop {
            let wake = self.wake();
            let mut touched = Touched::default();
            tokio::select! {
                count = changes.recv_many(&mut batch, BATCH) => anyhow::ensure!(count > 0, "the watchers ended"),
                () = self.node_routes.changed() => touched.addresses = true,
                () = sleep_until(wake) => {}
            }
            for change in batch.drain(..) {
                self.meter.came(&change);
                touched.add(self.index.apply(change));
            }
            if let Some(snapshot) = self.index.snapshot() {
                self.turn(&snapshot, touched, Instant::now()).await;
            }
        }
    }

    /// When the line has something to do although nothing changed.
    fn wake(&self) -> Option<Instant> {
        [self.linger.poll_timeout(), self.retry_at].into_iter().flatten().min()
    }

    /// From a snapshot to kernel and speaker. It announces twice: first what is no longer to be served is withdrawn, then,
    /// with the kernel written, what is served now goes out (invariant 7).
    async fn turn(&mut self, snapshot: &Snapshot, mut touched: Touched, now: Instant) {
        let first = std::mem::take(&mut self.is_new);
        touched.cluster |= first;
        if touched.addresses
            && let Err(error) = self.node_routes.refresh().await
        {
            tracing::error!(error = format!("{error:#}"), "cannot read this node's addresses");
        }
        if touched.cluster || touched.addresses {
            touched.all |= self.see_node(snapshot) || first;
        }
        if touched.cluster {
            let problems = self.announcer.configure(snapshot);
            self.say(problems);
        }
        touched.services.extend(self.linger.due(now));
        touched.services.extend(self.pending.keys().cloned());
        let all = self.all_services(snapshot, touched.all || touched.cluster);
        let to_plan = if touched.all { &all } else { &touched.services };
        let to_announce = if touched.cluster { &all } else { to_plan };

        // A turn that hangs shows as a change that waits.
        self.health.send_modify(|health| health.waits_since(now));
        let announced_before = self.announced.clone();
        self.announce(snapshot, to_announce, touched.cluster);
        self.plan(snapshot, to_plan, &announced_before, now);
        self.unseen.extend(to_plan.iter().cloned());
        self.program(now);
        if !to_plan.is_empty() {
            let plans = to_plan.iter().map(|id| (id, self.programmed.get(id).map(|plan| &**plan)));
            self.meter.turned(touched.all, now, self.error.is_none(), plans);
        }
        self.announce(snapshot, to_announce, touched.cluster);
        if self.error.is_none() {
            self.clean(snapshot, now);
        }
        if touched.cluster || touched.addresses {
            self.route(snapshot).await;
        }
        self.tell(snapshot);
        self.check_up(snapshot, to_plan);
    }
}

impl Touched {
    fn add(&mut self, dirty: Dirty) {
        self.cluster |= dirty.policy || dirty.service_cidrs || !dirty.nodes.is_empty();
        self.services.extend(dirty.services);
    }
}

impl Line {
    /// Takes over this node's own facts; says whether every Service must be planned again.
    fn see_node(&mut self, snapshot: &Snapshot) -> bool {
        let node = snapshot.nodes.get(&self.node);
        let view = self.view_of(node.map(|node| &**node));
        // `primary`, the default of nodePortAddresses (S20).
        let node_port_addresses = node.iter().flat_map(|node| &node.internal_ips).copied().collect();
        let cluster_cidrs = view.cluster_cidrs.clone();
        self.dataplane.set_settings(Settings { cluster_cidrs, node_port_addresses, ..Settings::default() });
        let changed = view != self.view;
        self.view = view;
        changed
    }

    fn view_of(&self, node: Option<&Node>) -> NodeView {
        NodeView {
            node: self.node.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            addresses: node
                .iter()
                .flat_map(|node| &node.internal_ips)
                .copied()
                .chain(self.node_routes.addresses())
                .collect(),
            cluster_cidrs: self.config.proxy.cluster_cidrs.clone(),
            masquerade_all: self.config.proxy.masquerade_all,
            external_ips: self.config.proxy.external_ips,
        }
    }

    /// Every Service that is or was, where a change is about more than single ones.
    fn all_services(&self, snapshot: &Snapshot, needed: bool) -> BTreeSet<ServiceId> {
        let all = snapshot.services.keys().chain(self.programmed.keys());
        if needed { all.cloned().collect() } else { BTreeSet::new() }
    }

    /// Hands the speaker what the kernel's present state allows.
    fn announce(&mut self, snapshot: &Snapshot, services: &BTreeSet<ServiceId>, cluster: bool) {
        let mut changed = cluster;
        for id in services {
            changed |= self.announcer.announce(snapshot, id, self.programmed.get(id).map(|plan| &**plan));
        }
        if changed {
            let intent = self.announcer.intent();
            self.announced = Arc::new(announcer::prefixes(&intent));
            self.meter.announced(self.announced.len());
            self.intent.send_replace(Arc::new(intent));
        }
    }

    /// `announced` is what routers believed before this turn: what of it goes lingers.
    fn plan(
        &mut self,
        snapshot: &Snapshot,
        services: &BTreeSet<ServiceId>,
        announced: &[Prefix],
        now: Instant,
    ) {
        for id in services {
            let wanted = snapshot.services.get(id);
            let plan = wanted.map(|wanted| service::plan(wanted, &self.view));
            let programmed = self.programmed.get(id).cloned();
            let announced = |ip: &std::net::IpAddr| announcer::attracts(announced, ip);
            let plan =
                self.linger.plan(id, programmed.as_deref(), plan.as_ref(), announced, now).map(Arc::new);
            if plan != programmed || self.pending.contains_key(id) {
                // What only lingers gives way to any Service that claims the same frontend.
                let created = wanted.map_or(i64::MAX, |service| service.created);
                self.dataplane.set_service(id, created, plan.clone());
                self.pending.insert(id.clone(), plan);
            }
        }
    }

    /// Brings the kernel to what is wanted, or tries again later from what the kernel then holds.
    fn program(&mut self, now: Instant) {
        match self.try_program() {
            Ok(()) => {
                (self.retry_at, self.error) = (None, None);
                for (id, plan) in std::mem::take(&mut self.pending) {
                    match plan {
                        Some(plan) => self.programmed.insert(id, plan),
                        None => self.programmed.remove(&id),
                    };
                }
            }
            Err(error) => {
                let text = format!("{error:#}");
                tracing::error!(error = text, "the kernel refused a change; trying again");
                self.is_observed = false;
                (self.retry_at, self.error) = (Some(now + RETRY), Some(text));
            }
        }
    }

    fn try_program(&mut self) -> anyhow::Result<()> {
        if !self.is_observed {
            self.dataplane.observed(&self.kernel.observe()?);
            self.is_observed = true;
        }
        let transactions = self.kernel.write(&mut self.dataplane)?;
        self.meter.wrote(transactions);
        Ok(())
    }

    /// Deletes the tracked connections that new rules do not reach (S51–S53), once the kernel has those.
    fn clean(&mut self, snapshot: &Snapshot, now: Instant) {
        for id in std::mem::take(&mut self.unseen) {
            let programmed = self.programmed.get(&id).map(|plan| &**plan);
            self.flows.set(&id, programmed, snapshot.services.get(&id).map(|service| &**service));
        }
        let stale = self.flows.stale();
        if stale.is_empty() {
            return;
        }
        match self.conntrack.clean(&stale, &self.dataplane.settings().node_port_addresses) {
            Ok(cleaned) => {
                self.flows.cleaned();
                self.meter.cleaned(&cleaned);
                tracing::debug!(?cleaned, "tracked connections that led nowhere are deleted");
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "stale connections stay; trying again");
                self.retry_at = Some(now + RETRY);
            }
        }
    }

    /// Routes to the other nodes' pods; a failure is repaired at the next change of nodes or addresses.
    async fn route(&mut self, snapshot: &Snapshot) {
        let wanted: BTreeMap<IpNet, std::net::IpAddr> = match self.config.node_routes {
            Routing::Api => routes::to_nodes(snapshot, &self.node),
            Routing::Off => BTreeMap::new(),
        };
        if let Err(error) = self.node_routes.apply(&wanted).await {
            tracing::error!(error = format!("{error:#}"), "cannot program the routes to other nodes");
        }
    }

    /// Each problem is said once, when it appears.
    fn say(&mut self, problems: Vec<Problem>) {
        let problems: BTreeSet<Problem> =
            problems.into_iter().chain(self.index.problems().cloned()).collect();
        for problem in problems.difference(&self.reported) {
            tracing::warn!(reason = problem.reason, "{problem}");
        }
        self.reported = problems;
    }

    /// What the health servers answer from now on (S58–S61).
    fn check_up(&mut self, snapshot: &Snapshot, services: &BTreeSet<ServiceId>) {
        for id in services {
            self.health_ports.set(id, snapshot.services.get(id).map(|service| &**service), &self.view);
        }
        let node = snapshot.nodes.get(&self.node);
        self.health.send_modify(|health| {
            health.eligible = node.is_none_or(|node| !node.leaving);
            health.node_uid = node.map(|node| node.uid.clone());
            if self.error.is_none() {
                health.applied();
            }
            if health.ports != self.health_ports {
                health.ports = self.health_ports.clone();
            }
        });
    }

    fn tell(&self, snapshot: &Snapshot) {
        let node = snapshot.nodes.get(&self.node);
        let report = LineReport {
            node_uid: node.map(|node| node.uid.clone()),
            synced: self.error.is_none(),
            error: self.error.clone(),
            local_asn: self.config.bgp.asn,
            router_id: node.map(|node| peers::router_id(node)),
            announced: self.announced.clone(),
            withheld: Arc::new(self.announcer.withheld()),
        };
        self.report.send_if_modified(|last| {
            let changed = *last != report;
            *last = report;
            changed
        });
        let state = self.error.is_some().then_some("the kernel refused a change");
        self.ready.send_if_modified(|last| std::mem::replace(last, state) != state);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
