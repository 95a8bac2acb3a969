//! Whatever somebody else did to our table, one writing later it is as wanted (invariant 5).

use std::sync::Arc;

use portolan_dataplane::{Dataplane, Limits, Settings};
use portolan_model::{Detector, Family, Forwarding, Masquerade, ServiceId, ServicePlan};
use portolan_nft::{
    Base, Bytes, ChainKind, Command, Element, Hook, KeyType, Rule, Set, Statement, Value, Verdict,
};

use crate::cluster::ip;
use crate::kernel::Kernel;
use crate::plans::{balance_to, plan, vip};

fn web(count: u8) -> ServicePlan {
    let family = Family::Ipv4;
    let balance = |masquerade| {
        balance_to(masquerade, (1..=count).map(|host| (ip(family, 244, host), 80).into()).collect())
    };
    let forwarding = Forwarding {
        from_cluster: balance(Masquerade::NonPods),
        from_outside: balance(Masquerade::Always),
        allowed_sources: Some(["10.9.0.0/24".parse().unwrap()].into()),
    };
    ServicePlan { hairpin: [ip(family, 244, 1)].into(), ..plan(vip("10.96.0.1", 80), forwarding) }
}

fn dataplane(count: u8) -> Dataplane {
    let settings =
        Settings { pods: Detector::Ranges(vec!["10.244.0.0/16".parse().unwrap()]), ..Settings::default() };
    let mut dataplane = Dataplane::new(settings);
    dataplane.set_service(&ServiceId::new("default", "web"), 0, Some(Arc::new(web(count))));
    dataplane
}

fn written() -> Kernel {
    let mut kernel = Kernel::default();
    repair(&mut kernel);
    kernel
}

/// A new agent looks, writes, and has nothing left to write. The number of its transactions.
fn repair(kernel: &mut Kernel) -> usize {
    let before = kernel.transactions;
    let mut dataplane = dataplane(3);
    dataplane.observed(&kernel.observe());
    kernel.write(&mut dataplane, |_, _| {});
    dataplane.observed(&kernel.observe());
    assert_eq!(format!("{:?}", dataplane.steps()), "[]");
    assert_eq!(kernel.table(Family::Ipv4), written_table());
    kernel.transactions - before
}

fn written_table() -> Option<portolan_nft::Table> {
    let mut kernel = Kernel::default();
    let mut dataplane = dataplane(3);
    dataplane.observed(&kernel.observe());
    kernel.write(&mut dataplane, |_, _| {});
    kernel.table(Family::Ipv4)
}

/// The commands of somebody else, and how many transactions it takes to put things right.
#[track_caller]
fn check(commands: Vec<Command>, transactions: usize) {
    let mut kernel = written();
    kernel.commit(Family::Ipv4, &commands).unwrap();
    assert_eq!(repair(&mut kernel), transactions, "{commands:?}");
}

fn service() -> Bytes {
    Bytes::new(&[10, 96, 0, 1, 6, 0, 0, 0, 0, 80, 0, 0])
}

fn endpoint(index: u32) -> Bytes {
    Bytes::new(&[&service()[..], &index.to_ne_bytes()].concat())
}

fn delete(set: &str, key: Bytes) -> Command {
    Command::DeleteElements { set: set.into(), elements: vec![Element::member(key)] }
}

fn add(set: &str, element: Element) -> Command {
    Command::AddElements { set: set.into(), elements: vec![element] }
}

fn accept() -> Rule {
    Rule::new(vec![Statement::Verdict(Verdict::Accept)])
}

#[test]
fn nothing_changed() {
    check(vec![], 0);
}

#[test]
fn elements_gone_or_other() {
    check(vec![delete("endpoints-1", endpoint(0))], 1);
    check(vec![delete("endpoints-1", endpoint(2))], 1);
    check(vec![delete("services", service())], 1);
    check(vec![delete("vips", Bytes::new(&[10, 96, 0, 1]))], 1);
    check(
        vec![delete("services", service()), add("services", Element::new(service(), code(0x8000_0001)))],
        1,
    );
    check(vec![delete("services", service()), add("services", Element::new(service(), code(7)))], 1);
    let of_another_shard = add("services", Element::new(service(), code(0x2400_0003)));
    check(vec![delete("services", service()), of_another_shard], 1);
    check(vec![delete("targets", target(0x1400_0003))], 1);
    check(vec![delete("targets", target(0x8000_0001))], 1);
    check(
        vec![
            delete("targets", target(0x1400_0003)),
            add("targets", Element::new(target(0x1400_0003), verdict("refuse"))),
        ],
        1,
    );
    let chain = Command::AddChain { chain: "masq-pick-3-from-2".into(), base: None };
    let of_another_shard = add("targets", Element::new(target(0x1400_0003), verdict("masq-pick-3-from-2")));
    check(vec![chain, delete("targets", target(0x1400_0003)), of_another_shard], 2);
    check(vec![delete("fw-vips", service())], 1);
}

