use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use portolan_api::service::PROXY_NAME_LABEL;
use portolan_model::{Allocation, Map, Name, Problem, Service, ServiceId, Snapshot};

use crate::change::Value;
use crate::names::Names;
use crate::slices::Slices;
use crate::{Change, Dirty, Key, Kind, Object};

/// The cluster as our watches told it.
#[derive(Clone, Debug)]
pub struct Index {
    /// Kinds that were not listed yet: until none is left there is no snapshot (S63, A2).
    unlisted: BTreeSet<Kind>,
    /// The value of the label service-proxy-name that our Services have; None = ours are those without the label (S3).
    proxy_name: Option<Name>,
    snapshot: Snapshot,
    /// Also those whose Service is not here (yet).
    slices: Slices,
    /// The snapshot has allocations by address, the watch names objects.
    allocation_names: BTreeMap<Name, IpAddr>,
    problems: BTreeMap<(Kind, Key), Vec<Problem>>,
    names: Names,
}

impl Index {
    /// An index that is in sync as soon as each of `kinds` was replaced once.
    pub fn new(kinds: &[Kind]) -> Index {
        Index {
            unlisted: kinds.iter().copied().collect(),
            proxy_name: None,
            snapshot: Snapshot::default(),
            slices: Slices::default(),
            allocation_names: BTreeMap::new(),
            problems: BTreeMap::new(),
            names: Names::default(),
        }
    }

    /// The same index, for the Services that carry this value of `service.kubernetes.io/service-proxy-name` and no others (S3).
    pub fn claiming(self, proxy_name: Option<Name>) -> Index {
        Index { proxy_name, ..self }
    }

    /// Folds one change; the answer is empty when nothing that we look at changed.
    pub fn apply(&mut self, change: Change) -> Dirty {
        let mut dirty = Dirty::default();
        match change {
            Change::Apply(object) => self.insert(object, &mut dirty),
            Change::Delete(kind, key) => self.remove(kind, &key, &mut dirty),
            Change::Replace(kind, objects) => self.replace(kind, objects, &mut dirty),
        }
        dirty
    }

    /// After lists have come: takes no more memory than they need.
    pub fn compact(&mut self) {
        self.slices.compact();
    }

    /// None until every kind was listed once. Cheap: the maps are shared.
    pub fn snapshot(&self) -> Option<Snapshot> {
        self.unlisted.is_empty().then(|| self.snapshot.clone())
    }

    /// Kinds that a snapshot still waits for.
    pub fn unlisted(&self) -> impl Iterator<Item = Kind> {
        self.unlisted.iter().copied()
    }

    /// Everything wrong in user input, in order of kind and name.
    pub fn problems(&self) -> impl Iterator<Item = &Problem> {
        self.problems.values().flatten()
    }

    /// What is wrong with one object.
    pub fn problems_of(&self, kind: Kind, key: &Key) -> &[Problem] {
        self.problems.get(&(kind, key.clone())).map_or(&[], Vec::as_slice)
    }

    fn insert(&mut self, object: Object, dirty: &mut Dirty) {
        let Object { kind, mut key, value, problems, seen: _ } = object;
        key.namespace.iter_mut().for_each(|namespace| self.names.share(namespace));
        if let Value::Service(service) = &value
            && service.labels.at(PROXY_NAME_LABEL) != self.proxy_name.as_ref()
        {
            return self.remove(kind, &key, dirty); // another proxy's
        }
        self.set_problems(kind, &key, problems, dirty);
        match value {
            Value::Service(service) => self.put_service(*service, dirty),
            Value::EndpointSlice(mut service, mut slice) => {
                self.names.share(&mut service.namespace);
                self.names.share_slice(Arc::make_mut(&mut slice));
                let changed = self.slices.insert(&key, service, slice);
                self.join(changed, dirty);
            }
            Value::Node(node) => {
                if put(&mut self.snapshot.nodes, &key.name, node) {
                    dirty.nodes.insert(key.name);
                }
            }
            Value::ServiceCidr(cidr) => {
                dirty.service_cidrs |= put(&mut self.snapshot.service_cidrs, &key.name, cidr)
            }
            Value::Pool(pool) => dirty.policy |= put(&mut self.snapshot.pools, &key.name, pool),
            Value::Advertisement(advertisement) => {
                dirty.policy |= put(&mut self.snapshot.advertisements, &key.name, advertisement)
            }
            Value::Peer(peer) => dirty.policy |= put(&mut self.snapshot.peers, &key.name, peer),
            Value::Allocation(allocation) => self.put_allocation(key.name, allocation, dirty),
            Value::Ignored => self.forget(kind, &key, dirty),
            Value::Invalid => {}
        }
    }

    fn remove(&mut self, kind: Kind, key: &Key, dirty: &mut Dirty) {
        self.set_problems(kind, key, Vec::new(), dirty);
        self.forget(kind, key, dirty);
    }

