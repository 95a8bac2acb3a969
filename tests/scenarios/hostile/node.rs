use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use portolan_dataplane::{Dataplane, KernelState, Limits, Outcome, Packet, Settings, evaluate, render};
use portolan_index::{Change, Index, Kind, Object};
use portolan_model::{Detector, Family, Name, ServiceId, ServicePlan, Snapshot};
use portolan_nft::Table;
use portolan_plan::flows::Flows;
use portolan_plan::health::Ports;
use portolan_plan::node_ports::{self, Selector};
use portolan_plan::{NodeView, service};

use super::kernel::Kernel;

pub const NAME: &str = "n1";
/// How pods are told from clients outside.
pub const PODS: [&str; 2] = ["10.244.0.0/16", "fd44::/48"];
/// What the node has on its interfaces besides the addresses of its Node object.
pub const INTERFACES: [&str; 4] = ["127.0.0.1", "::1", "192.0.2.9", "2001:db8::9"];

pub struct Node {
    index: Index,
    view: NodeView,
    dataplane: Dataplane,
    kernel: Kernel,
    plans: BTreeMap<ServiceId, Arc<ServicePlan>>,
    flows: Flows,
    /// Time stands still.
    now: Instant,
    health: Ports,
}

impl Default for Node {
    fn default() -> Node {
        // Small transactions, so that there are several.
        let limits = Limits { elements: 7, replacement: 10_000, spare: 2 };
        let mut dataplane = Dataplane::with_limits(Settings::default(), limits);
        dataplane.observed(&KernelState::default());
        let mut node = Node {
            index: Index::new(&[]),
            view: NodeView::default(),
            dataplane,
            kernel: Kernel::default(),
            plans: BTreeMap::new(),
            flows: Flows::new(true),
            now: Instant::now(),
            health: Ports::default(),
        };
        node.see_node();
        node.settle();
        node
    }
}

impl Node {
    /// A node that starts when all of this is there.
    pub fn from_lists(objects: impl Iterator<Item = Object>) -> Node {
        let mut lists: BTreeMap<Kind, Vec<Object>> = BTreeMap::new();
        objects.for_each(|object| lists.entry(object.kind()).or_default().push(object));
        let mut node = Node::default();
        lists.into_iter().for_each(|(kind, list)| node.take(Change::Replace(kind, list)));
        node.write();
        node
    }

    /// An agent that starts beside this kernel, knowing the same, would write nothing.
    pub fn assert_settled(&mut self) {
        assert_eq!(format!("{:?}", self.dataplane.steps()), "[]");
        self.dataplane.observed(&self.kernel.observe());
        assert_eq!(format!("{:?}", self.dataplane.steps()), "[]", "after a restart");
    }

    pub fn take(&mut self, change: Change) {
        let dirty = self.index.apply(change);
        let snapshot = self.snapshot();
        let mut services = dirty.services;
        if !dirty.nodes.is_empty() && self.see_node() {
            services.extend(snapshot.services.keys().chain(self.plans.keys()).cloned());
        }
        for id in services {
            let wanted = snapshot.services.get(&id);
            let plan = wanted.map(|wanted| Arc::new(service::plan(wanted, &self.view)));
            self.flows.set(&id, plan.as_deref(), wanted.map(|wanted| &**wanted), self.now);
            self.health.set(&id, wanted.map(|wanted| &**wanted), &self.view);
            self.dataplane.set_service(&id, wanted.map_or(0, |wanted| wanted.created), plan.clone());
            match plan {
                Some(plan) => self.plans.insert(id, plan),
                None => self.plans.remove(&id),
            };
        }
        self.settle();
    }

    pub fn write(&mut self) {
        self.kernel.write(&mut self.dataplane, |_, _| {});
        self.flows.stale(self.now);
        self.flows.cleaned();
    }

    /// The objects' problems, each a sentence.
    pub fn problems(&self) -> Vec<String> {
        self.index.problems().map(ToString::to_string).collect()
    }

    pub fn table(&self, family: Family) -> Table {
        self.kernel.table(family).expect("both tables are written")
    }

    pub fn assert_same_as(&self, other: &Node) {
        assert_eq!(self.snapshot(), other.snapshot());
        assert_eq!(render(&self.dataplane), render(&other.dataplane), "the way to a cluster leaves no trace");
        assert_eq!(self.health, other.health);
    }

    pub fn assert_outcomes(&self, outcomes: &[(Packet, Outcome)]) {
        let tables = Family::ALL.map(|family| self.table(family));
        for (packet, outcome) in outcomes {
            let [v4, v6] = &tables;
            let table = if packet.source.is_ipv4() { v4 } else { v6 };
            assert_eq!(evaluate(table, packet).outcome, *outcome, "{packet:?}");
        }
    }

    fn snapshot(&self) -> Snapshot {
        self.index.snapshot().expect("nothing is waited for")
    }

    /// Says whether every Service must be planned again.
    fn see_node(&mut self) -> bool {
        let snapshot = self.snapshot();
        let node = snapshot.nodes.get(&Name::from(NAME));
        let own = INTERFACES.iter().filter_map(|ip| ip.parse::<IpAddr>().ok());
        let view = NodeView {
            node: NAME.into(),
            zone: node.and_then(|node| node.zone.clone()),
            addresses: node.iter().flat_map(|node| &node.internal_ips).copied().chain(own).collect(),
            pods: Detector::Ranges(PODS.iter().filter_map(|cidr| cidr.parse().ok()).collect()),
            external_ips: true,
            ..NodeView::default()
        };
        std::mem::replace(&mut self.view, view.clone()) != view
    }

    fn settle(&mut self) {
        let snapshot = self.snapshot();
        let primary = snapshot.nodes.get(&Name::from(NAME)).map_or(&[][..], |node| &node.internal_ips);
        let vips: BTreeSet<IpAddr> = self.plans.values().flat_map(|plan| plan.addresses()).collect();
        let settings = Settings {
            pods: self.view.pods.clone(),
            node_port_addresses: node_ports::addresses(
                &[Selector::All],
                primary,
                &self.view.addresses,
                &vips,
            ),
            service_cidrs: snapshot
                .service_cidrs
                .values()
                .flat_map(|object| &object.cidrs)
                .copied()
                .collect(),
            ..Settings::default()
        };
        self.dataplane.set_settings(settings);
    }
}
