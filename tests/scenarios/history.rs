//! Invariant 2 for the whole line: after any sequence of API events, a node's rules, routes, announcements and settings are
//! those of an agent that starts with the cluster as it then is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use arbitrary::{Result, Unstructured};
use portolan::agent::{Announcer, Here};
use portolan::config::Config;
use portolan_dataplane::{Dataplane, KernelState, Settings, render};
use portolan_index::{Change, Index, Kind, Object};
use portolan_model::{ServiceId, ServicePlan, Snapshot};
use portolan_plan::{Classes, routes, service};
use serde_json::{Value, json};

use crate::hostile::kernel::Kernel;

const ME: &str = "n1";
const EVENTS: usize = 12;
const CONFIG: &str = r#"
proxy: { clusterCIDRs: [10.244.0.0/16], nodePortAddresses: [all] }
bgp: { asn: 64512 }
"#;

/// One agent, as `agent::line` wires it; nothing lingers, for that is a matter of time.
struct Agent {
    index: Index,
    config: Config,
    here: Here,
    announcer: Announcer,
    dataplane: Dataplane,
    kernel: Kernel,
    programmed: BTreeMap<ServiceId, Arc<ServicePlan>>,
    is_new: bool,
}

impl Agent {
    fn new() -> Agent {
        let config = Config::over(Value::Null, CONFIG).expect("a configuration");
        let mut dataplane = Dataplane::new(Settings::default());
        dataplane.observed(&KernelState::default());
        Agent {
            index: Index::new(&[]),
            here: Here::new(ME.into(), None),
            announcer: Announcer::new(ME.into(), config.bgp.asn, Classes::from(&config.classes)),
            config,
            dataplane,
            kernel: Kernel::default(),
            programmed: BTreeMap::new(),
            is_new: true,
        }
    }

    fn started_in(world: &World) -> Agent {
        let mut agent = Agent::new();
        let lists = Kind::ALL.map(|kind| Change::Replace(kind, world.of(kind)));
        agent.turn(lists);
        agent
    }

    /// Everything that has queued up, at once.
    fn turn(&mut self, changes: impl IntoIterator<Item = Change>) {
        let is_new = std::mem::take(&mut self.is_new);
        let (mut services, mut is_cluster) = (BTreeSet::new(), is_new);
        for change in changes {
            let dirty = self.index.apply(change);
            is_cluster |= dirty.policy || dirty.service_cidrs || !dirty.nodes.is_empty();
            services.extend(dirty.services);
        }
        let snapshot = self.snapshot();
        let mut is_all = is_new;
        if is_cluster {
            is_all |= self.here.see(&snapshot, &self.config, interfaces());
            self.dataplane.set_settings(self.here.settings(&snapshot, &self.config));
        }
        let is_reconfigured = is_cluster && self.announcer.configure(&snapshot).changed;
        let all: BTreeSet<ServiceId> =
            snapshot.services.keys().chain(self.programmed.keys()).chain(&services).cloned().collect();
        let to_plan = if is_all { &all } else { &services };
        let to_announce = if is_reconfigured { &all } else { to_plan };
        self.announce(&snapshot, to_announce);
        let rivals = self.plan(&snapshot, to_plan);
        self.announce(&snapshot, to_announce.iter().chain(&rivals));
    }

    fn plan(&mut self, snapshot: &Snapshot, services: &BTreeSet<ServiceId>) -> BTreeSet<ServiceId> {
        let mut rivals = BTreeSet::new();
        for id in services {
            let service = snapshot.services.get(id);
            let created = service.map_or(i64::MAX, |service| service.created);
            let wanted = service.map(|service| Arc::new(service::plan(service, &self.here.view)));
            self.here.see_vips(id, wanted.as_deref());
            let is_recreated = wanted.is_some() && self.dataplane.created(id) != Some(created);
            if is_recreated || wanted.as_ref() != self.programmed.get(id) {
                rivals.extend(self.dataplane.set_service(id, created, wanted.clone()));
            }
            match wanted {
                Some(plan) => self.programmed.insert(id.clone(), plan),
                None => self.programmed.remove(id),
            };
        }
        self.dataplane.set_settings(self.here.settings(snapshot, &self.config));
        self.kernel.write(&mut self.dataplane, |_, _| {});
        rivals
    }

