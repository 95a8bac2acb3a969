//! Kubernetes objects in, what becomes of packets out: rules of Service semantics that need more than one stage to see.

use portolan::cli::Part;
use portolan::config::Config;
use portolan::offline::Offline;
use portolan::trace::{Destination, Source};
use portolan_dataplane::{Outcome, Packet, evaluate};
use portolan_model::Family;
use portolan_nft::{ChainKind, Statement};

/// n1 in zone a, n2 in zone b.
const NODES: &str = "
{apiVersion: v1, kind: Node, metadata: {name: n1, labels: {topology.kubernetes.io/zone: a}}, status: {addresses: [{type: InternalIP, address: 172.30.0.1}]}}
---
{apiVersion: v1, kind: Node, metadata: {name: n2, labels: {topology.kubernetes.io/zone: b}}, status: {addresses: [{type: InternalIP, address: 172.30.0.2}]}}
";
const POD: &str = "10.244.1.9";
const CLIENT: &str = "198.51.100.7";
const CLUSTER_IP: &str = "10.96.0.10:80";
const NODE_PORT: &str = "172.30.0.1:30080";
const VIP: &str = "192.0.2.10:80";

fn cluster(objects: &[String]) -> Offline {
    let mut config = Config::default();
    config.proxy.cluster_cidrs = vec!["10.244.0.0/16".parse().expect("a range")];
    Offline::read(&format!("{NODES}---\n{}", objects.join("\n---\n")), config).expect("a cluster")
}

/// A LoadBalancer Service on port 80 of `protocol`; `spec` goes into its spec.
fn web(protocol: &str, spec: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: web}}, spec: {{type: LoadBalancer, clusterIP: 10.96.0.10, {spec} \
         ports: [{{port: 80, protocol: {protocol}, nodePort: 30080}}]}}, status: {{loadBalancer: {{ingress: [{{ip: 192.0.2.10}}]}}}}}}"
    )
}

/// `endpoints` as in YAML, each without its braces.
fn slice(name: &str, protocol: &str, endpoints: &[String]) -> String {
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: {name}, labels: {{kubernetes.io/service-name: web}}}}, \
         addressType: IPv4, ports: [{{name: '', port: 8080, protocol: {protocol}}}], endpoints: [{{{}}}]}}",
        endpoints.join("}, {")
    )
}

fn texts(endpoints: &[&str]) -> Vec<String> {
    endpoints.iter().map(|endpoint| endpoint.to_string()).collect()
}

/// Endpoints by address, or what happens instead.
fn becomes(cluster: &Offline, node: &str, from: &str, to: &str) -> String {
    let Source(source) = from.parse().expect("a source");
    let Destination { to: destination, protocol } = to.parse().expect("a destination");
    let rules = cluster.rules(node, Family::of(&destination.ip())).expect("a node");
    let from_node = rules.addresses.contains(&source.ip());
    match evaluate(&rules.table, &Packet { source, destination, protocol, from_node, interface: None })
        .outcome
    {
        Outcome::Dnat(to) => {
            to.iter().map(|candidate| candidate.backend.ip().to_string()).collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}"),
    }
}

#[test]
fn s11_local_is_what_names_this_node() {
    let endpoints = texts(&[
        "addresses: [10.244.1.1], nodeName: n1",
        "addresses: [172.30.0.1], nodeName: n1", // in the host's network
        "addresses: [10.244.2.1], nodeName: n2",
        "addresses: [10.244.3.1]",
    ]);
    let local = web("TCP", "internalTrafficPolicy: Local,");
    let cluster = cluster(&[local, slice("web-1", "TCP", &endpoints)]);
    assert_eq!(becomes(&cluster, "n1", POD, CLUSTER_IP), "10.244.1.1 172.30.0.1");
    assert_eq!(becomes(&cluster, "n2", POD, CLUSTER_IP), "10.244.2.1");
}

#[test]
fn s12_three_thousand_endpoints_of_one_service() {
    let endpoint = |n: usize| format!("addresses: [10.244.{}.{}], nodeName: n2", n / 250, n % 250 + 1);
    let slices = (0..3).map(|i| {
        let endpoints: Vec<String> = (0..1000).map(|n| endpoint(1000 * i + n)).collect();
        slice(&format!("web-{i}"), "TCP", &endpoints)
    });
    let cluster = cluster(&[web("TCP", "")].into_iter().chain(slices).collect::<Vec<_>>());
    let found = becomes(&cluster, "n1", POD, CLUSTER_IP);
    assert_eq!(found.split(' ').count(), 3000);
}

