//! Session affinity in IPv6: every frontend has maps of its own, one for each port of its endpoints.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use expect_test::expect;
use portolan_dataplane::{Dataplane, Limits};
use portolan_model::{Action, Family, ServiceId, ServicePlan};
use portolan_nft::{Atom, Bytes, Command, Element, Extra, KeyType, Name, Set, Value, ValueType, Verdict};

use crate::affinity::{outcome, settings};
use crate::kernel::Kernel;
use crate::plans::{affine, ip, plan, same, vip};

const A: &str = "[fd00:10:244:1::5]:8080";
const B: &str = "[fd00:10:244:2::5]:9090";
const VIP: &str = "[fd00:10:96::1]:80";
const CLIENT: &str = "2001:db8:1::7";
const OTHER: &str = "2001:db8:1::8";
/// Of the clients that were sent to A, and to B.
const TO_A: &str = "affinity-fd00-10-96--1/tcp/80/8080";
const TO_B: &str = "affinity-fd00-10-96--1/tcp/80/9090";

fn web(action: Action) -> Option<Arc<ServicePlan>> {
    Some(Arc::new(plan(vip("fd00:10:96::1", 80), same(action))))
}

fn address(text: &str) -> Bytes {
    Bytes::concat(&[Atom::Address(ip(text))])
}

fn remembered(client: &str, backend: &str) -> Element {
    let (timeout, expires) = (Some(Duration::from_secs(10800)), Some(Duration::from_secs(10740)));
    let backend: SocketAddr = backend.parse().unwrap();
    let value = Value::Bytes(address(&backend.ip().to_string()));
    let extra = Some(Box::new(Extra { timeout, expires, ..Extra::default() }));
    Element { extra, ..Element::new(address(client), value) }
}

/// A kernel in which one client was sent to A, and another to B.
fn served(limits: Limits) -> (Kernel, Dataplane) {
    let (mut kernel, mut dataplane) = (Kernel::default(), Dataplane::with_limits(settings(), limits));
    dataplane.observed(&kernel.observe());
    dataplane.set_service(&id(), 0, web(affine(10800, &[A, B])));
    kernel.write(&mut dataplane, |_, _| {});
    kernel.set_elements(Family::Ipv6, TO_A, &[remembered(CLIENT, A)]);
    kernel.set_elements(Family::Ipv6, TO_B, &[remembered(OTHER, B)]);
    (kernel, dataplane)
}

fn id() -> ServiceId {
    ServiceId::new("default", "web")
}

fn outcomes(kernel: &Kernel) -> [String; 2] {
    let table = kernel.table(Family::Ipv6).unwrap();
    [CLIENT, OTHER].map(|from| outcome(&table, from, VIP))
}

fn own_maps(kernel: &Kernel) -> Vec<Name> {
    kernel.maps(Family::Ipv6).into_iter().filter(|map| map.starts_with("affinity")).collect()
}