    fn announce<'a>(&mut self, snapshot: &Snapshot, services: impl IntoIterator<Item = &'a ServiceId>) {
        for id in services {
            let served = self.programmed.get(id).map(|plan| {
                let frontends = plan.frontends.iter();
                let of_it = frontends.filter(|(frontend, _)| self.dataplane.serves_for(id, frontend));
                let frontends = of_it.map(|(frontend, forwarding)| (*frontend, forwarding.clone())).collect();
                ServicePlan { frontends, ..(**plan).clone() }
            });
            self.announcer.announce(snapshot, id, served.as_ref());
        }
    }

    fn snapshot(&self) -> Snapshot {
        self.index.snapshot().expect("nothing is waited for")
    }

    fn assert_same_as(&mut self, other: &mut Agent) {
        let (snapshot, others) = (self.snapshot(), other.snapshot());
        let problems: Vec<String> = self.index.problems().map(ToString::to_string).collect();
        assert!(problems.is_empty(), "what is wrong has a history by design: {problems:#?}");
        assert_eq!(snapshot, others);
        assert_eq!(routes::to_nodes(&snapshot, &ME.into()), routes::to_nodes(&others, &ME.into()));
        assert_eq!(self.dataplane.settings(), other.dataplane.settings());
        assert_eq!(render(&self.dataplane), render(&other.dataplane));
        assert!(self.dataplane.steps().is_empty(), "all is written");
        let (intent, wanted) = (self.announcer.intent(), other.announcer.intent());
        assert_eq!(intent.peers, wanted.peers);
        assert_eq!(intent.routes, wanted.routes);
        assert_eq!(self.announcer.withheld(), other.announcer.withheld());
        self.dataplane.observed(&self.kernel.observe());
        assert!(self.dataplane.steps().is_empty(), "a restart would write nothing");
    }
}

/// One of them is a Service's, too.
fn interfaces() -> [IpAddr; 2] {
    [[127, 0, 0, 1].into(), [192, 0, 2, 11].into()]
}

/// The objects that exist.
struct World(BTreeMap<(Kind, u8), Object>);

impl World {
    /// With one object of each kind, so that there is something to announce from the beginning.
    fn begin(u: &mut Unstructured) -> Result<World> {
        let mut world = World(BTreeMap::new());
        for kind in Kind::ALL {
            world.put(u, kind, 0)?;
        }
        Ok(world)
    }

    fn put(&mut self, u: &mut Unstructured, kind: Kind, number: u8) -> Result<Object> {
        let object = Object::from_manifest(manifest(u, kind, number)?).expect("a manifest");
        self.0.insert((kind, number), object.clone());
        Ok(object)
    }

    fn of(&self, kind: Kind) -> Vec<Object> {
        self.0.iter().filter(|((of, _), _)| *of == kind).map(|(_, object)| object.clone()).collect()
    }

    /// What comes, changes or goes, or a relist after the world moved unseen.
    fn step(&mut self, u: &mut Unstructured) -> Result<Change> {
        let kind = *u.choose(&KINDS)?;
        let number = u.int_in_range(0..=2)?;
        let object = self.put(u, kind, number)?;
        Ok(match u.int_in_range(0..=5)? {
            0 => {
                self.0.remove(&(kind, number));
                Change::Delete(kind, object.key().clone())
            }
            1 => {
                self.0.remove(&(kind, u.int_in_range(0..=2)?));
                Change::Replace(kind, self.of(kind))
            }
            _ => Change::Apply(object),
        })
    }
}

/// As often as they change in a cluster, more or less.
const KINDS: [Kind; 14] = [
    Kind::Service,
    Kind::Service,
    Kind::Service,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::EndpointSlice,
    Kind::EndpointSlice,
    Kind::Node,
    Kind::Node,
    Kind::ServiceCidr,
    Kind::Pool,
    Kind::Advertisement,
    Kind::Peer,
    Kind::Allocation,
];

