//! What happens to packets, case by case: plans in, outcomes out, by the rules as they would be written.

use std::sync::Arc;

use expect_test::expect;
use portolan_dataplane::{Dataplane, Outcome, Packet, Settings, evaluate, render};
use portolan_model::{Action, Detector, Family, Forwarding, Masquerade, Protocol, ServiceId, ServicePlan};

use crate::kernel::Kernel;
use crate::plans::{CLIENT, NODE, POD, balance, ip, node_port, packet, plan, same, vip};

const VIP: &str = "10.96.0.1";

fn settings() -> Settings {
    Settings {
        pods: Detector::Ranges(vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()]),
        node_port_addresses: [ip(NODE), ip("fd00:172:30::11")].into(),
        ..Settings::default()
    }
}

fn dataplane(settings: Settings, plans: impl IntoIterator<Item = ServicePlan>) -> Dataplane {
    let mut dataplane = Dataplane::new(settings);
    for (i, plan) in plans.into_iter().enumerate() {
        dataplane.set_service(&ServiceId::new("default", format!("s{i}")), 0, Some(Arc::new(plan)));
    }
    dataplane
}

fn outcome(dataplane: &Dataplane, from: &str, to: &str) -> String {
    match evaluate(&dataplane.desired(Family::of(&ip(from))), &packet(from, to)).outcome {
        Outcome::Dnat(candidates) => candidates
            .iter()
            .map(|c| format!("{}{}", c.backend, if c.masquerade { " masqueraded" } else { "" }))
            .collect::<Vec<_>>()
            .join(", "),
        other => format!("{other:?}"),
    }
}

/// `cases`: from, to, outcome.
fn check(dataplane: &Dataplane, cases: &[(&str, &str, &str)]) {
    for (from, to, expected) in cases {
        assert_eq!(outcome(dataplane, from, to), *expected, "from {from} to {to}");
    }
}

#[test]
fn s15_s16_cluster_ip_masquerades_only_those_that_are_no_pods() {
    let action = balance(Masquerade::NonPods, &["10.244.1.5:8080", "10.244.2.5:8080"]);
    let dataplane = dataplane(settings(), [plan(vip(VIP, 80), same(action))]);
    check(
        &dataplane,
        &[
            (POD, "10.96.0.1:80", "10.244.1.5:8080, 10.244.2.5:8080"),
            (CLIENT, "10.96.0.1:80", "10.244.1.5:8080 masqueraded, 10.244.2.5:8080 masqueraded"),
            (NODE, "10.96.0.1:80", "10.244.1.5:8080 masqueraded, 10.244.2.5:8080 masqueraded"),
        ],
    );
}

#[test]
fn s16_without_a_detector_nobody_is_masqueraded() {
    let action = balance(Masquerade::NonPods, &["10.244.1.5:8080"]);
    let without = Settings { pods: Detector::default(), ..settings() };
    let dataplane = dataplane(without, [plan(vip(VIP, 80), same(action))]);
    check(&dataplane, &[(CLIENT, "10.96.0.1:80", "10.244.1.5:8080")]);
}

#[test]
fn s16_s48_pods_are_told_by_the_interface_that_they_come_in_by() {
    let check = |pods: Detector, interface: Option<&str>, from: &str, expected: &str| {
        let action = balance(Masquerade::NonPods, &["10.244.2.5:8080"]);
        let dataplane =
            dataplane(Settings { pods: pods.clone(), ..settings() }, [plan(vip(VIP, 80), same(action))]);
        let packet = Packet { interface: interface.map(Into::into), ..packet(from, "10.96.0.1:80") };
        let trace = evaluate(&dataplane.desired(Family::Ipv4), &packet);
        let Outcome::Dnat(candidates) = &trace.outcome else { panic!("{:?}", trace.outcome) };
        let seen = if candidates[0].masquerade { "the node" } else { "the client" };
        assert_eq!(seen, expected, "{pods:?}, {interface:?}: {:#?}", trace.reasons);
    };
    let bridge = || Detector::Interface("cbr0".into());
    check(bridge(), Some("cbr0"), POD, "the client");
    check(bridge(), Some("cbr01"), POD, "the node");
    check(bridge(), Some("eth0"), CLIENT, "the node");
    check(bridge(), None, NODE, "the node");
    let prefix = |prefix: &str| Detector::InterfacePrefix(prefix.into());
    check(prefix("veth"), Some("veth1a"), POD, "the client");
    check(prefix("veth"), Some("vet"), POD, "the node");
    check(prefix("veth"), None, NODE, "the node");
    check(prefix("as-long-as-15-b"), Some("as-long-as-15-b"), POD, "the client");
}

