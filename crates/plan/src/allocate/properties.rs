//! Any sequence of events, crashes in between: invariant 8 of ARCHITECTURE.md.

use std::collections::BTreeMap;

use arbitrary::{Result, Unstructured};
use portolan_model::{Family, Name, Pool};

use super::tests::{apply, render};
use super::*;
use crate::fixture::{ip, names, pool, web};

const SERVICES: [&str; 5] = ["a", "b", "c", "d", "e"];
const ADDRESSES: [&str; 6] =
    ["192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1", "2001:db8::2", "203.0.113.1"];
const POOLS: [(&str, &str); 4] = [
    ("lab", "192.0.2.1-192.0.2.3 2001:db8::1-2001:db8::2"),
    ("lab", "192.0.2.3"),
    ("other", "192.0.2.2-192.0.2.4"),
    ("other", "2001:db8::2-2001:db8::3"),
];

#[derive(Default)]
struct World {
    snapshot: Snapshot,
    now: i64,
    uids: u32,
    log: Vec<String>,
}

fn service(u: &mut Unstructured, name: &str, uid: Name) -> Result<Service> {
    let (families, family_policy) = match u.int_in_range(0..=3)? {
        0 => (vec![Family::Ipv4], FamilyPolicy::SingleStack),
        1 => (vec![Family::Ipv6], FamilyPolicy::SingleStack),
        2 => (Family::ALL.to_vec(), FamilyPolicy::RequireDualStack),
        _ => (Family::ALL.to_vec(), FamilyPolicy::PreferDualStack),
    };
    let kind = if u.ratio(1, 6)? { ServiceType::ClusterIp } else { ServiceType::LoadBalancer };
    let class = u.ratio(1, 10)?.then(|| "example.com/lb".into());
    let requested_ips = if u.ratio(1, 4)? { vec![ip(u.choose(&ADDRESSES)?)] } else { vec![] };
    let requested_pools = if u.ratio(1, 6)? { names("other lab") } else { vec![] };
    let id = ServiceId::new("default", name);
    let created = i64::from(u.int_in_range(0..=3u8)?);
    let ingress = vec![];
    Ok(Service {
        id,
        uid,
        created,
        families,
        family_policy,
        kind,
        class,
        requested_ips: requested_ips.into(),
        requested_pools: requested_pools.into(),
        ingress: ingress.into(),
        ..web()
    })
}

impl World {
    fn event(&mut self, u: &mut Unstructured) -> Result<()> {
        let name = *u.choose(&SERVICES)?;
        let id = ServiceId::new("default", name);
        let old = self.snapshot.services.get(&id).cloned();
        match u.int_in_range(0..=6)? {
            0 => drop(self.snapshot.services.remove_mut(&id)),
            1 => {
                let (name, addresses) = *u.choose(&POOLS)?;
                let pool = Pool { disabled: u.ratio(1, 8)?, ..pool(name, addresses) };
                self.snapshot.pools.insert_mut(name.into(), Arc::new(pool));
            }
            2 if u.ratio(1, 3)? => drop(self.snapshot.pools.remove_mut(*u.choose(&["lab", "other"])?)),
            3 => self.now += i64::from(u.int_in_range(0..=90u8)?),
            _ => {
                self.uids += 1;
                let replace = u.ratio(1, 4)?;
                let fresh: Name = format!("uid-{}", self.uids).into();
                let uid = old.as_ref().filter(|_| !replace).map_or(fresh, |old| old.uid.clone());
                let mut service = service(u, name, uid)?;
                service.ingress = old
                    .filter(|old| old.uid == service.uid)
                    .map_or(Box::default(), |old| old.ingress.clone());
                self.log.push(format!("{} {:?} {:?}", service.id, service.families, service.requested_ips));
                self.snapshot.services.insert_mut(id, Arc::new(service));
            }
        }
        Ok(())
    }

    /// One pass of the leader, which may die after any step.
    fn pass(&mut self, u: &mut Unstructured) -> Result<()> {
        let supply = Supply::new(&self.snapshot);
        let decisions = match u.ratio(1, 3)? {
            true => expired(&self.snapshot, &supply, self.now),
            false => {
                services(&self.snapshot, &supply, &Classes::default(), &everyone(&self.snapshot), self.now)
            }
        };
        let steps = decisions.iter().flat_map(|d| d.steps.iter().map(|step| (&d.service, step)));
        let all = steps.clone().count();
        let survive = if u.ratio(1, 2)? { all } else { u.int_in_range(0..=all)? };
        for (service, step) in steps.take(survive) {
            self.log.push(render(step));
            self.check_step(service, step);
            apply(&mut self.snapshot, step, service);
        }
        Ok(())
    }

