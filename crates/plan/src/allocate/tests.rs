//! Clusters before and after: what is written for whom, one case per rule of vips.md 3.1.

use std::time::Duration;

use expect_test::{Expect, expect};
use portolan_model::{Family, Node, Owner, Pool, ServiceAllocation, ServiceCidr};

use super::*;
use crate::fixture::{ip, labels, names, node, pool, ranges, selector, web};

/// The world after a decision: what the API server would hold.
pub fn apply(snapshot: &mut Snapshot, step: &Step, service: &ServiceId) {
    match step {
        Step::Create(allocation) => {
            assert!(snapshot.allocations.get(&allocation.address).is_none(), "{} exists", allocation.address);
            snapshot.allocations.insert_mut(Arc::new(allocation.clone()));
        }
        Step::Update(allocation) => {
            assert!(
                snapshot.allocations.get(&allocation.address).is_some(),
                "{} is gone",
                allocation.address
            );
            snapshot.allocations.insert_mut(Arc::new(allocation.clone()));
        }
        Step::Delete(address) => drop(snapshot.allocations.remove_mut(address)),
        Step::Status(status) => set_ingress(snapshot, service, status.ingress.clone()),
        Step::ClearStatus => set_ingress(snapshot, service, vec![]),
    }
}

fn set_ingress(snapshot: &mut Snapshot, id: &ServiceId, ingress: Vec<IngressIp>) {
    let Some(service) = snapshot.services.get(id) else { return };
    let service = Service { ingress, ..(**service).clone() };
    snapshot.services.insert_mut(id.clone(), Arc::new(service));
}

pub fn render(step: &Step) -> String {
    let allocation = |a: &Allocation| {
        let owners: Vec<_> = a.owners.iter().map(|o| format!("{} {}", o.service, o.uid)).collect();
        format!("{} of {:?}: {:?} {} since {}", a.address, &*a.pool, a.phase, owners.join(" "), a.since)
    };
    match step {
        Step::Create(a) => format!("create {}", allocation(a)),
        Step::Update(a) => format!("update {}", allocation(a)),
        Step::Delete(address) => format!("delete {address}"),
        Step::ClearStatus => "clear".into(),
        Step::Status(status) => {
            let ips: Vec<_> = status.ingress.iter().map(|ingress| ingress.ip.to_string()).collect();
            format!("[{}] {} {}: {}", ips.join(" "), status.allocated, status.reason, status.message)
        }
    }
}

/// A cluster that is decided for again and again.
struct World {
    snapshot: Snapshot,
    now: i64,
}

impl World {
    fn new(pools: impl IntoIterator<Item = Pool>, services: impl IntoIterator<Item = Service>) -> World {
        let mut world = World { snapshot: Snapshot::default(), now: 1000 };
        pools.into_iter().for_each(|pool| world.pool(pool));
        services.into_iter().for_each(|service| world.service(service));
        world
    }

    fn pool(&mut self, pool: Pool) {
        self.snapshot.pools.insert_mut(pool.name.clone(), Arc::new(pool));
    }

    /// Keeps the status that the world gave to a Service of this uid.
    fn service(&mut self, mut service: Service) {
        if let Some(old) = self.snapshot.services.get(&service.id).filter(|old| old.uid == service.uid) {
            service.ingress = old.ingress.clone();
        }
        self.snapshot.services.insert_mut(service.id.clone(), Arc::new(service));
    }

    fn allocation(&mut self, address: &str, service: &str, uid: &str, phase: AllocationPhase) {
        let owners = vec![Owner { service: ServiceId::new("default", service), uid: uid.into() }];
        let allocation = Allocation { address: ip(address), pool: "lab".into(), owners, phase, since: 900 };
        self.snapshot.allocations.insert_mut(Arc::new(allocation));
    }

    fn delete(&mut self, name: &str) {
        self.snapshot.services.remove_mut(&ServiceId::new("default", name));
    }

    /// Decides, carries everything out, and says what was done.
    fn check(&mut self, expect: Expect) {
        let supply = Supply::new(&self.snapshot);
        let everyone = everyone(&self.snapshot);
        let mut decisions = expired(&self.snapshot, &supply, self.now);
        decisions.extend(services(&self.snapshot, &supply, &Classes::default(), &everyone, self.now));
        let mut out = String::new();
        for decision in &decisions {
            let waiting = if decision.waiting { ", waiting" } else { "" };
            out += &format!("{}{waiting}\n", decision.service);
            for step in &decision.steps {
                out += &format!("  {}\n", render(step));
                apply(&mut self.snapshot, step, &decision.service);
            }
        }
        supply.problems.iter().for_each(|problem| out += &format!("{problem}\n"));
        expect.assert_eq(&out);
    }
}

/// A Service without a status.
fn fresh(name: &str) -> Service {
    let uid = format!("uid-{name}").into();
    Service { id: ServiceId::new("default", name), uid, ingress: vec![], ..web() }
}

fn asking(name: &str, address: &str) -> Service {
    Service { requested_ips: vec![ip(address)], ..fresh(name) }
}

fn dual(name: &str, family_policy: FamilyPolicy) -> Service {
    Service { families: Family::ALL.to_vec(), family_policy, ..fresh(name) }
}

fn shown(service: Service, address: &str) -> Service {
    Service { ingress: vec![IngressIp { ip: ip(address), mode: IpMode::Vip }], ..service }
}

fn pinned(name: &str, addresses: &str, priority: Option<u32>, namespaces: &str) -> Pool {
    let service_allocation =
        ServiceAllocation { priority, namespaces: names(namespaces), ..Default::default() };
    Pool { service_allocation, ..pool(name, addresses) }
}

const LAB: &str = "192.0.2.1-192.0.2.3";

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
    let by_name = Service { requested_pools: names("f a"), ..fresh("1") };
    let second = Service { requested_pools: names("f a"), ..fresh("2") };
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
        Service { requested_pools: names("db off none"), ..fresh("c") },
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
fn a_request_that_makes_no_sense_waits_for_its_author() {
    let service = fresh("a");
    let problem = Problem {
        object: portolan_model::ObjectId::service(&service.id),
        field: "metadata.annotations[portolan.dev/ips]".into(),
        reason: "RequestedIPInvalid",
        message: "\"10.0.0\" is not an IP address".into(),
    };
    let service = Service { request_problem: Some(problem), ..service };
    World::new([pool("lab", LAB)], [service]).check(expect![[r#"
        default/a, waiting
          [] false RequestedIPInvalid: metadata.annotations[portolan.dev/ips]: "10.0.0" is not an IP address
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
