use std::collections::BTreeMap;
use std::sync::Arc;

use portolan_model::{EndpointSlice, Name, ServiceId};

use crate::Key;

/// EndpointSlices by the Service they name (S7), whether that Service exists or not, and in order of name.
///
/// Invariant: `owners` has exactly the slices of `by_service`.
#[derive(Clone, Debug, Default)]
pub struct Slices {
    /// By Service and name.
    by_service: BTreeMap<(ServiceId, Name), Arc<EndpointSlice>>,
    owners: BTreeMap<Key, ServiceId>,
}

impl Slices {
    pub fn of(&self, service: &ServiceId) -> Vec<Arc<EndpointSlice>> {
        let from = (service.clone(), Name::default());
        let of_service = self.by_service.range(from..).take_while(|((id, _), _)| id == service);
        let mut slices: Vec<_> = of_service.map(|(_, slice)| slice.clone()).collect();
        slices.shrink_to_fit();
        slices
    }

    /// Maps that were filled from one end have nodes that are half empty; made at once, they are full.
    pub fn compact(&mut self) {
        self.by_service = std::mem::take(&mut self.by_service).into_iter().collect();
        self.owners = std::mem::take(&mut self.owners).into_iter().collect();
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
        let place = (service, key.name.clone());
        if self.by_service.get(&place) != Some(&slice) {
            self.owners.insert(key.clone(), place.0.clone());
            changed.push(place.0.clone());
            self.by_service.insert(place, slice);
        }
        changed
    }

    pub fn remove(&mut self, key: &Key) -> Option<ServiceId> {
        let service = self.owners.remove(key)?;
        self.by_service.remove(&(service.clone(), key.name.clone()));
        Some(service)
    }
}
