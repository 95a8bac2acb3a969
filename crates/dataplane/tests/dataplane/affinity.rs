//! Session affinity: what happens to the packets of clients that are remembered, and what a change writes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use expect_test::{Expect, expect};
use portolan_dataplane::{Dataplane, Outcome, Settings, evaluate};
use portolan_model::{Address, Detector, Family, Forwarding, Frontend, Protocol, ServiceId, ServicePlan};
use portolan_nft::{Atom, Bytes, Element, Extra, Table, Value};

use crate::kernel::Kernel;
use crate::plans::{CLIENT, POD, affine, packet, same};

const A: &str = "10.244.1.5:80";
const B: &str = "10.244.2.5:80";
const VIP: &str = "10.96.0.1:80";

fn plan(forwarding: Forwarding) -> Option<Arc<ServicePlan>> {
    let vip: SocketAddr = VIP.parse().unwrap();
    let of = |port| Frontend { address: Address::Vip(vip.ip()), protocol: Protocol::Tcp, port };
    let frontends = [(of(80), forwarding.clone()), (of(443), forwarding)].into();
    Some(Arc::new(ServicePlan { frontends, vips: [vip.ip()].into(), hairpin: Default::default() }))
}

/// Clients that are remembered, by (client, frontend, endpoint); the first connection was a minute ago.
fn remembered(cases: &[(&str, &str, &str)], timeout: u64) -> Vec<Element> {
    let (timeout, expires) = (Duration::from_secs(timeout), Duration::from_secs(timeout - 60));
    let element = |(client, frontend, backend): &(&str, &str, &str)| {
        let (to, at): (SocketAddr, SocketAddr) = (frontend.parse().unwrap(), backend.parse().unwrap());
        let client = Atom::Address(client.parse().unwrap());
        let key = [client, Atom::Address(to.ip()), Atom::Protocol(6), Atom::Port(to.port())];
        let value = Bytes::concat(&[Atom::Address(at.ip()), Atom::Port(at.port())]);
        let extra = Extra { timeout: Some(timeout), expires: Some(expires), ..Extra::default() };
        Element { extra: Some(Box::new(extra)), ..Element::new(Bytes::concat(&key), Value::Bytes(value)) }
    };
    cases.iter().map(element).collect()
}

pub fn settings() -> Settings {
    Settings { pods: Detector::Ranges(vec!["10.244.0.0/16".parse().unwrap()]), ..Settings::default() }
}

pub fn outcome(table: &Table, from: &str, to: &str) -> String {
    match evaluate(table, &packet(from, to)).outcome {
        Outcome::Dnat(to) => to.iter().map(|c| c.backend.to_string()).collect::<Vec<_>>().join(", "),
        other => format!("{other:?}"),
    }
}

#[test]
fn s41_clients_go_where_they_went_before_by_frontend_and_address() {
    let mut dataplane = Dataplane::new(settings());
    dataplane.set_service(&ServiceId::new("default", "web"), 0, plan(same(affine(10800, &[A, B]))));
    let mut table = dataplane.desired(Family::Ipv4);
    table.elements.insert("affinity".into(), remembered(&[(CLIENT, VIP, A), (POD, VIP, B)], 10800));
    assert_eq!(outcome(&table, CLIENT, VIP), A);
    assert_eq!(outcome(&table, POD, VIP), B);
    assert_eq!(outcome(&table, "198.51.100.8", VIP), format!("{A}, {B}"), "not seen yet");
    assert_eq!(outcome(&table, CLIENT, "10.96.0.1:443"), format!("{A}, {B}"), "another frontend");
}

