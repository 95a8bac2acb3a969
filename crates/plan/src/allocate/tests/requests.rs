//! Addresses that a Service asks for.

use super::*;

#[test]
fn a12_the_held_address_stays_until_the_requested_one_is_free() {
    let mut world = World::new([pool("lab", LAB)], [fresh("a"), fresh("b")]);
    world.check(expect![[r#"
        default/a
          create 192.0.2.1 of "lab": Bound default/a uid-a since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
        default/b
          create 192.0.2.2 of "lab": Bound default/b uid-b since 1000
          [192.0.2.2] true Allocated: 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.service(asking("b", "192.0.2.1"));
    world.check(expect![[r#"
        default/a
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
        default/b, waiting
          [192.0.2.2] false RequestedIPInUse: metadata.annotations[portolan.dev/ips]: 192.0.2.1 is in use by Service default/a; keeps 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.delete("a");
    world.check(expect![[r#"
        default/a
          update 192.0.2.1 of "lab": Quarantined default/a uid-a since 1000
        default/b, waiting
          [192.0.2.2] false RequestedIPInUse: metadata.annotations[portolan.dev/ips]: 192.0.2.1 is in use by Service default/a; keeps 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.now += 60;
    world.check(expect![[r#"
        default/a
          delete 192.0.2.1
        default/b, waiting
          [192.0.2.2] false RequestedIPInUse: metadata.annotations[portolan.dev/ips]: 192.0.2.1 was another Service's until now and rests; keeps 192.0.2.2 of IPAddressPool lab
    "#]]);
    world.check(expect![[r#"
        default/b
          create 192.0.2.1 of "lab": Bound default/b uid-b since 1060
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
          update 192.0.2.2 of "lab": Quarantined default/b uid-b since 1060
    "#]]);
}

#[test]
fn a13_a_holder_in_another_namespace_is_not_named() {
    let other = Service { id: ServiceId::new("secret", "a"), created: 1, ..asking("a", "192.0.2.1") };
    World::new([pool("lab", LAB)], [other, asking("b", "192.0.2.1")]).check(expect![[r#"
        secret/a
          create 192.0.2.1 of "lab": Bound secret/a uid-a since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
        default/b, waiting
          [] false RequestedIPInUse: metadata.annotations[portolan.dev/ips]: 192.0.2.1 is in use by another Service
    "#]]);
}

#[test]
fn a14_a_request_that_is_taken_away_moves_nothing() {
    let mut world = World::new([pool("lab", LAB)], [asking("web", "192.0.2.3")]);
    world.check(expect![[r#"
        default/web
          create 192.0.2.3 of "lab": Bound default/web uid-web since 1000
          [192.0.2.3] true Allocated: 192.0.2.3 of IPAddressPool lab
    "#]]);
    world.service(fresh("web"));
    world.check(expect![[r#"
        default/web
          [192.0.2.3] true Allocated: 192.0.2.3 of IPAddressPool lab
    "#]]);
}

#[test]
fn a_request_that_makes_no_sense_waits_for_its_author() {
    let service = fresh("a");
    let problem = Problem {
        object: portolan_model::ObjectId::service(&service.id),
        field: "metadata.annotations[portolan.dev/ips]".into(),
        reason: "RequestedIPInvalid",
        message: "\"10.0.0\" is not an IP address".into(),
    };
    let service = Service { request_problem: Some(Box::new(problem)), ..service };
    World::new([pool("lab", LAB)], [service]).check(expect![[r#"
        default/a, waiting
          [] false RequestedIPInvalid: metadata.annotations[portolan.dev/ips]: "10.0.0" is not an IP address
    "#]]);
}
