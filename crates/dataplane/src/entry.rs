//! What one key should hold, and the changes that bring it there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Backend, Family, Forwarding};

use crate::actual::{Entry, Half};
use crate::change::Change;
use crate::changes::Changes;
use crate::key::Key;
use crate::ledger::Ports;
use crate::shard::Shard;
use crate::target::{Memory, Side, Target, memory, translate};

/// What a claim asks for, borrowed from its plan.
#[derive(Clone, Debug)]
pub struct Wanted<'a> {
    pub outside: WantedHalf<'a>,
    /// Only where pods and this node are treated differently (S45).
    pub cluster: Option<WantedHalf<'a>>,
    pub sources: Option<Box<[IpNet]>>,
}

#[derive(Clone, Copy, Debug)]
pub struct WantedHalf<'a> {
    pub target: Target,
    /// A member of the side's set of ports: by it a packet that raced with a commit is known. The VIPs' own set does
    /// that for whatever is at a VIP.
    pub listed: bool,
    pub backends: &'a [Backend],
    /// How long clients are remembered (S41).
    pub memory: Option<Memory>,
}

impl<'a> Wanted<'a> {
    /// `at_vip`: the frontend's address is in `vips`.
    pub fn new(address: IpAddr, forwarding: &'a Forwarding, detector: bool, at_vip: bool) -> Self {
        let (family, shard) = (Family::of(&address), Shard::of(&address));
        let half = |action, side| {
            let (target, backends) = translate(action, side, shard, detector);
            let listed = side == Side::Cluster || !at_vip;
            WantedHalf { target, backends, listed, memory: memory(action) }
        };
        let differs = forwarding.from_cluster != forwarding.from_outside;
        Wanted {
            outside: half(&forwarding.from_outside, Side::Outside),
            cluster: differs.then(|| half(&forwarding.from_cluster, Side::Cluster)),
            sources: forwarding.allowed_sources.as_ref().map(|nets| of_family(nets, family)),
        }
    }

    /// A node port at a loopback address, of a protocol that no relay speaks (S22). Nothing there is ever translated, so
    /// no packet can race.
    pub fn refused_on_localhost() -> Self {
        let target = Target::RefuseOnLocalhost;
        let outside = WantedHalf { target, listed: false, backends: &[], memory: None };
        Wanted { outside, cluster: None, sources: None }
    }

    pub fn half(&self, side: Side) -> Option<&WantedHalf<'a>> {
        match side {
            Side::Outside => Some(&self.outside),
            Side::Cluster => self.cluster.as_ref(),
        }
    }

    /// What `affine` should have: the endpoints of both sides, of which a packet that was sent on no longer tells.
    fn memory(&self) -> BTreeMap<Backend, Memory> {
        let halves = self.cluster.iter().chain([&self.outside]);
        let pairs = halves.filter_map(|half| Some((half.backends, half.memory?)));
        pairs.flat_map(|(backends, memory)| backends.iter().map(move |b| (*b, memory))).collect()
    }
}

impl WantedHalf<'_> {
    fn is_affine_to(&self, backend: &Backend) -> bool {
        self.memory.is_some() && self.backends.binary_search(backend).is_ok()
    }
}

/// The ranges of one family without overlaps, which the kernel would refuse. None left means that nobody may (S27).
fn of_family(nets: &[IpNet], family: Family) -> Box<[IpNet]> {
    let own = nets.iter().filter(|net| Family::of(&net.addr()) == family).map(IpNet::trunc);
    IpNet::aggregate(&own.collect()).into()
}

/// Adds to `changes` what turns `actual` into `wanted`; nothing when they are equal.
pub fn diff(key: Key, actual: Option<&Entry>, wanted: Option<&Wanted>, changes: &mut Changes) {
    diff_memory(key, actual, wanted, changes);
    for side in Side::ALL {
        let half = actual.and_then(|entry| entry.half(side));
        diff_half(key, side, half, wanted.and_then(|wanted| wanted.half(side)), changes);
    }
    let from = actual.and_then(|entry| entry.sources.as_deref());
    let to = wanted.and_then(|wanted| wanted.sources.as_deref());
    if from != to {
        changes.push(Change::Sources { key, from: from.map(Box::from), to: to.map(Box::from) });
    }
}

