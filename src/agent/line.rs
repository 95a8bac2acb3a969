//! The task that owns index, plans and kernel: it takes everything that has queued up at once and makes one turn.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use ipnet::IpNet;
use portolan_index::{Change, Dirty, Index};
use portolan_model::{Name, Problem, ServiceId, Snapshot};
use portolan_plan::complaints::Complaints;
use portolan_plan::health::Ports;
use portolan_plan::localhost::Listeners;
use portolan_plan::{Classes, node_ports, routes, service};
use tokio::sync::{mpsc, watch};

use super::announcer::{Announced, Announcer};
use super::connections::Connections;
use super::here::Here;
use super::meter::Meter;
use super::node_routes::NodeRoutes;
use super::programmer::Programmer;
use super::report::LineReport;
use super::tables::Tables;
use crate::allocator;
use crate::config::Config;
use crate::config::NodeRoutes as Routing;
use crate::dataplane::conntrack;
use crate::health::Health;
use crate::metrics::Metrics;
use crate::reporter::{Alarm, Reporter, START};
use crate::speaker::Intent;

mod outcome;

/// Changes taken over in one turn.
const BATCH: usize = 1024;

pub struct Line {
    node: Name,
    config: Config,
    changed_config: watch::Receiver<Config>,
    index: Index,
    here: Here,
    programmer: Programmer,
    announcer: Announcer,
    announced: Announced,
    /// No turn was made yet.
    is_new: bool,
    /// The node's addresses are to be read again.
    addresses_changed: bool,
    /// Problems of the node's sessions.
    of_peers: Vec<Problem>,
    complaints: Complaints,
    intent: watch::Sender<Arc<Intent>>,
    report: watch::Sender<LineReport>,
    ready: watch::Sender<Option<&'static str>>,
    health_ports: Ports,
    health: watch::Sender<Health>,
    localhost: watch::Sender<Listeners>,
    meter: Meter,
    reporter: Reporter,
}