fn manifest(u: &mut Unstructured, kind: Kind, number: u8) -> Result<Value> {
    let name = format!("x{number}");
    let mut one = |words: &[&'static str]| u.choose(words).copied();
    Ok(match kind {
        Kind::Service => {
            let created = one(&["2024-01-01T00:00:00Z", "2025-01-01T00:00:00Z", "2026-01-01T00:00:00Z"])?;
            let uid = format!("{name}-{created}");
            json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": { "name": name, "namespace": "ns", "uid": uid, "creationTimestamp": created },
                "spec": {
                    "type": one(&["ClusterIP", "LoadBalancer", "LoadBalancer", "LoadBalancer"])?,
                    "clusterIPs": [one(&["10.96.0.1", "10.96.0.2", "10.96.0.3"])?],
                    "externalTrafficPolicy": one(&["Cluster", "Local"])?,
                    "sessionAffinity": one(&["None", "None", "ClientIP"])?,
                    "externalIPs": [one(&["198.51.100.1", "198.51.100.2"])?],
                    "ports": [{ "port": 80, "nodePort": 30080, "protocol": one(&["TCP", "TCP", "UDP"])? }],
                },
                "status": { "loadBalancer": { "ingress": [{ "ip": one(&["192.0.2.10", "192.0.2.11", "192.0.2.12"])? }] } },
            })
        }
        Kind::EndpointSlice => json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "name": name, "namespace": "ns",
                "labels": { "kubernetes.io/service-name": one(&["x0", "x1", "x2"])? },
            },
            "addressType": "IPv4",
            "ports": [{ "name": "", "port": 80, "protocol": one(&["TCP", "TCP", "UDP"])? }],
            "endpoints": [
                { "addresses": [one(&["10.244.1.1", "10.244.1.2"])?], "nodeName": one(&["x0", ME])? },
                {
                    "addresses": [one(&["10.244.1.2", "10.244.2.1"])?], "nodeName": one(&["x0", "x1"])?,
                    "conditions": one(&["true", "false"])?.parse::<bool>().map(|ready| json!({ "ready": ready })).expect("a bool"),
                },
            ],
        }),
        Kind::Node => json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {
                "name": if number == 0 { ME } else { &name },
                "labels": { "topology.kubernetes.io/zone": one(&["a", "b"])? },
            },
            "spec": { "podCIDRs": [one(&["10.244.1.0/24", "10.244.2.0/24"])?] },
            "status": { "addresses": [{ "type": "InternalIP", "address": one(&["172.30.0.1", "172.30.0.2", "192.0.2.12"])? }] },
        }),
        Kind::ServiceCidr => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": { "name": name },
            "spec": { "cidrs": [one(&["10.96.0.0/16", "10.97.0.0/16"])?] },
        }),
        Kind::Pool => json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "IPAddressPool", "metadata": { "name": name },
            "spec": { "addresses": [one(&["192.0.2.0/24", "192.0.2.10/32", "203.0.113.0/24"])?] },
        }),
        Kind::Advertisement => json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "Advertisement", "metadata": { "name": name },
            "spec": one(&["ips", "external", "all"]).map(|what| match what {
                "ips" => json!({ "sources": ["LoadBalancerIP"], "bgp": {} }),
                "external" => json!({ "sources": ["ExternalIP"], "externalIPCIDRs": ["198.51.100.0/24"], "bgp": {} }),
                _ => json!({ "sources": ["LoadBalancerIP", "ClusterIP"], "bgp": { "med": 5 } }),
            })?,
        }),
        Kind::Peer => json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "BGPPeer", "metadata": { "name": name },
            "spec": { "peerAddress": one(&["172.30.0.253", "172.30.0.254"])?, "peerASN": 64500 },
        }),
        Kind::Allocation => {
            let address = format!("192.0.2.{}", 10 + number);
            json!({
                "apiVersion": "portolan.dev/v1alpha1", "kind": "IPAllocation",
                "metadata": { "name": address.replace('.', "-") },
                "spec": {
                    "address": address, "pool": one(&["x0", "x1"])?,
                    "owners": [{ "namespace": "ns", "name": one(&["x0", "x1", "x2"])?, "uid": "u" }],
                },
            })
        }
    })
}