/// S42: an endpoint that leaves a side is forgotten on both, since what is remembered does not tell the side.
fn diff_memory(key: Key, actual: Option<&Entry>, wanted: Option<&Wanted>, changes: &mut Changes) {
    let none = BTreeMap::new();
    let from = actual.map_or(&none, |entry| &entry.memory);
    let mut to = wanted.map_or(BTreeMap::new(), Wanted::memory);
    if Family::of(&key.address) == Family::Ipv6 {
        let recalled = Ports::of(to.keys().map(Backend::port));
        to.retain(|backend, _| recalled.contains(backend.port()));
        diff_recall(key, actual, Some(recalled).filter(|ports| !ports.is_empty()), changes);
    }
    if from.is_empty() && to.is_empty() {
        return;
    }
    let backends: BTreeSet<Backend> = from.keys().chain(to.keys()).copied().collect();
    for backend in backends {
        let (from, to) = (from.get(&backend).copied(), to.get(&backend).copied());
        if from != to {
            changes.push(Change::Remember { key, backend, from, to });
        }
        let leaves = |side| {
            // Where the sides are alike, there is one half for both.
            let had = actual.map(|entry| entry.half(side).unwrap_or(&entry.outside));
            let has = wanted.map(|wanted| wanted.half(side).unwrap_or(&wanted.outside));
            had.is_some_and(|half| half.is_affine_to(&backend))
                && !has.is_some_and(|half| half.is_affine_to(&backend))
        };
        if to.is_some() && Side::ALL.into_iter().any(leaves) {
            changes.push(Change::Forget { key, backend });
        }
    }
}

fn diff_recall(key: Key, actual: Option<&Entry>, to: Option<Ports>, changes: &mut Changes) {
    let from = actual.and_then(|entry| entry.recall.as_deref().copied());
    if from != to {
        changes.push(Change::Recall { key, from, to });
    }
}

fn diff_half(
    key: Key,
    side: Side,
    actual: Option<&Half>,
    wanted: Option<&WantedHalf>,
    changes: &mut Changes,
) {
    let slots = actual.map_or(&[][..], |half| &half.slots);
    place(slots, wanted.map_or(&[], |half| half.backends), |index, to| {
        let replaces = index < slots.len();
        changes.push(Change::Endpoint { key, side, index: index as u32, replaces, to });
    });
    let listed = wanted.is_some_and(|half| half.listed);
    if listed != actual.is_some_and(|half| half.listed) {
        changes.push(Change::Listed { key, side, there: listed });
    }
    let (from, to) = (actual.and_then(|half| half.target), wanted.map(|half| half.target));
    if from != to {
        changes.push(Change::Publish { key, side, from, to });
    }
}

/// Turns `slots` into the sorted set `wanted` with the fewest writes: what stands stays at its index, holes are filled
/// by what is new, then by what is last, so that indices stay dense. Indices to fill ascend, those to give up descend.
fn place(slots: &[Backend], wanted: &[Backend], mut write: impl FnMut(usize, Option<Backend>)) {
    if slots == wanted {
        return;
    }
    let mut placed = vec![false; wanted.len()];
    let stays: Vec<bool> = slots
        .iter()
        .map(|slot| wanted.binary_search(slot).is_ok_and(|at| !std::mem::replace(&mut placed[at], true)))
        .collect();
    let missing = wanted.iter().zip(&placed).filter(|(_, placed)| !**placed).map(|(backend, _)| *backend);
    let beyond = (wanted.len()..slots.len()).rev().filter(|index| stays[*index]).map(|index| slots[index]);
    let mut fill = missing.chain(beyond);
    for index in (0..wanted.len()).filter(|index| !stays.get(*index).is_some_and(|stays| *stays)) {
        if let Some(backend) = fill.next() {
            write(index, Some(backend));
        }
    }
    for index in (wanted.len()..slots.len()).rev() {
        write(index, None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(slots: &[u16], wanted: &[u16], writes: &[(usize, u16)]) {
        let backends =
            |ports: &[u16]| -> Vec<Backend> { ports.iter().map(|p| ([10, 0, 0, 1], *p).into()).collect() };
        let mut seen = Vec::new();
        place(&backends(slots), &backends(wanted), |index, to| {
            seen.push((index, to.map_or(0, |b| b.port())))
        });
        assert_eq!(seen, writes, "{slots:?} to {wanted:?}");
    }

    #[test]
    fn the_last_endpoint_moves_into_the_hole() {
        check(&[1, 2, 3], &[1, 3], &[(1, 3), (2, 0)]);
        check(&[1, 2, 3], &[2, 3], &[(0, 3), (2, 0)]);
        check(&[1, 2, 3], &[1, 2], &[(2, 0)]);
    }

    #[test]
    fn new_endpoints_fill_holes_then_append() {
        check(&[], &[1, 2], &[(0, 1), (1, 2)]);
        check(&[5, 6], &[6, 7], &[(0, 7)]);
        check(&[5, 6], &[6, 7, 8], &[(0, 7), (2, 8)]);
    }

    #[test]
    fn order_and_copies_are_no_difference_to_write() {
        check(&[3, 1, 2], &[1, 2, 3], &[]);
        check(&[1, 3, 3], &[1, 3], &[(2, 0)]);
        check(&[1, 1, 3], &[1, 3], &[(1, 3), (2, 0)]);
        check(&[1], &[], &[(0, 0)]);
    }
}
