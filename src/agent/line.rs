//! The task that owns index, plans and kernel: it takes everything that has queued up at once and makes one turn.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;
use portolan_bgp::Prefix;
use portolan_dataplane::{Dataplane, Settings};
use portolan_index::{Change, Dirty, Index};
use portolan_model::{Frontend, Name, Node, Problem, ServiceId, ServicePlan, Snapshot};
use portolan_plan::flows::Flows;
use portolan_plan::health::Ports;
use portolan_plan::linger::Linger;
use portolan_plan::{Classes, NodeView, node_ports, peers, routes, service};
use tokio::sync::{mpsc, watch};

use super::announcer::{self, Announcer};
use super::meter::Meter;
use super::node_routes::NodeRoutes;
use super::report::LineReport;
use super::sentry::Sentry;
use crate::config::NodeRoutes as Routing;
use crate::config::{Config, DetectLocalMode};
use crate::dataplane::conntrack::{self, Conntrack};
use crate::dataplane::kernel::{Kernel, joined};
use crate::health::Health;
use crate::metrics::Metrics;
use crate::speaker::Intent;

/// Changes taken over in one turn.
const BATCH: usize = 1024;
/// Between two attempts after the kernel refused something: doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

pub struct Line {
    node: Name,
    config: Config,
    changed_config: watch::Receiver<Config>,
    index: Index,
    linger: Linger,
    dataplane: Dataplane,
    kernel: Kernel,
    conntrack: Conntrack,
    flows: Flows,
    /// Services whose endpoints may have changed since `flows` saw them.
    unseen: BTreeSet<ServiceId>,
    sentry: Sentry,
    node_routes: NodeRoutes,
    announcer: Announcer,
    view: NodeView,
    /// Service addresses that this node has on an interface, by Service (S21).
    own_vips: BTreeMap<ServiceId, BTreeSet<IpAddr>>,
    /// What the kernel runs of each Service.
    programmed: BTreeMap<ServiceId, Arc<ServicePlan>>,
    /// What it should run instead, while it does not yet.
    pending: BTreeMap<ServiceId, Option<Arc<ServicePlan>>>,
    announced: Arc<Vec<Prefix>>,
    /// The routes to other nodes are to be compared with the kernel's.
    routes_due: bool,
    /// What the kernel last refused, until it is overcome.
    trouble: Option<Trouble>,
    /// No turn was made yet.
    is_new: bool,
    /// The node's addresses are to be read again.
    addresses_changed: bool,
    /// `dataplane` knows what the kernel holds.
    is_observed: bool,
    /// It does not, for somebody else changed that.
    is_repair: bool,
    /// Problems of the node's sessions.
    of_peers: Vec<Problem>,
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

struct Trouble {
    error: String,
    /// The tables are not as they should be; otherwise it is connections or routes, and the tables go on.
    of_tables: bool,
    pause: Duration,
    retry_at: Instant,
}

/// What one turn has to look at.
#[derive(Default)]
struct Touched {
    services: BTreeSet<ServiceId>,
    /// Facts that no Service decides: nodes, pools, advertisements, peers.
    cluster: bool,
    /// Every Service is to be planned again.
    all: bool,
    /// Objects say other things wrong than before.
    problems: bool,
}

impl Line {
    /// Opens the kernel; fails when that cannot be done (no root, no nf_tables).
    pub async fn new(
        node: &str,
        mut changed_config: watch::Receiver<Config>,
        index: Index,
        outlets: Outlets,
    ) -> anyhow::Result<Line> {
        let Outlets { intent, report, ready, health, metrics } = outlets;
        let config = changed_config.borrow_and_update().clone();
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
            sentry: Sentry::open(config.proxy.take_over).context("nf_tables monitor")?,
            node_routes: NodeRoutes::open().await?,
            announcer: Announcer::new(node.into(), config.bgp.asn, classes),
            config,
            changed_config,
            view: NodeView::default(),
            own_vips: BTreeMap::new(),
            programmed: BTreeMap::new(),
            pending: BTreeMap::new(),
            announced: Arc::default(),
            routes_due: true,
            trouble: None,
            is_new: true,
            addresses_changed: true,
            is_observed: false,
            is_repair: false,
            of_peers: Vec::new(),
            reported: BTreeSet::new(),
            intent,
            report,
            ready,
            health_ports: Ports::default(),
            health,
            meter: Meter::new(metrics),
        })
    }

    /// Ends only when the watchers are gone, or the kernel tells no more of its addresses.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Change>) -> anyhow::Result<()> {
        let mut batch = Vec::new();
        loop {
            let wake = self.wake();
            let mut touched = Touched::default();
            tokio::select! {
                count = changes.recv_many(&mut batch, BATCH) => anyhow::ensure!(count > 0, "the watchers ended"),
                changed = self.node_routes.changed() => { changed?; self.addresses_changed = true; }
                seen = self.sentry.changed() => {
                    self.sentry.heed(seen.context("nf_tables monitor")?, Instant::now());
                }
                // The sender goes when the agent does.
                Ok(()) = self.changed_config.changed() => {
                    self.reconfigure();
                    (touched.cluster, touched.all, self.addresses_changed) = (true, true, true);
                }
                () = sleep_until(wake) => {}
            }
            if self.sentry.is_repair_due(Instant::now()) {
                (self.is_observed, self.is_repair) = (false, true);
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

    /// Takes over a changed configuration; what follows from it is for the next turn (S72).
    fn reconfigure(&mut self) {
        self.config = self.changed_config.borrow_and_update().clone();
        conntrack::tune(&(&self.config.proxy.conntrack).into());
        let classes = Classes::from(&self.config.classes);
        self.announcer = Announcer::new(self.node.clone(), self.config.bgp.asn, classes);
    }

    /// When the line has something to do although nothing changed.
    fn wake(&self) -> Option<Instant> {
        let retry_at = self.trouble.as_ref().map(|trouble| trouble.retry_at);
        [self.linger.poll_timeout(), retry_at, self.sentry.wake()].into_iter().flatten().min()
    }

    /// From a snapshot to kernel and speaker. It announces twice: first what is no longer to be served is withdrawn, then,
    /// with the kernel written, what is served now goes out (invariant 7).
    async fn turn(&mut self, snapshot: &Snapshot, mut touched: Touched, now: Instant) {
        let first = std::mem::take(&mut self.is_new);
        touched.cluster |= first;
        let moved = std::mem::take(&mut self.addresses_changed);
        if moved && let Err(error) = self.node_routes.refresh().await {
            tracing::error!(error = format!("{error:#}"), "cannot read this node's addresses");
            self.addresses_changed = true;
        }
        if touched.cluster || moved {
            touched.all |= self.see_node(snapshot) || first;
            self.routes_due = true;
        }
        if touched.cluster {
            self.of_peers = self.announcer.configure(snapshot);
        }
        if touched.cluster || touched.problems {
            self.say(snapshot);
        }
        touched.services.extend(self.linger.due(now));
        touched.services.extend(self.pending.keys().cloned());
        let all = self.all_services(snapshot, &touched);
        let to_plan = if touched.all { &all } else { &touched.services };
        let to_announce = if touched.cluster { &all } else { to_plan };

        // A turn that hangs shows as a change that waits.
        self.health.send_modify(|health| health.waits_since(now));
        let announced_before = self.announced.clone();
        self.announce(snapshot, to_announce, touched.cluster);
        self.plan(snapshot, to_plan, &announced_before, now);
        self.unseen.extend(to_plan.iter().cloned());
        self.write(snapshot, now).await;
        if !to_plan.is_empty() {
            let written = !self.is_unwritten();
            let plans = to_plan.iter().map(|id| (id, self.programmed.get(id).map(|plan| &**plan)));
            self.meter.turned(touched.all, now, written, plans);
        }
        self.announce(snapshot, to_announce, touched.cluster);
        self.tell(snapshot);
        self.check_up(snapshot, to_plan);
    }
}

impl Touched {
    fn add(&mut self, dirty: Dirty) {
        self.cluster |= dirty.policy || dirty.service_cidrs || !dirty.nodes.is_empty();
        self.problems |= dirty.problems;
        self.services.extend(dirty.services);
    }
}

impl Line {
    /// Takes over this node's own facts; says whether every Service must be planned again.
    fn see_node(&mut self, snapshot: &Snapshot) -> bool {
        let node = snapshot.nodes.get(&self.node);
        let view = self.view_of(node.map(|node| &**node));
        let changed = view != self.view;
        self.view = view;
        self.settle(snapshot);
        changed
    }

    /// What the rules depend on besides Services.
    fn settle(&mut self, snapshot: &Snapshot) {
        let primary = snapshot.nodes.get(&self.node).map_or(&[][..], |node| &node.internal_ips);
        let vips = self.own_vips.values().flatten().copied().collect();
        let selectors = &self.config.proxy.node_port_addresses;
        let cidrs = snapshot.service_cidrs.values();
        self.dataplane.set_settings(Settings {
            cluster_cidrs: self.view.cluster_cidrs.clone(),
            node_port_addresses: node_ports::addresses(selectors, primary, &self.view.addresses, &vips),
            service_cidrs: cidrs.flat_map(|object| &object.cidrs).copied().collect(),
            mark: self.config.proxy.masquerade_bit.mark(),
        });
    }

    /// Takes note of a plan's addresses that are on this node's interfaces; says whether that changed.
    fn see_vips(&mut self, id: &ServiceId, plan: Option<&ServicePlan>) -> bool {
        let vips = plan.into_iter().flat_map(ServicePlan::addresses);
        let own: BTreeSet<IpAddr> = vips.filter(|ip| self.view.addresses.contains(ip)).collect();
        let before = match own.is_empty() {
            true => self.own_vips.remove(id),
            false => self.own_vips.insert(id.clone(), own.clone()),
        };
        before.unwrap_or_default() != own
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
            cluster_cidrs: match self.config.proxy.detect_local_mode {
                DetectLocalMode::ClusterCidr => self.config.proxy.cluster_cidrs.clone(),
                // A node that has none yet has no pods yet (S49).
                DetectLocalMode::NodeCidr => node.iter().flat_map(|node| &node.pod_cidrs).copied().collect(),
            },
            masquerade_all: self.config.proxy.masquerade_all,
            external_ips: self.config.proxy.external_ips,
        }
    }

    /// Every Service that is or was, where a change is about more than single ones.
    fn all_services(&self, snapshot: &Snapshot, touched: &Touched) -> BTreeSet<ServiceId> {
        if !touched.all && !touched.cluster {
            return BTreeSet::new();
        }
        let all = snapshot.services.keys().chain(self.programmed.keys()).chain(&touched.services);
        all.cloned().collect()
    }

    /// Hands the speaker what the kernel's present state allows.
    fn announce(&mut self, snapshot: &Snapshot, services: &BTreeSet<ServiceId>, cluster: bool) {
        let mut changed = cluster;
        for id in services {
            let served = self.programmed.get(id).map(|plan| served(&self.dataplane, id, plan));
            changed |= self.announcer.announce(snapshot, id, served.as_deref());
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
        let mut moved = false;
        for id in services {
            let service = snapshot.services.get(id);
            let wanted = service.map(|service| Arc::new(service::plan(service, &self.view)));
            moved |= self.see_vips(id, wanted.as_deref());
            let programmed = self.programmed.get(id);
            let is_announced = |ip: &IpAddr| announcer::attracts(announced, ip);
            let lingering = self.linger.plan(id, programmed, wanted.as_deref(), is_announced, now);
            // Under a name that no Service can have, and younger than all: it gives way to every other claim.
            let withdrawn = ServiceId::new(id.namespace.clone(), format!("{} (withdrawn)", id.name));
            self.dataplane.set_service(&withdrawn, i64::MAX, lingering.map(Arc::new));
            if wanted.as_ref() != programmed || self.pending.contains_key(id) {
                let created = service.map_or(i64::MAX, |service| service.created);
                self.dataplane.set_service(id, created, wanted.clone());
                self.pending.insert(id.clone(), wanted);
            }
        }
        if moved {
            self.settle(snapshot);
        }
    }

    /// Brings the kernel to what is wanted. What fails is tried again, from what the kernel then holds and with growing
    /// pauses; while it is the tables, nothing new is announced.
    async fn write(&mut self, snapshot: &Snapshot, now: Instant) {
        let pausing = self.trouble.as_ref().filter(|trouble| now < trouble.retry_at);
        if pausing.is_some_and(|trouble| trouble.of_tables) {
            return;
        }
        let is_pausing = pausing.is_some();
        let tables = self.write_tables();
        let of_tables = tables.is_err();
        let others = if of_tables || is_pausing { Vec::new() } else { self.write_others(snapshot).await };
        let errors: Vec<anyhow::Error> = tables.err().into_iter().chain(others).collect();
        if !errors.is_empty() {
            self.postpone(format!("{:#}", joined(errors.into_iter())), of_tables, now);
        } else if !is_pausing {
            self.trouble = None;
        }
    }

    /// Tracked connections and routes, which follow the tables; what went wrong.
    async fn write_others(&mut self, snapshot: &Snapshot) -> Vec<anyhow::Error> {
        let flows = self.clean(snapshot);
        let routes = if self.routes_due { self.write_routes(snapshot).await } else { Ok(()) };
        self.routes_due = routes.is_err();
        [flows, routes].into_iter().filter_map(Result::err).collect()
    }

    fn write_tables(&mut self) -> anyhow::Result<()> {
        if !self.is_observed {
            self.dataplane.observed(&self.kernel.observe()?);
            self.is_observed = true;
        }
        let written = self.sentry.write(&mut self.kernel, &mut self.dataplane);
        self.is_observed = written.is_ok();
        let written = written?;
        self.meter.wrote(written);
        if std::mem::take(&mut self.is_repair) && written > 0 {
            tracing::warn!(transactions = written, "somebody changed our nftables tables: they are repaired");
        }
        self.take_pending();
        self.sentry.take_over();
        Ok(())
    }

    fn take_pending(&mut self) {
        for (id, plan) in std::mem::take(&mut self.pending) {
            match plan {
                Some(plan) => self.programmed.insert(id, plan),
                None => self.programmed.remove(&id),
            };
        }
    }

    /// Deletes the tracked connections that new rules do not reach (S51–S53), once the kernel has those.
    fn clean(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        for id in std::mem::take(&mut self.unseen) {
            let programmed = self.programmed.get(&id).map(|plan| &**plan);
            self.flows.set(&id, programmed, snapshot.services.get(&id).map(|service| &**service));
        }
        let stale = self.flows.stale();
        if stale.is_empty() {
            return Ok(());
        }
        let cleaned = self.conntrack.clean(&stale, &self.dataplane.settings().node_port_addresses)?;
        self.flows.cleaned();
        self.meter.cleaned(&cleaned);
        tracing::debug!(?cleaned, "tracked connections that led nowhere are deleted");
        Ok(())
    }

    /// Routes to the other nodes' pods.
    async fn write_routes(&mut self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let wanted: BTreeMap<IpNet, IpAddr> = match self.config.node_routes {
            Routing::Api => routes::to_nodes(snapshot, &self.node),
            Routing::Off => BTreeMap::new(),
        };
        self.node_routes.apply(&wanted).await.context("routes to other nodes")
    }

    fn postpone(&mut self, error: String, of_tables: bool, now: Instant) {
        let last = self.trouble.take();
        if last.as_ref().is_none_or(|last| last.error != error) {
            tracing::error!(error, "the kernel refused a change; trying again");
        }
        let pause = last.map_or(RETRY_FIRST, |last| (last.pause * 2).min(RETRY_LONGEST));
        self.trouble = Some(Trouble { error, of_tables, pause, retry_at: now + pause });
    }

    /// Each problem is said once, when it appears.
    fn say(&mut self, snapshot: &Snapshot) {
        let unheard =
            snapshot.peers.values().filter(|peer| peer.passive && self.config.bgp.listen.is_empty());
        let unheard = unheard.map(|peer| Problem {
            object: peer.object(),
            field: "spec.passive".into(),
            reason: "NotListening",
            message: "waits for the peer to connect, but bgp.listen in the agent's configuration is empty"
                .into(),
        });
        let problems = self.of_peers.iter().chain(self.index.problems()).cloned();
        let problems: BTreeSet<Problem> = problems.chain(unheard).collect();
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
        let unwritten = self.is_unwritten();
        self.health.send_modify(|health| {
            health.eligible = node.is_none_or(|node| !node.leaving);
            health.node_uid = node.map(|node| node.uid.clone());
            if !unwritten {
                health.applied();
            }
            if health.ports != self.health_ports {
                health.ports = self.health_ports.clone();
            }
        });
    }

    fn is_unwritten(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.of_tables)
    }

    fn tell(&self, snapshot: &Snapshot) {
        let node = snapshot.nodes.get(&self.node);
        let report = LineReport {
            node_uid: node.map(|node| node.uid.clone()),
            synced: !self.is_unwritten(),
            error: self.trouble.as_ref().map(|trouble| trouble.error.clone()),
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
        let state = self.is_unwritten().then_some("the kernel refused a change");
        self.ready.send_if_modified(|last| std::mem::replace(last, state) != state);
    }
}

/// The part of a programmed plan that the kernel really serves by it: an older Service may claim one of its frontends.
fn served<'a>(dataplane: &Dataplane, id: &ServiceId, plan: &'a ServicePlan) -> Cow<'a, ServicePlan> {
    let is_served = |frontend: &Frontend| dataplane.serves_for(id, frontend);
    if plan.frontends.keys().all(is_served) {
        return Cow::Borrowed(plan);
    }
    let mut part = plan.clone();
    part.frontends.retain(|frontend, _| is_served(frontend));
    Cow::Owned(part)
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
