//! What the pools really offer: their addresses without those that must not be given out.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::{
    AllocationPhase, Allocations, Family, IpRange, LabelSelector, Name, ObjectId, Pool, Problem, Service,
    Snapshot, next,
};

use crate::ranges;

/// Rebuild it when a pool, a node or a ServiceCIDR changes.
#[derive(Clone, Debug, Default)]
pub struct Supply {
    /// In the order in which pools are tried (A7).
    stocks: Vec<Stock>,
    /// What is wrong with pools; each still offers the rest of its addresses.
    pub problems: Vec<Problem>,
}

/// One pool and what it may give out.
#[derive(Clone, Debug)]
pub struct Stock {
    pub pool: Arc<Pool>,
    /// All that the pool covers; what lies in it is not outside (A22).
    covered: Vec<IpRange>,
    usable: Vec<IpRange>,
}

/// How a pool is used, per family (vips.md 2.1); IPv6 counts saturate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Use {
    pub total: u128,
    pub assigned: u128,
    pub available: u128,
    pub quarantined: u128,
    pub reserved: u128,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoolUse {
    pub ipv4: Use,
    pub ipv6: Use,
    /// Allocations whose address the pool no longer covers (A22).
    pub outside: u64,
}

impl Supply {
    pub fn new(snapshot: &Snapshot) -> Supply {
        let mut supply = Supply::default();
        let cluster = ranges::normalize(cluster_addresses(snapshot).map(|(range, _)| range).collect());
        let mut pools: Vec<_> = snapshot.pools.values().collect();
        pools.sort_by_key(|pool| (pool.created, pool.name.clone())); // older pools own overlaps (A26)
        let mut older: Vec<(Name, Vec<IpRange>)> = Vec::new();
        for pool in pools {
            let covered = ranges::normalize(pool.addresses.clone());
            supply.report(snapshot, pool, &covered, &cluster, &older);
            let mut usable = ranges::subtract(&covered, &ranges::normalize(pool.exclude.clone()));
            usable = ranges::subtract(&usable, &cluster); // A27
            for (_, theirs) in &older {
                usable = ranges::subtract(&usable, theirs);
            }
            older.push((pool.name.clone(), covered.clone()));
            supply.stocks.push(Stock { pool: pool.clone(), covered, usable });
        }
        supply.stocks.sort_by_key(|stock| (stock.class(), stock.pool.name.clone()));
        supply
    }

    fn report(
        &mut self,
        snapshot: &Snapshot,
        pool: &Pool,
        covered: &[IpRange],
        cluster: &[IpRange],
        older: &[(Name, Vec<IpRange>)],
    ) {
        for (name, theirs) in older {
            if let Some(common) = ranges::overlap(covered, theirs) {
                let whose = format!("of IPAddressPool {name}, which is older and keeps the overlap");
                self.problems.push(overlapping(pool, &common, "Conflict", &whose));
            }
        }
        if let Some(common) = ranges::overlap(covered, cluster) {
            let owner = cluster_addresses(snapshot).find(|(range, _)| range.contains(&common.first));
            let whose =
                owner.map_or_else(String::new, |(_, whose)| format!("{whose} and therefore left out"));
            self.problems.push(overlapping(pool, &common, "ClusterAddresses", &whose));
        }
    }

    pub fn is_empty(&self) -> bool {
        self.stocks.is_empty()
    }

    /// In the order of preference for Services that ask for no pool.
    pub fn iter(&self) -> impl Iterator<Item = &Stock> {
        self.stocks.iter()
    }

    pub fn named(&self, name: &str) -> Option<&Stock> {
        self.stocks.iter().find(|stock| *stock.pool.name == *name)
    }

    /// The pool that gives out this address, or at least covers it.
    pub fn of(&self, address: IpAddr) -> Option<&Stock> {
        let offering = self.stocks.iter().find(|stock| stock.offers(address));
        offering.or_else(|| self.stocks.iter().find(|stock| stock.covers(address)))
    }

    /// Counts for the status of every pool.
    pub fn usage<'a>(&'a self, allocations: &Allocations) -> BTreeMap<Name, PoolUse> {
        let empty = |stock: &'a Stock| (stock.pool.name.clone(), (stock, stock.unused()));
        let mut usage: BTreeMap<_, _> = self.stocks.iter().map(empty).collect();
        for (address, allocation) in allocations.iter() {
            let Some((stock, pool)) = usage.get_mut(&allocation.pool) else { continue };
            pool.outside += u64::from(!stock.covers(*address));
            let family = match address {
                IpAddr::V4(_) => &mut pool.ipv4,
                IpAddr::V6(_) => &mut pool.ipv6,
            };
            family.available -= u128::from(stock.offers(*address)).min(family.available);
            match allocation.phase {
                AllocationPhase::Bound => family.assigned += 1,
                AllocationPhase::Quarantined => family.quarantined += 1,
                AllocationPhase::Reserved => family.reserved += 1,
            }
        }
        usage.into_iter().map(|(name, (_, pool))| (name, pool)).collect()
    }
}