/// Where the line's outcome goes.
pub struct Outlets {
    pub intent: watch::Sender<Arc<Intent>>,
    pub report: watch::Sender<LineReport>,
    pub ready: watch::Sender<Option<&'static str>>,
    pub health: watch::Sender<Health>,
    /// Node ports to be relayed on loopback addresses (S22).
    pub localhost: watch::Sender<Listeners>,
    pub metrics: Arc<Metrics>,
    pub reporter: Reporter,
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
        let Outlets { intent, report, ready, health, localhost, metrics, reporter } = outlets;
        let config = changed_config.borrow_and_update().clone();
        let classes = Classes::from(&config.classes);
        tune(&config, &reporter);
        let alarm = Alarm::new(reporter.clone());
        let tables = Tables::open(&config.proxy)?;
        let connections = Connections::open(config.proxy.conntrack.cut_vanished_tcp)?;
        let node: Name = node.into();
        Ok(Line {
            index,
            here: Here::new(node.clone(), tables.lacks()),
            programmer: Programmer::new(tables, connections, NodeRoutes::open().await?, alarm),
            announcer: Announcer::new(node.clone(), config.bgp.asn, classes),
            node,
            config,
            changed_config,
            announced: Announced::default(),
            is_new: true,
            addresses_changed: true,
            of_peers: Vec::new(),
            complaints: Complaints::default(),
            intent,
            report,
            ready,
            health_ports: Ports::default(),
            health,
            localhost,
            meter: Meter::new(metrics),
            reporter,
        })
    }

    /// Ends only when the watchers are gone, or the kernel tells no more of its addresses.
    pub async fn run(mut self, mut changes: mpsc::Receiver<Change>) -> anyhow::Result<()> {
        let mut batch = Vec::new();
        loop {
            let wake = self.programmer.wake();
            let Programmer { node_routes, tables, .. } = &mut self.programmer;
            let mut touched = Touched::default();
            tokio::select! {
                count = changes.recv_many(&mut batch, BATCH) => anyhow::ensure!(count > 0, "the watchers ended"),
                changed = node_routes.changed() => { changed?; self.addresses_changed = true; }
                seen = tables.sentry.changed() => {
                    tables.sentry.heed(seen.context("nf_tables monitor")?, Instant::now());
                }
                // The sender goes when the agent does.
                Ok(()) = self.changed_config.changed() => {
                    self.reconfigure();
                    (touched.cluster, touched.all, self.addresses_changed) = (true, true, true);
                }
                () = sleep_until(wake) => {}
            }
            self.programmer.tables.check(Instant::now());
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
        tune(&self.config, &self.reporter);
        let classes = Classes::from(&self.config.classes);
        self.announcer = Announcer::new(self.node.clone(), self.config.bgp.asn, classes);
    }

    /// From a snapshot to kernel and speaker. It announces twice: first what is no longer to be served is withdrawn, then,
    /// with the kernel written, what is served now goes out (invariant 7).
    async fn turn(&mut self, snapshot: &Snapshot, mut touched: Touched, now: Instant) {
        let first = std::mem::take(&mut self.is_new);
        touched.cluster |= first;
        let moved = std::mem::take(&mut self.addresses_changed);
        if moved && let Err(error) = self.programmer.node_routes.refresh().await {
            tracing::error!(error = format!("{error:#}"), "cannot read this node's addresses");
            self.addresses_changed = true;
        }
        if touched.cluster || moved {
            touched.all |= self.see_node(snapshot) || first;
            self.programmer.routes_due = true;
        }
        let reconfigured = touched.cluster && self.configure(snapshot);
        if touched.cluster || touched.problems {
            self.say(snapshot);
        }
        touched.services.extend(self.programmer.tables.due(now));
        let all = match touched.all || reconfigured {
            true => self.all_services(snapshot, &touched.services),
            false => BTreeSet::new(),
        };
        let to_plan = if touched.all { &all } else { &touched.services };
        let to_announce = if reconfigured { &all } else { to_plan };

        // A turn that hangs shows as a change that waits.
        self.health.send_modify(|health| health.waits_since(now));
        let announced_before = self.announced.clone();
        self.announce(snapshot, to_announce, reconfigured);
        let rivals = self.plan(snapshot, to_plan, &announced_before, now);
        self.programmer.connections.touch(to_plan);
        self.write(snapshot, now).await;
        self.measure(to_plan, touched.all, now);
        self.announce(snapshot, to_announce.iter().chain(&rivals), reconfigured);
        self.tell(snapshot);
        self.check_up(snapshot, to_plan);
        if touched.all {
            self.index.compact();
            self.programmer.tables.compact();
            allocator::return_free();
        }
    }

    /// Takes over this node's own facts; says whether every Service must be planned again.
    fn see_node(&mut self, snapshot: &Snapshot) -> bool {
        let interfaces = self.programmer.node_routes.addresses();
        let changed = self.here.see(snapshot, &self.config, interfaces);
        self.programmer.tables.set_settings(self.here.settings(snapshot, &self.config));
        changed
    }

    /// Takes over what decides over announcements besides Services; says whether all are to be decided anew.
    fn configure(&mut self, snapshot: &Snapshot) -> bool {
        let configured = self.announcer.configure(snapshot);
        self.of_peers = configured.problems;
        configured.changed
    }

    /// Every Service that is or was: for changes that are about more than single ones.
    fn all_services(&self, snapshot: &Snapshot, touched: &BTreeSet<ServiceId>) -> BTreeSet<ServiceId> {
        let programmed = self.programmer.tables.services();
        snapshot.services.keys().chain(programmed).chain(touched).cloned().collect()
    }

    /// Hands the speaker what the kernel's present state allows.
    fn announce<'a>(
        &mut self,
        snapshot: &Snapshot,
        services: impl IntoIterator<Item = &'a ServiceId>,
        reconfigured: bool,
    ) {
        let mut changed = reconfigured;
        for id in services {
            let served = self.programmer.tables.served(id);
            changed |= self.announcer.announce(snapshot, id, served.as_deref());
        }
        if changed {
            let intent = self.announcer.intent();
            self.announced = Announced::by(&intent);
            self.meter.announced(self.announced.prefixes.len());
            self.intent.send_replace(Arc::new(intent));
        }
    }

    /// `announced` is what routers believed before this turn: what of it goes lingers. Returns the Services that claim the same
    /// as these, whose turn to be served it may be.
    fn plan(
        &mut self,
        snapshot: &Snapshot,
        services: &BTreeSet<ServiceId>,
        announced: &Announced,
        now: Instant,
    ) -> BTreeSet<ServiceId> {
        let (mut moved, mut rivals) = (false, BTreeSet::new());
        let loopback = node_ports::loopback(&self.config.proxy.node_port_addresses);
        for id in services {
            let service = snapshot.services.get(id);
            let created = service.map_or(i64::MAX, |service| service.created);
            let wanted = service.map(|service| Arc::new(service::plan(service, &self.here.view)));
            let both = service.and_then(|service| Some((&**service, wanted.as_deref()?)));
            self.localhost.send_if_modified(|listeners| listeners.set(id, both, &loopback));
            moved |= self.here.see_vips(id, wanted.as_deref());
            let is_announced = |ip: &IpAddr| announced.attracts(ip);
            rivals.extend(self.programmer.tables.plan(id, created, wanted, is_announced, now));
        }
        if moved {
            self.programmer.tables.set_settings(self.here.settings(snapshot, &self.config));
        }
        rivals
    }

    async fn write(&mut self, snapshot: &Snapshot, now: Instant) {
        let routes = || -> BTreeMap<IpNet, IpAddr> {
            match self.config.node_routes {
                Routing::Api => routes::to_nodes(snapshot, &self.node),
                Routing::Off => BTreeMap::new(),
            }
        };
        self.programmer.write(snapshot, routes, &mut self.meter, now).await;
    }

    fn measure(&mut self, services: &BTreeSet<ServiceId>, all: bool, start: Instant) {
        if services.is_empty() {
            return;
        }
        let plans = services.iter().map(|id| (id, self.programmer.tables.programmed(id).map(|plan| &**plan)));
        self.meter.turned(all, start, !self.programmer.is_unwritten(), plans);
    }
}

impl Touched {
    fn add(&mut self, dirty: Dirty) {
        self.cluster |= dirty.policy || dirty.service_cidrs || !dirty.nodes.is_empty();
        self.problems |= dirty.problems;
        self.services.extend(dirty.services);
    }
}

/// A container often sees /sys and /proc/sys read-only: then its init container must have done it (S55, S75).
fn tune(config: &Config, reporter: &Reporter) {
    let failed = conntrack::tune(&(&config.proxy.conntrack).into());
    let is_read_only = |error: &std::io::Error| error.kind() == std::io::ErrorKind::ReadOnlyFilesystem;
    let files: Vec<&str> = failed.iter().filter(|(_, e)| is_read_only(e)).map(|(file, _)| *file).collect();
    if !files.is_empty() {
        let files = files.join(", ");
        let note = format!(
            "read-only, so that connection tracking keeps its settings: {files}; see `agent --init-only`"
        );
        reporter.warn("readOnlySysFS", START, &note);
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