#[test]
fn s17_other_ports_of_a_vip_are_refused() {
    let dataplane = dataplane(settings(), [plan(vip(VIP, 80), same(Action::Drop))]);
    check(
        &dataplane,
        &[
            (POD, "10.96.0.1:81", "Reject"),
            (CLIENT, "10.96.0.1:443", "Reject"),
            (NODE, "10.96.0.1:443", "Reject"),
            (POD, "10.96.0.99:80", "Pass"),
        ],
    );
}

#[test]
fn s18_what_nobody_has_of_a_service_cidr_is_dropped() {
    let service_cidrs = ["10.96.0.0/16", "10.97.0.0/20", "fd00:10:96::/112"];
    let ranges =
        Settings { service_cidrs: service_cidrs.map(|cidr| cidr.parse().unwrap()).into(), ..settings() };
    let action = balance(Masquerade::NonPods, &["10.244.1.5:8080"]);
    let mut dataplane = dataplane(ranges.clone(), [plan(vip(VIP, 80), same(action))]);
    check(
        &dataplane,
        &[
            (POD, "10.96.0.1:80", "10.244.1.5:8080"),
            (POD, "10.96.0.1:81", "Reject"), // S17
            (POD, "10.96.0.99:80", "Drop"),
            (CLIENT, "10.97.15.255:80", "Drop"),
            (NODE, "10.97.0.1:80", "Drop"),
            (CLIENT, "10.97.16.1:80", "Pass"),
            ("2001:db8::7", "[fd00:10:96::99]:80", "Drop"),
            ("2001:db8::7", "[fd00:10:97::99]:80", "Pass"),
        ],
    );
    // ranges come and go at run time, by one rule chain written anew
    let mut kernel = Kernel::default();
    dataplane.observed(&kernel.observe());
    kernel.write(&mut dataplane, |_, _| {});
    let before = kernel.transactions;
    dataplane.set_settings(Settings { service_cidrs: Vec::new(), ..ranges });
    kernel.write(&mut dataplane, |_, _| {});
    assert_eq!(kernel.transactions, before + 2, "one for each family");
    check(&dataplane, &[(POD, "10.96.0.99:80", "Pass"), (POD, "10.96.0.1:81", "Reject")]);
}

#[test]
fn s28_a_vip_that_is_the_nodes_own_address_leaves_its_other_ports_alone() {
    let action = balance(Masquerade::Always, &["10.244.1.5:8080"]);
    let dataplane = dataplane(settings(), [plan(vip(NODE, 80), same(action))]);
    check(
        &dataplane,
        &[(CLIENT, "172.30.0.11:80", "10.244.1.5:8080 masqueraded"), (CLIENT, "172.30.0.11:22", "Pass")],
    );
}

#[test]
fn s19_s43_node_ports_answer_on_the_nodes_addresses_and_are_masqueraded() {
    let action = balance(Masquerade::Always, &["10.244.2.5:8080"]);
    let dataplane = dataplane(settings(), [plan(node_port(30080), same(action))]);
    check(
        &dataplane,
        &[
            (CLIENT, "172.30.0.11:30080", "10.244.2.5:8080 masqueraded"),
            (POD, "172.30.0.11:30080", "10.244.2.5:8080 masqueraded"),
            (CLIENT, "172.30.0.12:30080", "Pass"),
            (CLIENT, "172.30.0.11:30081", "Pass"),
        ],
    );
}

