//! One family's table as the kernel has it, as far as we know: what was observed, and the steps applied since.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Deref;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::{Action, Backend, Forwarding};
use portolan_nft::Name;

use crate::change::Change;
use crate::compact;
use crate::gate::{self, Holds, Open};
use crate::key::Key;
use crate::ledger::{Ledger, Ports};
use crate::shard::Shard;
use crate::target::{self, Memory, Shared, Side, Target};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Frame {
    /// Nothing is known; only an observation helps.
    #[default]
    Unknown,
    Absent,
    /// There, but not as we declare it: it goes and is built again.
    Foreign,
    Ours,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Actual {
    pub frame: Frame,
    pub missing_sets: BTreeSet<Name>,
    /// Those of [`layout::FIXED`](crate::layout::FIXED) that are there, with the gates that are open in their rules; None: the
    /// rules are not ours.
    pub fixed: BTreeMap<Name, Option<Open>>,
    pub holds: Holds,
    pub shared: BTreeMap<Shared, SharedChain>,
    /// The numbers that `targets` has; true = each with the verdict that we want.
    pub targets: BTreeMap<u32, bool>,
    pub ledgers: BTreeSet<Ledger>,
    pub entries: BTreeMap<Key, Entry>,
    pub vips: BTreeSet<IpAddr>,
    pub hairpin: BTreeSet<IpAddr>,
    /// Endpoints above a gap, or in the map of other addresses: nobody can reach them, so they go.
    pub strays: BTreeSet<(Shard, Key, u32)>,
    /// Endpoints that clients are remembered for although the frontend does not, or no longer, remember it.
    pub outlived: BTreeSet<(Key, Backend)>,
    pub foreign_chains: BTreeSet<Name>,
    pub foreign_sets: BTreeSet<Name>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharedChain {
    /// It is there.
    pub exists: bool,
    /// It has the rules we want.
    pub intact: bool,
    /// Elements of maps that lead to it.
    pub uses: u32,
}

/// What the maps hold for one key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    pub outside: Half,
    pub cluster: Option<Box<Half>>,
    /// `fw-vips` has the key, and `fw-allow` these ranges with it.
    pub sources: Option<Box<[IpNet]>>,
    /// What `affine` has of it.
    pub memory: BTreeMap<Backend, Memory>,
    /// Where `recall` leads its clients; no ports: to a chain that is not of our writing.
    pub recall: Option<Box<Ports>>,
}

/// What one side holds: a target, and the endpoints by index from the side's offset on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Half {
    pub target: Option<Target>,
    /// `host-ports` or `cluster-ports` has the key.
    pub listed: bool,
    pub slots: Slots,
}

/// Endpoints by index. A list of a plan's that has them in the same order, as it does until one is replaced, serves for both.
#[derive(Clone, Debug)]
pub enum Slots {
    Own(Vec<Backend>),
    Shared(Arc<[Backend]>),
}

impl Slots {
    /// Indices are filled from the front and given up from the back.
    fn put(&mut self, index: usize, to: Option<Backend>) {
        if let Slots::Shared(shared) = self {
            *self = Slots::Own(shared.to_vec());
        }
        let Slots::Own(slots) = self else { return };
        match to {
            Some(backend) if index < slots.len() => slots[index] = backend,
            Some(backend) => slots.push(backend),
            None => slots.truncate(index),
        }
    }

    /// Takes as little memory as they can: none, if they are what `list` is.
    pub fn settle(&mut self, list: Option<&Arc<[Backend]>>) {
        match (&mut *self, list) {
            (Slots::Own(slots), Some(list)) if slots[..] == list[..] => *self = Slots::Shared(list.clone()),
            (Slots::Own(slots), _) => slots.shrink_to_fit(),
            (Slots::Shared(_), _) => {}
        }
    }
}

impl Default for Slots {
    fn default() -> Self {
        Slots::Own(Vec::new())
    }
}

impl Deref for Slots {
    type Target = [Backend];

    fn deref(&self) -> &[Backend] {
        match self {
            Slots::Own(slots) => slots,
            Slots::Shared(slots) => slots,
        }
    }
}

impl PartialEq for Slots {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Slots {}

impl Entry {
    pub fn half(&self, side: Side) -> Option<&Half> {
        match side {
            Side::Outside => Some(&self.outside),
            Side::Cluster => self.cluster.as_deref(),
        }
    }

    pub fn half_mut(&mut self, side: Side) -> &mut Half {
        match side {
            Side::Outside => &mut self.outside,
            Side::Cluster => self.cluster.get_or_insert_default(),
        }
    }

    /// Takes no more memory for endpoints than need be, now that they are as in the plan, or will stay as they are.
    pub fn settle(&mut self, wanted: Option<&Forwarding>) {
        let of = |action: fn(&Forwarding) -> &Action| wanted.and_then(|wanted| target::list(action(wanted)));
        self.outside.slots.settle(of(|wanted| &wanted.from_outside));
        if let Some(cluster) = &mut self.cluster {
            cluster.slots.settle(of(|wanted| &wanted.from_cluster));
        }
    }

