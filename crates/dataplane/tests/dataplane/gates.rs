use std::sync::Arc;

use portolan_dataplane::{Dataplane, Limits};
use portolan_model::{Action, Family, Forwarding, Masquerade, ServiceId};
use portolan_nft::{Command, Rule, Statement, Table, Verdict};

use crate::affinity::settings;
use crate::kernel::Kernel;
use crate::plans::{affine, balance, plan, same, vip};

/// The hooks that lead to a chain, the chain, and what it looks up.
const GATES: [([&str; 2], &str, &str); 4] = [
    (["nat-prerouting", "nat-output"], "source-ranges", "fw-vips"),
    (["nat-prerouting", "nat-output"], "cluster-services", "cluster-services"),
    (["nat-prerouting", "nat-output"], "cluster-services", "cluster-ports"),
    (["nat-postrouting", "nat-input"], "remember", "affine"),
];

fn cases() -> [(&'static str, Forwarding); 3] {
    let balanced = || balance(Masquerade::NonPods, &["10.244.1.5:80", "10.244.2.5:80"]);
    [
        (
            "source-ranges",
            Forwarding { allowed_sources: Some(["10.9.0.0/24".parse().unwrap()].into()), ..same(balanced()) },
        ),
        ("cluster-services", Forwarding { from_outside: Action::Drop, ..same(balanced()) }),
        ("remember", same(affine(60, &["10.244.1.5:80", "10.244.2.5:80"]))),
    ]
}

/// Whether both hooks lead to the chain. One alone never does.
fn is_open(table: &Table, hooks: [&str; 2], chain: &str) -> bool {
    let [one, other] = hooks.map(|hook| leads(table, hook, chain));
    assert_eq!(one, other, "{hooks:?} {chain}");
    one
}

fn leads(table: &Table, hook: &str, chain: &str) -> bool {
    let jump = Statement::Verdict(Verdict::Jump(chain.into()));
    let rules = table.chains.get(hook).map_or(&[][..], |chain| &chain.rules);
    rules.iter().any(|rule| rule.statements.contains(&jump))
}

fn open(kernel: &Kernel) -> Vec<&'static str> {
    let table = kernel.table(Family::Ipv4).unwrap();
    let open = GATES.into_iter().filter(|(hooks, chain, _)| is_open(&table, *hooks, chain));
    let mut open: Vec<_> = open.map(|(_, chain, _)| chain).collect();
    open.dedup();
    open
}

/// No elements behind a closed gate. Prerouting leads to `cluster-services` only where pods are told from others.
pub fn check(kernel: &Kernel) {
    for (family, (hooks, chain, set)) in Family::ALL.into_iter().flat_map(|f| GATES.map(|gate| (f, gate))) {
        let Some(table) = kernel.table(family) else { continue };
        let hooks = if chain == "cluster-services" { &hooks[1..] } else { &hooks[..] };
        let used = !kernel.elements(family, set).is_empty();
        assert!(!used || hooks.iter().all(|hook| leads(&table, hook, chain)), "{family:?}: {set}, {chain}");
    }
}

fn write(kernel: &mut Kernel, dataplane: &mut Dataplane) {
    kernel.write(dataplane, |_, kernel| check(kernel));
}

fn write_anew(kernel: &mut Kernel, services: &[(&ServiceId, Forwarding)]) -> usize {
    let before = kernel.transactions;
    let mut dataplane = Dataplane::new(settings());
    dataplane.observed(&kernel.observe());
    for (id, forwarding) in services {
        dataplane.set_service(id, 0, Some(Arc::new(plan(vip("10.96.0.1", 80), forwarding.clone()))));
    }
    write(kernel, &mut dataplane);
    kernel.transactions - before
}

/// One element to a transaction: whatever prefix of them is written, no element stands behind a closed gate.
#[test]
fn a_gate_opens_before_the_first_element_and_closes_after_the_last() {
    let (one, two) = (ServiceId::new("default", "one"), ServiceId::new("default", "two"));
    for (chain, forwarding) in cases() {
        let mut kernel = Kernel::default();
        let mut dataplane = Dataplane::with_limits(settings(), Limits { elements: 1, ..Limits::default() });
        dataplane.observed(&kernel.observe());
        let other = plan(vip("10.96.0.2", 80), same(balance(Masquerade::Never, &["10.244.1.5:80"])));
        dataplane.set_service(&two, 0, Some(Arc::new(other)));
        write(&mut kernel, &mut dataplane);
        assert_eq!(open(&kernel), [""; 0], "nobody uses any");
        dataplane.set_service(&one, 0, Some(Arc::new(plan(vip("10.96.0.1", 80), forwarding.clone()))));
        write(&mut kernel, &mut dataplane);
        assert_eq!(open(&kernel), [chain]);
        dataplane.set_service(&two, 0, Some(Arc::new(plan(vip("10.96.0.2", 80), forwarding))));
        dataplane.set_service(&one, 0, None);
        write(&mut kernel, &mut dataplane);
        assert_eq!(open(&kernel), [chain], "the other one uses it now");
        dataplane.set_service(&two, 0, None);
        write(&mut kernel, &mut dataplane);
        assert_eq!(open(&kernel), [""; 0]);
        assert!(dataplane.steps().is_empty());
    }
}

/// Of a restart, and of somebody who changed the hook's chain.
#[test]
fn a_new_agent_finds_gates_as_they_should_be_or_puts_them_right() {
    let id = ServiceId::new("default", "web");
    let foreign =
        [("source-ranges", "nat-output"), ("cluster-services", "nat-prerouting"), ("remember", "nat-input")];
    for ((chain, forwarding), (_, hook)) in cases().into_iter().zip(foreign) {
        let mut kernel = Kernel::default();
        let web = [(&id, forwarding)];
        write_anew(&mut kernel, &web);
        assert_eq!(write_anew(&mut kernel, &web), 0, "{chain}");
        let flush = [Command::FlushChain { chain: hook.into() }];
        kernel.commit(Family::Ipv4, &flush).unwrap();
        assert_eq!(write_anew(&mut kernel, &web), 1, "{chain}");
        assert_eq!(open(&kernel), [chain]);
        write_anew(&mut kernel, &[]);
        assert_eq!(open(&kernel), [""; 0]);
        let rule = Rule::new(vec![Statement::Verdict(Verdict::Jump(chain.into()))]);
        kernel.commit(Family::Ipv4, &[Command::AddRule { chain: hook.into(), rule }]).unwrap();
        assert_eq!(write_anew(&mut kernel, &[]), 1, "{chain}");
        assert_eq!((open(&kernel), write_anew(&mut kernel, &[])), (vec![], 0), "{chain}");
    }
}
