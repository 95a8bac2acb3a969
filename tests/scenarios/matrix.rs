//! The masquerade matrix (S43–S49, and upstream's InternalExternalMasquerade), generated: every client at every target under every
//! policy, from Service through plan and rules to what becomes of the packet. What should become of it is said by
//! [`expected`], in the words of the specification and without the planner's types.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use portolan_dataplane::{Dataplane, Outcome, Packet, Settings, evaluate};
use portolan_model::{
    Detector, Endpoint, EndpointSlice, Family, IngressIp, IpMode, Protocol, Service, ServiceId, ServicePort,
    ServiceType, TrafficPolicy,
};
use portolan_plan::{NodeView, service};

#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    /// A pod of this node that is no endpoint.
    Pod,
    /// A pod of this node that is an endpoint, where there are any here: it may reach itself.
    Endpoint,
    /// A pod of another node, by this node's NodePort or VIP.
    PodElsewhere,
    /// This node, or a pod in its network.
    Node,
    NodeElsewhere,
    Outside,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Target {
    ClusterIp,
    NodePort,
    LoadBalancerIp,
    ExternalIp,
}

/// Where the endpoints are.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Endpoints {
    Nowhere,
    Here,
    Elsewhere,
    HereAndElsewhere,
}

/// The cluster and the node; the packet is a client and a target.
#[derive(Clone, Copy, Debug)]
struct Case {
    family: Family,
    endpoints: Endpoints,
    internal: TrafficPolicy,
    external: TrafficPolicy,
    masquerade_all: bool,
    detection: Detection,
}

/// detectLocalMode (S48).
#[derive(Clone, Copy, Debug, PartialEq)]
enum Detection {
    /// ClusterCIDR without a range: no pod is known as one.
    None,
    ClusterCidr,
    /// These three know only the pods of this node.
    NodeCidr,
    BridgeInterface,
    InterfaceNamePrefix,
}

#[derive(Clone, Debug, PartialEq)]
enum Fate {
    Refused,
    Silence,
    /// Endpoints that may answer, and whether they see the node's address instead of the client's.
    Answered(BTreeSet<(SocketAddr, bool)>),
}

const CLIENTS: [Client; 6] = [
    Client::Pod,
    Client::Endpoint,
    Client::PodElsewhere,
    Client::Node,
    Client::NodeElsewhere,
    Client::Outside,
];
const TARGETS: [Target; 4] =
    [Target::ClusterIp, Target::NodePort, Target::LoadBalancerIp, Target::ExternalIp];
const ENDPOINTS: [Endpoints; 4] =
    [Endpoints::Nowhere, Endpoints::Here, Endpoints::Elsewhere, Endpoints::HereAndElsewhere];
const DETECTION: [Detection; 5] = [
    Detection::None,
    Detection::ClusterCidr,
    Detection::NodeCidr,
    Detection::BridgeInterface,
    Detection::InterfaceNamePrefix,
];
const POLICIES: [TrafficPolicy; 2] = [TrafficPolicy::Cluster, TrafficPolicy::Local];

/// The specification.
fn expected(case: Case, client: Client, target: Target) -> Fate {
    let all = addresses(case);
    let here: Vec<SocketAddr> = all.iter().copied().filter(|a| is_here(case.family, a.ip())).collect();
    let known_pod = match case.detection {
        Detection::None => false,
        Detection::ClusterCidr => is_pod(client),
        Detection::NodeCidr | Detection::BridgeInterface | Detection::InterfaceNamePrefix => {
            matches!(client, Client::Pod | Client::Endpoint)
        }
    };
    let own = client == Client::Node;
    let internal = target == Target::ClusterIp;
    // S32: internal policy for the ClusterIP, external policy for the rest
    let policy = if internal { case.internal } else { case.external };
    // S45: pods and the node itself reach everything at an external address
    let short_circuit = !internal && policy == TrafficPolicy::Local && (known_pod || own);
    let list = if policy == TrafficPolicy::Local && !short_circuit { here } else { all.clone() };
    if all.is_empty() {
        return Fate::Refused; // S38
    }
    if list.is_empty() {
        return Fate::Silence; // S39
    }
    let masquerade = match (internal, policy) {
        (true, _) => case.masquerade_all || (case.detection != Detection::None && !known_pod), // S16
        (false, TrafficPolicy::Cluster) => true,                                               // S43
        (false, TrafficPolicy::Local) => own,                                                  // S44, S45
    };
    let itself = |endpoint: &SocketAddr| endpoint.ip() == address_of(client, case.family); // S46
    Fate::Answered(list.into_iter().map(|endpoint| (endpoint, masquerade || itself(&endpoint))).collect())
}