#[test]
fn s64_s65_a_node_is_what_a_fresh_start_would_make_of_it_after_every_event() {
    let (mut worlds, mut served, mut announced) = (0, 0, 0);
    arbtest::arbtest(|u| {
        let mut world = World::begin(u)?;
        let mut agent = Agent::started_in(&world);
        for _ in 0..EVENTS {
            // Some wait for one turn together.
            let waiting = u.int_in_range(1..=2)?;
            let changes = (0..waiting).map(|_| world.step(u)).collect::<Result<Vec<_>>>()?;
            agent.turn(changes);
            agent.assert_same_as(&mut Agent::started_in(&world));
        }
        worlds += 1;
        served += agent.programmed.len();
        announced += agent.announcer.intent().routes.values().map(|routes| routes.len()).sum::<usize>();
        Ok(())
    })
    .size_min(512)
    .budget_ms(8_000);
    println!("{worlds} histories, {served} Services served, {announced} routes announced");
    assert!(served > 0 && announced > 0);
}

/// Two Services claim one external IP. When the older gives it up, or is made anew and thereby younger, nothing changes about
/// the other one, and yet it is the other's turn to be served and announced.
#[test]
fn the_next_claimant_of_an_address_is_served_and_announced() {
    let object = |manifest: Value| Object::from_manifest(manifest).expect("a manifest");
    let service = |name: &str, year: u16, ip: &str| {
        object(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": "ns", "creationTimestamp": format!("{year}-01-01T00:00:00Z") },
            "spec": { "clusterIPs": [format!("10.96.0.{}", name.len())], "externalIPs": [ip], "ports": [{ "port": 80 }] },
        }))
    };
    let slice = |service: &str| {
        object(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": service, "namespace": "ns", "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 80 }],
            "endpoints": [{ "addresses": [format!("10.244.1.{}", service.len())] }],
        }))
    };
    let frame = [
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": ME },
            "status": { "addresses": [{ "type": "InternalIP", "address": "172.30.0.1" }] },
        }),
        json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "BGPPeer", "metadata": { "name": "tor" },
            "spec": { "peerAddress": "172.30.0.254", "peerASN": 64500 },
        }),
        json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "Advertisement", "metadata": { "name": "external" },
            "spec": { "sources": ["ExternalIP"], "externalIPCIDRs": ["198.51.100.0/24"], "bgp": {} },
        }),
    ];
    let mut agent = Agent::new();
    let both = [service("a", 2024, "198.51.100.1"), service("bb", 2025, "198.51.100.1")];
    let all = frame.map(object).into_iter().chain(both).chain(["a", "bb"].map(slice));
    agent.turn(all.map(Change::Apply));
    let announced = |agent: &mut Agent| {
        let routes = agent.announcer.intent().routes;
        routes.values().flat_map(|routes| routes.keys()).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(announced(&mut agent), ["198.51.100.1/32"]);
    agent.turn([Change::Apply(service("a", 2024, "198.51.100.2"))]);
    assert_eq!(announced(&mut agent), ["198.51.100.1/32", "198.51.100.2/32"]);
    agent.turn([Change::Apply(service("a", 2024, "198.51.100.1"))]);
    let winner = |agent: &Agent| {
        let text = render(&agent.dataplane);
        let line =
            text.lines().find(|line| line.contains("198.51.100.1 . tcp . 80 . none")).map(str::to_owned);
        line.expect("the external IP is served")
    };
    assert!(winner(&agent).contains("10.244.1.1 "), "{}", winner(&agent));
    agent.turn([Change::Apply(service("a", 2026, "198.51.100.1"))]);
    assert!(winner(&agent).contains("10.244.1.2 "), "{}", winner(&agent));
    agent.turn([Change::Delete(Kind::Service, service("bb", 2025, "198.51.100.1").key().clone())]);
    assert_eq!(announced(&mut agent), ["198.51.100.1/32"]);
}