    fn check_step(&self, id: &ServiceId, step: &Step) {
        let holder = |address: &IpAddr| {
            let allocation = self.snapshot.allocations.get(address)?;
            let bound = allocation.phase == AllocationPhase::Bound;
            bound.then(|| allocation.owners.clone())
        };
        match step {
            // Nothing is taken from a Service that lives and is not the one being decided for.
            Step::Update(allocation) => {
                for owner in holder(&allocation.address).into_iter().flatten() {
                    let alive =
                        self.snapshot.services.get(&owner.service).is_some_and(|s| s.uid == owner.uid);
                    assert!(!alive || owner.service == *id, "{owner:?} loses {}", allocation.address);
                }
            }
            // Nothing is shown that is not recorded.
            Step::Status(status) => {
                let uid = self.snapshot.services.get(id).map(|service| service.uid.clone());
                for ingress in &status.ingress {
                    let owner = holder(&ingress.ip).and_then(|owners| owners.first().map(|o| o.uid.clone()));
                    assert_eq!(owner, uid, "{} is not recorded", ingress.ip);
                }
            }
            Step::Delete(address) => assert!(holder(address).is_none(), "{address} is in use"),
            Step::Create(_) | Step::ClearStatus => {}
        }
    }

    /// What Services that ask for nothing special have and show: it must stay.
    fn settled(&self) -> BTreeMap<ServiceId, Vec<IngressIp>> {
        let steady = self.snapshot.services.values().filter(|service| {
            let recorded = |ingress: &IngressIp| {
                self.snapshot.allocations.get(&ingress.ip).is_some_and(|allocation| {
                    allocation.phase == AllocationPhase::Bound && allocation.owners[0].uid == service.uid
                })
            };
            let of_family = |i: &IngressIp| service.families.contains(&Family::of(&i.ip));
            Classes::default().own(service)
                && service.requested_ips.is_empty()
                && service.ingress.iter().all(|ingress| recorded(ingress) && of_family(ingress))
        });
        steady.map(|service| (service.id.clone(), service.ingress.to_vec())).collect()
    }

    fn check_shown(&self) {
        let mut shown = BTreeMap::new();
        for service in self.snapshot.services.values() {
            for ingress in &service.ingress {
                if let Some(other) = shown.insert(ingress.ip, &service.id) {
                    panic!("{} is shown by {other} and {}", ingress.ip, service.id);
                }
            }
        }
    }
}

fn run(world: &mut World, u: &mut Unstructured) -> Result<()> {
    for _ in 0..u.int_in_range(1..=12)? {
        for _ in 0..u.int_in_range(1..=4)? {
            world.event(u)?;
        }
        let before = world.settled();
        world.pass(u)?;
        world.check_shown();
        for (id, ingress) in before {
            let after = &world.snapshot.services.get(&id).unwrap().ingress;
            assert!(ingress.iter().all(|ip| after.contains(ip)), "{id} had {ingress:?}, has {after:?}");
        }
    }
    Ok(())
}

#[test]
fn invariant_8_no_address_has_two_owners_and_a_valid_allocation_never_moves() {
    arbtest::arbtest(|u| {
        let mut world = World { snapshot: Snapshot::default(), now: 1000, uids: 0, log: vec![] };
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(&mut world, u)));
        match outcome {
            Ok(result) => result,
            Err(panic) => {
                eprintln!("{}", world.log.join("\n"));
                std::panic::resume_unwind(panic)
            }
        }
    });
}

#[test]
fn invariant_2_deciding_again_after_everything_was_written_changes_nothing() {
    arbtest::arbtest(|u| {
        let mut world = World { snapshot: Snapshot::default(), now: 1000, uids: 0, log: vec![] };
        for _ in 0..u.int_in_range(1..=20)? {
            world.event(u)?;
        }
        let supply = Supply::new(&world.snapshot);
        let decide = |snapshot: &Snapshot| {
            services(snapshot, &supply, &Classes::default(), &everyone(snapshot), world.now)
        };
        let mut snapshot = world.snapshot.clone();
        for _ in 0..2 {
            for decision in decide(&snapshot) {
                decision.steps.iter().for_each(|step| apply(&mut snapshot, step, &decision.service));
            }
        }
        for decision in decide(&snapshot) {
            let shown = snapshot.services.get(&decision.service).map(|service| service.ingress.clone());
            for step in &decision.steps {
                match step {
                    Step::Status(status) => assert_eq!(Some(&*status.ingress), shown.as_deref()),
                    Step::ClearStatus => {}
                    other => panic!("{}: {}", decision.service, render(other)),
                }
            }
        }
        Ok(())
    });
}
