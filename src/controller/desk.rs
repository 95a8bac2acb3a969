//! What the leader knows, and what is to be decided next: no IO, so that it can be followed by reading.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use portolan_api::allocation_name;
use portolan_api::conditions::IP_ALLOCATED;
use portolan_index::{Change, Dirty, Index, Key, Kind, Seen};
use portolan_model::{AllocationPhase, Name, ServiceId, Snapshot};
use portolan_plan::allocate::{self, Decision, Status, Step};
use portolan_plan::{Classes, Supply};

/// Every kind that decides who gets an address.
pub const KINDS: [Kind; 7] = [
    Kind::Service,
    Kind::Node,
    Kind::ServiceCidr,
    Kind::Pool,
    Kind::Advertisement,
    Kind::Peer,
    Kind::Allocation,
];

pub struct Desk {
    pub index: Index,
    pub classes: Classes,
    /// What compare-and-swap needs of the objects that we write.
    seen: BTreeMap<(Kind, Key), Seen>,
    /// None when something changed that it depends on.
    supply: Option<Supply>,
    touched: BTreeSet<ServiceId>,
    /// Services that want something that is not to be had now (A12).
    waiting: BTreeSet<ServiceId>,
    /// Something changed that the statuses of our own kinds speak of.
    pub statuses_are_stale: bool,
}

/// A decision with the versions that it was taken on.
pub struct Job {
    pub decision: Decision,
    /// Of the Service; None when it is gone.
    pub service: Option<Seen>,
    pub allocations: BTreeMap<IpAddr, Seen>,
}

impl Desk {
    pub fn new(classes: Classes, proxy_name: Option<Name>) -> Desk {
        Desk {
            index: Index::new(&KINDS).claiming(proxy_name),
            classes,
            seen: BTreeMap::new(),
            supply: None,
            touched: BTreeSet::new(),
            waiting: BTreeSet::new(),
            statuses_are_stale: true,
        }
    }

    pub fn apply(&mut self, change: Change) {
        self.see(&change);
        let dirty = self.index.apply(change);
        self.note(dirty);
    }

    fn see(&mut self, change: &Change) {
        match change {
            Change::Apply(object) => {
                self.seen.insert((object.kind(), object.key().clone()), object.seen().clone());
            }
            Change::Delete(kind, key) => {
                self.seen.remove(&(*kind, key.clone()));
            }
            Change::Replace(kind, objects) => {
                self.seen.retain(|(of, _), _| of != kind);
                let each =
                    objects.iter().map(|object| ((*kind, object.key().clone()), object.seen().clone()));
                self.seen.extend(each);
            }
        }
    }

    fn note(&mut self, dirty: Dirty) {
        let supply_changed = dirty.policy || dirty.service_cidrs || !dirty.nodes.is_empty();
        if supply_changed {
            self.supply = None;
        }
        let snapshot = self.index.snapshot();
        let is_free = |address: &IpAddr| {
            let allocation = snapshot.as_ref().and_then(|snapshot| snapshot.allocations.get(address));
            allocation.is_none_or(|allocation| allocation.phase != AllocationPhase::Bound)
        };
        if supply_changed || dirty.allocations.iter().any(is_free) {
            self.touched.append(&mut self.waiting);
        }
        self.statuses_are_stale |= !dirty.is_empty();
        self.touched.extend(dirty.services);
    }

    /// Decide for everyone: the first thing that a new leader does (A3).
    pub fn start_over(&mut self) {
        self.touched = self.index.snapshot().iter().flat_map(allocate::everyone).collect();
        self.waiting.clear();
        self.statuses_are_stale = true;
    }

    pub fn touch(&mut self, service: ServiceId) {
        self.touched.insert(service);
    }

    pub fn seen(&self, kind: Kind, key: &Key) -> Option<&Seen> {
        self.seen.get(&(kind, key.clone()))
    }

    /// Some of what is to be written, oldest first; nothing before every kind was listed (A2). The rest is for the
    /// next call, so that what has been written meanwhile is known then. `may` tells Services whose turn it is not.
    pub fn decide(&mut self, now: i64, at_most: usize, may: impl Fn(&ServiceId) -> bool) -> Vec<Job> {
        let Some(snapshot) = self.index.snapshot() else { return Vec::new() };
        let supply = self.supply.take().unwrap_or_else(|| Supply::new(&snapshot));
        let mut decisions = allocate::expired(&snapshot, &supply, now);
        decisions.retain(|decision| may(&decision.service));
        decisions.truncate(at_most);
        let mut batch = self.next(&snapshot, at_most);
        batch.retain(may);
        let decided = allocate::services(&snapshot, &supply, &self.classes, &batch, now);
        self.supply = Some(supply);
        self.waiting.extend(decided.iter().filter(|decision| decision.waiting).map(|d| d.service.clone()));
        decisions.extend(decided);
        decisions.into_iter().filter_map(|decision| self.job(&snapshot, decision)).collect()
    }

    /// Those that show an address come before those that get one, so that what is shown is recorded first (A3).
    fn next(&mut self, snapshot: &Snapshot, at_most: usize) -> Vec<ServiceId> {
        if self.touched.len() <= at_most {
            return std::mem::take(&mut self.touched).into_iter().collect();
        }
        let age = |id: &ServiceId| {
            snapshot.services.get(id).map(|service| (service.ingress.is_empty(), service.created))
        };
        let mut all: Vec<_> = self.touched.iter().map(|id| (age(id), id.clone())).collect();
        all.select_nth_unstable(at_most);
        all.truncate(at_most);
        let batch: Vec<ServiceId> = all.into_iter().map(|(_, id)| id).collect();
        let taken: BTreeSet<&ServiceId> = batch.iter().collect();
        self.touched.retain(|id| !taken.contains(id));
        batch
    }

