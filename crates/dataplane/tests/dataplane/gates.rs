use std::sync::Arc;

use portolan_dataplane::{Dataplane, Limits};
use portolan_model::{Action, Family, Forwarding, Masquerade, ServiceId, ServicePlan};
use portolan_nft::{Command, Field, Rule, Statement, Table, Verdict};

use crate::affinity::settings;
use crate::kernel::Kernel;
use crate::plans::{affine, balance, plan, same, vip};

/// The hooks that lead to a chain, the chain, and what it looks up; or the hook that looks it up itself, and no chain.
const GATES: [([&str; 2], &str, &str); 5] = [
    (["nat-prerouting", "nat-output"], "source-ranges", "fw-vips"),
    (["nat-prerouting", "nat-output"], "cluster-services", "cluster-services"),
    (["nat-prerouting", "nat-output"], "cluster-services", "cluster-ports"),
    (["nat-postrouting", "nat-input"], "remember", "affine"),
    (["nat-postrouting"; 2], HAIRPIN, HAIRPIN),
];
const HAIRPIN: &str = "hairpin";

/// A Service that holds one gate open.
#[derive(Clone)]
struct Case {
    gate: &'static str,
    forwarding: Forwarding,
    /// Those of its endpoints that are on this node.
    own: &'static [&'static str],
}

impl Case {
    fn plan(&self, address: &str) -> Arc<ServicePlan> {
        let hairpin = self.own.iter().map(|address| address.parse().unwrap()).collect();
        Arc::new(ServicePlan { hairpin, ..plan(vip(address, 80), self.forwarding.clone()) })
    }
}

fn cases() -> [Case; 4] {
    let balanced = || balance(Masquerade::NonPods, &["10.244.1.5:80", "10.244.2.5:80"]);
    let ranges = Some(["10.9.0.0/24".parse().unwrap()].into());
    let case = |gate, forwarding| Case { gate, forwarding, own: &[] };
    [
        case("source-ranges", Forwarding { allowed_sources: ranges, ..same(balanced()) }),
        case("cluster-services", Forwarding { from_outside: Action::Drop, ..same(balanced()) }),
        case("remember", same(affine(60, &["10.244.1.5:80", "10.244.2.5:80"]))),
        Case { own: &["10.244.1.5"], ..case(HAIRPIN, same(balanced())) },
    ]
}

/// Whether both hooks lead to the chain. One alone never does.
fn is_open(table: &Table, hooks: [&str; 2], chain: &str) -> bool {
    let [one, other] = hooks.map(|hook| leads(table, hook, chain));
    assert_eq!(one, other, "{hooks:?} {chain}");
    one
}

fn leads(table: &Table, hook: &str, chain: &str) -> bool {
    let rules = table.chains.get(hook).map_or(&[][..], |chain| &chain.rules);
    rules.iter().any(|rule| rule.statements.contains(&way(chain)))
}

/// The statement by which a hook leads to a chain, or looks up what it needs no chain for.
fn way(to: &str) -> Statement {
    match to {
        HAIRPIN => {
            let key = vec![Field::Saddr, Field::Daddr];
            Statement::InSet { key, set: HAIRPIN.into(), negate: false }
        }
        chain => Statement::Verdict(Verdict::Jump(chain.into())),
    }
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

fn write_anew(kernel: &mut Kernel, services: &[(&ServiceId, Case)]) -> usize {
    let before = kernel.transactions;
    let mut dataplane = Dataplane::new(settings());
    dataplane.observed(&kernel.observe());
    for (id, case) in services {
        dataplane.set_service(id, 0, Some(case.plan("10.96.0.1")));
    }
    write(kernel, &mut dataplane);
    kernel.transactions - before
}

/// One element to a transaction: whatever prefix of them is written, no element stands behind a closed gate.
#[test]
fn a_gate_opens_before_the_first_element_and_closes_after_the_last() {
    let (one, two) = (ServiceId::new("default", "one"), ServiceId::new("default", "two"));
    for case in cases() {
        let mut kernel = Kernel::default();
        let mut dataplane = Dataplane::with_limits(settings(), Limits { elements: 1, ..Limits::default() });
        dataplane.observed(&kernel.observe());
        let other = plan(vip("10.96.0.2", 80), same(balance(Masquerade::Never, &["10.244.1.5:80"])));
        dataplane.set_service(&two, 0, Some(Arc::new(other)));
        write(&mut kernel, &mut dataplane);
        assert_eq!(open(&kernel), [""; 0], "nobody uses any");
        dataplane.set_service(&one, 0, Some(case.plan("10.96.0.1")));
        write(&mut kernel, &mut dataplane);
        assert_eq!(open(&kernel), [case.gate]);
        dataplane.set_service(&two, 0, Some(case.plan("10.96.0.2")));
        dataplane.set_service(&one, 0, None);
        write(&mut kernel, &mut dataplane);
        assert_eq!(open(&kernel), [case.gate], "the other one uses it now");
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
    let hooks = ["nat-output", "nat-prerouting", "nat-input", "nat-postrouting"];
    for (case, hook) in cases().into_iter().zip(hooks) {
        let gate = case.gate;
        let mut kernel = Kernel::default();
        let web = [(&id, case)];
        write_anew(&mut kernel, &web);
        assert_eq!(write_anew(&mut kernel, &web), 0, "{gate}");
        let flush = [Command::FlushChain { chain: hook.into() }];
        kernel.commit(Family::Ipv4, &flush).unwrap();
        assert_eq!(write_anew(&mut kernel, &web), 1, "{gate}");
        assert_eq!(open(&kernel), [gate]);
        write_anew(&mut kernel, &[]);
        assert_eq!(open(&kernel), [""; 0]);
        let added = Rule::new(vec![way(gate)]);
        kernel.commit(Family::Ipv4, &[Command::AddRule { chain: hook.into(), rule: added }]).unwrap();
        assert_eq!(write_anew(&mut kernel, &[]), 1, "{gate}");
        assert_eq!((open(&kernel), write_anew(&mut kernel, &[])), (vec![], 0), "{gate}");
    }
}