impl Stock {
    /// Pools for some Services come before pools for all, then lower priorities (A7).
    pub fn class(&self) -> (bool, u32) {
        let choice = &self.pool.service_allocation;
        let pinned = !choice.namespaces.is_empty() || !choice.service_selectors.is_empty();
        (!pinned, choice.priority.unwrap_or(u32::MAX))
    }

    /// Whether the pool is for this Service, asked for or not (A8).
    pub fn serves(&self, service: &Service) -> bool {
        let choice = &self.pool.service_allocation;
        let namespaces = &choice.namespaces;
        (namespaces.is_empty() || namespaces.contains(&service.id.namespace))
            && LabelSelector::any(&choice.service_selectors, &service.labels)
    }

    pub fn covers(&self, address: IpAddr) -> bool {
        ranges::contains(&self.covered, address)
    }

    /// Whether the address may be given out, were it free.
    pub fn offers(&self, address: IpAddr) -> bool {
        ranges::contains(&self.usable, address) && !self.avoids(address)
    }

    pub fn has_family(&self, family: Family) -> bool {
        self.of_family(family).next().is_some()
    }

    /// The lowest free address. Costs O(log n) for each range, and one step for each avoided address on the way.
    pub fn first_free(&self, family: Family, allocations: &Allocations) -> Option<IpAddr> {
        self.of_family(family).find_map(|range| self.first_free_in(range, allocations))
    }

    fn first_free_in(&self, range: &IpRange, allocations: &Allocations) -> Option<IpAddr> {
        let mut at = range.first;
        loop {
            at = allocations.next_free(at).filter(|free| *free <= range.last)?;
            if !self.avoids(at) {
                return Some(at);
            }
            at = next(at)?;
        }
    }

    fn avoids(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(ip) => self.pool.avoid_dot0_dot255 && matches!(ip.octets()[3], 0 | 255),
            IpAddr::V6(_) => false,
        }
    }

    fn of_family(&self, family: Family) -> impl Iterator<Item = &IpRange> {
        self.usable.iter().filter(move |range| Family::of(&range.first) == family)
    }

    fn unused(&self) -> PoolUse {
        let count = |family| {
            let sizes = self.of_family(family).map(|range| ranges::size(range) - self.avoided_in(range));
            let total = sizes.fold(0, u128::saturating_add);
            Use { total, available: total, ..Use::default() }
        };
        PoolUse { ipv4: count(Family::Ipv4), ipv6: count(Family::Ipv6), outside: 0 }
    }

    fn avoided_in(&self, range: &IpRange) -> u128 {
        if !self.pool.avoid_dot0_dot255 || range.first.is_ipv6() {
            return 0;
        }
        // Up to n there are n/256 + 1 that end in .0 and (n + 1)/256 that end in .255.
        let up_to = |n: u128| n / 256 + 1 + (n + 1) / 256;
        let (first, last) = (ranges::bits(range.first), ranges::bits(range.last));
        up_to(last) - first.checked_sub(1).map_or(0, up_to)
    }
}

/// Addresses that live elsewhere in the cluster, and whose they are (A27).
fn cluster_addresses(snapshot: &Snapshot) -> impl Iterator<Item = (IpRange, String)> {
    let nodes = snapshot.nodes.values().flat_map(|node| {
        let one = |ip: &IpAddr| (IpRange { first: *ip, last: *ip }, format!("of Node {}", node.name));
        let cidr = |net: &IpNet| (range(net), format!("in the podCIDRs of Node {}", node.name));
        node.internal_ips.iter().map(one).chain(node.pod_cidrs.iter().map(cidr))
    });
    let services = snapshot.service_cidrs.values().flat_map(|object| {
        object.cidrs.iter().map(|net| (range(net), format!("in ServiceCIDR {}", object.name)))
    });
    nodes.chain(services)
}

fn range(net: &IpNet) -> IpRange {
    IpRange { first: net.network(), last: net.broadcast() }
}

fn overlapping(pool: &Pool, common: &IpRange, reason: &'static str, whose: &str) -> Problem {
    let at = pool.addresses.iter().position(|range| range.contains(&common.first)).unwrap_or(0);
    let common = match common.first == common.last {
        true => format!("{} is", common.first),
        false => format!("{}-{} are", common.first, common.last),
    };
    Problem {
        object: ObjectId::cluster("IPAddressPool", pool.name.clone()),
        field: format!("spec.addresses[{at}]"),
        reason,
        message: format!("{common} also {whose}"),
    }
}