    pub fn remember(&mut self, backend: Backend, memory: Option<Memory>) {
        match memory {
            Some(memory) => self.memory.insert(backend, memory),
            None => self.memory.remove(&backend),
        };
    }

    fn is_empty(&self) -> bool {
        self.outside.is_empty()
            && self.cluster.is_none()
            && self.sources.is_none()
            && self.memory.is_empty()
            && self.recall.is_none()
    }
}

impl Half {
    pub fn is_affine_to(&self, backend: &Backend) -> bool {
        self.target.is_some_and(Target::is_affine) && self.slots.contains(backend)
    }

    fn is_empty(&self) -> bool {
        self.target.is_none() && self.slots.is_empty() && !self.listed
    }
}

impl Actual {
    pub fn new(frame: Frame) -> Self {
        Actual { frame, ..Actual::default() }
    }

    /// Clients may be on the other side from now on: nobody stays remembered for an endpoint that only one side has (S42).
    pub fn outlive_one_sided(&mut self) {
        for (key, entry) in &self.entries {
            let Some(cluster) = &entry.cluster else { continue };
            let one_sided =
                |backend: &&Backend| entry.outside.is_affine_to(backend) != cluster.is_affine_to(backend);
            self.outlived.extend(entry.memory.keys().filter(one_sided).map(|backend| (*key, *backend)));
        }
    }

    /// Takes no more memory than what there is needs.
    pub fn compact(&mut self) {
        compact(&mut self.entries);
        self.vips = std::mem::take(&mut self.vips).into_iter().collect();
    }

    /// Takes note of a change that the kernel has made.
    pub fn fold(&mut self, change: &Change) {
        let (from, to) = change.leads();
        self.count(from, to);
        gate::count(&mut self.holds, change);
        match change {
            Change::Table { .. } => *self = Actual::new(Frame::Ours),
            Change::Set(name) => _ = self.missing_sets.remove(name),
            Change::Fixed { name, open, .. } => _ = self.fixed.insert(name.clone(), Some(*open)),
            Change::Chain(shared) => {
                let chain = self.shared.entry(*shared).or_default();
                (chain.exists, chain.intact) = (true, true);
            }
            Change::Dispatch { code, to: Some(_), .. } => _ = self.targets.insert(*code, true),
            Change::Dispatch { code, to: None, .. } => _ = self.targets.remove(code),
            Change::Stray { shard, key, index } => _ = self.strays.remove(&(*shard, *key, *index)),
            Change::Sources { key, to, .. } => self.edit(*key, |entry| entry.sources = to.clone()),
            Change::Hairpin { address, there } => insert_or_remove(&mut self.hairpin, *address, *there),
            Change::Vip { address, there } => insert_or_remove(&mut self.vips, *address, *there),
            Change::Listed { key, side, there } => {
                self.edit(*key, |entry| entry.half_mut(*side).listed = *there);
            }
            Change::Endpoint { key, side, index, to, .. } => {
                self.edit(*key, |entry| entry.half_mut(*side).slots.put(*index as usize, *to));
            }
            Change::Publish { key, side, to, .. } => {
                self.edit(*key, |entry| entry.half_mut(*side).target = *to);
            }
            Change::Ledger(ledger) => _ = self.ledgers.insert(*ledger),
            Change::Recall { key, to, .. } => {
                self.edit(*key, |entry| entry.recall = to.map(Box::new));
            }
            Change::Remember { key, backend, to, .. } => {
                self.edit(*key, |entry| entry.remember(*backend, *to));
            }
            Change::Forget { key, backend } => _ = self.outlived.remove(&(*key, *backend)),
            Change::DropChain(shared) => _ = self.shared.remove(shared),
            Change::DropLedger(ledger) => _ = self.ledgers.remove(ledger),
            Change::DropForeignChain(name) => _ = self.foreign_chains.remove(name),
            Change::DropForeignSet(name) => _ = self.foreign_sets.remove(name),
        }
    }

    /// Counts what leads to the shared chains.
    pub fn count(&mut self, from: Option<Shared>, to: Option<Shared>) {
        if let Some(to) = to {
            self.shared.entry(to).or_default().uses += 1;
        }
        if let Some(from) = from {
            let chain = self.shared.entry(from).or_default();
            chain.uses = chain.uses.saturating_sub(1);
        }
    }

    fn edit(&mut self, key: Key, change: impl FnOnce(&mut Entry)) {
        let entry = self.entries.entry(key).or_default();
        change(entry);
        entry.cluster.take_if(|half| half.is_empty());
        if entry.is_empty() {
            self.entries.remove(&key);
        }
    }
}

fn insert_or_remove(set: &mut BTreeSet<IpAddr>, address: IpAddr, there: bool) {
    match there {
        true => set.insert(address),
        false => set.remove(&address),
    };
}
