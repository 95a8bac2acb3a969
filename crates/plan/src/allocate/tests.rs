//! Clusters before and after: what is written for whom, one case per rule of vips.md 3.1.

use std::time::Duration;

use expect_test::{Expect, expect};
use portolan_model::{Family, Node, Owner, Pool, ServiceAllocation, ServiceCidr};

use super::*;
use crate::fixture::{ip, labels, names, node, pool, ranges, selector, web};

mod families;
mod pools;
mod release;
mod requests;
mod who;

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
    let service = Service { ingress: ingress.into(), ..(**service).clone() };
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
    Service { id: ServiceId::new("default", name), uid, ingress: Box::default(), ..web() }
}

fn asking(name: &str, address: &str) -> Service {
    Service { requested_ips: [ip(address)].into(), ..fresh(name) }
}

fn dual(name: &str, family_policy: FamilyPolicy) -> Service {
    Service { families: Family::ALL.to_vec(), family_policy, ..fresh(name) }
}

fn shown(service: Service, address: &str) -> Service {
    Service { ingress: [IngressIp { ip: ip(address), mode: IpMode::Vip }].into(), ..service }
}

fn pinned(name: &str, addresses: &str, priority: Option<u32>, namespaces: &str) -> Pool {
    let service_allocation =
        ServiceAllocation { priority, namespaces: names(namespaces), ..Default::default() };
    Pool { service_allocation, ..pool(name, addresses) }
}

const LAB: &str = "192.0.2.1-192.0.2.3";