/// Of `targets`.
fn target(code: u32) -> Bytes {
    Bytes::new(&code.to_ne_bytes())
}

/// Of `services`.
fn code(code: u32) -> Value {
    Value::Bytes(target(code))
}

fn verdict(chain: &str) -> Value {
    Value::Verdict(Verdict::Jump(chain.into()))
}

#[test]
fn elements_too_many() {
    let backend = Value::Bytes(Bytes::new(&[10, 244, 0, 9, 0, 80, 0, 0]));
    check(vec![add("endpoints-1", Element::new(endpoint(3), backend.clone()))], 1);
    check(vec![add("endpoints-1", Element::new(endpoint(77), backend.clone()))], 1);
    check(vec![add("endpoints-0", Element::new(endpoint(0), backend))], 1);
    check(vec![add("vips", Element::member(Bytes::new(&[10, 96, 0, 77])))], 1);
    check(vec![add("targets", Element::new(target(77), verdict("refuse")))], 1);
    check(vec![add("targets", Element::new(target(0), verdict("masq-pick-3-from-1")))], 1);
    check(vec![add("hairpin", Element::member(Bytes::new(&[10, 1, 1, 1, 10, 1, 1, 2])))], 1);
}

#[test]
fn rules_and_chains_are_written_anew_in_place() {
    check(vec![Command::AddRule { chain: "masq-pick-3-from-1".into(), rule: accept() }], 1);
    check(vec![Command::FlushChain { chain: "nat-prerouting".into() }], 1);
    check(vec![Command::FlushChain { chain: "dnat-from-1".into() }], 1);
    let foreign = Command::AddChain { chain: "foreign".into(), base: None };
    let jump = Rule::new(vec![Statement::Verdict(Verdict::Jump("foreign".into()))]);
    let rules = vec![
        Command::AddRule { chain: "foreign".into(), rule: accept() },
        Command::AddRule { chain: "services".into(), rule: jump },
    ];
    check([vec![foreign.clone()], rules].concat(), 2);
    let lead = [
        delete("targets", target(0x1400_0003)),
        add("targets", Element::new(target(0x1400_0003), verdict("foreign"))),
    ];
    check([vec![foreign.clone()], lead.to_vec()].concat(), 2);
    check(vec![foreign, add("targets", Element::new(target(0), verdict("foreign")))], 2);
}

#[test]
fn foreign_sets_go() {
    let set = Set { key: vec![KeyType::Address], ..Set::default() };
    check(vec![Command::AddSet { name: "foreign".into(), set }], 1);
}

/// The maps of endpoints have had other names. Piece by piece, rules would look up the new ones before anything is in them.
#[test]
fn the_table_with_one_map_of_endpoints_is_replaced_at_once() {
    let endpoints = Command::AddSet { name: "endpoints".into(), set: Set::default() };
    check_replaced(&[Command::AddTable, endpoints]);
}

/// Numbers have not always told the shard.
#[test]
fn the_table_of_another_version_is_replaced_at_once() {
    let sets = written_table().unwrap().sets.into_iter().map(|(name, set)| {
        let comment = set.comment.filter(|_| &*name != "services");
        Command::AddSet { name, set: Set { comment, ..set } }
    });
    check_replaced(&[vec![Command::AddTable], sets.collect()].concat());
}

#[track_caller]
fn check_replaced(commands: &[Command]) {
    let mut kernel = Kernel::default();
    kernel.commit(Family::Ipv4, commands).unwrap();
    let limits = Limits { elements: 1, ..Limits::default() };
    let mut dataplane = Dataplane::with_limits(Settings::default(), limits);
    dataplane.set_service(&ServiceId::new("default", "web"), 0, Some(Arc::new(web(3))));
    dataplane.observed(&kernel.observe());
    let steps = dataplane.steps();
    let of_ipv4: Vec<_> = steps.iter().filter(|step| step.family() == Family::Ipv4).collect();
    let [step] = of_ipv4[..] else { panic!("{steps:?}") };
    assert!(step.commands().contains(&Command::DeleteTable), "{step:?}");
}

#[test]
fn a_missing_or_other_table_is_built_in_one_transaction() {
    check(vec![Command::DeleteTable], 1);
    let set = |set| Command::AddSet { name: "services".into(), set };
    check(vec![Command::DeleteTable, Command::AddTable, set(Set::default())], 1);
    let base = Base { kind: ChainKind::Nat, hook: Hook::Input, priority: 0 };
    let chain = Command::AddChain { chain: "nat-output".into(), base: Some(base) };
    check(vec![Command::DeleteTable, Command::AddTable, chain], 1);
}
