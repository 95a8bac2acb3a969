//! Both families of one Service.

use super::*;

#[test]
fn a10_require_dual_stack_is_all_or_nothing() {
    let mut world = World::new([pool("lab", LAB)], [dual("web", FamilyPolicy::RequireDualStack)]);
    world.check(expect![[r#"
        default/web, waiting
          [] false FamilyUnavailable: no IPv6 address in IPAddressPool lab
    "#]]);
    world.pool(pool("six", "2001:db8::10-2001:db8::11"));
    world.check(expect![[r#"
        default/web
          create 192.0.2.1 of "lab": Bound default/web uid-web since 1000
          create 2001:db8::10 of "six": Bound default/web uid-web since 1000
          [192.0.2.1 2001:db8::10] true Allocated: 192.0.2.1 of IPAddressPool lab and 2001:db8::10 of IPAddressPool six
    "#]]);
}

#[test]
fn a10_prefer_dual_stack_takes_what_there_is_and_the_rest_later() {
    let mut world = World::new([pool("lab", LAB)], [dual("web", FamilyPolicy::PreferDualStack)]);
    world.check(expect![[r#"
        default/web, waiting
          create 192.0.2.1 of "lab": Bound default/web uid-web since 1000
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab; no IPv6 address in IPAddressPool lab
    "#]]);
    world.pool(pool("six", "2001:db8::10-2001:db8::11"));
    world.check(expect![[r#"
        default/web
          create 2001:db8::10 of "six": Bound default/web uid-web since 1000
          [192.0.2.1 2001:db8::10] true Allocated: 192.0.2.1 of IPAddressPool lab and 2001:db8::10 of IPAddressPool six
    "#]]);
}

#[test]
fn a10_one_pool_with_both_families_is_preferred_within_its_class() {
    let pools = [pool("a", "192.0.2.1"), pool("b", "192.0.2.2 2001:db8::2"), pool("c", "2001:db8::1")];
    World::new(pools, [dual("web", FamilyPolicy::RequireDualStack)]).check(expect![[r#"
        default/web
          create 192.0.2.2 of "b": Bound default/web uid-web since 1000
          create 2001:db8::2 of "b": Bound default/web uid-web since 1000
          [192.0.2.2 2001:db8::2] true Allocated: 192.0.2.2 of IPAddressPool b and 2001:db8::2 of IPAddressPool b
    "#]]);
}

#[test]
fn a11_a_family_that_goes_is_released_and_the_other_stays() {
    let pools = [pool("lab", "192.0.2.1-192.0.2.3 2001:db8::1-2001:db8::3")];
    let mut world = World::new(pools, [dual("web", FamilyPolicy::RequireDualStack)]);
    world.check(expect![[r#"
        default/web
          create 192.0.2.1 of "lab": Bound default/web uid-web since 1000
          create 2001:db8::1 of "lab": Bound default/web uid-web since 1000
          [192.0.2.1 2001:db8::1] true Allocated: 192.0.2.1 of IPAddressPool lab and 2001:db8::1 of IPAddressPool lab
    "#]]);
    world.service(fresh("web"));
    world.check(expect![[r#"
        default/web
          [192.0.2.1] true Allocated: 192.0.2.1 of IPAddressPool lab
          update 2001:db8::1 of "lab": Quarantined default/web uid-web since 1000
    "#]]);
}
