//! A cluster seen from node n1: which routes its peers get, and why an address stays at home.

use expect_test::{Expect, expect};
use portolan_bgp::Community;
use portolan_model::{
    Advertisement, Allocation, BgpAdvertisement, IngressIp, Owner, Pool, ServiceCidr, ServiceId,
};

use super::*;
use crate::fixture::{ip, labels, names, node, peer, pool, port, selector, web_with};
use crate::{Classes, NodeView, peers};

/// Node n1 (and n2) with peers tor-a and tor-b, and 192.0.2.10 of pool `lab` allocated to default/web.
fn cluster() -> Snapshot {
    let mut snapshot = Snapshot::default();
    for node in [node("n1", 1), node("n2", 2)] {
        snapshot.nodes.insert_mut(node.name.clone(), Arc::new(node));
    }
    for (name, address) in [("tor-a", "172.18.0.253"), ("tor-b", "172.18.0.254")] {
        let peer = portolan_model::Peer { address: ip(address), ..peer(name) };
        snapshot.peers.insert_mut(name.into(), Arc::new(peer));
    }
    let lab = Pool { labels: labels("tier=gold"), ..pool("lab", "192.0.2.0-192.0.2.255") };
    snapshot.pools.insert_mut("lab".into(), Arc::new(lab));
    snapshot.allocations.insert_mut(Arc::new(allocation("192.0.2.10", "uid-web")));
    snapshot
}

fn allocation(address: &str, uid: &str) -> Allocation {
    let owner = Owner { service: ServiceId::new("default", "web"), uid: uid.into() };
    Allocation {
        address: ip(address),
        pool: "lab".into(),
        owners: vec![owner],
        phase: AllocationPhase::Bound,
        since: 0,
    }
}

fn advert(name: &str) -> Advertisement {
    Advertisement { name: name.into(), ..context::implicit() }
}

fn with(mut advertisement: Advertisement, change: impl Fn(&mut BgpAdvertisement)) -> Advertisement {
    advertisement.bgp.iter_mut().for_each(change);
    advertisement
}

struct Case {
    snapshot: Snapshot,
    service: Service,
    /// What the kernel runs; None = what the Service asks for now.
    programmed: Option<ServicePlan>,
}

fn case(service: Service, adverts: impl IntoIterator<Item = Advertisement>) -> Case {
    let mut snapshot = cluster();
    for advert in adverts {
        snapshot.advertisements.insert_mut(advert.name.clone(), Arc::new(advert));
    }
    Case { snapshot, service, programmed: None }
}

fn check(case: Case, expect: Expect) {
    let me: Name = "n1".into();
    let (sessions, _) = peers::selected(&case.snapshot, &me, Some(64512));
    let context = Context::new(&case.snapshot, &me, &Classes::default(), &sessions);
    let view = NodeView { node: me, external_ips: true, ..NodeView::default() };
    let programmed = case.programmed.unwrap_or_else(|| crate::service::plan(&case.service, &view));
    let said = service(&context, &case.snapshot, &case.service, Some(&programmed));
    let of_node = super::node(&context, &case.snapshot);
    let mut out = String::new();
    for (peer, routes) in merge(said.routes.iter().chain(&of_node)) {
        routes.iter().for_each(|(prefix, route)| out += &format!("{peer}: {prefix}{}\n", render(route)));
    }
    said.withheld.iter().for_each(|withheld| out += &format!("{}: {}\n", withheld.address, withheld.reason));
    problems(&case.snapshot).iter().for_each(|problem| out += &format!("{problem}\n"));
    expect.assert_eq(&out);
}

fn render(route: &Route) -> String {
    let mut out = String::new();
    route.med.iter().for_each(|med| out += &format!(" med {med}"));
    route.local_pref.iter().for_each(|preference| out += &format!(" local-pref {preference}"));
    (route.prepend > 0).then(|| out += &format!(" prepend {}", route.prepend));
    route.communities.iter().for_each(|community| out += &format!(" {community}"));
    out
}