/// Upstream's table of node ports: addresses that answer, with endpoints, without any, and with none here.
#[test]
fn s19_s20_s38_s39_node_ports_over_addresses_and_endpoints() {
    let answered = balance(Masquerade::Always, &["10.244.2.5:8080"]);
    let actions =
        [(answered, "10.244.2.5:8080 masqueraded"), (Action::Reject, "Reject"), (Action::Drop, "Drop")];
    let addresses: [&[&str]; 4] = [&[], &[NODE], &["172.30.0.11", "172.30.0.12"], &["fd00:172:30::11"]];
    for own in addresses {
        let settings =
            Settings { node_port_addresses: own.iter().map(|text| ip(text)).collect(), ..settings() };
        for (action, fate) in &actions {
            let dataplane = dataplane(settings.clone(), [plan(node_port(30080), same(action.clone()))]);
            for to in ["172.30.0.11", "172.30.0.12", "127.0.0.1"] {
                let expected = if own.contains(&to) { fate } else { "Pass" };
                let (port, other) = (format!("{to}:30080"), format!("{to}:30081"));
                check(&dataplane, &[(CLIENT, port.as_str(), expected), (CLIENT, other.as_str(), "Pass")]);
            }
        }
    }
}

#[test]
fn s27_sources_outside_the_ranges_are_dropped_wherever_they_are() {
    let mut forwarding = same(balance(Masquerade::Always, &["10.244.1.5:8080"]));
    forwarding.allowed_sources =
        Some(["198.51.100.0/29".parse().unwrap(), "2001:db8::/32".parse().unwrap()].into());
    let mut wrong_family = forwarding.clone();
    wrong_family.allowed_sources = Some(["2001:db8::/32".parse().unwrap()].into());
    let plans = [plan(vip(VIP, 80), forwarding), plan(vip("10.96.0.2", 80), wrong_family)];
    check(
        &dataplane(settings(), plans),
        &[
            (CLIENT, "10.96.0.1:80", "10.244.1.5:8080 masqueraded"),
            ("198.51.100.8", "10.96.0.1:80", "Drop"),
            (POD, "10.96.0.1:80", "Drop"),
            (NODE, "10.96.0.1:80", "Drop"),
            (CLIENT, "10.96.0.2:80", "Drop"),
        ],
    );
}

#[test]
fn s38_s39_no_endpoints_refuse_and_none_here_is_silent() {
    let plans = [plan(vip(VIP, 80), same(Action::Reject)), plan(vip("10.96.0.2", 80), same(Action::Drop))];
    check(
        &dataplane(settings(), plans),
        &[
            (CLIENT, "10.96.0.1:80", "Reject"),
            (NODE, "10.96.0.1:80", "Reject"),
            (CLIENT, "10.96.0.2:80", "Drop"),
        ],
    );
}

#[test]
fn s44_s45_local_policy_keeps_clients_and_short_circuits_pods_and_the_node() {
    let forwarding = Forwarding {
        from_cluster: balance(Masquerade::NonPods, &["10.244.1.5:8080", "10.244.2.5:8080"]),
        from_outside: balance(Masquerade::Never, &["10.244.1.5:8080"]),
        allowed_sources: None,
    };
    let none_here = Forwarding { from_outside: Action::Drop, ..forwarding.clone() };
    let plans = [plan(vip(VIP, 80), forwarding), plan(node_port(30080), none_here)];
    check(
        &dataplane(settings(), plans),
        &[
            (CLIENT, "10.96.0.1:80", "10.244.1.5:8080"),
            (POD, "10.96.0.1:80", "10.244.1.5:8080, 10.244.2.5:8080"),
            (NODE, "10.96.0.1:80", "10.244.1.5:8080 masqueraded, 10.244.2.5:8080 masqueraded"),
            (CLIENT, "172.30.0.11:30080", "Drop"),
            (POD, "172.30.0.11:30080", "10.244.1.5:8080, 10.244.2.5:8080"),
        ],
    );
}

#[test]
fn s46_a_pod_that_reaches_itself_is_masqueraded() {
    let mut plan =
        plan(vip(VIP, 80), same(balance(Masquerade::Never, &["10.244.1.5:8080", "10.244.1.9:8080"])));
    plan.hairpin = [ip("10.244.1.5"), ip("10.244.1.9")].into();
    check(
        &dataplane(settings(), [plan]),
        &[(POD, "10.96.0.1:80", "10.244.1.5:8080, 10.244.1.9:8080 masqueraded")],
    );
}