    fn replace(&mut self, kind: Kind, objects: Vec<Object>, dirty: &mut Dirty) {
        let listed: BTreeSet<&Key> = objects.iter().map(Object::key).collect();
        let gone: Vec<Key> = self.keys(kind).into_iter().filter(|key| !listed.contains(key)).collect();
        for key in gone {
            self.remove(kind, &key, dirty);
        }
        for object in objects {
            self.insert(object, dirty);
        }
        dirty.synced |= self.unlisted.remove(&kind) && self.unlisted.is_empty();
    }

    /// Every object of a kind that left a trace here.
    fn keys(&self, kind: Kind) -> BTreeSet<Key> {
        let cluster = |names: &mut dyn Iterator<Item = &Name>| names.cloned().map(Key::cluster).collect();
        let mut keys: BTreeSet<Key> = match kind {
            Kind::Service => {
                let ids = self.snapshot.services.keys();
                ids.map(|id| Key::namespaced(id.namespace.clone(), id.name.clone())).collect()
            }
            Kind::EndpointSlice => self.slices.keys().cloned().collect(),
            Kind::Node => cluster(&mut self.snapshot.nodes.keys()),
            Kind::ServiceCidr => cluster(&mut self.snapshot.service_cidrs.keys()),
            Kind::Pool => cluster(&mut self.snapshot.pools.keys()),
            Kind::Advertisement => cluster(&mut self.snapshot.advertisements.keys()),
            Kind::Peer => cluster(&mut self.snapshot.peers.keys()),
            Kind::Allocation => cluster(&mut self.allocation_names.keys()),
        };
        let troubled = self.problems.keys().filter(|(of, _)| *of == kind);
        keys.extend(troubled.map(|(_, key)| key.clone()));
        keys
    }

    fn forget(&mut self, kind: Kind, key: &Key, dirty: &mut Dirty) {
        match kind {
            Kind::Service => {
                let id = key.service();
                if self.snapshot.services.remove_mut(&id) {
                    dirty.services.insert(id);
                }
            }
            Kind::EndpointSlice => {
                let changed = self.slices.remove(key);
                self.join(changed, dirty);
            }
            Kind::Node => {
                if self.snapshot.nodes.remove_mut(&key.name) {
                    dirty.nodes.insert(key.name.clone());
                }
            }
            Kind::ServiceCidr => dirty.service_cidrs |= self.snapshot.service_cidrs.remove_mut(&key.name),
            Kind::Pool => dirty.policy |= self.snapshot.pools.remove_mut(&key.name),
            Kind::Advertisement => dirty.policy |= self.snapshot.advertisements.remove_mut(&key.name),
            Kind::Peer => dirty.policy |= self.snapshot.peers.remove_mut(&key.name),
            Kind::Allocation => {
                if let Some(address) = self.allocation_names.remove(&key.name) {
                    let old = self.snapshot.allocations.remove_mut(&address);
                    old.iter().for_each(|allocation| touch_allocation(allocation, dirty));
                }
            }
        }
    }

    fn put_service(&mut self, mut service: Service, dirty: &mut Dirty) {
        self.names.share_service(&mut service);
        service.slices = self.slices.of(&service.id);
        let id = service.id.clone();
        if put(&mut self.snapshot.services, &id, Arc::new(service)) {
            dirty.services.insert(id);
        }
    }

    fn put_allocation(&mut self, name: Name, allocation: Arc<Allocation>, dirty: &mut Dirty) {
        let old = self.snapshot.allocations.get(&allocation.address);
        if old != Some(&allocation) {
            old.into_iter().chain([&allocation]).for_each(|allocation| touch_allocation(allocation, dirty));
            self.allocation_names.insert(name, allocation.address);
            self.snapshot.allocations.insert_mut(allocation);
        }
    }

    /// Gives Services whose slices changed their new ones.
    fn join(&mut self, changed: impl IntoIterator<Item = ServiceId>, dirty: &mut Dirty) {
        for id in changed {
            // In place, unless somebody still looks at an earlier snapshot.
            let Some(service) = self.snapshot.services.get_mut(&id) else { continue };
            Arc::make_mut(service).slices = self.slices.of(&id);
            dirty.services.insert(id);
        }
    }

    fn set_problems(&mut self, kind: Kind, key: &Key, problems: Vec<Problem>, dirty: &mut Dirty) {
        // Nearly every object is sound: no key is cloned for those.
        if self.problems.is_empty() && problems.is_empty() {
            return;
        }
        let key = (kind, key.clone());
        dirty.problems |= match problems.is_empty() {
            true => self.problems.remove(&key).is_some(),
            false => self.problems.insert(key, problems.clone()) != Some(problems),
        };
    }
}

/// Whether the map says something new.
fn put<K: Ord + Clone, V: PartialEq>(map: &mut Map<K, Arc<V>>, key: &K, value: Arc<V>) -> bool {
    let changed = map.get(key) != Some(&value);
    if changed {
        map.insert_mut(key.clone(), value);
    }
    changed
}

/// Whether an address is announced depends on who owns it, so its owners are touched too.
fn touch_allocation(allocation: &Arc<Allocation>, dirty: &mut Dirty) {
    dirty.allocations.insert(allocation.address);
    dirty.services.extend(allocation.owners.iter().map(|owner| owner.service.clone()));
}
