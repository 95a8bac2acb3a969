//! Short ways to write clusters in tests, and to print what was decided.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use portolan_bgp::PeerAsn;
use portolan_model::*;

use crate::NodeView;

pub fn ip(text: &str) -> IpAddr {
    text.parse().expect("an IP address")
}

pub fn names(text: &str) -> Vec<Name> {
    text.split_whitespace().map(Name::from).collect()
}

pub fn labels(text: &str) -> Labels {
    let pairs = text.split_whitespace().filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.into(), value.into())).collect()
}

/// `k=v ...` as a selector: every label must be there.
pub fn selector(text: &str) -> LabelSelector {
    let requirement = |(key, value): (&Name, &Name)| Requirement {
        key: key.clone(),
        operator: Operator::In,
        values: vec![value.clone()],
    };
    LabelSelector(labels(text).iter().map(requirement).collect())
}

/// `web`, of type LoadBalancer, with port 80 and node port 30080, and no endpoint.
pub fn web() -> Service {
    Service {
        uid: "uid-web".into(),
        created: 100,
        labels: labels("app=web"),
        kind: ServiceType::LoadBalancer,
        cluster_ips: vec![ip("10.96.0.10")],
        ingress: [IngressIp { ip: ip("192.0.2.10"), mode: IpMode::Vip }].into(),
        ports: vec![port("", 80, 30080)],
        ..Service::new(ServiceId::new("default", "web"))
    }
}

pub fn port(name: &str, port: u16, node_port: u16) -> ServicePort {
    let node_port = (node_port != 0).then_some(node_port);
    ServicePort { name: name.into(), protocol: Protocol::Tcp, port, node_port }
}

/// `web` with the endpoints of [`slice`].
pub fn web_with(endpoints: &str) -> Service {
    Service { slices: vec![slice("web-1", endpoints)], ..web() }
}

/// One endpoint a line: `ADDRESS NODE [unready] [terminating] [dead] [zone=a] [node=n1]`, NODE `-` for none. Each
/// listens on 8080 of the unnamed port.
pub fn slice(name: &str, endpoints: &str) -> Arc<EndpointSlice> {
    let endpoints: Vec<_> = endpoints.lines().filter(|line| !line.trim().is_empty()).map(endpoint).collect();
    let family = endpoints.first().map_or(Family::Ipv4, |endpoint| Family::of(&endpoint.address));
    let ports = vec![("".into(), Protocol::Tcp, 8080)];
    Arc::new(EndpointSlice { name: name.into(), family, ports, endpoints })
}

fn endpoint(line: &str) -> Endpoint {
    let words: Vec<_> = line.split_whitespace().collect();
    let has = |word| words.contains(&word);
    let hint = |key: &str| -> Option<Box<[Name]>> {
        let names = words.iter().find_map(|word| word.strip_prefix(key))?;
        Some(names.split(',').map(Name::from).collect())
    };
    Endpoint {
        address: ip(words[0]),
        ready: !has("unready") && !has("terminating") && !has("dead"),
        serving: !has("unready") && !has("dead"),
        terminating: has("terminating") || has("dead"),
        node: (words[1] != "-").then(|| words[1].into()),
        zone: None,
        hints: Some(Box::new(Hints { zones: hint("zone="), nodes: hint("node=") })),
    }
}

/// Node n1 in zone a, which knows its pods.
pub fn n1() -> NodeView {
    NodeView {
        node: "n1".into(),
        zone: Some("a".into()),
        addresses: BTreeSet::from([ip("172.18.0.2"), ip("fd18::2")]),
        node_ips: vec![ip("172.18.0.2"), ip("fd18::2")],
        lacks: None,
        pods: Detector::Ranges(vec!["10.1.0.0/16".parse().unwrap(), "fd01::/48".parse().unwrap()]),
        masquerade_all: false,
        external_ips: true,
    }
}

pub fn node(name: &str, number: u8) -> Node {
    Node {
        name: name.into(),
        uid: format!("uid-{name}").into(),
        labels: labels(&format!("kubernetes.io/hostname={name}")),
        zone: None,
        internal_ips: vec![ip(&format!("172.18.0.{number}"))],
        external_ips: vec![],
        pod_cidrs: vec![format!("10.1.{number}.0/24").parse().unwrap()],
        network_unavailable: false,
        leaving: false,
    }
}

/// At 172.18.0.254, of AS 64500.
pub fn peer(name: &str) -> Peer {
    Peer {
        name: name.into(),
        labels: Labels::default(),
        address: ip("172.18.0.254"),
        port: 179,
        peer_asn: PeerAsn::Number(64500),
        my_asn: None,
        passive: false,
        source_address: None,
        hold_time: Duration::from_secs(90),
        keepalive_time: None,
        connect_time: Duration::from_secs(10),
        families: Family::ALL.to_vec(),
        multihop_ttl: 1,
        node_selectors: vec![],
    }
}

pub fn pool(name: &str, ranges: &str) -> Pool {
    Pool {
        name: name.into(),
        labels: Labels::default(),
        created: 0,
        addresses: self::ranges(ranges),
        exclude: vec![],
        auto_assign: true,
        avoid_dot0_dot255: false,
        service_allocation: ServiceAllocation::default(),
        reuse_delay: Duration::from_secs(60),
        disabled: false,
    }
}

/// `a-b` or `a`, by spaces.
pub fn ranges(text: &str) -> Vec<IpRange> {
    let range = |word: &str| {
        let (first, last) = word.split_once('-').unwrap_or((word, word));
        IpRange { first: ip(first), last: ip(last) }
    };
    text.split_whitespace().map(range).collect()
}

/// One line per frontend, as an operator would read it.
pub fn render(plan: &ServicePlan) -> String {
    let mut out = String::new();
    for (frontend, forwarding) in &plan.frontends {
        out += &format!("{frontend}: {}", action(&forwarding.from_cluster));
        if forwarding.from_outside != forwarding.from_cluster {
            out += &format!("; outside: {}", action(&forwarding.from_outside));
        }
        if let Some(sources) = &forwarding.allowed_sources {
            out += &format!("; only from [{}]", join(sources.iter()));
        }
        out += "\n";
    }
    out + &format!("closed: {}; hairpin: {}\n", join(&plan.vips), join(&plan.hairpin))
}

fn action(action: &Action) -> String {
    match action {
        Action::Reject => "reject".into(),
        Action::Drop => "drop".into(),
        Action::Balance(balance) => {
            let affinity = balance.affinity.map_or(String::new(), |time| format!(", affinity {time:?}"));
            format!("{}, masquerade {:?}{affinity}", join(balance.backends.iter()), balance.masquerade)
        }
    }
}

fn join<T: ToString>(values: impl IntoIterator<Item = T>) -> String {
    values.into_iter().map(|value| value.to_string()).collect::<Vec<_>>().join(" ")
}
