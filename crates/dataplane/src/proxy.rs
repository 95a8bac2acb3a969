//! One family's proxy (S6): what is claimed, what the kernel has, and the changes between the two.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use itertools::{EitherOrBoth, Itertools};
use portolan_model::{Family, Forwarding, ServiceId};
use portolan_nft::{Chain, Command, Dumped, Table};

use crate::actual::{Actual, Entry, Frame};
use crate::chains;
use crate::change::{Change, Script};
use crate::changes::Changes;
use crate::claims::{Claims, Dirty, Registered};
use crate::entry::{self, Wanted};
use crate::gate::{self, Open};
use crate::key::Key;
use crate::layout::{self, Settings};
use crate::observe;
use crate::step::{self, Limits, Step};
use crate::target::{Shared, Target};

#[derive(Debug)]
pub struct Proxy {
    pub family: Family,
    pub claims: Claims,
    pub dirty: Dirty,
    /// What was dirty and is as wanted once the last steps are applied, so that nobody compares it again.
    in_steps: Dirty,
    /// Of steps.
    round: u64,
    pub actual: Actual,
}

impl Proxy {
    pub fn new(family: Family) -> Self {
        Proxy {
            family,
            claims: Claims::default(),
            dirty: Dirty::default(),
            in_steps: Dirty::default(),
            round: 0,
            actual: Actual::default(),
        }
    }

    pub fn observed(&mut self, dumped: Option<&Dumped>, settings: &Settings) {
        self.actual = observe::read(dumped, settings, self.family);
        self.touch_all();
    }

    /// Compares everything at the next [`Proxy::changes`].
    pub fn touch_all(&mut self) {
        self.dirty = Dirty { chains: true, everything: true, ..Dirty::default() };
    }

    pub fn orphans(&self) -> impl Iterator<Item = Key> {
        self.actual.entries.keys().copied().filter(|key| self.claims.winner(*key).is_none())
    }

