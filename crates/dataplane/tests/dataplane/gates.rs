use std::sync::Arc;

use portolan_dataplane::{Dataplane, Limits};
use portolan_model::{Action, Family, Forwarding, Masquerade, ServiceId};
use portolan_nft::{Command, Rule, Statement, Verdict};

use crate::affinity::settings;
use crate::kernel::Kernel;
use crate::plans::{affine, balance, plan, same, vip};

/// The chain and the set for which it stands.
const GATES: [(&str, &str); 4] = [
    ("source-ranges", "fw-vips"),
    ("cluster-services", "cluster-services"),
    ("cluster-services", "cluster-ports"),
    ("remember", "affine"),
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

/// The chains that have rules, of those above.
fn open(kernel: &Kernel) -> Vec<&'static str> {
    let table = kernel.table(Family::Ipv4).unwrap();
    let mut open: Vec<_> = GATES.map(|(chain, _)| chain).into();
    open.dedup();
    open.retain(|chain| !table.chains[*chain].rules.is_empty());
    open
}

fn write(kernel: &mut Kernel, dataplane: &mut Dataplane) {
    kernel.write(dataplane, |_, kernel| {
        let Some(table) = kernel.table(Family::Ipv4) else { return };
        for (chain, set) in GATES {
            let used = !kernel.elements(Family::Ipv4, set).is_empty();
            let is_open = table.chains.get(chain).is_some_and(|chain| !chain.rules.is_empty());
            assert!(!used || is_open, "{set} has elements, {chain} no rules");
        }
    });
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

/// Of a restart, and of somebody who changed the chain.
#[test]
fn a_new_agent_finds_gates_as_they_should_be_or_puts_them_right() {
    let id = ServiceId::new("default", "web");
    let accept = Rule::new(vec![Statement::Verdict(Verdict::Accept)]);
    for (chain, forwarding) in cases() {
        let mut kernel = Kernel::default();
        write_anew(&mut kernel, &[(&id, forwarding.clone())]);
        assert_eq!(write_anew(&mut kernel, &[(&id, forwarding.clone())]), 0, "{chain}");
        kernel.commit(Family::Ipv4, &[Command::FlushChain { chain: chain.into() }]).unwrap();
        assert_eq!(write_anew(&mut kernel, &[(&id, forwarding)]), 1, "{chain}");
        assert_eq!(open(&kernel), [chain]);
        write_anew(&mut kernel, &[]);
        assert_eq!(open(&kernel), [""; 0]);
        kernel
            .commit(Family::Ipv4, &[Command::AddRule { chain: chain.into(), rule: accept.clone() }])
            .unwrap();
        assert_eq!(write_anew(&mut kernel, &[]), 1, "{chain}");
        assert_eq!(open(&kernel), [""; 0]);
        assert_eq!(write_anew(&mut kernel, &[]), 0, "{chain}");
    }
}