fn is_pod(client: Client) -> bool {
    matches!(client, Client::Pod | Client::Endpoint | Client::PodElsewhere)
}

fn ip(family: Family, v4: &str, v6: &str) -> IpAddr {
    let text = if family == Family::Ipv4 { v4 } else { v6 };
    text.parse().expect("an IP address")
}

fn address_of(client: Client, family: Family) -> IpAddr {
    match client {
        Client::Pod => ip(family, "10.244.1.9", "fd00:10:244:1::9"),
        Client::Endpoint => endpoint(family, 1),
        Client::PodElsewhere => ip(family, "10.244.2.9", "fd00:10:244:2::9"),
        Client::Node => ip(family, "172.30.0.1", "fd00:172:30::1"),
        Client::NodeElsewhere => ip(family, "172.30.0.2", "fd00:172:30::2"),
        Client::Outside => ip(family, "198.51.100.7", "2001:db8::7"),
    }
}

fn address_at(target: Target, family: Family) -> SocketAddr {
    let (ip, port) = match target {
        Target::ClusterIp => (ip(family, "10.96.0.10", "fd00:10:96::a"), 80),
        Target::NodePort => (address_of(Client::Node, family), 30080),
        Target::LoadBalancerIp => (ip(family, "192.0.2.10", "2001:db8:2::a"), 80),
        Target::ExternalIp => (ip(family, "203.0.113.10", "2001:db8:3::a"), 80),
    };
    SocketAddr::new(ip, port)
}

/// Two endpoints on this node (1, 2) and two on another (3, 4).
fn endpoint(family: Family, number: u8) -> IpAddr {
    let node = if number <= 2 { 1 } else { 2 };
    ip(family, &format!("10.244.{node}.{number}"), &format!("fd00:10:244:{node}::{number}"))
}

fn is_here(family: Family, ip: IpAddr) -> bool {
    [1, 2].iter().any(|number| endpoint(family, *number) == ip)
}

fn numbers(endpoints: Endpoints) -> &'static [u8] {
    match endpoints {
        Endpoints::Nowhere => &[],
        Endpoints::Here => &[1, 2],
        Endpoints::Elsewhere => &[3, 4],
        Endpoints::HereAndElsewhere => &[1, 2, 3, 4],
    }
}

fn addresses(case: Case) -> Vec<SocketAddr> {
    let at = |number: &u8| SocketAddr::new(endpoint(case.family, *number), 8080);
    numbers(case.endpoints).iter().map(at).collect()
}

fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for family in Family::ALL {
        for endpoints in ENDPOINTS {
            for (internal, external) in POLICIES.iter().flat_map(|a| POLICIES.iter().map(|b| (*a, *b))) {
                for (masquerade_all, detection) in
                    [false, true].iter().flat_map(|all| DETECTION.map(|detection| (*all, detection)))
                {
                    cases.push(Case { family, endpoints, internal, external, masquerade_all, detection });
                }
            }
        }
    }
    cases
}