#[test]
fn s41_a_trace_says_who_is_remembered() {
    let mut dataplane = Dataplane::new(settings());
    dataplane.set_service(&ServiceId::new("default", "web"), 0, plan(same(affine(30, &[A]))));
    expect![[r#"
        services: 10.96.0.1:80/tcp is in services
        nonpod-affine-pick-1-from-1: marked 0x4000
        nonpod-affine-pick-1-from-1: goto affine-pick-1-from-1
        affine-pick-1-from-1: goto pick-1-from-1
        pick-1-from-1: goto dnat-from-1
        dnat-from-1: 1 of 1 draws find an endpoint in endpoints-1
        to 10.244.1.5:80: remember: 10.244.1.5:80/tcp is in affine
        to 10.244.1.5:80: remember-30: the client is remembered for 30s
        to 10.244.1.5:80: nat-postrouting: masqueraded"#]]
    .assert_eq(&evaluate(&dataplane.desired(Family::Ipv4), &packet(CLIENT, VIP)).reasons.join("\n"));
}

/// What the change from one forwarding to another writes to `affinity`, before which a client and a pod came to both
/// endpoints, and where they go after it.
fn check(from: Forwarding, to: Forwarding, timeout: u64, writes: Expect, outcomes: [&str; 2]) {
    let id = ServiceId::new("default", "web");
    let (mut kernel, mut dataplane) = (Kernel::default(), Dataplane::new(settings()));
    dataplane.observed(&kernel.observe());
    dataplane.set_service(&id, 0, plan(from));
    kernel.write(&mut dataplane, |_, _| {});
    let known = remembered(&[(CLIENT, VIP, A), (POD, VIP, B)], timeout);
    kernel.set_elements(Family::Ipv4, "affinity", &known);
    dataplane.set_service(&id, 0, plan(to));
    let steps = dataplane.steps();
    let texts = steps.iter().flat_map(|step| step.forget(&kernel.remembered(step)));
    let texts = texts.map(|command| format!("{command}\n"));
    writes.assert_eq(&texts.collect::<String>());
    kernel.write(&mut dataplane, |_, _| {});
    let table = kernel.table(Family::Ipv4).unwrap();
    assert_eq!([CLIENT, POD].map(|from| outcome(&table, from, VIP)), outcomes);
    for step in steps {
        assert_eq!(step.forget(&kernel.remembered(&step)), [], "a second look finds nothing");
    }
}

#[test]
fn s42_the_clients_of_an_endpoint_that_goes_choose_again() {
    check(
        same(affine(10800, &[A, B])),
        same(affine(10800, &[A])),
        10800,
        expect![[r#"
            delete 1 elements of set affinity
        "#]],
        [A, A],
    );
}

#[test]
fn s41_an_endpoint_more_changes_nothing_for_those_who_are_remembered() {
    let more = same(affine(10800, &[A, B, "10.244.3.5:80"]));
    check(same(affine(10800, &[A, B])), more, 10800, expect![""], [A, B]);
}

#[test]
fn s41_turned_off_everyone_chooses_again() {
    check(
        same(affine(10800, &[A, B])),
        same(affine(0, &[A, B])),
        10800,
        expect![[r#"
            delete 2 elements of set affinity
        "#]],
        [&format!("{A}, {B}"), &format!("{A}, {B}")],
    );
}

/// Those who were remembered are so for the new time from now on at most.
#[test]
fn s41_a_shorter_time_holds_for_those_who_are_remembered() {
    check(
        same(affine(10800, &[A, B])),
        same(affine(30, &[A, B])),
        10800,
        expect![[r#"
            delete 2 elements of set affinity
            add 2 elements to set affinity
        "#]],
        [A, B],
    );
    check(same(affine(100, &[A, B])), same(affine(10800, &[A, B])), 100, expect![""], [A, B]);
    check(same(affine(100, &[A, B])), same(affine(50, &[A, B])), 100, expect![""], [A, B]);
}

/// An endpoint that stays for pods is forgotten for clients: nothing remembered tells the one from the other.
#[test]
fn s41_policy_local_constrains_the_choice_first() {
    let local = Forwarding { from_outside: affine(10800, &[B]), ..same(affine(10800, &[A, B])) };
    check(
        same(affine(10800, &[A, B])),
        local,
        10800,
        expect![[r#"
            delete 1 elements of set affinity
        "#]],
        [B, B],
    );
}

/// The other way round, from an entry that had no sides (internalTrafficPolicy Local beside external Cluster).
#[test]
fn s42_the_pods_of_an_endpoint_that_goes_for_pods_only_choose_again() {
    let local = Forwarding { from_cluster: affine(10800, &[A]), ..same(affine(10800, &[A, B])) };
    check(
        same(affine(10800, &[A, B])),
        local,
        10800,
        expect![[r#"
            delete 1 elements of set affinity
        "#]],
        [A, A],
    );
}

/// Whoever counts as a pod no more may have no endpoint that is there for pods only.
#[test]
fn s42_s48_other_pod_ranges_forget_what_one_side_only_has() {
    let id = ServiceId::new("default", "web");
    let (mut kernel, mut dataplane) = (Kernel::default(), Dataplane::new(settings()));
    dataplane.observed(&kernel.observe());
    let local = Forwarding { from_outside: affine(10800, &[A]), ..same(affine(10800, &[A, B])) };
    dataplane.set_service(&id, 0, plan(local));
    kernel.write(&mut dataplane, |_, _| {});
    let other = "10.244.1.10";
    let known = remembered(&[(POD, VIP, B), (other, VIP, A)], 10800);
    kernel.set_elements(Family::Ipv4, "affinity", &known);
    dataplane.set_settings(Settings { pods: Detector::default(), ..settings() });
    kernel.write(&mut dataplane, |_, _| {});
    assert_eq!(kernel.elements(Family::Ipv4, "affinity").len(), 1, "who has what both sides have keeps it");
    let table = kernel.table(Family::Ipv4).unwrap();
    assert_eq!([POD, other].map(|from| outcome(&table, from, VIP)), [A, A]);
    assert!(dataplane.steps().is_empty());
}