    /// None when nothing is left to write.
    fn job(&self, snapshot: &Snapshot, mut decision: Decision) -> Option<Job> {
        let id = &decision.service;
        let service =
            self.seen(Kind::Service, &Key::namespaced(id.namespace.clone(), id.name.clone())).cloned();
        let shown = snapshot.services.get(id).map(|service| &*service.ingress);
        let condition = service.as_ref().and_then(allocated);
        decision.steps.retain(|step| match step {
            Step::Status(status) => {
                shown != Some(&*status.ingress) || !condition.is_some_and(|c| says(c, status))
            }
            Step::ClearStatus => condition.is_some(),
            Step::Create(_) | Step::Update(_) | Step::Delete(_) => true,
        });
        let address = |step: &Step| match step {
            Step::Update(allocation) => Some(allocation.address),
            Step::Delete(address) => Some(*address),
            Step::Create(_) | Step::Status(_) | Step::ClearStatus => None,
        };
        let version = |address: IpAddr| {
            Some((address, self.seen(Kind::Allocation, &Key::cluster(allocation_name(address)))?.clone()))
        };
        let allocations = decision.steps.iter().filter_map(address).filter_map(version).collect();
        (!decision.steps.is_empty()).then_some(Job { decision, service, allocations })
    }

    /// Everyone who was touched was decided for.
    pub fn is_idle(&self) -> bool {
        self.touched.is_empty()
    }

    /// When an address will have rested long enough, in seconds since the epoch.
    pub fn next_expiry(&self) -> Option<i64> {
        allocate::next_expiry(&self.index.snapshot()?, self.supply.as_ref()?)
    }

    /// Every object of a kind that the API server has, readable or not.
    pub fn keys(&self, kind: Kind) -> impl Iterator<Item = (&Key, &Seen)> {
        self.seen.iter().filter(move |((of, _), _)| *of == kind).map(|((_, key), seen)| (key, seen))
    }

    pub fn supply(&self) -> Option<&Supply> {
        self.supply.as_ref()
    }
}

/// Our condition of a Service, as it was last seen.
pub fn allocated(seen: &Seen) -> Option<&Condition> {
    seen.conditions.iter().find(|condition| condition.type_ == IP_ALLOCATED)
}

pub fn says(condition: &Condition, status: &Status) -> bool {
    let allocated = condition.status == "True";
    allocated == status.allocated && condition.reason == status.reason && condition.message == status.message
}

#[cfg(test)]
mod tests {
    use portolan_index::Object;
    use serde_json::{Value, json};

    use super::*;

    fn object(manifest: Value) -> Object {
        Object::from_manifest(manifest).expect("a manifest")
    }

    fn service(status: Value) -> Object {
        object(json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": "web", "namespace": "default", "uid": "u1", "resourceVersion": "7" },
            "spec": {
                "type": "LoadBalancer", "clusterIPs": ["10.96.0.10"], "ipFamilies": ["IPv4"],
                "ports": [{ "port": 80, "protocol": "TCP" }],
            },
            "status": status,
        }))
    }

    fn pool() -> Object {
        object(json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "IPAddressPool",
            "metadata": { "name": "lab" }, "spec": { "addresses": ["192.0.2.10/32"] },
        }))
    }

    /// A desk that has heard of every kind but `but`.
    fn desk(service: Object, but: Option<Kind>) -> Desk {
        let mut desk = Desk::new(Classes::default(), None);
        let (mut services, mut pools) = (vec![service], vec![pool()]);
        for kind in KINDS.into_iter().filter(|kind| Some(*kind) != but) {
            let objects = match kind {
                Kind::Service => std::mem::take(&mut services),
                Kind::Pool => std::mem::take(&mut pools),
                _ => vec![],
            };
            desk.apply(Change::Replace(kind, objects));
        }
        desk
    }

    fn steps(desk: &mut Desk) -> Vec<Step> {
        desk.decide(0, 10, |_| true).into_iter().flat_map(|job| job.decision.steps).collect()
    }

    #[test]
    fn a2_nothing_is_decided_before_every_kind_was_listed() {
        let mut desk = desk(service(json!({})), Some(Kind::Allocation));
        assert_eq!(steps(&mut desk), []);
        desk.apply(Change::Replace(Kind::Allocation, vec![]));
        assert!(matches!(steps(&mut desk)[..], [Step::Create(_), Step::Status(_)]));
        assert_eq!(steps(&mut desk), [], "decided once, until something is touched");
    }

    #[test]
    fn a31_a_status_that_says_so_already_is_not_written_again() {
        let message = "192.0.2.10 of IPAddressPool lab";
        let condition = |reason: &str| {
            json!({
                "type": IP_ALLOCATED, "status": "True", "reason": reason, "message": message,
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            })
        };
        let status = |reason| {
            let load_balancer = json!({ "ingress": [{ "ip": "192.0.2.10", "ipMode": "VIP" }] });
            json!({ "loadBalancer": load_balancer, "conditions": [condition(reason)] })
        };
        // The address is shown without a record: it is adopted (A3), and no more.
        assert!(matches!(steps(&mut desk(service(status("Allocated")), None))[..], [Step::Create(_)]));
        assert!(matches!(
            steps(&mut desk(service(status("Old")), None))[..],
            [Step::Create(_), Step::Status(_)]
        ));
    }

    #[test]
    fn rounds_are_bounded_and_nobody_is_forgotten() {
        let mut desk = desk(service(json!({})), None);
        (0..5).for_each(|n| desk.touch(ServiceId::new("default", format!("gone-{n}"))));
        desk.decide(0, 4, |_| true);
        assert!(!desk.is_idle());
        desk.decide(0, 4, |_| true);
        assert!(desk.is_idle());
    }
}
