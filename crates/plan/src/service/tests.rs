//! A Service and a node, and what the node does: one case per rule of services.md.

use std::time::Duration;

use expect_test::{Expect, expect};

use portolan_model::{IngressIp, Protocol};

use super::*;
use crate::fixture::*;

fn check(service: Service, expect: Expect) {
    check_on(service, n1(), expect);
}

fn check_on(service: Service, node: NodeView, expect: Expect) {
    expect.assert_eq(&render(&plan(&service, &node)));
}

const TWO_NODES: &str = "10.1.1.1 n1
10.1.2.1 n2";

fn local() -> Service {
    Service { external_policy: TrafficPolicy::Local, internal_policy: TrafficPolicy::Local, ..web() }
}

fn local_with(endpoints: &str) -> Service {
    Service { slices: vec![slice("web-1", endpoints)], ..local() }
}

#[test]
fn s15_s19_s23_s43_every_frontend_under_policy_cluster() {
    check(
        web_with(TWO_NODES),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s6_each_family_is_its_own_service() {
    let service = Service {
        cluster_ips: vec![ip("10.96.0.10"), ip("fd96::a")],
        slices: vec![slice("web-4", TWO_NODES), slice("web-6", "fd01:1::1 n1")],
        ..web()
    };
    check(
        service,
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        [fd96::a]:80/tcp: [fd01:1::1]:8080, masquerade NonPods
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        IPv6 NodePort 30080/tcp: [fd01:1::1]:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10 fd96::a; hairpin: 10.1.1.1 fd01:1::1
    "#]],
    );
}

#[test]
fn s6_no_cluster_ip_of_the_family_no_service() {
    check(
        Service { cluster_ips: vec![ip("fd96::a")], ..web_with(TWO_NODES) },
        expect![[r#"
        [fd96::a]:80/tcp: reject
        IPv6 NodePort 30080/tcp: reject
        closed: fd96::a; hairpin: 
    "#]],
    );
}

#[test]
fn s8_ports_match_by_name_and_protocol_and_differ_by_slice() {
    let mut named = (*slice("a", "10.1.1.1 n1")).clone();
    named.ports = vec![("http".into(), Protocol::Tcp, 8080), ("http".into(), Protocol::Udp, 9090)];
    let mut other = (*slice("b", "10.1.2.1 n2")).clone();
    other.ports = vec![("http".into(), Protocol::Tcp, 8081), ("admin".into(), Protocol::Tcp, 1)];
    let slices = vec![named.into(), other.into()];
    let ports = vec![port("http", 80, 0)];
    check(
        Service { slices, ports, kind: ServiceType::ClusterIp, ..web() },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8081, masquerade NonPods
        closed: 10.96.0.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s10_duplicates_merge_and_any_local_copy_counts() {
    let slices = vec![
        slice("a", "10.1.1.1 - unready"),
        slice("b", "10.1.1.1 n1 terminating"),
        slice("c", "10.1.1.1 -"),
    ];
    check(
        Service { slices, ..local() },
        expect![[r#"
            10.96.0.10:80/tcp: 10.1.1.1:8080, masquerade NonPods
            192.0.2.10:80/tcp: 10.1.1.1:8080, masquerade NonPods; outside: 10.1.1.1:8080, masquerade Never
            IPv4 NodePort 30080/tcp: 10.1.1.1:8080, masquerade NonPods; outside: 10.1.1.1:8080, masquerade Never
            closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
        "#]],
    );
}

#[test]
fn s16_masquerade_all() {
    let service = Service { kind: ServiceType::ClusterIp, ..web_with(TWO_NODES) };
    check_on(
        service,
        NodeView { masquerade_all: true, ..n1() },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s16_no_detector_no_masquerade() {
    let service = Service { kind: ServiceType::ClusterIp, ..web_with(TWO_NODES) };
    check_on(
        service,
        NodeView { pods: Detector::default(), ..n1() },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Never
        closed: 10.96.0.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s24_ip_mode_proxy_is_not_ours() {
    let ingress = vec![IngressIp { ip: ip("192.0.2.10"), mode: IpMode::Proxy }];
    check(
        Service { ingress: ingress.into(), ..web_with(TWO_NODES) },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s25_external_ips_on() {
    let external_ips = vec![ip("198.51.100.1"), ip("2001:db8::1")];
    check(
        Service { external_ips: external_ips.into(), kind: ServiceType::ClusterIp, ..web_with(TWO_NODES) },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        198.51.100.1:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s25_external_ips_off() {
    let external_ips = vec![ip("198.51.100.1")];
    let service =
        Service { external_ips: external_ips.into(), kind: ServiceType::ClusterIp, ..web_with(TWO_NODES) };
    check_on(
        service,
        NodeView { external_ips: false, ..n1() },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        closed: 10.96.0.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s26_no_node_port() {
    check(
        Service { ports: vec![port("", 80, 0)], ..web_with(TWO_NODES) },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s27_source_ranges_guard_load_balancer_ips_only() {
    let source_ranges = Some(vec!["10.0.0.0/8".parse().unwrap(), "172.18.0.0/24".parse().unwrap()]);
    let external_ips = vec![ip("198.51.100.1")];
    check(
        Service { source_ranges, external_ips: external_ips.into(), ..web_with(TWO_NODES) },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always; only from [10.0.0.0/8 172.18.0.0/24 192.0.2.10/32]
        198.51.100.1:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s27_s76_a_node_that_is_allowed_may_ask_from_the_vips_that_it_has() {
    let source_ranges = Some(vec!["172.18.0.0/24".parse().unwrap()]);
    let vip = |text| IngressIp { ip: ip(text), mode: IpMode::Vip };
    let ingress = vec![vip("192.0.2.10"), vip("192.0.2.11")];
    let service = Service { source_ranges, ingress: ingress.into(), ..web_with(TWO_NODES) };
    let allowed = |node: &NodeView| -> Vec<String> {
        let frontend = |ip| Frontend { address: Address::Vip(ip), protocol: Protocol::Tcp, port: 80 };
        let plan = plan(&service, node);
        let sources = plan.frontends.get(&frontend(ip("192.0.2.10"))).unwrap().allowed_sources.clone();
        sources.unwrap().iter().map(ToString::to_string).collect()
    };
    assert_eq!(allowed(&n1()), ["172.18.0.0/24", "192.0.2.10/32", "192.0.2.11/32"]);
    // An address of some interface is not what the node is known by.
    let elsewhere = NodeView { node_ips: vec![ip("10.0.0.1"), ip("fd18::2")], ..n1() };
    assert_eq!(allowed(&elsewhere), ["172.18.0.0/24"]);
}

#[test]
fn s77_a_family_that_the_kernel_lacks_has_no_service() {
    let dual = Service { cluster_ips: vec![ip("10.96.0.10"), ip("fd96::10")], ..web_with(TWO_NODES) };
    let families = |node: &NodeView| -> BTreeSet<Family> {
        plan(&dual, node).frontends.keys().map(Frontend::family).collect()
    };
    assert_eq!(families(&n1()), Family::ALL.into());
    assert_eq!(families(&NodeView { lacks: Some(Family::Ipv6), ..n1() }), [Family::Ipv4].into());
}

#[test]
fn s27_a_family_without_ranges_is_closed() {
    let source_ranges = Some(vec!["fd00::/8".parse().unwrap()]);
    check(
        Service { source_ranges, ..web_with(TWO_NODES) },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always; only from []
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s28_a_node_address_is_never_closed() {
    let ingress = vec![IngressIp { ip: ip("172.18.0.2"), mode: IpMode::Vip }];
    check(
        Service { ingress: ingress.into(), ..web_with(TWO_NODES) },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        172.18.0.2:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s30_cluster_falls_back_to_terminating_only_when_none_is_ready() {
    check(
        web_with("10.1.1.1 n1 terminating\n10.1.2.1 n2 unready\n10.1.2.2 n2 dead"),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
    check(
        web_with("10.1.1.1 n1 terminating\n10.1.2.1 n2"),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.2.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.2.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s31_local_falls_back_to_terminating_even_when_others_are_ready() {
    check(
        local_with("10.1.1.1 n1 terminating\n10.1.2.1 n2"),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.2.1:8080, masquerade NonPods; outside: 10.1.1.1:8080, masquerade Never
        IPv4 NodePort 30080/tcp: 10.1.2.1:8080, masquerade NonPods; outside: 10.1.1.1:8080, masquerade Never
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s33_node_hints() {
    check(
        web_with("10.1.1.1 n1 node=n1 zone=a\n10.1.2.1 n2 node=n2 zone=a"),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s34_zone_hints_when_no_node_hint_names_this_node() {
    check(
        web_with("10.1.1.1 n3 node=n3 zone=a\n10.1.2.1 n2 node=n2 zone=b"),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 
    "#]],
    );
}

#[test]
fn s35_one_endpoint_without_hints_and_hints_are_ignored() {
    check(
        web_with("10.1.1.1 n1 zone=a\n10.1.2.1 n2"),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s35_unready_endpoints_need_no_hints_and_local_ignores_them() {
    check(
        local_with("10.1.1.1 n1 zone=b\n10.1.2.1 n2 zone=a\n10.1.2.2 n2 unready"),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.2.1:8080, masquerade NonPods; outside: 10.1.1.1:8080, masquerade Never
        IPv4 NodePort 30080/tcp: 10.1.2.1:8080, masquerade NonPods; outside: 10.1.1.1:8080, masquerade Never
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s38_nothing_usable_anywhere_is_rejected() {
    check(
        web_with("10.1.2.1 n2 unready"),
        expect![[r#"
        10.96.0.10:80/tcp: reject
        192.0.2.10:80/tcp: reject
        IPv4 NodePort 30080/tcp: reject
        closed: 10.96.0.10 192.0.2.10; hairpin: 
    "#]],
    );
    check(
        local_with(""),
        expect![[r#"
        10.96.0.10:80/tcp: reject
        192.0.2.10:80/tcp: reject
        IPv4 NodePort 30080/tcp: reject
        closed: 10.96.0.10 192.0.2.10; hairpin: 
    "#]],
    );
}

#[test]
fn s39_local_with_endpoints_only_elsewhere_drops() {
    check(
        local_with("10.1.2.1 n2"),
        expect![[r#"
        10.96.0.10:80/tcp: drop
        192.0.2.10:80/tcp: 10.1.2.1:8080, masquerade NonPods; outside: drop
        IPv4 NodePort 30080/tcp: 10.1.2.1:8080, masquerade NonPods; outside: drop
        closed: 10.96.0.10 192.0.2.10; hairpin: 
    "#]],
    );
}

#[test]
fn s41_affinity_is_copied() {
    check(
        Service { affinity: Some(Duration::from_secs(10800)), ..web_with(TWO_NODES) },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods, affinity 10800s
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always, affinity 10800s
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always, affinity 10800s
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s45_without_a_detector_the_node_itself_is_masqueraded() {
    check_on(
        local_with(TWO_NODES),
        NodeView { pods: Detector::default(), ..n1() },
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080, masquerade Never
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always; outside: 10.1.1.1:8080, masquerade Never
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always; outside: 10.1.1.1:8080, masquerade Never
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn s46_only_own_usable_endpoints_hairpin() {
    check(
        web_with("10.1.1.1 n1\n10.1.1.2 n1 unready\n10.1.2.1 n2"),
        expect![[r#"
        10.96.0.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade NonPods
        192.0.2.10:80/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 10.1.1.1:8080 10.1.2.1:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 10.1.1.1
    "#]],
    );
}

#[test]
fn a39_local_policy_with_endpoints_on_no_node_is_cluster() {
    let service = Service { internal_policy: TrafficPolicy::Cluster, ..local_with("203.0.113.7 -") };
    check(
        service,
        expect![[r#"
        10.96.0.10:80/tcp: 203.0.113.7:8080, masquerade NonPods
        192.0.2.10:80/tcp: 203.0.113.7:8080, masquerade Always
        IPv4 NodePort 30080/tcp: 203.0.113.7:8080, masquerade Always
        closed: 10.96.0.10 192.0.2.10; hairpin: 
    "#]],
    );
}

/// The last numbers of the endpoints' addresses, or what happens instead: from inside to the ClusterIP, from outside to the VIP.
fn fates(endpoints: &str, policy: TrafficPolicy) -> String {
    let service = Service { internal_policy: policy, external_policy: policy, ..web_with(endpoints) };
    let plan = plan(&service, &n1());
    let fate = |address: &str| {
        let address = Address::Vip(ip(address));
        let (_, forwarding) = plan.frontends.iter().find(|(f, _)| f.address == address).expect("a frontend");
        let inside = address == Address::Vip(ip("10.96.0.10"));
        match if inside { &forwarding.from_cluster } else { &forwarding.from_outside } {
            Action::Balance(balance) => {
                let last = |backend: &std::net::SocketAddr| {
                    backend.ip().to_string().rsplit('.').next().unwrap_or_default().to_owned()
                };
                balance.backends.iter().map(last).collect::<Vec<_>>().join("+")
            }
            other => format!("{other:?}"),
        }
    };
    format!("{} {}", fate("10.96.0.10"), fate("192.0.2.10"))
}

/// Upstream's tests of terminating endpoints, as one table: two pods here, two elsewhere.
#[test]
fn s30_s31_s38_s39_terminating_endpoints_under_either_policy() {
    let cases = [
        // all ready
        ("", "", "", "", "1+2+3+4 1+2+3+4", "1+2 1+2"),
        // some terminate
        ("", "terminating", "terminating", "", "1+4 1+4", "1 1"),
        ("terminating", "terminating", "", "", "3+4 3+4", "1+2 1+2"),
        ("", "", "terminating", "terminating", "1+2 1+2", "1+2 1+2"),
        // some serve no more
        ("", "dead", "terminating", "unready", "1 1", "1 1"),
        ("dead", "terminating", "", "dead", "3 3", "2 2"),
        // all terminate, and serve
        ("terminating", "terminating", "terminating", "terminating", "1+2+3+4 1+2+3+4", "1+2 1+2"),
        // all terminate, some serve
        ("dead", "dead", "terminating", "dead", "3 3", "Drop Drop"),
        ("terminating", "dead", "dead", "dead", "1 1", "1 1"),
        // none serves
        ("dead", "dead", "dead", "dead", "Reject Reject", "Reject Reject"),
        ("unready", "unready", "unready", "unready", "Reject Reject", "Reject Reject"),
        // none here
        ("unready", "dead", "", "", "3+4 3+4", "Drop Drop"),
    ];
    for (one, two, three, four, cluster, local) in cases {
        let endpoints =
            format!("10.1.1.1 n1 {one}\n10.1.1.2 n1 {two}\n10.1.2.3 n2 {three}\n10.1.2.4 n2 {four}");
        assert_eq!(fates(&endpoints, TrafficPolicy::Cluster), cluster, "policy Cluster:\n{endpoints}");
        assert_eq!(fates(&endpoints, TrafficPolicy::Local), local, "policy Local:\n{endpoints}");
    }
}

/// Upstream's counts of `no_local_endpoints`: per Service at most one for each policy.
#[test]
fn s39_services_without_local_endpoints_are_counted_by_policy() {
    use TrafficPolicy::{Cluster, Local};
    type Case = (TrafficPolicy, TrafficPolicy, &'static str, &'static [(Family, bool)]);
    const EXTERNAL: (Family, bool) = (Family::Ipv4, false);
    const INTERNAL: (Family, bool) = (Family::Ipv4, true);
    let cases: [Case; 9] = [
        (Cluster, Cluster, "10.1.2.1 n2", &[]),
        (Local, Cluster, "10.1.1.1 n1\n10.1.2.1 n2", &[]),
        (Cluster, Local, "10.1.1.1 n1\n10.1.2.1 n2", &[]),
        (Local, Cluster, "10.1.2.1 n2", &[INTERNAL]),
        (Cluster, Local, "10.1.2.1 n2", &[EXTERNAL]),
        (Local, Local, "10.1.2.1 n2", &[EXTERNAL, INTERNAL]),
        (Local, Local, "10.1.1.1 n1 terminating\n10.1.2.1 n2", &[]),
        // refused, and not dropped: nobody has one
        (Local, Local, "10.1.1.1 n1 dead", &[]),
        (Local, Local, "", &[]),
    ];
    for (internal_policy, external_policy, endpoints, counted) in cases {
        let service = Service { internal_policy, external_policy, ..web_with(endpoints) };
        let lacking: Vec<_> = lacks_local(&plan(&service, &n1())).into_iter().collect();
        assert_eq!(lacking, counted, "{internal_policy:?} {external_policy:?} {endpoints}");
    }
}
