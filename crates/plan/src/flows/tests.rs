use expect_test::{Expect, expect};
use portolan_model::*;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use super::Flows;
use crate::fixture::{ip, n1, port, slice, web};
use crate::service::plan;

/// `web` with UDP and TCP on port 80, node port 30080, and pods on 8080 of both.
fn service(endpoints: &str) -> Service {
    let mut slice = Arc::unwrap_or_clone(slice("web-1", endpoints));
    slice.ports.push(("".into(), Protocol::Udp, 8080));
    let udp = ServicePort { protocol: Protocol::Udp, ..port("", 80, 30080) };
    Service { ports: vec![port("", 80, 30080), udp], slices: vec![Arc::new(slice)], ..web() }
}

fn set(flows: &mut Flows, service: Option<&Service>) {
    set_at(flows, service, start());
}

fn set_at(flows: &mut Flows, service: Option<&Service>, now: Instant) {
    let plan = service.map(|service| plan(service, &n1()));
    flows.set(&web().id, plan.as_ref(), service, now);
}

/// The same in all tests of a process.
fn start() -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
    *START.get_or_init(Instant::now)
}

/// What is condemned of flows from each destination to each end, when the Service goes from `before` to `after`
/// (`-` = there is none).
fn check(before: &str, after: &str, expected: Expect) {
    let mut flows = Flows::new(true);
    let parse = |text: &str| (text != "-").then(|| service(text));
    set(&mut flows, parse(before).as_ref());
    flows.cleaned();
    set(&mut flows, parse(after).as_ref());
    expected.assert_eq(&condemned(&mut flows));
}

/// Once nothing is spared any more.
fn condemned(flows: &mut Flows) -> String {
    condemned_at(flows, start() + Flows::GRACE)
}

fn condemned_at(flows: &mut Flows, now: Instant) -> String {
    let (stale, mut text) = (flows.stale(now), String::new());
    let node_ports = [ip("172.18.0.2")].into();
    let destinations = [
        "10.96.0.10:80",
        "192.0.2.10:80",
        "172.18.0.2:30080",
        "172.18.0.3:30080",
        "10.96.0.10:81",
        "192.0.2.11:80",
    ];
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        for dst in destinations {
            let ends = ["10.1.1.1:8080", "10.1.1.2:8080", "10.1.1.3:8080", dst];
            let gone = ends.into_iter().filter(|end| {
                stale.condemns(protocol, dst.parse().unwrap(), end.parse().unwrap(), &node_ports)
            });
            let gone: Vec<_> = gone.map(|end| if end == dst { "untranslated" } else { end }).collect();
            if !gone.is_empty() {
                text += &format!("{protocol} {dst}: {}\n", gone.join(" "));
            }
        }
    }
    text
}