#[test]
fn s13_fields_that_change_no_packet() {
    let endpoints = slice("web-1", "TCP", &texts(&["addresses: [10.244.1.1], nodeName: n1"]));
    let rules = |service: String| {
        cluster(&[service, endpoints.clone()]).render("n1", Part::Nft).expect("a node of the file")
    };
    let plain = rules(web("TCP", ""));
    for spec in [
        "selector: {app: web},",
        "ipFamilyPolicy: PreferDualStack,",
        "sessionAffinityConfig: {clientIP: {timeoutSeconds: 7}},",
        "publishNotReadyAddresses: true,",
        "trafficDistribution: PreferSameZone,",
    ] {
        assert_eq!(rules(web("TCP", spec)), plain, "{spec}");
    }
    assert_eq!(rules(web("TCP", "").replace("port: 80,", "port: 80, appProtocol: http,")), plain);
}

#[test]
fn s36_s37_hints_count_for_every_target_and_nothing_else_does() {
    let hinted = texts(&[
        "addresses: [10.244.1.1], nodeName: n1, hints: {forZones: [{name: a}]}",
        "addresses: [10.244.2.1], nodeName: n2, hints: {forZones: [{name: b}]}",
    ]);
    let plain: Vec<String> = hinted.iter().map(|e| e.split(", hints").next().unwrap_or(e).into()).collect();
    let near = web("TCP", "trafficDistribution: PreferSameZone,");
    let with_hints = cluster(&[near.clone(), slice("web-1", "TCP", &hinted)]);
    let without = cluster(&[near, slice("web-1", "TCP", &plain)]);
    for to in [CLUSTER_IP, VIP, NODE_PORT] {
        assert_eq!(becomes(&with_hints, "n1", CLIENT, to), "10.244.1.1", "{to}");
        assert_eq!(becomes(&without, "n1", CLIENT, to), "10.244.1.1 10.244.2.1", "{to}");
    }
    assert_eq!(becomes(&with_hints, "n2", CLIENT, VIP), "10.244.2.1", "by the zone of the node's label");
}

#[test]
fn s47_one_bit_of_the_mark_and_it_is_cleared() {
    let cluster =
        cluster(&[web("TCP", ""), slice("web-1", "TCP", &texts(&["addresses: [10.244.1.1], nodeName: n1"]))]);
    let mut cleared = 0;
    for family in Family::ALL {
        let table = cluster.rules("n1", family).expect("node n1").table;
        for rule in table.chains.values().flat_map(|chain| &chain.rules) {
            for (at, statement) in rule.statements.iter().enumerate() {
                match statement {
                    Statement::MarkOr(bits) => assert_eq!(*bits, 0x4000),
                    Statement::MarkTest { mask, value } => {
                        assert_eq!((*mask, *value), (0x4000, 0x4000));
                        assert_eq!(rule.statements[at + 1], Statement::MarkXor(0x4000));
                        cleared += 1;
                    }
                    _ => {}
                }
            }
        }
    }
    assert_eq!(cleared, 2, "once in each family");
}

/// A packet of a connection that stands, or an ICMP error that belongs to one, meets no rule: the nat hooks see first packets only.
#[test]
fn s50_s57_every_hook_is_of_nat() {
    let cluster = cluster(&[web("TCP", "")]);
    for family in Family::ALL {
        let table = cluster.rules("n1", family).expect("node n1").table;
        let kinds: Vec<ChainKind> =
            table.chains.values().filter_map(|chain| Some(chain.base?.kind)).collect();
        assert!(kinds.len() >= 3 && kinds.iter().all(|kind| *kind == ChainKind::Nat), "{kinds:?}");
    }
}

#[test]
fn s56_sctp_like_the_others() {
    let endpoints =
        slice("web-1", "SCTP", &texts(&["addresses: [10.244.1.1], nodeName: n1", "addresses: [10.244.2.1]"]));
    let cluster = cluster(&[web("SCTP", ""), endpoints]);
    for to in [CLUSTER_IP, VIP, NODE_PORT] {
        assert_eq!(becomes(&cluster, "n1", CLIENT, &format!("{to}/sctp")), "10.244.1.1 10.244.2.1", "{to}");
    }
    assert_eq!(becomes(&cluster, "n1", CLIENT, &format!("{CLUSTER_IP}/tcp")), "Reject");
}