#[test]
fn s6_families_are_independent() {
    let action = balance(Masquerade::NonPods, &["[fd00:10:244:1::5]:8080"]);
    let dataplane = dataplane(settings(), [plan(vip("fd00:10:96::1", 80), same(action))]);
    check(
        &dataplane,
        &[
            ("fd00:10:244:1::9", "[fd00:10:96::1]:80", "[fd00:10:244:1::5]:8080"),
            ("2001:db8::7", "[fd00:10:96::1]:80", "[fd00:10:244:1::5]:8080 masqueraded"),
            ("2001:db8::7", "[fd00:10:96::1]:81", "Reset"),
            (CLIENT, "10.96.0.1:80", "Pass"),
        ],
    );
}

#[test]
fn the_oldest_claim_wins_and_the_next_one_follows() {
    let (old, new) = (ServiceId::new("z", "old"), ServiceId::new("a", "new"));
    let of = |backend| Arc::new(plan(vip(VIP, 80), same(balance(Masquerade::Never, &[backend]))));
    let mut dataplane = Dataplane::new(settings());
    dataplane.set_service(&new, 2, Some(of("10.244.1.2:80")));
    dataplane.set_service(&old, 1, Some(of("10.244.1.1:80")));
    check(&dataplane, &[(POD, "10.96.0.1:80", "10.244.1.1:80")]);
    dataplane.set_service(&old, 1, None);
    check(&dataplane, &[(POD, "10.96.0.1:80", "10.244.1.2:80")]);
    dataplane.set_service(&new, 2, None);
    check(&dataplane, &[(POD, "10.96.0.1:80", "Pass")]);
}

/// Programmed is what the kernel has, not what is wanted; a lasting difference in endpoints alone does not withdraw it.
#[test]
fn serves_what_was_applied() {
    let id = ServiceId::new("default", "web");
    let of = |action| Some(Arc::new(plan(vip(VIP, 80), same(action))));
    let (one, two) = (&["10.244.1.1:80"][..], &["10.244.1.1:80", "10.244.1.2:80"][..]);
    let mut dataplane = dataplane(settings(), []);
    let mut kernel = Kernel::default();
    dataplane.observed(&kernel.observe());
    dataplane.set_service(&id, 0, of(balance(Masquerade::Never, one)));
    let _ = dataplane.steps();
    assert!(!dataplane.serves(&vip(VIP, 80)), "only planned");
    kernel.write(&mut dataplane, |_, _| {});
    assert!(dataplane.serves(&vip(VIP, 80)));
    assert!(!dataplane.serves(&vip(VIP, 81)));
    assert!(!dataplane.serves(&node_port(30080)));
    dataplane.set_service(&id, 0, of(balance(Masquerade::Never, two)));
    assert!(dataplane.serves(&vip(VIP, 80)), "an endpoint more");
    dataplane.set_service(&id, 0, of(Action::Reject));
    assert!(!dataplane.serves(&vip(VIP, 80)), "the kernel still does something else");
    kernel.write(&mut dataplane, |_, _| {});
    assert!(dataplane.serves(&vip(VIP, 80)), "it refuses, as asked");
}

