use std::collections::BTreeMap;
use std::sync::Arc;

use portolan_model::{EndpointSlice, Name, ServiceId};

use crate::Key;

/// EndpointSlices by the Service they name (S7), whether that Service exists or not, and in order of name.
///
/// Invariant: `owners` has exactly the slices of `by_service`.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    by_service: BTreeMap<ServiceId, BTreeMap<Name, Arc<EndpointSlice>>>,
    owners: BTreeMap<Key, ServiceId>,
}

impl Slices {
    pub fn of(&self, service: &ServiceId) -> Vec<Arc<EndpointSlice>> {
        self.by_service.get(service).map(|slices| slices.values().cloned().collect()).unwrap_or_default()
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.owners.keys()
    }

    /// The Services whose slices are now others: two when the slice went from one to the other.
    pub fn insert(&mut self, key: &Key, service: ServiceId, slice: Arc<EndpointSlice>) -> Vec<ServiceId> {
        let mut changed = Vec::new();
        if self.owners.get(key).is_some_and(|owner| *owner != service) {
            changed.extend(self.remove(key));
        }
        let slices = self.by_service.entry(service.clone()).or_default();
        if slices.get(&key.name) != Some(&slice) {
            slices.insert(key.name.clone(), slice);
            self.owners.insert(key.clone(), service.clone());
            changed.push(service);
        }
        changed
    }

    pub fn remove(&mut self, key: &Key) -> Option<ServiceId> {
        let service = self.owners.remove(key)?;
        if let Some(slices) = self.by_service.get_mut(&service) {
            slices.remove(&key.name);
            if slices.is_empty() {
                self.by_service.remove(&service);
            }
        }
        Some(service)
    }
}