#[test]
fn s51_a_replaced_pod() {
    check(
        "10.1.1.1 n1\n10.1.1.2 n2",
        "10.1.1.2 n2\n10.1.1.3 n2",
        expect![[r#"
        udp 10.96.0.10:80: 10.1.1.1:8080 untranslated
        udp 192.0.2.10:80: 10.1.1.1:8080 untranslated
        udp 172.18.0.2:30080: 10.1.1.1:8080 untranslated
        tcp 10.96.0.10:80: 10.1.1.1:8080
        tcp 192.0.2.10:80: 10.1.1.1:8080
        tcp 172.18.0.2:30080: 10.1.1.1:8080
    "#]],
    );
}

#[test]
fn s51_terminating_but_serving_is_kept_and_more_endpoints_are_no_reason() {
    check("10.1.1.1 n1", "10.1.1.1 n1 terminating\n10.1.1.2 n2", expect![""]);
    check("10.1.1.1 n1", "10.1.1.1 n1\n10.1.1.2 n2", expect![""]);
    // Hints and policies: the flow to the other zone's pod stays.
    check("10.1.1.1 n1\n10.1.1.2 n2", "10.1.1.1 n1 zone=a\n10.1.1.2 n2 zone=b", expect![""]);
}

#[test]
fn s51_unready_and_dead_pods_serve_no_more() {
    for after in ["10.1.1.1 n1 unready\n10.1.1.2 n2", "10.1.1.1 n1 dead\n10.1.1.2 n2"] {
        check(
            "10.1.1.1 n1\n10.1.1.2 n2",
            after,
            expect![[r#"
            udp 10.96.0.10:80: 10.1.1.1:8080 10.1.1.3:8080 untranslated
            udp 192.0.2.10:80: 10.1.1.1:8080 10.1.1.3:8080 untranslated
            udp 172.18.0.2:30080: 10.1.1.1:8080 10.1.1.3:8080 untranslated
        "#]],
        );
    }
}

#[test]
fn s51_without_endpoints_and_removed() {
    check(
        "10.1.1.1 n1",
        "",
        expect![[r#"
        udp 10.96.0.10:80: 10.1.1.1:8080 10.1.1.2:8080 10.1.1.3:8080 untranslated
        udp 192.0.2.10:80: 10.1.1.1:8080 10.1.1.2:8080 10.1.1.3:8080 untranslated
        udp 172.18.0.2:30080: 10.1.1.1:8080 10.1.1.2:8080 10.1.1.3:8080 untranslated
        tcp 10.96.0.10:80: 10.1.1.1:8080
        tcp 192.0.2.10:80: 10.1.1.1:8080
        tcp 172.18.0.2:30080: 10.1.1.1:8080
    "#]],
    );
    // What we never translated is not ours once the Service is gone.
    check(
        "10.1.1.1 n1",
        "-",
        expect![[r#"
        udp 10.96.0.10:80: 10.1.1.1:8080 10.1.1.2:8080 10.1.1.3:8080
        udp 192.0.2.10:80: 10.1.1.1:8080 10.1.1.2:8080 10.1.1.3:8080
        udp 172.18.0.2:30080: 10.1.1.1:8080 10.1.1.2:8080 10.1.1.3:8080
        tcp 10.96.0.10:80: 10.1.1.1:8080
        tcp 192.0.2.10:80: 10.1.1.1:8080
        tcp 172.18.0.2:30080: 10.1.1.1:8080
    "#]],
    );
}

#[test]
fn s52_flows_from_before_there_was_a_rule() {
    for before in ["-", "", "10.1.1.1 n1 unready"] {
        check(
            before,
            "10.1.1.1 n1",
            expect![[r#"
            udp 10.96.0.10:80: 10.1.1.2:8080 10.1.1.3:8080 untranslated
            udp 192.0.2.10:80: 10.1.1.2:8080 10.1.1.3:8080 untranslated
            udp 172.18.0.2:30080: 10.1.1.2:8080 10.1.1.3:8080 untranslated
        "#]],
        );
    }
}

#[test]
fn s53_tcp_only_what_went_without_notice() {
    let mut flows = Flows::new(true);
    for endpoints in ["10.1.1.1 n1", "10.1.1.1 n1 terminating\n10.1.1.2 n1", "10.1.1.2 n1"] {
        set(&mut flows, Some(&service(endpoints)));
    }
    assert!(!condemned(&mut flows).contains("tcp"), "it was terminating");
    let mut off = Flows::new(false);
    for endpoints in ["10.1.1.1 n1", ""] {
        set(&mut off, Some(&service(endpoints)));
    }
    assert!(!condemned(&mut off).contains("tcp"), "the switch is off");
}

/// Invariant 9: who claims another's frontend cannot break its flows.
#[test]
fn s51_a_claim_of_another_service_keeps_its_flows() {
    let mut flows = Flows::new(false);
    set(&mut flows, Some(&service("10.1.1.1 n1")));
    let other = ServiceId::new("evil", "web");
    for endpoints in ["10.1.1.2 n1", ""] {
        flows.cleaned();
        let claimant = service(endpoints);
        flows.set(&other, Some(&plan(&claimant, &n1())), Some(&claimant), start());
    }
    let text = condemned(&mut flows);
    assert!(!text.contains("10.1.1.1:8080") && text.contains("10.1.1.2:8080"), "{text}");
}

/// A cleaning that failed is made up for with what holds then.
#[test]
fn s51_late_cleaning_keeps_what_came_meanwhile() {
    let mut flows = Flows::new(false);
    for endpoints in ["10.1.1.1 n1", "10.1.1.2 n1", "10.1.1.2 n1\n10.1.1.3 n1"] {
        set(&mut flows, Some(&service(endpoints)));
    }
    let text = condemned(&mut flows);
    assert!(text.contains("10.1.1.1:8080") && !text.contains("10.1.1.3:8080"), "{text}");
}

/// A request that is on its way to an end that went without notice is still answered.
#[test]
fn s51_an_answer_on_its_way_finds_back() {
    let mut flows = Flows::new(false);
    let both = service("10.1.1.1 n1\n10.1.1.2 n1");
    set(&mut flows, Some(&both));
    flows.cleaned();
    let gone = start() + Duration::from_secs(1);
    set_at(&mut flows, Some(&service("10.1.1.2 n1")), gone);
    assert_eq!(flows.poll_timeout(), Some(gone + Flows::GRACE));
    assert_eq!(condemned_at(&mut flows, gone), "");
    // Back, and gone again: spared anew.
    let again = gone + Flows::GRACE / 2;
    set_at(&mut flows, Some(&both), again);
    set_at(&mut flows, Some(&service("10.1.1.2 n1")), again);
    assert_eq!(condemned_at(&mut flows, gone + Flows::GRACE), "");
    assert!(condemned_at(&mut flows, again + Flows::GRACE).contains("10.1.1.1:8080"));
    assert_eq!(flows.poll_timeout(), None);
}

/// A pod that had time to end has answered.
#[test]
fn s51_an_end_that_was_terminating_is_not_spared() {
    let mut flows = Flows::new(false);
    for endpoints in ["10.1.1.1 n1\n10.1.1.2 n1", "10.1.1.1 n1 terminating\n10.1.1.2 n1"] {
        set(&mut flows, Some(&service(endpoints)));
        flows.cleaned();
    }
    set(&mut flows, Some(&service("10.1.1.2 n1")));
    assert!(condemned_at(&mut flows, start()).contains("10.1.1.1:8080"));
}

/// What an agent finds in its table at the start.
#[test]
fn s51_frontends_whose_service_went_while_no_agent_ran() {
    let vip =
        |ip: &str, protocol| Frontend { address: Address::Vip(ip.parse().unwrap()), protocol, port: 80 };
    let mut flows = Flows::new(true);
    flows.orphaned([vip("192.0.2.11", Protocol::Udp), vip("10.96.0.10", Protocol::Tcp)]);
    let text = condemned(&mut flows);
    assert!(text.lines().all(|line| line.contains("192.0.2.11:80")) && !text.is_empty(), "{text}");
    flows.cleaned();
    assert_eq!(condemned(&mut flows), "");
}