/// Upstream's table of the endpoints map: slices as they may be, one after the other, for a Service with the ports 80 `p80` and
/// 443 `p443` (or 80 without a name), and who is behind them on n1.
#[test]
fn s1_s7_s8_s10_endpoints_by_port_name_and_slice() {
    let cases: [(&str, &[&str], &str); 14] = [
        ("nothing", &[], "Reject Reject"),
        ("no change of names", &["p80=8080,p443=8443 1 2"], "1:8080 2:8080 | 1:8443 2:8443"),
        ("a port more", &["p80=8080 1", "p443=8443 2"], "1:8080 | 2:8443"),
        ("a port goes", &["p80=8080 1 2"], "1:8080 2:8080 | Reject"),
        ("a port is renamed", &["other=8080,p443=8443 1"], "Reject | 1:8443"),
        ("a port's number changes", &["p80=9090,p443=8443 1"], "1:9090 | 1:8443"),
        ("other numbers in other slices", &["p80=8080 1", "p80=9090 2"], "1:8080 2:9090 | Reject"),
        ("an endpoint moves", &["p80=8080 1", "p80=8080 2 3"], "1:8080 2:8080 3:8080 | Reject"),
        ("while it moves it is in both", &["p80=8080 1 2", "p80=8080 2 3"], "1:8080 2:8080 3:8080 | Reject"),
        ("two ports of one endpoint", &["p80=8080 1", "p80=9090 1"], "1:8080 1:9090 | Reject"),
        ("a slice without endpoints", &["p80=8080", "p443=8443 2"], "Reject | 2:8443"),
        ("a slice without ports", &[" 1", "p443=8443 2"], "Reject | 2:8443"),
        ("unready in one slice, ready in another", &["p80=8080 1!", "p80=8080 1"], "1:8080 | Reject"),
        ("unready everywhere", &["p80=8080 1!", "p443=8443 1"], "Reject | 1:8443"),
    ];
    for (what, slices, expected) in cases {
        let mut objects = vec![
            "{apiVersion: v1, kind: Service, metadata: {name: web}, spec: {clusterIP: 10.96.0.10, ports: [\
             {name: p80, port: 80}, {name: p443, port: 443}]}}"
                .to_owned(),
        ];
        objects.extend(slices.iter().enumerate().map(|(number, text)| slice_of(number, text)));
        let cluster = cluster(&objects);
        let both = ["10.96.0.10:80", "10.96.0.10:443"].map(|to| behind(&cluster, to));
        assert_eq!(both.join(" | "), expected.replace("Reject Reject", "Reject | Reject"), "{what}");
    }
    // Without a name: S1, the empty one.
    let unnamed = slice("web-1", "TCP", &texts(&["addresses: [10.244.1.1]"]));
    assert_eq!(behind(&cluster(&[web("TCP", ""), unnamed.clone()]), CLUSTER_IP), "1:8080");
    let renamed = unnamed.replace("name: ''", "name: p80");
    assert_eq!(behind(&cluster(&[web("TCP", ""), renamed]), CLUSTER_IP), "Reject");
}

/// `name=port,name=port host host! …`, where `!` is unready.
fn slice_of(number: usize, text: &str) -> String {
    let mut words = text.split(' ');
    let ports = words.next().unwrap_or_default().split(',').filter_map(|port| port.split_once('='));
    let ports: Vec<String> =
        ports.map(|(name, port)| format!("{{name: {name}, port: {port}, protocol: TCP}}")).collect();
    let endpoint = |host: &str| {
        let ready = !host.ends_with('!');
        format!("{{addresses: [10.244.1.{}], conditions: {{ready: {ready}}}}}", host.trim_end_matches('!'))
    };
    let endpoints: Vec<String> = words.filter(|host| !host.is_empty()).map(endpoint).collect();
    format!(
        "{{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {{name: web-{number}, labels: \
         {{kubernetes.io/service-name: web}}}}, addressType: IPv4, ports: [{}], endpoints: [{}]}}",
        ports.join(", "),
        endpoints.join(", ")
    )
}

/// Last number and port of the endpoints, in order, or what happens instead.
fn behind(cluster: &Offline, to: &str) -> String {
    let destination = to.parse().expect("an address");
    let rules = cluster.rules("n1", Family::Ipv4).expect("a node");
    let Source(source) = POD.parse().expect("a source");
    let packet = Packet {
        source,
        destination,
        protocol: portolan_model::Protocol::Tcp,
        from_node: false,
        interface: None,
    };
    match evaluate(&rules.table, &packet).outcome {
        Outcome::Dnat(to) => {
            let text = |backend: std::net::SocketAddr| {
                backend.to_string().trim_start_matches("10.244.1.").to_owned()
            };
            to.iter().map(|candidate| text(candidate.backend)).collect::<Vec<_>>().join(" ")
        }
        other => format!("{other:?}"),
    }
}