    pub fn wanted<'a>(&self, key: Key, forwarding: &'a Forwarding, settings: &Settings) -> Wanted<'a> {
        if key.address.is_loopback() && settings.node_port_addresses.contains(&key.address) {
            return Wanted::refused_on_localhost();
        }
        let at_vip = self.wants_vip(&key.address, settings);
        Wanted::new(key.address, forwarding, settings.pods.detects(self.family), at_vip)
    }

    /// A VIP that is the node's own address keeps the host's other ports open (S28).
    pub fn wants_vip(&self, address: &IpAddr, settings: &Settings) -> bool {
        self.claims.has_vip(address) && !settings.node_port_addresses.contains(address)
    }

    /// What leads from the kernel's state to the wanted one, in the order in which it is safe to write.
    pub fn steps(&mut self, settings: &Arc<Settings>, limits: Limits) -> Vec<Step> {
        self.dirty.extend(std::mem::take(&mut self.in_steps));
        if self.actual.frame == Frame::Unknown {
            return Vec::new();
        }
        let mut steps = step::cut(self.changes(settings, &limits), self.family, settings, limits);
        self.in_steps = std::mem::take(&mut self.dirty);
        self.round += 1;
        if let Some(last) = steps.last_mut() {
            last.ends = Some(self.round);
        }
        steps
    }

    /// The kernel took the step, and those before it.
    pub fn applied(&mut self, step: &Step) {
        step.changes.iter().for_each(|change| self.actual.fold(change));
        let keys = step.changes.iter().filter_map(Change::places);
        let mut last = None;
        for key in keys.filter(|key| last.replace(*key) != Some(*key)) {
            if let Some(entry) = self.actual.entries.get_mut(key) {
                entry.settle(self.claims.winner(*key));
            }
        }
        if step.ends == Some(self.round) {
            self.in_steps = Dirty::default();
        }
    }

    fn changes(&mut self, settings: &Settings, limits: &Limits) -> Changes {
        let everything = std::mem::take(&mut self.dirty.everything);
        let mut changes = self.frame_changes();
        self.key_changes(settings, everything, &mut changes);
        self.address_changes(settings, everything, &mut changes);
        gate::diff(settings, self.family, &self.actual, &mut changes);
        self.chain_changes(limits, &mut changes);
        changes
    }

    fn frame_changes(&self) -> Changes {
        let mut changes = Changes::default();
        match self.actual.frame {
            Frame::Ours => changes.extend(self.actual.missing_sets.iter().cloned().map(Change::Set)),
            frame => changes.push(Change::Table { replace: frame == Frame::Foreign }),
        }
        changes.extend(self.actual.strays.iter().map(|(shard, key, index)| Change::Stray {
            shard: *shard,
            key: *key,
            index: *index,
        }));
        let outlived = self.actual.outlived.iter();
        changes.extend(outlived.map(|(key, backend)| Change::Forget { key: *key, backend: *backend }));
        changes.extend(self.actual.foreign_sets.iter().cloned().map(Change::DropForeignSet));
        changes.extend(self.actual.foreign_chains.iter().cloned().map(Change::DropForeignChain));
        changes
    }

    /// Keys that turn out to be as wanted are no longer dirty.
    fn key_changes(&mut self, settings: &Settings, everything: bool, changes: &mut Changes) {
        let (dirty, mut entries) =
            (std::mem::take(&mut self.dirty.keys), std::mem::take(&mut self.actual.entries));
        let mut differs = |key: Key, entry: Option<&mut Entry>, forwarding: Option<&Forwarding>| {
            let before = changes.len();
            let wanted = forwarding.map(|forwarding| self.wanted(key, forwarding, settings));
            entry::diff(key, entry.as_deref(), wanted.as_ref(), changes);
            let differs = changes.len() > before;
            if !differs && let Some(entry) = entry {
                entry.settle(forwarding);
            }
            differs.then_some(key)
        };
        let left = match everything {
            true => join(entries.iter_mut(), self.claims.winners())
                .filter_map(|(key, entry, forwarding)| differs(*key, entry, forwarding))
                .collect(),
            false => dirty
                .into_iter()
                .filter_map(|key| differs(key, entries.get_mut(&key), self.claims.winner(key)))
                .collect(),
        };
        (self.dirty.keys, self.actual.entries) = (left, entries);
    }

    fn address_changes(&mut self, settings: &Settings, everything: bool, changes: &mut Changes) {
        let (mut vips, mut hairpin) =
            (std::mem::take(&mut self.dirty.vips), std::mem::take(&mut self.dirty.hairpin));
        if everything {
            vips.extend(unlike(&self.actual.vips, self.claims.vips()));
            vips.extend(settings.node_port_addresses.iter().copied());
            hairpin.extend(unlike(&self.actual.hairpin, self.claims.hairpin()));
        }
        vips.retain(|ip| self.wants_vip(ip, settings) != self.actual.vips.contains(ip));
        hairpin.retain(|ip| self.claims.has_hairpin(ip) != self.actual.hairpin.contains(ip));
        let there = |set: &BTreeSet<IpAddr>, ip| !set.contains(ip);
        changes
            .extend(vips.iter().map(|ip| Change::Vip { address: *ip, there: there(&self.actual.vips, ip) }));
        changes.extend(
            hairpin.iter().map(|ip| Change::Hairpin { address: *ip, there: there(&self.actual.hairpin, ip) }),
        );
        (self.dirty.vips, self.dirty.hairpin) = (vips, hairpin);
    }

    fn chain_changes(&mut self, limits: &Limits, changes: &mut Changes) {
        let before = changes.len();
        chains::diff(&self.actual, limits, self.dirty.chains, changes);
        self.dirty.chains &= changes.len() > before;
    }

    pub fn replace_claims(
        &mut self,
        id: &ServiceId,
        settings: &Settings,
        old: Option<&Registered>,
        new: Option<&Registered>,
    ) {
        self.claims.replace(id, self.family, &settings.node_port_addresses, old, new, &mut self.dirty);
    }

    pub fn move_node_ports(
        &mut self,
        id: &ServiceId,
        registered: &Registered,
        old: &Settings,
        new: &Settings,
    ) {
        let (from, to) = (&old.node_port_addresses, &new.node_port_addresses);
        if from != to {
            self.claims.move_node_ports(id, self.family, from, to, registered, &mut self.dirty);
        }
    }

    /// The kernel does with the key what its winning claim says, in kind.
    pub fn serves(&self, key: Key, settings: &Settings) -> bool {
        let published = self.actual.entries.get(&key).and_then(|entry| entry.outside.target);
        let wanted =
            self.claims.winner(key).map(|forwarding| self.wanted(key, forwarding, settings).outside.target);
        match (published, wanted) {
            (Some(Target::Pick(_)), Some(Target::Pick(_)) | None) => true,
            (published, wanted) => published.is_some() && published == wanted,
        }
    }

    /// The settings changed: chains whose rules are no longer those wanted are written anew.
    pub fn resettle(&mut self, old: &Settings, new: &Settings) {
        for (name, open) in &mut self.actual.fixed {
            let rules = |settings, open| layout::fixed(settings, self.family, name, open);
            *open = open.filter(|open| rules(old, *open) == rules(new, *open));
        }
        for (shared, chain) in &mut self.actual.shared {
            chain.intact &=
                layout::shared(old, self.family, *shared) == layout::shared(new, self.family, *shared);
        }
        self.dirty.chains = true;
        for address in old.node_port_addresses.symmetric_difference(&new.node_port_addresses) {
            self.dirty.vips.insert(*address);
            self.dirty.keys.extend(self.claims.keys_at(*address));
        }
        if old.pods.detects(self.family) != new.pods.detects(self.family) {
            self.touch_all();
        }
        if old.pods != new.pods {
            self.actual.outlive_one_sided();
        }
    }

    /// The table as wanted, as if it were written for the first time; of pick chains those that something leads to.
    pub fn desired(&self, settings: &Settings) -> Table {
        let mut table = Table::new(layout::table_id(self.family));
        table.sets = layout::sets(self.family).into_iter().map(|(name, set)| (name.into(), set)).collect();
        let mut changes = Changes::default();
        for (key, forwarding) in self.claims.winners() {
            entry::diff(*key, None, Some(&self.wanted(*key, forwarding, settings)), &mut changes);
        }
        changes.extend(self.claims.hairpin().map(|address| Change::Hairpin { address, there: true }));
        let mut holds = gate::Holds::default();
        changes.iter().for_each(|change| gate::count(&mut holds, change));
        let open = Open::held(&holds);
        let fixed = |name| {
            let gates = layout::gates(settings, self.family, name);
            layout::fixed(settings, self.family, name, open.and(gates))
        };
        table.chains = layout::FIXED.into_iter().map(|name| (name.into(), fixed(name))).collect();
        let leads = changes.iter().filter_map(|change| change.leads().1);
        let shared: BTreeSet<Shared> = leads.flat_map(Shared::chains).collect();
        let vips = self.claims.vips().filter(|ip| self.wants_vip(ip, settings));
        changes.extend(vips.map(|address| Change::Vip { address, there: true }));
        let targets = shared.iter().filter_map(|shared| shared.target()).chain(Target::FIXED);
        changes.extend(targets.map(|target| Change::Dispatch {
            code: target.code(),
            replaces: false,
            to: Some(target),
        }));
        for shared in shared {
            table.sets.extend(shared.ledgers().into_iter().map(|ledger| (ledger.name(), layout::ledger())));
            let chain = Chain { base: None, rules: layout::shared(settings, self.family, shared) };
            table.chains.insert(shared.to_string().into(), chain);
        }
        let changes: Vec<Change> = changes.into_iter().collect();
        for command in Script::write(settings, self.family, &changes) {
            if let Command::AddElements { set, elements } = command {
                table.elements.entry(set).or_default().extend(elements);
            }
        }
        table
    }
}

/// Two maps in order as one: each key with what either has of it.
fn join<K: Ord, A, B>(
    a: impl Iterator<Item = (K, A)>,
    b: impl Iterator<Item = (K, B)>,
) -> impl Iterator<Item = (K, Option<A>, Option<B>)> {
    a.merge_join_by(b, |(a, _), (b, _)| a.cmp(b)).map(|either| match either {
        EitherOrBoth::Left((key, a)) => (key, Some(a), None),
        EitherOrBoth::Right((key, b)) => (key, None, Some(b)),
        EitherOrBoth::Both((key, a), (_, b)) => (key, Some(a), Some(b)),
    })
}

/// What only one of the two has; both in order.
fn unlike(actual: &BTreeSet<IpAddr>, wanted: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = IpAddr> {
    let both = actual.iter().copied().merge_join_by(wanted, Ord::cmp);
    both.filter(|either| !either.has_left() || !either.has_right()).map(|either| either.reduce(|a, _| a))
}