#[test]
fn a_trace_says_why() {
    let action = balance(Masquerade::Always, &["10.244.2.5:8080", "10.244.2.6:8080"]);
    let dataplane = dataplane(settings(), [plan(node_port(30080), same(action))]);
    let packet = Packet {
        source: "198.51.100.7:40000".parse().unwrap(),
        destination: "172.30.0.11:30080".parse().unwrap(),
        protocol: Protocol::Tcp,
        from_node: false,
        interface: None,
    };
    let trace = evaluate(&dataplane.desired(Family::Ipv4), &packet);
    expect![[r#"
        services: 172.30.0.11:30080/tcp is in services
        masq-pick-2-from-3: marked 0x4000
        masq-pick-2-from-3: goto dnat-from-3
        dnat-from-3: 2 of 2 draws find an endpoint in endpoints-3
        to 10.244.2.5:8080: nat-postrouting: masqueraded
        to 10.244.2.6:8080: nat-postrouting: masqueraded"#]]
    .assert_eq(&trace.reasons.join("\n"));
}

#[test]
fn the_whole_table_as_text() {
    let short_circuit = Forwarding {
        from_cluster: balance(Masquerade::NonPods, &["10.244.1.5:8080", "10.244.2.5:8080"]),
        from_outside: balance(Masquerade::Never, &["10.244.1.5:8080"]),
        allowed_sources: Some(["198.51.100.0/24".parse().unwrap()].into()),
    };
    let mut plan = plan(vip("192.0.2.10", 80), short_circuit);
    plan.hairpin = [ip("10.244.1.5")].into();
    let text = render(&dataplane(settings(), [plan]));
    expect![[r#"
        table ip portolan {
        	map affine {
        		type ipv4_addr . inet_proto . inet_service . ipv4_addr . inet_service : verdict
        	}
        	map affinity {
        		type ipv4_addr . ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
        		size 65536
        		flags dynamic,timeout
        	}
        	set cluster-ports {
        		type ipv4_addr . inet_proto . inet_service
        		elements = {
        			192.0.2.10 . tcp . 80,
        		}
        	}
        	map cluster-services {
        		type ipv4_addr . inet_proto . inet_service : classid
        		elements = {
        			192.0.2.10 . tcp . 80 : 2a00:2,
        		}
        	}
        	map endpoints-0 {
        		type ipv4_addr . inet_proto . inet_service . classid : ipv4_addr . inet_service
        	}
        	map endpoints-1 {
        		type ipv4_addr . inet_proto . inet_service . classid : ipv4_addr . inet_service
        	}
        	map endpoints-2 {
        		type ipv4_addr . inet_proto . inet_service . classid : ipv4_addr . inet_service
        		elements = {
        			192.0.2.10 . tcp . 80 . none : 10.244.1.5 . 8080,
        			192.0.2.10 . tcp . 80 . 10:0 : 10.244.1.5 . 8080,
        			192.0.2.10 . tcp . 80 . 10:1 : 10.244.2.5 . 8080,
        		}
        	}
        	map endpoints-3 {
        		type ipv4_addr . inet_proto . inet_service . classid : ipv4_addr . inet_service
        	}
        	set fw-allow {
        		type ipv4_addr . inet_proto . inet_service . ipv4_addr
        		flags interval
        		elements = {
        			192.0.2.10 . tcp . 80 . 198.51.100.0-198.51.100.255,
        		}
        	}
        	set fw-vips {
        		type ipv4_addr . inet_proto . inet_service
        		elements = {
        			192.0.2.10 . tcp . 80,
        		}
        	}
        	set hairpin {
        		type ipv4_addr . ipv4_addr
        		elements = {
        			10.244.1.5 . 10.244.1.5,
        		}
        	}
        	set host-ports {
        		type ipv4_addr . inet_proto . inet_service
        	}
        	map services {
        		type ipv4_addr . inet_proto . inet_service : classid
        		comment "layout 2"
        		elements = {
        			192.0.2.10 . tcp . 80 : 2000:1,
        		}
        	}
        	map targets {
        		type classid : verdict
        		elements = {
        			2000:1 : jump pick-1-from-2,
        			8000:1 : jump refuse,
        			2a00:2 : jump cluster-nonpod-pick-2-from-2,
        			8000:2 : jump refuse-on-localhost,
        			8000:3 : drop,
        		}
        	}
        	set vips {
        		type ipv4_addr
        		elements = {
        			192.0.2.10,
        		}
        	}
        	chain cluster-dnat-from-0 {
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-0
        		meta priority set 10:0 comment "raced with a commit"
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-0
        		drop
        	}
        	chain cluster-dnat-from-1 {
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-1
        		meta priority set 10:0 comment "raced with a commit"
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-1
        		drop
        	}
        	chain cluster-dnat-from-2 {
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-2
        		meta priority set 10:0 comment "raced with a commit"
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-2
        		drop
        	}
        	chain cluster-dnat-from-3 {
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-3
        		meta priority set 10:0 comment "raced with a commit"
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-3
        		drop
        	}
        	chain cluster-nonpod-pick-2-from-2 {
        		ip saddr != 10.244.0.0/16 meta mark set meta mark or 0x00004000
        		meta priority set numgen random mod 2 offset 1048576 goto cluster-dnat-from-2
        	}
        	chain cluster-raced {
        		jump mark-nonpods
        		meta priority set 10:0 comment "raced with a commit"
        		ip daddr & 0.0.0.3 == 0.0.0.0 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-0
        		ip daddr & 0.0.0.3 == 0.0.0.1 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-1
        		ip daddr & 0.0.0.3 == 0.0.0.2 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-2
        		ip daddr & 0.0.0.3 == 0.0.0.3 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-3
        		drop
        	}
        	chain cluster-services {
        		meta priority set ip daddr . meta l4proto . th dport map @cluster-services meta priority vmap @targets
        		ip daddr . meta l4proto . th dport @cluster-ports goto cluster-raced
        	}
        	chain dnat-from-0 {
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-0
        		meta priority set none comment "raced with a commit"
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-0
        		drop
        	}
        	chain dnat-from-1 {
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-1
        		meta priority set none comment "raced with a commit"
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-1
        		drop
        	}
        	chain dnat-from-2 {
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-2
        		meta priority set none comment "raced with a commit"
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-2
        		drop
        	}
        	chain dnat-from-3 {
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-3
        		meta priority set none comment "raced with a commit"
        		dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-3
        		drop
        	}
        	chain mark-nonpods {
        		ip saddr 10.244.0.0/16 return
        		meta mark set meta mark or 0x00004000
        	}
        	chain nat-input {
        		type nat hook input priority 100
        		meta priority != none ct status dnat meta priority set none
        	}
        	chain nat-output {
        		type nat hook output priority -100
        		jump source-ranges
        		jump cluster-services
        		jump services
        	}
        	chain nat-postrouting {
        		type nat hook postrouting priority 100
        		meta priority != none ct status dnat meta priority set none
        		meta mark & 0x00004000 == 0x00004000 meta mark set meta mark xor 0x00004000 masquerade fully-random
        		ip saddr . ip daddr @hairpin masquerade fully-random
        	}
        	chain nat-prerouting {
        		type nat hook prerouting priority -100
        		jump source-ranges
        		ip saddr 10.244.0.0/16 jump cluster-services
        		jump services
        	}
        	chain pick-1-from-2 {
        		meta priority set numgen random mod 1 goto dnat-from-2
        	}
        	chain raced {
        		jump mark-nonpods
        		meta priority set none comment "raced with a commit"
        		ip daddr & 0.0.0.3 == 0.0.0.0 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-0
        		ip daddr & 0.0.0.3 == 0.0.0.1 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-1
        		ip daddr & 0.0.0.3 == 0.0.0.2 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-2
        		ip daddr & 0.0.0.3 == 0.0.0.3 dnat ip to ip daddr . meta l4proto . th dport . meta priority map @endpoints-3
        		goto refuse
        	}
        	chain recall {
        		dnat ip to ip saddr . ip daddr . meta l4proto . th dport map @affinity
        	}
        	chain refuse {
        		reject
        	}
        	chain refuse-on-localhost {
        		meta l4proto udp counter reject
        		meta l4proto sctp counter reject
        	}
        	chain remember {
        		meta l4proto tcp ct original ip daddr . meta l4proto . ct original proto-dst . ip daddr . ct reply proto-src vmap @affine
        		meta l4proto udp ct original ip daddr . meta l4proto . ct original proto-dst . ip daddr . ct reply proto-src vmap @affine
        		meta l4proto sctp ct original ip daddr . meta l4proto . ct original proto-dst . ip daddr . ct reply proto-src vmap @affine
        	}
        	chain services {
        		meta priority set ip daddr . meta l4proto . th dport map @services meta priority vmap @targets
        		ip daddr @vips goto raced
        		ip daddr . meta l4proto . th dport @host-ports goto raced
        	}
        	chain source-ranges {
        		ip daddr . meta l4proto . th dport @fw-vips ip daddr . meta l4proto . th dport . ip saddr != @fw-allow drop
        	}
        }
    "#]].assert_eq(text.split("table ip6").next().unwrap());
}