/// A LoadBalancer Service with every kind of address.
fn web(case: Case) -> Service {
    let at = |target| address_at(target, case.family);
    let slice = EndpointSlice {
        name: "web-1".into(),
        family: case.family,
        ports: vec![("".into(), Protocol::Tcp, 8080)],
        endpoints: numbers(case.endpoints).iter().map(|number| ready(case.family, *number)).collect(),
    };
    Service {
        kind: ServiceType::LoadBalancer,
        cluster_ips: vec![at(Target::ClusterIp).ip()],
        families: vec![case.family],
        external_ips: [at(Target::ExternalIp).ip()].into(),
        ingress: [IngressIp { ip: at(Target::LoadBalancerIp).ip(), mode: IpMode::Vip }].into(),
        ports: vec![ServicePort {
            name: "".into(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: Some(at(Target::NodePort).port()),
        }],
        internal_policy: case.internal,
        external_policy: case.external,
        slices: vec![Arc::new(slice)],
        ..Service::new(ServiceId::new("default", "web"))
    }
}

fn ready(family: Family, number: u8) -> Endpoint {
    let address = endpoint(family, number);
    Endpoint {
        address,
        ready: true,
        serving: true,
        terminating: false,
        node: Some(if is_here(family, address) { "n1" } else { "n2" }.into()),
        zone: None,
        hints: None,
    }
}

fn detector(case: Case) -> Detector {
    let range = |v4: &str, v6: &str| {
        let text = if case.family == Family::Ipv4 { v4 } else { v6 };
        Detector::Ranges(vec![text.parse().expect("a range")])
    };
    match case.detection {
        Detection::None => Detector::default(),
        Detection::ClusterCidr => range("10.244.0.0/16", "fd00:10:244::/48"),
        Detection::NodeCidr => range("10.244.1.0/24", "fd00:10:244:1::/64"),
        Detection::BridgeInterface => Detector::Interface("cbr0".into()),
        Detection::InterfaceNamePrefix => Detector::InterfacePrefix("veth".into()),
    }
}

/// What a packet comes in by, on a node whose pods have a bridge or an interface each.
fn interface(case: Case, client: Client) -> Option<Arc<str>> {
    match client {
        Client::Pod | Client::Endpoint if case.detection == Detection::InterfaceNamePrefix => {
            Some("veth1a2b".into())
        }
        Client::Pod | Client::Endpoint => Some("cbr0".into()),
        Client::PodElsewhere | Client::NodeElsewhere | Client::Outside => Some("eth0".into()),
        Client::Node => None,
    }
}

/// What the node's rules are for the case.
fn rules(case: Case) -> Dataplane {
    let node = address_of(Client::Node, case.family);
    let pods = detector(case);
    let view = NodeView {
        node: "n1".into(),
        addresses: [node].into(),
        pods: pods.clone(),
        masquerade_all: case.masquerade_all,
        external_ips: true,
        ..NodeView::default()
    };
    let mut dataplane =
        Dataplane::new(Settings { pods, node_port_addresses: [node].into(), ..Settings::default() });
    let web = web(case);
    dataplane.set_service(&web.id, 0, Some(Arc::new(service::plan(&web, &view))));
    dataplane
}

fn found(outcome: Outcome) -> Option<Fate> {
    Some(match outcome {
        Outcome::Reject | Outcome::Reset => Fate::Refused,
        Outcome::Drop => Fate::Silence,
        Outcome::Dnat(candidates) => {
            Fate::Answered(candidates.iter().map(|c| (c.backend, c.masquerade)).collect())
        }
        Outcome::Pass => return None,
    })
}

impl fmt::Display for Fate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fate::Refused => f.write_str("refused"),
            Fate::Silence => f.write_str("dropped"),
            Fate::Answered(endpoints) => {
                let mut line = f.debug_set();
                for (endpoint, masquerade) in endpoints {
                    let how = if *masquerade { " masqueraded" } else { "" };
                    line.entry(&format_args!("{endpoint}{how}"));
                }
                line.finish()
            }
        }
    }
}

#[test]
fn s16_s29_s32_s38_s39_s43_s44_s45_s46_s48_masquerade_matrix() {
    let (mut asked, mut wrong) = (0, Vec::new());
    let (mut refused, mut silent, mut mixed) = (0, 0, 0);
    for case in cases() {
        let table = rules(case).desired(case.family);
        for (client, target) in CLIENTS.iter().flat_map(|client| TARGETS.map(|target| (*client, target))) {
            let packet = Packet {
                source: SocketAddr::new(address_of(client, case.family), 40000),
                destination: address_at(target, case.family),
                protocol: Protocol::Tcp,
                from_node: client == Client::Node,
                interface: interface(case, client),
            };
            let trace = evaluate(&table, &packet);
            let (wanted, got) = (expected(case, client, target), found(trace.outcome));
            match &wanted {
                Fate::Refused => refused += 1,
                Fate::Silence => silent += 1,
                Fate::Answered(to) => {
                    mixed += usize::from(to.iter().map(|(_, m)| *m).collect::<BTreeSet<_>>().len() == 2)
                }
            }
            if got.as_ref() != Some(&wanted) {
                let got = got.map_or("passed on".into(), |fate| fate.to_string());
                wrong.push(format!(
                    "{client:?} to {target:?}, {case:?}:\n  wanted {wanted}\n  got    {got}\n  {}",
                    trace.reasons.join("\n  ")
                ));
            }
            asked += 1;
        }
    }
    assert!(
        wrong.is_empty(),
        "{} of {asked} wrong, among them\n{}",
        wrong.len(),
        wrong[..wrong.len().min(4)].join("\n")
    );
    assert_eq!(asked, 6 * 4 * 320);
    assert!(
        refused > 100 && silent > 100 && mixed > 20,
        "{refused} refused, {silent} silent, {mixed} with itself"
    );
}
