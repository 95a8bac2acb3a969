//! Which pool gives, which of its addresses, and what it has left.

use super::*;

#[test]
fn a7_pinned_pools_then_priority_then_name() {
    let pools = || {
        [
            pool("a", "192.0.2.1"),
            pinned("b", "192.0.2.2", Some(5), ""),
            pinned("c", "192.0.2.3", Some(9), "default"),
            pinned("d", "192.0.2.4", None, "default"),
            pinned("e", "192.0.2.5", Some(1), "other"),
            Pool { auto_assign: false, ..pool("f", "192.0.2.6") },
        ]
    };
    let services = ["1", "2", "3", "4", "5"].map(fresh);
    World::new(pools(), services).check(expect![[r#"
        default/1
          create 192.0.2.3 of "c": Bound default/1 uid-1 since 1000
          [192.0.2.3] true Allocated: 192.0.2.3 of IPAddressPool c
        default/2
          create 192.0.2.4 of "d": Bound default/2 uid-2 since 1000
          [192.0.2.4] true Allocated: 192.0.2.4 of IPAddressPool d
        default/3
          create 192.0.2.2 of "b": Bound default/3 uid-3 since 1000
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool b
        default/4
          create 192.0.2.1 of "a": Bound default/4 uid-4 since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool a
        default/5, waiting
          [] false PoolExhausted: every IPv4 address of IPAddressPool c, d, b, a is taken; IPAddressPool e is not for this namespace or these labels
    "#]]);
    let by_name = Service { requested_pools: names("f a").into(), ..fresh("1") };
    let second = Service { requested_pools: names("f a").into(), ..fresh("2") };
    World::new(pools(), [by_name, second]).check(expect![[r#"
        default/1
          create 192.0.2.6 of "f": Bound default/1 uid-1 since 1000
          [192.0.2.6] true Allocated: 192.0.2.6 of IPAddressPool f
        default/2
          create 192.0.2.1 of "a": Bound default/2 uid-2 since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool a
    "#]]);
}

#[test]
fn a8_requests_must_pass_the_pools_selectors() {
    let serve = ServiceAllocation { service_selectors: vec![selector("app=db")], ..Default::default() };
    let pools = [
        Pool { service_allocation: serve, ..pool("db", "192.0.2.1") },
        Pool { disabled: true, ..pool("off", "192.0.2.2") },
    ];
    let services = [
        asking("a", "192.0.2.1"),
        asking("b", "192.0.2.2"),
        Service { requested_pools: names("db off none").into(), ..fresh("c") },
        Service { labels: labels("app=db"), ..asking("d", "192.0.2.1") },
    ];
    World::new(pools, services).check(expect![[r#"
        default/a, waiting
          [] false NoMatchingPool: metadata.annotations[portolan.dev/ips]: 192.0.2.1: IPAddressPool db is not for this namespace or these labels
        default/b, waiting
          [] false NoMatchingPool: metadata.annotations[portolan.dev/ips]: 192.0.2.2: IPAddressPool off is disabled
        default/c, waiting
          [] false NoMatchingPool: metadata.annotations[portolan.dev/pool]: IPAddressPool db is not for this namespace or these labels; IPAddressPool off is disabled; there is no IPAddressPool none
        default/d
          create 192.0.2.1 of "db": Bound default/d uid-d since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool db
    "#]]);
}

#[test]
fn a22_a24_shrinking_and_deleting_pools_moves_nothing() {
    let mut world = World::new([pool("lab", LAB)], [fresh("web")]);
    world.check(expect![[r#"
        default/web
          create 192.0.2.1 of "lab": Bound default/web uid-web since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
    "#]]);
    world.pool(pool("lab", "192.0.2.3"));
    world.check(expect![[r#"
        default/web
          [192.0.2.1] true OutsidePool: 192.0.2.1, which no IPAddressPool covers
    "#]]);
    world.snapshot.pools.remove_mut("lab");
    world.check(expect![[r#"
        default/web
          [192.0.2.1] true OutsidePool: 192.0.2.1, which no IPAddressPool covers
    "#]]);
}

#[test]
fn a26_a27_overlaps_are_left_out_and_named() {
    let older = Pool { created: 1, ..pool("z", "192.0.2.1-192.0.2.2") };
    let newer = Pool { created: 2, ..pool("a", "198.51.100.7 192.0.2.2-192.0.2.3") };
    let mut world = World::new([older, newer], ["1", "2", "3"].map(fresh));
    let n1 = Node { internal_ips: vec![ip("198.51.100.7")], ..node("n1", 1) };
    world.snapshot.nodes.insert_mut("n1".into(), Arc::new(n1));
    let cidrs = vec!["192.0.2.3/32".parse().unwrap()];
    world.snapshot.service_cidrs.insert_mut("k".into(), Arc::new(ServiceCidr { name: "k".into(), cidrs }));
    world.check(expect![[r#"
        default/1
          create 192.0.2.1 of "z": Bound default/1 uid-1 since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool z
        default/2
          create 192.0.2.2 of "z": Bound default/2 uid-2 since 1000
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool z
        default/3, waiting
          [] false PoolExhausted: every IPv4 address of IPAddressPool z is taken
        IPAddressPool a: spec.addresses[1]: 192.0.2.2 is also of IPAddressPool z, which is older and keeps the overlap
        IPAddressPool a: spec.addresses[1]: 192.0.2.3 is also in ServiceCIDR k and therefore left out
    "#]]);
}

#[test]
fn a28_excluded_and_avoided_addresses_are_skipped() {
    let lab = Pool {
        exclude: ranges("192.0.2.1-192.0.2.254 192.0.3.1"),
        avoid_dot0_dot255: true,
        ..pool("lab", "192.0.2.0-192.0.3.255")
    };
    let mut world = World::new([lab], [fresh("a"), asking("b", "192.0.2.0"), asking("c", "192.0.2.9")]);
    world.check(expect![[r#"
        default/a
          create 192.0.3.2 of "lab": Bound default/a uid-a since 1000
          [192.0.3.2] true Allocated: 192.0.3.2 of IPAddressPool lab
        default/b, waiting
          [] false RequestedIPNotInPool: metadata.annotations[portolan.dev/ips]: 192.0.2.0 is left out of IPAddressPool lab
        default/c, waiting
          [] false RequestedIPNotInPool: metadata.annotations[portolan.dev/ips]: 192.0.2.9 is left out of IPAddressPool lab
    "#]]);
}

#[test]
fn usage_counts_what_is_left() {
    let lab =
        Pool { avoid_dot0_dot255: true, ..pool("lab", "192.0.2.0-192.0.3.255 2001:db8::-2001:db8::ffff") };
    let mut world = World::new([lab], []);
    world.allocation("192.0.2.1", "a", "uid-a", AllocationPhase::Bound);
    world.allocation("192.0.2.2", "b", "uid-b", AllocationPhase::Quarantined);
    world.allocation("2001:db8::1", "b", "uid-b", AllocationPhase::Bound);
    world.allocation("203.0.113.1", "c", "uid-c", AllocationPhase::Bound);
    let usage = Supply::new(&world.snapshot).usage(&world.snapshot.allocations);
    expect![[r#"
        {
            "lab": PoolUse {
                ipv4: Use {
                    total: 508,
                    assigned: 2,
                    available: 506,
                    quarantined: 1,
                    reserved: 0,
                },
                ipv6: Use {
                    total: 65536,
                    assigned: 1,
                    available: 65535,
                    quarantined: 0,
                    reserved: 0,
                },
                outside: 1,
            },
        }
    "#]]
    .assert_debug_eq(&usage);
}
