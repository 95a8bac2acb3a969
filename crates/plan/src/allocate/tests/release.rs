//! Addresses that are given back, and their rest.

use super::*;

#[test]
fn a18_addresses_rest_before_others_get_them() {
    let mut world = World::new([pool("lab", LAB)], [fresh("a")]);
    world.check(expect![[r#"
        default/a
          create 192.0.2.1 of "lab": Bound default/a uid-a since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
    "#]]);
    world.delete("a");
    world.service(fresh("b"));
    world.check(expect![[r#"
        default/a
          update 192.0.2.1 of "lab": Quarantined default/a uid-a since 1000
        default/b
          create 192.0.2.2 of "lab": Bound default/b uid-b since 1000
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.now += 59;
    assert_eq!(next_expiry(&world.snapshot, &Supply::new(&world.snapshot)), Some(1060));
    world.check(expect![[r#"
        default/b
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.now += 1;
    world.check(expect![[r#"
        default/a
          delete 192.0.2.1
        default/b
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
}

#[test]
fn a18_better_a_resting_address_than_none() {
    let mut world = World::new([pool("lab", "192.0.2.1-192.0.2.2")], []);
    world.allocation("192.0.2.1", "x", "uid-x", AllocationPhase::Quarantined);
    world.now = 910;
    world.service(fresh("a"));
    world.check(expect![[r#"
        default/a
          create 192.0.2.2 of "lab": Bound default/a uid-a since 910
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.service(fresh("b"));
    world.check(expect![[r#"
        default/a
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
        default/b
          update 192.0.2.1 of "lab": Bound default/b uid-b since 910
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
    "#]]);
}

#[test]
fn a19_a_service_of_the_same_name_gets_its_address_back() {
    let mut world = World::new([pool("lab", LAB)], [fresh("a"), fresh("b")]);
    world.check(expect![[r#"
        default/a
          create 192.0.2.1 of "lab": Bound default/a uid-a since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
        default/b
          create 192.0.2.2 of "lab": Bound default/b uid-b since 1000
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.delete("a");
    world.check(expect![[r#"
        default/a
          update 192.0.2.1 of "lab": Quarantined default/a uid-a since 1000
        default/b
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.service(Service { uid: "uid-later".into(), ..fresh("a") });
    world.check(expect![[r#"
        default/a
          update 192.0.2.1 of "lab": Bound default/a uid-later since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
        default/b
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
    // The same in one go: the leader never saw the Service gone.
    world.service(Service { uid: "uid-latest".into(), ..fresh("a") });
    world.check(expect![[r#"
        default/a
          update 192.0.2.1 of "lab": Bound default/a uid-latest since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
        default/b
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
}

#[test]
fn a20_no_longer_a_load_balancer() {
    let mut world = World::new([pool("lab", LAB)], [fresh("web")]);
    world.check(expect![[r#"
        default/web
          create 192.0.2.1 of "lab": Bound default/web uid-web since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
    "#]]);
    world.service(Service { kind: ServiceType::ClusterIp, ..fresh("web") });
    world.check(expect![[r#"
        default/web
          clear
          update 192.0.2.1 of "lab": Quarantined default/web uid-web since 1000
    "#]]);
}
