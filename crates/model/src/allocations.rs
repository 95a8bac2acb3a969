//! Every allocated address, with the two questions the allocator asks answered in O(log n).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::{Allocation, AllocationPhase, Map, ServiceId, Set};

/// The IPAllocations of the cluster, by address.
///
/// Invariant: `by_service`, `runs` and `quarantined` say the same as `by_address`, so that "what does this
/// Service hold" and "which address after this one is free" cost no walk over all allocations.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allocations {
    by_address: Map<IpAddr, Arc<Allocation>>,
    by_service: Map<ServiceId, Set<IpAddr>>,
    /// Maximal runs of consecutive allocated addresses: first -> last.
    runs: Map<IpAddr, IpAddr>,
    /// Oldest first.
    quarantined: Set<(i64, IpAddr)>,
}

impl Allocations {
    pub fn get(&self, address: &IpAddr) -> Option<&Arc<Allocation>> {
        self.by_address.get(address)
    }

    /// In order of address.
    pub fn iter(&self) -> impl Iterator<Item = (&IpAddr, &Arc<Allocation>)> {
        self.by_address.iter()
    }

    pub fn size(&self) -> usize {
        self.by_address.size()
    }

    /// All that name this Service as an owner, whatever the uid and the phase.
    pub fn of(&self, service: &ServiceId) -> impl Iterator<Item = &Arc<Allocation>> {
        let addresses = self.by_service.get(service).into_iter().flat_map(|set| set.iter());
        addresses.filter_map(|address| self.by_address.get(address))
    }

    /// In order of the time they were quarantined.
    pub fn quarantined(&self) -> impl Iterator<Item = &Arc<Allocation>> {
        self.quarantined.iter().filter_map(|(_, address)| self.by_address.get(address))
    }

    /// Every Service that an allocation names, whether it still exists or not.
    pub fn services(&self) -> impl Iterator<Item = &ServiceId> {
        self.by_service.keys()
    }

    /// The first address from `from` on, of its family, that no allocation has; None past the family's last.
    pub fn next_free(&self, from: IpAddr) -> Option<IpAddr> {
        match self.run_at(&from) {
            Some((_, last)) => next(last),
            None => Some(from),
        }
    }

    pub fn insert_mut(&mut self, allocation: Arc<Allocation>) {
        let address = allocation.address;
        match self.by_address.get(&address).cloned() {
            Some(old) => self.unlink(&old),
            None => self.occupy(address),
        }
        for owner in &allocation.owners {
            let mut held = self.by_service.get(&owner.service).cloned().unwrap_or_default();
            held.insert_mut(address);
            self.by_service.insert_mut(owner.service.clone(), held);
        }
        if allocation.phase == AllocationPhase::Quarantined {
            self.quarantined.insert_mut((allocation.since, address));
        }
        self.by_address.insert_mut(address, allocation);
    }

    pub fn remove_mut(&mut self, address: &IpAddr) -> Option<Arc<Allocation>> {
        let old = self.by_address.get(address).cloned()?;
        self.unlink(&old);
        self.vacate(*address);
        self.by_address.remove_mut(address);
        Some(old)
    }

    fn unlink(&mut self, old: &Allocation) {
        self.quarantined.remove_mut(&(old.since, old.address));
        for owner in &old.owners {
            let Some(mut held) = self.by_service.get(&owner.service).cloned() else { continue };
            held.remove_mut(&old.address);
            match held.is_empty() {
                true => self.by_service.remove_mut(&owner.service),
                false => {
                    self.by_service.insert_mut(owner.service.clone(), held);
                    true
                }
            };
        }
    }

    fn run_at(&self, address: &IpAddr) -> Option<(IpAddr, IpAddr)> {
        let (first, last) = self.runs.range(..=*address).next_back()?;
        (*last >= *address).then_some((*first, *last))
    }

    fn occupy(&mut self, address: IpAddr) {
        let below = previous(address).and_then(|below| self.run_at(&below));
        let above = next(address).and_then(|above| self.run_at(&above));
        if let Some((first, _)) = above {
            self.runs.remove_mut(&first);
        }
        let first = below.map_or(address, |(first, _)| first);
        self.runs.insert_mut(first, above.map_or(address, |(_, last)| last));
    }

    fn vacate(&mut self, address: IpAddr) {
        let Some((first, last)) = self.run_at(&address) else { return };
        self.runs.remove_mut(&first);
        if let Some(end) = previous(address).filter(|end| first <= *end && first != address) {
            self.runs.insert_mut(first, end);
        }
        if let Some(start) = next(address).filter(|start| *start <= last && last != address) {
            self.runs.insert_mut(start, last);
        }
    }
}

/// The address after this one, of its family.
pub fn next(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => ip.to_bits().checked_add(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(ip) => ip.to_bits().checked_add(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

/// The address before this one, of its family.
pub fn previous(address: IpAddr) -> Option<IpAddr> {
    match address {
        IpAddr::V4(ip) => ip.to_bits().checked_sub(1).map(|bits| Ipv4Addr::from_bits(bits).into()),
        IpAddr::V6(ip) => ip.to_bits().checked_sub(1).map(|bits| Ipv6Addr::from_bits(bits).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Owner;

    fn allocation(address: &str, service: &str, phase: AllocationPhase) -> Arc<Allocation> {
        let owner = Owner { service: ServiceId::new("default", service), uid: "uid".into() };
        let address = address.parse().unwrap();
        Arc::new(Allocation { address, pool: "lab".into(), owners: vec![owner], phase, since: 7 })
    }

    fn free_after(allocations: &Allocations, from: &str) -> Option<String> {
        allocations.next_free(from.parse().unwrap()).map(|ip| ip.to_string())
    }

    #[test]
    fn next_free_skips_runs_however_they_came_about() {
        let mut all = Allocations::default();
        for last in [1, 3, 2, 0, 5] {
            all.insert_mut(allocation(&format!("10.0.0.{last}"), "a", AllocationPhase::Bound));
        }
        assert_eq!(free_after(&all, "10.0.0.0").as_deref(), Some("10.0.0.4"));
        assert_eq!(free_after(&all, "10.0.0.5").as_deref(), Some("10.0.0.6"));
        all.remove_mut(&"10.0.0.1".parse().unwrap());
        assert_eq!(free_after(&all, "10.0.0.0").as_deref(), Some("10.0.0.1"));
        assert_eq!(free_after(&all, "10.0.0.2").as_deref(), Some("10.0.0.4"));
    }

    #[test]
    fn the_families_end_where_they_end() {
        let mut all = Allocations::default();
        all.insert_mut(allocation("255.255.255.255", "a", AllocationPhase::Bound));
        all.insert_mut(allocation("::", "a", AllocationPhase::Bound));
        assert_eq!(free_after(&all, "255.255.255.255"), None);
        assert_eq!(free_after(&all, "::").as_deref(), Some("::1"));
        all.remove_mut(&"::".parse().unwrap());
        assert_eq!(free_after(&all, "::").as_deref(), Some("::"));
    }

    #[test]
    fn replacing_moves_the_address_between_services_and_phases() {
        let mut all = Allocations::default();
        all.insert_mut(allocation("10.0.0.1", "a", AllocationPhase::Quarantined));
        assert_eq!(all.quarantined().count(), 1);
        all.insert_mut(allocation("10.0.0.1", "b", AllocationPhase::Bound));
        assert_eq!(all.quarantined().count(), 0);
        assert_eq!(all.of(&ServiceId::new("default", "a")).count(), 0);
        assert_eq!(all.of(&ServiceId::new("default", "b")).count(), 1);
        assert_eq!(all.services().count(), 1);
    }
}
