//! Which Services are served, and which first.

use super::*;

#[test]
fn a5_allocation_first_then_status_and_then_nothing_changes() {
    let mut world = World::new([pool("lab", LAB)], [fresh("web")]);
    world.check(expect![[r#"
        default/web
          create 192.0.2.1 of "lab": Bound default/web uid-web since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
    "#]]);
    world.now += 5;
    world.check(expect![[r#"
        default/web
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
    "#]]);
}

#[test]
fn a1_services_of_other_classes_are_not_touched() {
    let foreign = Service { class: Some("example.com/lb".into()), ..shown(fresh("foreign"), "192.0.2.1") };
    let mut world = World::new([pool("lab", LAB)], [foreign]);
    world.check(expect![[""]]);
}

#[test]
fn a3_oldest_first_and_shown_addresses_are_adopted() {
    let young = Service { created: 200, ..fresh("a") };
    let old = Service { created: 100, ..fresh("z") };
    let adopted = Service { created: 300, ..shown(fresh("m"), "192.0.2.1") };
    let outside = Service { created: 400, ..shown(fresh("o"), "203.0.113.9") };
    let mut world = World::new([pool("lab", LAB)], [young, old, adopted, outside]);
    world.check(expect![[r#"
        default/z
          create 192.0.2.2 of "lab": Bound default/z uid-z since 1000
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
        default/a
          create 192.0.2.3 of "lab": Bound default/a uid-a since 1000
          [192.0.2.3] true Allocated: 192.0.2.3 of IPAddressPool lab
        default/m
          create 192.0.2.1 of "lab": Bound default/m uid-m since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
        default/o
          create 203.0.113.9 of "": Bound default/o uid-o since 1000
          [203.0.113.9] true OutsidePool: 203.0.113.9, which no IPAddressPool covers
    "#]]);
}

#[test]
fn a4_of_two_that_show_one_address_the_recorded_owner_keeps_it() {
    let (a, b) = (shown(fresh("a"), "192.0.2.1"), shown(fresh("b"), "192.0.2.1"));
    let mut world = World::new([pool("lab", LAB)], [a, b]);
    world.allocation("192.0.2.1", "b", "uid-b", AllocationPhase::Bound);
    world.check(expect![[r#"
        default/a
          create 192.0.2.2 of "lab": Bound default/a uid-a since 1000
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
        default/b
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
    "#]]);
}

#[test]
fn a5_a_crash_before_the_status_is_completed_with_the_same_address() {
    let mut world = World::new([pool("lab", LAB)], [fresh("web")]);
    world.allocation("192.0.2.3", "web", "uid-web", AllocationPhase::Bound);
    world.check(expect![[r#"
        default/web
          [192.0.2.3] true Allocated: 192.0.2.3 of IPAddressPool lab
    "#]]);
}

#[test]
fn an_owner_among_several_leaves_the_others_in_place() {
    let mut world = World::new([pool("lab", LAB)], [fresh("b")]);
    let owner =
        |name: &str| Owner { service: ServiceId::new("default", name), uid: format!("uid-{name}").into() };
    let owners = vec![owner("a"), owner("b")];
    let (address, phase) = (ip("192.0.2.2"), AllocationPhase::Bound);
    let shared = Allocation { address, pool: "lab".into(), owners, phase, since: 1 };
    world.snapshot.allocations.insert_mut(Arc::new(shared));
    world.check(expect![[r#"
        default/a
          update 192.0.2.2 of "lab": Bound default/b uid-b since 1
        default/b
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
}

#[test]
fn a29_what_was_tried_and_why_it_failed() {
    World::new([], [fresh("a")]).check(expect![[r#"
        default/a, waiting
          [] false NoPool: there is no IPAddressPool
    "#]]);
    let pools = [pool("lab", "192.0.2.1"), pinned("other", "192.0.2.9", None, "other")];
    World::new(pools, [fresh("a"), fresh("b"), asking("c", "203.0.113.7")]).check(expect![[r#"
        default/a
          create 192.0.2.1 of "lab": Bound default/a uid-a since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
        default/b, waiting
          [] false PoolExhausted: every IPv4 address of IPAddressPool lab is taken; IPAddressPool other is not for this namespace or these labels
        default/c, waiting
          [] false RequestedIPNotInPool: metadata.annotations[portolan.dev/ips]: 203.0.113.7 is in no IPAddressPool
    "#]]);
    let six = Service { families: vec![Family::Ipv6], ..fresh("a") };
    World::new([pool("lab", LAB)], [six]).check(expect![[r#"
        default/a, waiting
          [] false FamilyUnavailable: no IPv6 address in IPAddressPool lab
    "#]]);
    let strange = asking("a", "2001:db8::1");
    World::new([pool("lab", LAB)], [strange]).check(expect![[r#"
        default/a, waiting
          create 192.0.2.1 of "lab": Bound default/a uid-a since 1000
          [192.0.2.1] false FamilyUnavailable: metadata.annotations[portolan.dev/ips]: 2001:db8::1: the Service has no IPv6; keeps 192.0.2.1 of IPAddressPool lab
    "#]]);
}

#[test]
fn ten_thousand_services_in_a_pool_of_a_whole_slash_64() {
    let services = (0..10_000).map(|n| Service { families: vec![Family::Ipv6], ..fresh(&format!("s{n}")) });
    let all = "2001:db8::-2001:db8::ffff:ffff:ffff:ffff";
    let lab = Pool { reuse_delay: Duration::ZERO, ..pool("lab", all) };
    let mut world = World::new([lab], services);
    let supply = Supply::new(&world.snapshot);
    let everyone = everyone(&world.snapshot);
    let decisions = super::services(&world.snapshot, &supply, &Classes::default(), &everyone, 0);
    for decision in &decisions {
        decision.steps.iter().for_each(|step| apply(&mut world.snapshot, step, &decision.service));
    }
    assert_eq!(world.snapshot.allocations.size(), 10_000);
    let next = world.snapshot.allocations.next_free(ip("2001:db8::"));
    assert_eq!(next, Some(ip("2001:db8::2710")), "without a gap");
}