const HERE: &str = "10.1.1.1 n1";
const THERE: &str = "10.1.2.1 n2";

fn local(endpoints: &str) -> Service {
    let (external_policy, internal_policy) = (TrafficPolicy::Local, TrafficPolicy::Local);
    Service { external_policy, internal_policy, ..web_with(endpoints) }
}

#[test]
fn no_advertisement_means_every_load_balancer_ip_to_every_peer() {
    check(
        case(web_with(THERE), []),
        expect![[r#"
        tor-a: 192.0.2.10/32
        tor-b: 192.0.2.10/32
    "#]],
    );
}

#[test]
fn a36_ips_that_we_did_not_allocate_to_this_service_stay() {
    let mut other = case(web_with(HERE), []);
    other.snapshot.allocations.insert_mut(Arc::new(allocation("192.0.2.10", "uid-of-a-predecessor")));
    check(
        other,
        expect![[r#"
        192.0.2.10: NotOurs
    "#]],
    );
    let foreign = Service { class: Some("metallb.io/metallb".into()), ..web_with(HERE) };
    check(
        case(foreign, []),
        expect![[r#"
        192.0.2.10: NotOurs
    "#]],
    );
}

#[test]
fn a36_no_advertisement_matches() {
    let adverts = [
        Advertisement { pools: names("other"), ..advert("a") },
        Advertisement { service_selectors: vec![selector("app=db")], ..advert("b") },
        Advertisement { namespaces: names("kube-system"), ..advert("c") },
        Advertisement { disabled: true, ..advert("d") },
    ];
    check(
        case(web_with(HERE), adverts),
        expect![[r#"
        192.0.2.10: AdvertisementMissing
        Advertisement a: spec.ipAddressPools[0]: there is no IPAddressPool named "other"
    "#]],
    );
}

#[test]
fn pools_by_name_and_by_label() {
    let adverts = [
        with(Advertisement { pools: names("lab"), ..advert("a") }, |bgp| bgp.med = Some(1)),
        with(Advertisement { pool_selectors: vec![selector("tier=gold")], ..advert("b") }, |bgp| {
            bgp.local_pref = Some(200)
        }),
    ];
    check(
        case(web_with(HERE), adverts),
        expect![[r#"
        tor-a: 192.0.2.10/32 med 1 local-pref 200
        tor-b: 192.0.2.10/32 med 1 local-pref 200
    "#]],
    );
}

#[test]
fn a36_node_not_selected() {
    let advert = Advertisement { node_selectors: vec![selector("kubernetes.io/hostname=n2")], ..advert("a") };
    check(
        case(web_with(HERE), [advert]),
        expect![[r#"
        192.0.2.10: NodeNotSelected
    "#]],
    );
}

#[test]
fn a39_policy_local_announces_only_with_an_endpoint_here() {
    check(
        case(local(HERE), []),
        expect![[r#"
        tor-a: 192.0.2.10/32
        tor-b: 192.0.2.10/32
    "#]],
    );
    check(
        case(local(THERE), []),
        expect![[r#"
        192.0.2.10: PolicyLocalNoEndpoint
    "#]],
    );
    check(
        case(local("10.1.1.1 n1 terminating\n10.1.2.1 n2"), []),
        expect![[r#"
        tor-a: 192.0.2.10/32
        tor-b: 192.0.2.10/32
    "#]],
    );
    check(
        case(local("203.0.113.7 -"), []),
        expect![[r#"
        tor-a: 192.0.2.10/32
        tor-b: 192.0.2.10/32
    "#]],
    );
}

#[test]
fn a40_without_endpoints_withdraw_or_keep() {
    check(
        case(web_with("10.1.1.1 n1 unready"), [advert("a")]),
        expect![[r#"
        192.0.2.10: NoEndpoints
    "#]],
    );
    let keep = with(advert("b"), |bgp| bgp.when_no_endpoints = WhenNoEndpoints::Keep);
    check(
        case(web_with(""), [advert("a"), keep]),
        expect![[r#"
        tor-a: 192.0.2.10/32
        tor-b: 192.0.2.10/32
    "#]],
    );
}

#[test]
fn a41_cluster_ips_follow_the_internal_policy() {
    let advert = || Advertisement { sources: vec![Source::ClusterIp], ..advert("a") };
    check(
        case(web_with(THERE), [advert()]),
        expect![[r#"
        tor-a: 10.96.0.10/32
        tor-b: 10.96.0.10/32
        192.0.2.10: AdvertisementMissing
    "#]],
    );
    check(
        case(local(THERE), [advert()]),
        expect![[r#"
        192.0.2.10: AdvertisementMissing
        10.96.0.10: PolicyLocalNoEndpoint
    "#]],
    );
}

#[test]
fn a41_a43_service_and_pod_cidrs() {
    let sources = vec![Source::ServiceCidr, Source::PodCidr];
    let mut case = case(web_with(HERE), [Advertisement { sources, ..advert("a") }]);
    let cidrs = vec!["10.96.0.0/12".parse().unwrap()];
    case.snapshot.service_cidrs.insert_mut("k".into(), Arc::new(ServiceCidr { name: "k".into(), cidrs }));
    check(
        case,
        expect![[r#"
        tor-a: 10.1.1.0/24
        tor-a: 10.96.0.0/12
        tor-b: 10.1.1.0/24
        tor-b: 10.96.0.0/12
        192.0.2.10: AdvertisementMissing
    "#]],
    );
}

#[test]
fn a42_external_ips_only_where_allowed() {
    let external_ip_cidrs = vec!["198.51.100.0/28".parse().unwrap()];
    let advert = Advertisement { sources: vec![Source::ExternalIp], external_ip_cidrs, ..advert("a") };
    let external_ips = vec![ip("198.51.100.1"), ip("198.51.100.99")];
    check(
        case(Service { external_ips: external_ips.into(), ..web_with(HERE) }, [advert]),
        expect![[r#"
        tor-a: 198.51.100.1/32
        tor-b: 198.51.100.1/32
        192.0.2.10: AdvertisementMissing
        198.51.100.99: ExternalIPNotAllowed
    "#]],
    );
}

#[test]
fn a45_communities_unite_and_the_most_specific_scalar_wins() {
    let all = with(advert("a"), |bgp| {
        bgp.med = Some(10);
        bgp.as_path_prepend = 2;
        bgp.communities = vec![Community::Standard(64512 << 16 | 2), Community::Standard(64512 << 16 | 1)];
    });
    let specific = Advertisement { service_selectors: vec![selector("app=web")], ..advert("z") };
    let specific = with(specific, |bgp| {
        bgp.peers = names("tor-a");
        bgp.med = Some(20);
        bgp.communities = vec![Community::Large(1, 2, 3)];
    });
    check(
        case(web_with(HERE), [all, specific]),
        expect![[r#"
        tor-a: 192.0.2.10/32 med 20 prepend 2 64512:1 64512:2 large:1:2:3
        tor-b: 192.0.2.10/32 med 10 prepend 2 64512:1 64512:2
    "#]],
    );
}

#[test]
fn a46_aggregates_but_policy_local_stands_out() {
    let aggregate = || with(advert("a"), |bgp| bgp.aggregation_length = 24);
    check(
        case(web_with(HERE), [aggregate()]),
        expect![[r#"
        tor-a: 192.0.2.0/24
        tor-b: 192.0.2.0/24
    "#]],
    );
    check(
        case(local(HERE), [aggregate()]),
        expect![[r#"
        tor-a: 192.0.2.10/32
        tor-b: 192.0.2.10/32
    "#]],
    );
}

fn change_node(case: &mut Case, name: &str, change: impl FnOnce(&mut portolan_model::Node)) {
    let mut node = (**case.snapshot.nodes.get(name).unwrap()).clone();
    change(&mut node);
    case.snapshot.nodes.insert_mut(name.into(), Arc::new(node));
}

fn exclude(node: &mut portolan_model::Node) {
    node.labels = [("node.kubernetes.io/exclude-from-external-load-balancers".into(), "".into())].into();
}

#[test]
fn a49_an_excluded_node_keeps_its_pods_route() {
    let sources = vec![Source::LoadBalancerIp, Source::PodCidr];
    let mut case = case(web_with(HERE), [Advertisement { sources, ..advert("a") }]);
    change_node(&mut case, "n1", exclude);
    check(
        case,
        expect![[r#"
        tor-a: 10.1.1.0/24
        tor-b: 10.1.1.0/24
        192.0.2.10: NodeExcluded
    "#]],
    );
}

#[test]
fn a49_the_label_is_ignored_when_every_node_bears_it() {
    let mut case = case(web_with(HERE), []);
    change_node(&mut case, "n1", exclude);
    change_node(&mut case, "n2", exclude);
    check(
        case,
        expect![[r#"
        tor-a: 192.0.2.10/32
        tor-b: 192.0.2.10/32
    "#]],
    );
}

#[test]
fn a50_network_unavailable() {
    let mut case = case(web_with(HERE), []);
    change_node(&mut case, "n1", |node| node.network_unavailable = true);
    check(
        case,
        expect![[r#"
        192.0.2.10: NetworkUnavailable
    "#]],
    );
}

#[test]
fn a54_no_node_no_route() {
    let mut case = case(web_with(HERE), [Advertisement { sources: vec![Source::PodCidr], ..advert("a") }]);
    case.snapshot.nodes.remove_mut("n1");
    check(
        case,
        expect![[r#"
        192.0.2.10: AdvertisementMissing
    "#]],
    );
}

#[test]
fn a61_only_what_the_kernel_serves() {
    let programmed = Some(ServicePlan::default());
    check(
        Case { programmed, ..case(web_with(HERE), []) },
        expect![[r#"
        192.0.2.10: DataplaneNotReady
    "#]],
    );
    // The kernel still drops: it has not heard of the local endpoint yet.
    let view = NodeView { node: "n1".into(), ..NodeView::default() };
    let programmed = Some(crate::service::plan(&local(THERE), &view));
    check(
        Case { programmed, ..case(local(HERE), []) },
        expect![[r#"
        192.0.2.10: DataplaneNotReady
    "#]],
    );
}

#[test]
fn a61_a_new_port_does_not_take_the_address_away() {
    let view = NodeView { node: "n1".into(), ..NodeView::default() };
    let programmed = Some(crate::service::plan(&web_with(HERE), &view));
    let mut service = web_with(HERE);
    service
        .ports
        .push(portolan_model::ServicePort { protocol: portolan_model::Protocol::Udp, ..port("dns", 53, 0) });
    check(
        Case { programmed, ..case(service, []) },
        expect![[r#"
        tor-a: 192.0.2.10/32
        tor-b: 192.0.2.10/32
    "#]],
    );
}

#[test]
fn unknown_names_are_reported_and_the_others_go_on() {
    let advert = Advertisement { pools: names("lab nowhere"), ..advert("a") };
    check(
        case(web_with(HERE), [with(advert, |bgp| bgp.peers = names("tor-c tor-a"))]),
        expect![[r#"
        tor-a: 192.0.2.10/32
        Advertisement a: spec.bgp.peers[0]: there is no BGPPeer named "tor-c"
        Advertisement a: spec.ipAddressPools[1]: there is no IPAddressPool named "nowhere"
    "#]],
    );
}

#[test]
fn a36_no_peer_selected() {
    check(
        case(web_with(HERE), [with(advert("a"), |bgp| bgp.peers = names("tor-c"))]),
        expect![[r#"
        192.0.2.10: NoPeerSelected
        Advertisement a: spec.bgp.peers[0]: there is no BGPPeer named "tor-c"
    "#]],
    );
}

#[test]
fn a37_ip_mode_proxy_is_not_ours() {
    let ingress = vec![IngressIp { ip: ip("192.0.2.10"), mode: IpMode::Proxy }];
    check(case(Service { ingress: ingress.into(), ..web_with(HERE) }, []), expect![[""]]);
}
