//! What a change costs: the commands of its steps, and nothing else.

use std::sync::Arc;

use expect_test::{Expect, expect};
use portolan_dataplane::{Dataplane, Settings};
use portolan_model::{Family, Masquerade, ServiceId, ServicePlan};

use crate::cluster::ip;
use crate::kernel::Kernel;
use crate::plans::{balance_to, plan, same, vip};

fn web(hosts: &[u8]) -> Option<Arc<ServicePlan>> {
    let backends = hosts.iter().map(|host| (ip(Family::Ipv4, 244, *host), 80).into()).collect();
    Some(Arc::new(plan(vip("10.96.0.1", 80), same(balance_to(Masquerade::Always, backends)))))
}

/// The commands that lead from one plan to another, a blank line between transactions.
fn check(from: &[u8], to: Option<&[u8]>, expected: Expect) {
    let id = ServiceId::new("default", "web");
    let (mut kernel, mut dataplane) = (Kernel::default(), Dataplane::new(Settings::default()));
    dataplane.observed(&kernel.observe());
    dataplane.set_service(&id, 0, web(from));
    kernel.write(&mut dataplane, |_, _| {});
    dataplane.set_service(&id, 0, to.and_then(web));
    let texts = |step: &portolan_dataplane::Step| {
        step.commands().iter().map(|command| format!("{command}\n")).collect::<String>()
    };
    let steps: Vec<String> = dataplane.steps().iter().map(texts).collect();
    expected.assert_eq(&steps.join("\n"));
}

#[test]
fn an_endpoint_replaced_in_place() {
    check(
        &[1, 2],
        Some(&[1, 3]),
        expect![[r#"
            delete 1 elements of set endpoints-1
            add 1 elements to set endpoints-1
        "#]],
    );
}

/// Chains that mark or say which index cost nothing; those that look up endpoints are there from the beginning.
#[test]
fn one_more_and_one_less_make_no_chain_that_looks_up_endpoints() {
    check(
        &[1, 2],
        Some(&[1, 2, 3]),
        expect![[r#"
            add chain masq-pick-3-from-1
            flush chain masq-pick-3-from-1
            add rule to chain masq-pick-3-from-1
            add rule to chain masq-pick-3-from-1
            add 1 elements to set targets
            add 1 elements to set endpoints-1
            delete 1 elements of set services
            add 1 elements to set services
        "#]],
    );
    check(
        &[1, 2, 3],
        Some(&[1, 3]),
        expect![[r#"
            add chain masq-pick-2-from-1
            flush chain masq-pick-2-from-1
            add rule to chain masq-pick-2-from-1
            add rule to chain masq-pick-2-from-1
            add 1 elements to set targets
            delete 1 elements of set endpoints-1
            add 1 elements to set endpoints-1
            delete 1 elements of set services
            add 1 elements to set services
            delete 1 elements of set endpoints-1
        "#]],
    );
}

/// However large the count.
#[test]
fn one_more_of_many() {
    let hosts: Vec<u8> = (1..=66).collect();
    check(
        &hosts[..65],
        Some(&hosts),
        expect![[r#"
            add chain masq-pick-66-from-1
            flush chain masq-pick-66-from-1
            add rule to chain masq-pick-66-from-1
            add rule to chain masq-pick-66-from-1
            add 1 elements to set targets
            add 1 elements to set endpoints-1
            delete 1 elements of set services
            add 1 elements to set services
        "#]],
    );
}

#[test]
fn a_service_goes() {
    check(
        &[1, 2],
        None,
        expect![[r#"
            delete 1 elements of set services
            delete 2 elements of set endpoints-1
            delete 1 elements of set vips
        "#]],
    );
}
