//! Who wants what: the plans of all Services, by the keys they claim.
//!
//! Several Services may claim one key; the oldest has it, and the next one when it goes. Nothing here remembers in
//! which order they came (invariant 2).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use portolan_model::{Address, Family, Forwarding, Frontend, Protocol, ServiceId, ServicePlan, SortedSet};

use crate::compact;
use crate::key::Key;

/// The claims of one family.
#[derive(Debug, Default)]
pub struct Claims {
    by_key: BTreeMap<Key, Claimants>,
    /// How many plans ask for each.
    vips: BTreeMap<IpAddr, u32>,
    hairpin: BTreeMap<IpAddr, u32>,
}

/// Who claims one key, never nobody: nearly always one alone.
#[derive(Debug)]
enum Claimants {
    One(Claim),
    /// In order, the winner first.
    Several(Vec<Claim>),
}

#[derive(Clone, Debug)]
struct Claim {
    rank: Rank,
    plan: Arc<ServicePlan>,
}

/// The winner is the least: the oldest, then by name; an address asked for by itself before a node port.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    created: i64,
    service: ServiceId,
    node_port: bool,
}

/// What may look different after a change.
#[derive(Debug, Default)]
pub struct Dirty {
    pub keys: BTreeSet<Key>,
    pub vips: BTreeSet<IpAddr>,
    pub hairpin: BTreeSet<IpAddr>,
    /// Any chain, whether something leads to it or not.
    pub chains: bool,
    /// Whatever there is, whether it is noted here or not.
    pub everything: bool,
}

impl Dirty {
    pub fn extend(&mut self, other: Dirty) {
        self.keys.extend(other.keys);
        self.vips.extend(other.vips);
        self.hairpin.extend(other.hairpin);
        self.chains |= other.chains;
        self.everything |= other.everything;
    }
}

/// A Service as it was handed over.
#[derive(Clone, Debug)]
pub struct Registered {
    pub created: i64,
    pub plan: Arc<ServicePlan>,
}

/// The keys of a frontend on this node. TCP at a loopback address is a relay's business (S22).
pub fn keys<'a>(frontend: &'a Frontend, nodes: &'a BTreeSet<IpAddr>) -> impl Iterator<Item = Key> + 'a {
    let (vip, family) = match frontend.address {
        Address::Vip(ip) => (Some(ip), None),
        Address::NodePort(family) => (None, Some(family)),
    };
    let relayed = frontend.protocol == Protocol::Tcp;
    let nodes = nodes
        .iter()
        .copied()
        .filter(move |ip| family == Some(Family::of(ip)) && !(relayed && ip.is_loopback()));
    vip.into_iter().chain(nodes).map(|address| Key {
        address,
        protocol: frontend.protocol,
        port: frontend.port,
    })
}

/// The frontends of one family.
pub fn frontends(plan: &ServicePlan, family: Family) -> impl Iterator<Item = (&Frontend, &Forwarding)> {
    plan.frontends.iter().filter(move |(frontend, _)| frontend.family() == family)
}

impl Claims {
    /// Replaces what one Service claims in this family, and notes in `dirty` what that may change.
    pub fn replace(
        &mut self,
        id: &ServiceId,
        family: Family,
        nodes: &BTreeSet<IpAddr>,
        old: Option<&Registered>,
        new: Option<&Registered>,
        dirty: &mut Dirty,
    ) {
        let none = ServicePlan::default();
        let (before, after) = (old.map_or(&none, |old| &*old.plan), new.map_or(&none, |new| &*new.plan));
        if !dirty.everything {
            let same_rank = old.map(|r| r.created) == new.map(|r| r.created);
            for (frontend, forwarding) in frontends(before, family) {
                if !same_rank || after.frontends.get(frontend) != Some(forwarding) {
                    dirty.keys.extend(keys(frontend, nodes));
                }
            }
            for (frontend, _) in
                frontends(after, family).filter(|(f, _)| !same_rank || !before.frontends.contains_key(f))
            {
                dirty.keys.extend(keys(frontend, nodes));
            }
        }
        old.into_iter().for_each(|registered| self.drop_keys(id, family, nodes, registered));
        new.into_iter().for_each(|registered| self.add_keys(id, family, nodes, registered));
        let vips = (!dirty.everything).then_some(&mut dirty.vips);
        recount(&mut self.vips, family, &before.vips, &after.vips, vips);
        if !dirty.everything {
            let moved = before.vips.symmetric_difference(&after.vips).filter(|ip| Family::of(ip) == family);
            moved.for_each(|ip| dirty.keys.extend(self.keys_at(*ip))); // listed or not
        }
        let hairpin = (!dirty.everything).then_some(&mut dirty.hairpin);
        recount(&mut self.hairpin, family, &before.hairpin, &after.hairpin, hairpin);
    }

    /// The node's addresses change: the node ports of one Service move.
    pub fn move_node_ports(
        &mut self,
        id: &ServiceId,
        family: Family,
        from: &BTreeSet<IpAddr>,
        to: &BTreeSet<IpAddr>,
        registered: &Registered,
        dirty: &mut Dirty,
    ) {
        let moved = from.symmetric_difference(to).copied().collect();
        for (frontend, _) in frontends(&registered.plan, family) {
            if matches!(frontend.address, Address::NodePort(_)) && !dirty.everything {
                dirty.keys.extend(keys(frontend, &moved));
            }
        }
        self.drop_keys(id, family, from, registered);
        self.add_keys(id, family, to, registered);
    }

    fn drop_keys(&mut self, id: &ServiceId, family: Family, nodes: &BTreeSet<IpAddr>, old: &Registered) {
        for (key, claim) in claims(id, family, nodes, old) {
            let Entry::Occupied(mut claimants) = self.by_key.entry(key) else { continue };
            if claimants.get_mut().remove(&claim.rank) {
                claimants.remove();
            }
        }
    }