#[test]
fn s41_an_ipv6_frontend_remembers_in_maps_of_its_own() {
    let mut table = served(Limits::default()).1.desired(Family::Ipv6);
    table.sets.retain(|name, _| name.starts_with("affin") || **name == *"recall");
    table.elements.retain(|name, _| table.sets.contains_key(name));
    table.chains.retain(|name, _| name.starts_with("rem") || name.starts_with("recall"));
    expect![[r#"
        table ip6 portolan {
        	map affine {
        		type ipv6_addr . inet_proto . inet_service . ipv6_addr . inet_service : verdict
        		elements = {
        			fd00:10:96::1 . tcp . 80 . fd00:10:244:1::5 . 8080 : jump remember-10800-fd00-10-96--1/tcp/80/8080,
        			fd00:10:96::1 . tcp . 80 . fd00:10:244:2::5 . 9090 : jump remember-10800-fd00-10-96--1/tcp/80/9090,
        		}
        	}
        	map affinity-fd00-10-96--1/tcp/80/8080 {
        		type ipv6_addr : ipv6_addr
        		size 65536
        		flags dynamic,timeout
        	}
        	map affinity-fd00-10-96--1/tcp/80/9090 {
        		type ipv6_addr : ipv6_addr
        		size 65536
        		flags dynamic,timeout
        	}
        	map recall {
        		type ipv6_addr . inet_proto . inet_service : verdict
        		elements = {
        			fd00:10:96::1 . tcp . 80 : jump recall-fd00-10-96--1/tcp/80/8080/9090,
        		}
        	}
        	chain recall {
        		ip6 daddr . meta l4proto . th dport vmap @recall
        	}
        	chain recall-fd00-10-96--1/tcp/80/8080/9090 {
        		meta l4proto tcp dnat ip6 to ip6 saddr map @affinity-fd00-10-96--1/tcp/80/8080:8080
        		meta l4proto tcp dnat ip6 to ip6 saddr map @affinity-fd00-10-96--1/tcp/80/9090:9090
        	}
        	chain remember {
        		meta l4proto tcp ct original ip6 daddr . meta l4proto . ct original proto-dst . ip6 daddr . ct reply proto-src vmap @affine
        		meta l4proto udp ct original ip6 daddr . meta l4proto . ct original proto-dst . ip6 daddr . ct reply proto-src vmap @affine
        		meta l4proto sctp ct original ip6 daddr . meta l4proto . ct original proto-dst . ip6 daddr . ct reply proto-src vmap @affine
        	}
        	chain remember-10800-fd00-10-96--1/tcp/80/8080 {
        		update @affinity-fd00-10-96--1/tcp/80/8080 { ip6 saddr timeout 10800s : ip6 daddr }
        	}
        	chain remember-10800-fd00-10-96--1/tcp/80/9090 {
        		update @affinity-fd00-10-96--1/tcp/80/9090 { ip6 saddr timeout 10800s : ip6 daddr }
        	}
        }
    "#]].assert_eq(&table.to_string());
}

#[test]
fn s41_ipv6_clients_go_where_they_went_before() {
    let (kernel, mut dataplane) = served(Limits::default());
    assert_eq!(outcomes(&kernel), [A, B]);
    dataplane.observed(&kernel.observe());
    assert!(dataplane.steps().is_empty(), "a restart writes nothing");
    let table = kernel.table(Family::Ipv6).unwrap();
    assert_eq!(outcome(&table, "2001:db8:1::9", VIP), format!("{A}, {B}"), "not seen yet");
}

#[test]
fn s42_ipv6_clients_of_an_endpoint_that_goes_choose_again() {
    let (mut kernel, mut dataplane) = served(Limits::default());
    dataplane.set_service(&id(), 0, web(affine(10800, &[A])));
    kernel.write(&mut dataplane, |_, after| {
        let published = after.elements(Family::Ipv6, "affine").len();
        assert_eq!(after.elements(Family::Ipv6, TO_B).len(), published - 1, "in the same transaction");
    });
    assert_eq!(outcomes(&kernel), [A, A]);
    dataplane.observed(&kernel.observe());
    assert!(dataplane.steps().is_empty());
}

/// By the agent before this one, which was killed in the middle, or by a packet that raced.
#[test]
fn s42_ipv6_clients_who_outlived_their_endpoint_are_forgotten_at_the_start() {
    let (mut kernel, mut dataplane) = served(Limits::default());
    let gone = [remembered(CLIENT, "[fd00:10:244:3::5]:8080")];
    kernel.set_elements(Family::Ipv6, TO_A, &gone);
    dataplane.observed(&kernel.observe());
    kernel.write(&mut dataplane, |_, _| {});
    assert_eq!(kernel.elements(Family::Ipv6, TO_A).len(), 0);
    assert_eq!(kernel.elements(Family::Ipv6, TO_B).len(), 1);
}

#[test]
fn s41_maps_go_with_the_last_chain_that_names_them() {
    let (mut kernel, mut dataplane) = served(Limits { spare: 0, ..Limits::default() });
    assert_eq!(own_maps(&kernel), [TO_A.into(), TO_B.into()]);
    dataplane.set_service(&id(), 0, web(affine(10800, &[B])));
    kernel.write(&mut dataplane, |_, _| {});
    assert_eq!((own_maps(&kernel), outcomes(&kernel)), (vec![TO_B.into()], [B, B].map(String::from)));
    dataplane.set_service(&id(), 0, web(affine(30, &[B])));
    kernel.write(&mut dataplane, |_, _| {});
    assert_eq!(own_maps(&kernel), [TO_B.into()], "another time changes nothing");
    dataplane.set_service(&id(), 0, web(affine(0, &[B])));
    kernel.write(&mut dataplane, |_, _| {});
    assert_eq!(own_maps(&kernel), []);
}

#[test]
fn s41_endpoints_at_a_ninth_port_are_not_remembered() {
    let backends: Vec<String> = (1..=9).map(|port| format!("[fd00:10:244:1::5]:{port}")).collect();
    let backends: Vec<&str> = backends.iter().map(String::as_str).collect();
    let mut dataplane = Dataplane::new(settings());
    dataplane.set_service(&id(), 0, web(affine(30, &backends)));
    let table = dataplane.desired(Family::Ipv6);
    assert_eq!(table.elements["affine"].len(), 8);
    assert!(outcome(&table, CLIENT, VIP).contains(backends[8]), "chosen like any other");
}

/// An element that leads elsewhere, a chain with another rule, a map that nobody names; and what once remembered IPv6
/// clients, in one map for all.
#[test]
fn what_others_made_of_it_is_put_right() {
    let (mut kernel, mut dataplane) = served(Limits::default());
    let wanted = kernel.observe();
    let vip = Bytes::concat(&[Atom::Address(ip("fd00:10:96::1")), Atom::Protocol(6), Atom::Port(80)]);
    let elsewhere = Element::new(vip.clone(), Value::Verdict(Verdict::Jump("refuse".into())));
    let nobodys = dataplane.desired(Family::Ipv6).sets[TO_A].clone();
    let (address, port) = (KeyType::Address, KeyType::Port);
    let key = vec![address, address, KeyType::Protocol, port];
    let for_all = Set { key, value: Some(ValueType::Concat(vec![address, port])), ..nobodys.clone() };
    let chains = wanted.ipv6.as_ref().unwrap().chains.keys();
    let own: BTreeSet<_> = chains.filter(|name| name.contains("fd00")).cloned().collect();
    let mut commands = vec![
        Command::DeleteElements { set: "recall".into(), elements: vec![Element::member(vip)] },
        Command::AddElements { set: "recall".into(), elements: vec![elsewhere] },
        Command::AddSet { name: "affinity-fd00-10-96--2/tcp/80/8080".into(), set: nobodys },
        Command::AddSet { name: "affinity".into(), set: for_all },
        Command::AddChain { chain: "remember-10800".into(), base: None },
    ];
    commands.extend(own.into_iter().map(|chain| Command::FlushChain { chain }));
    kernel.commit(Family::Ipv6, &commands).unwrap();
    dataplane.observed(&kernel.observe());
    kernel.write(&mut dataplane, |_, _| {});
    assert_eq!(kernel.observe(), wanted);
    assert_eq!(outcomes(&kernel), [A, B]);
}