    fn add_keys(&mut self, id: &ServiceId, family: Family, nodes: &BTreeSet<IpAddr>, new: &Registered) {
        for (key, claim) in claims(id, family, nodes, new) {
            match self.by_key.entry(key) {
                Entry::Vacant(free) => _ = free.insert(Claimants::One(claim)),
                Entry::Occupied(mut claimants) => claimants.get_mut().insert(claim),
            }
        }
    }

    /// The forwarding of the key's oldest claim.
    pub fn winner(&self, key: Key) -> Option<&Forwarding> {
        self.by_key.get(&key)?.winner().forwarding(key)
    }

    /// Whose claim that is.
    pub fn winner_id(&self, key: Key) -> Option<&ServiceId> {
        self.by_key.get(&key).map(|claimants| &claimants.winner().rank.service)
    }

    /// The other Services that claim a key of this one's.
    pub fn rivals(
        &self,
        id: &ServiceId,
        family: Family,
        nodes: &BTreeSet<IpAddr>,
        registered: &Registered,
        rivals: &mut BTreeSet<ServiceId>,
    ) {
        for (frontend, _) in frontends(&registered.plan, family) {
            for key in keys(frontend, nodes) {
                let claims = self.by_key.get(&key).map_or(&[][..], Claimants::all);
                let services = claims.iter().map(|claim| &claim.rank.service);
                rivals.extend(services.filter(|other| *other != id).cloned());
            }
        }
    }

    /// Every key with its winner, in order.
    pub fn winners(&self) -> impl Iterator<Item = (&Key, &Forwarding)> {
        self.by_key.iter().filter_map(|(key, claimants)| Some((key, claimants.winner().forwarding(*key)?)))
    }

    /// Every claimed key at an address.
    pub fn keys_at(&self, address: IpAddr) -> impl Iterator<Item = Key> {
        let first = Key { address, protocol: Protocol::Tcp, port: 0 };
        self.by_key.range(first..).map(|(key, _)| *key).take_while(move |key| key.address == address)
    }

    pub fn vips(&self) -> impl Iterator<Item = IpAddr> {
        self.vips.keys().copied()
    }

    pub fn hairpin(&self) -> impl Iterator<Item = IpAddr> {
        self.hairpin.keys().copied()
    }

    pub fn has_vip(&self, address: &IpAddr) -> bool {
        self.vips.contains_key(address)
    }

    pub fn has_hairpin(&self, address: &IpAddr) -> bool {
        self.hairpin.contains_key(address)
    }

    /// Takes no more memory than what is claimed needs.
    pub fn compact(&mut self) {
        compact(&mut self.by_key);
        compact(&mut self.vips);
    }
}

impl Claimants {
    /// In order.
    fn all(&self) -> &[Claim] {
        match self {
            Claimants::One(claim) => std::slice::from_ref(claim),
            Claimants::Several(claims) => claims,
        }
    }

    fn winner(&self) -> &Claim {
        &self.all()[0]
    }

    fn insert(&mut self, claim: Claim) {
        let mut claims = match self {
            Claimants::One(other) if other.rank == claim.rank => return *other = claim,
            Claimants::One(other) => vec![other.clone()],
            Claimants::Several(claims) => std::mem::take(claims),
        };
        match claims.binary_search_by(|other| other.rank.cmp(&claim.rank)) {
            Ok(at) => claims[at] = claim,
            Err(at) => claims.insert(at, claim),
        }
        *self = Claimants::Several(claims);
    }

    /// True when nobody is left.
    fn remove(&mut self, rank: &Rank) -> bool {
        match self {
            Claimants::One(claim) => claim.rank == *rank,
            Claimants::Several(claims) => {
                claims.retain(|claim| claim.rank != *rank);
                if let [last] = &claims[..] {
                    *self = Claimants::One(last.clone());
                }
                false
            }
        }
    }
}

impl Claim {
    fn forwarding(&self, key: Key) -> Option<&Forwarding> {
        let address = match self.rank.node_port {
            true => Address::NodePort(Family::of(&key.address)),
            false => Address::Vip(key.address),
        };
        self.plan.frontends.get(&Frontend { address, protocol: key.protocol, port: key.port })
    }
}

fn claims<'a>(
    id: &'a ServiceId,
    family: Family,
    nodes: &'a BTreeSet<IpAddr>,
    registered: &'a Registered,
) -> impl Iterator<Item = (Key, Claim)> + 'a {
    frontends(&registered.plan, family).flat_map(move |(frontend, _)| {
        let node_port = matches!(frontend.address, Address::NodePort(_));
        keys(frontend, nodes).map(move |key| {
            let rank = Rank { created: registered.created, service: id.clone(), node_port };
            (key, Claim { rank, plan: registered.plan.clone() })
        })
    })
}

fn recount(
    counts: &mut BTreeMap<IpAddr, u32>,
    family: Family,
    before: &SortedSet<IpAddr>,
    after: &SortedSet<IpAddr>,
    mut dirty: Option<&mut BTreeSet<IpAddr>>,
) {
    for address in after.difference(before).filter(|ip| Family::of(ip) == family) {
        *counts.entry(*address).or_default() += 1;
        dirty.as_mut().map(|dirty| dirty.insert(*address));
    }
    for address in before.difference(after).filter(|ip| Family::of(ip) == family) {
        let count = counts.get(address).map_or(0, |count| count.saturating_sub(1));
        match count {
            0 => counts.remove(address),
            count => counts.insert(*address, count),
        };
        dirty.as_mut().map(|dirty| dirty.insert(*address));
    }
}
