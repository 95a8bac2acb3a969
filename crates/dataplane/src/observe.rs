//! Reading a dumped table back: what it holds in our words, and what in it is not ours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Subnets, Ipv6Subnets};
use portolan_model::{Backend, Family};
use portolan_nft::{Chain, Dumped, DumpedChain, Element, Name, Range, Value, Verdict};

use crate::actual::{Actual, Entry, Frame, Slots};
use crate::gate::{Gate, Open};
use crate::key::{self, Key};
use crate::layout::{self, Settings};
use crate::ledger::{self, Ledger, Ports};
use crate::shard::Shard;
use crate::target::{CLUSTER_OFFSET, Memory, Shared, Side, Target};

/// The table as we know it; [`Frame::Foreign`] when it cannot be repaired element by element.
pub fn read(dumped: Option<&Dumped>, settings: &Settings, family: Family) -> Actual {
    let Some(dumped) = dumped else { return Actual::new(Frame::Absent) };
    let mut reader =
        Reader { dumped, settings, family, actual: Actual::new(Frame::Ours), entries: Vec::new() };
    match reader.read() {
        Some(()) => reader.actual,
        None => Actual::new(Frame::Foreign),
    }
}

struct Reader<'a> {
    dumped: &'a Dumped,
    settings: &'a Settings,
    family: Family,
    actual: Actual,
    /// In order: they become a map when all that is large was read.
    entries: Vec<(Key, Entry)>,
}

/// None anywhere below: something stands in our table that we would not have written and cannot name.
impl Reader<'_> {
    fn read(&mut self) -> Option<()> {
        self.sets()?;
        self.chains()?;
        self.targets()?;
        self.services(Side::Outside, layout::SERVICES)?;
        self.services(Side::Cluster, layout::CLUSTER_SERVICES)?;
        self.endpoints()?;
        self.actual.entries = std::mem::take(&mut self.entries).into_iter().collect();
        self.listed(Side::Outside, layout::HOST_PORTS)?;
        self.listed(Side::Cluster, layout::CLUSTER_PORTS)?;
        self.addresses()?;
        self.sources()?;
        self.affine()?;
        self.recall()?;
        self.affinity()
    }

    fn sets(&mut self) -> Option<()> {
        let wanted: BTreeMap<Name, _> =
            layout::sets(self.family).into_iter().map(|(name, set)| (name.into(), set)).collect();
        for (name, set) in &wanted {
            match self.dumped.sets.get(name) {
                Some(found) if found == set => {}
                Some(_) => return None,
                // of another version's layout: piece by piece it would send packets where nothing is yet
                None if Shard::ALL.iter().any(|shard| shard.map() == &**name) => return None,
                None => _ = self.actual.missing_sets.insert(name.clone()),
            }
        }
        for (name, set) in self.dumped.sets.iter().filter(|(name, _)| !wanted.contains_key(*name)) {
            match Ledger::from_name(name).filter(|_| self.family == Family::Ipv6) {
                Some(ledger) => _ = (*set == layout::ledger()).then(|| self.actual.ledgers.insert(ledger))?,
                None => _ = self.actual.foreign_sets.insert(name.clone()),
            }
        }
        Some(())
    }

    fn chains(&mut self) -> Option<()> {
        for (name, found) in &self.dumped.chains {
            if layout::FIXED.contains(&&**name) {
                self.actual.fixed.insert(name.clone(), self.open(name, found)?);
            } else if let Some(shared) = Shared::parse(name).filter(|shared| shared.is_of(self.family)) {
                let chain = Chain { base: None, rules: layout::shared(self.settings, self.family, shared) };
                let intact = self.same(&chain, found)?;
                let known = self.actual.shared.entry(shared).or_default();
                (known.exists, known.intact) = (true, intact);
            } else {
                self.actual.foreign_chains.insert(name.clone());
            }
        }
        Some(())
    }

    /// The gates that are open in the rules of a fixed chain, Some(None) where they are not ours.
    fn open(&self, name: &str, found: &DumpedChain) -> Option<Option<Open>> {
        for open in layout::gates(self.settings, self.family, name).choices() {
            if self.same(&layout::fixed(self.settings, self.family, name, open), found)? {
                return Some(Some(open));
            }
        }
        Some(None)
    }

    /// Rules can be written anew in place, a hook cannot.
    fn same(&self, wanted: &Chain, found: &DumpedChain) -> Option<bool> {
        let family = layout::table_family(self.family);
        let rules = || wanted.rules.iter().zip(&found.rules).all(|(wanted, found)| found.is(wanted, family));
        (wanted.base == found.base).then(|| wanted.rules.len() == found.rules.len() && rules())
    }

    fn targets(&mut self) -> Option<()> {
        for element in self.elements(layout::TARGETS) {
            let code = u32::from_ne_bytes(element.key[..].try_into().ok()?);
            let wanted = Some(Target::of_code(code)).filter(|target| *target != Target::Unknown);
            let value = wanted.map(|target| Value::Verdict(layout::verdict(target)));
            let intact = element.extra.is_none() && value.as_ref() == Some(&element.value);
            self.actual.targets.insert(code, intact);
        }
        Some(())
    }

    fn services(&mut self, side: Side, map: &str) -> Option<()> {
        let mut found = Vec::with_capacity(self.dumped.elements.get(map).map_or(0, Vec::len));
        for element in self.elements(map) {
            let Value::Bytes(code) = &element.value else { return None };
            let key = self.key(element)?;
            let target = read_target(code, side, &key)?;
            self.actual.count(None, target.shared());
            found.push((key, target));
        }
        found.sort_unstable_by_key(|(key, _)| *key);
        self.merge(found, |entry, target| entry.half_mut(side).target = Some(target));
        Some(())
    }

    fn listed(&mut self, side: Side, set: &str) -> Option<()> {
        for element in self.elements(set) {
            let key = self.key(element)?;
            self.actual.entries.entry(key).or_default().half_mut(side).listed = true;
            self.holds((side == Side::Cluster).then_some(Gate::ClusterServices));
        }
        Some(())
    }

    fn endpoints(&mut self) -> Option<()> {
        let of = |shard: Shard| self.elements(shard.map()).map(move |element| (shard, element));
        let elements: Vec<_> = Shard::ALL.into_iter().flat_map(of).collect();
        let mut found = Vec::with_capacity(elements.len());
        for (shard, element) in elements {
            let (key, index, backend) = self.endpoint(element)?;
            match Shard::of(&key.address) == shard {
                true => found.push((key, index, backend)),
                false => _ = self.actual.strays.insert((shard, key, index)),
            }
        }
        found.sort_unstable_by(|(a, i, _), (b, j, _)| a.cmp(b).then(i.cmp(j)));
        let side = |index| if index < CLUSTER_OFFSET { Side::Outside } else { Side::Cluster };
        let mut halves = Vec::new();
        for half in found.chunk_by(|(a, i, _), (b, j, _)| a == b && side(*i) == side(*j)) {
            let (key, first, _) = half[0];
            let indices = side(first).offset()..;
            let dense = indices.zip(half).take_while(|(wanted, (_, index, _))| wanted == index).count();
            let (slots, strays) = half.split_at(dense);
            let stray = |(key, index, _): &(Key, u32, _)| (Shard::of(&key.address), *key, *index);
            self.actual.strays.extend(strays.iter().map(stray));
            if dense > 0 {
                halves.push((key, (side(first), slots)));
            }
        }
        self.merge(halves, |entry, (side, slots)| {
            entry.half_mut(side).slots = Slots::Own(slots.iter().map(|(_, _, backend)| *backend).collect());
        });
        Some(())
    }

    /// What was found of each key, in order, goes into its entry: one walk beside them instead of a search for each.
    fn merge<T>(&mut self, found: Vec<(Key, T)>, put: impl Fn(&mut Entry, T)) {
        let (mut at, mut new): (_, Vec<(Key, Entry)>) = (0, Vec::new());
        for (key, what) in found {
            while self.entries.get(at).is_some_and(|(other, _)| *other < key) {
                at += 1;
            }
            match self.entries.get_mut(at) {
                Some((other, entry)) if *other == key => put(entry, what),
                _ => {
                    if new.last().is_none_or(|(last, _)| *last != key) {
                        new.push((key, Entry::default()));
                    }
                    if let Some((_, entry)) = new.last_mut() {
                        put(entry, what);
                    }
                }
            }
        }
        match self.entries.is_empty() {
            true => self.entries = new,
            false if !new.is_empty() => {
                self.entries.append(&mut new);
                self.entries.sort_by_key(|(key, _)| *key);
            }
            false => {}
        }
    }

    fn endpoint(&self, element: &Element) -> Option<(Key, u32, Backend)> {
        let (key, rest) = Key::read(self.family, &element.key)?;
        let Value::Bytes(value) = &element.value else { return None };
        let backend = key::read_backend(self.family, value)?;
        (element.extra.is_none()).then_some((key, u32::from_ne_bytes(rest.try_into().ok()?), backend))
    }

    fn addresses(&mut self) -> Option<()> {
        let vip = |element: &Element| {
            let (address, rest) = key::read_address(self.family, &element.key)?;
            rest.is_empty().then_some(address)
        };
        self.actual.vips = self.elements(layout::VIPS).map(vip).collect::<Option<_>>()?;
        for element in self.elements(layout::HAIRPIN) {
            let (address, rest) = key::read_address(self.family, &element.key)?;
            self.actual.hairpin.insert(address);
            self.holds(Some(Gate::Hairpin));
            (key::read_address(self.family, rest)? == (address, &[][..])).then_some(())?;
        }
        Some(())
    }

    fn sources(&mut self) -> Option<()> {
        let mut ranges: BTreeMap<Key, Vec<IpNet>> = BTreeMap::new();
        for element in self.elements(layout::FW_VIPS) {
            ranges.insert(self.key(element)?, Vec::new());
        }
        for element in self.elements(layout::FW_ALLOW) {
            let (key, net) = self.source(element)?;
            ranges.get_mut(&key)?.push(net);
        }
        for (key, mut nets) in ranges {
            nets.sort();
            self.holds(Some(Gate::SourceRanges));
            self.actual.entries.entry(key).or_default().sources = Some(nets.into());
        }
        Some(())
    }

    fn affine(&mut self) -> Option<()> {
        for element in self.elements(layout::AFFINE) {
            let (key, rest) = Key::read(self.family, &element.key)?;
            let backend = key::read_backend(self.family, rest)?;
            let (shared, memory) = match leads(element) {
                Some(Shared::Remember(memory) | Shared::Record(memory, _))
                    if leads(element) == Some(Shared::remembers(&key, &backend, memory)) =>
                {
                    (leads(element), memory)
                }
                _ => (None, Memory(0)),
            };
            self.actual.count(None, shared);
            self.actual.entries.entry(key).or_default().remember(backend, Some(memory));
            self.holds(Some(Gate::Remember));
        }
        Some(())
    }

    fn recall(&mut self) -> Option<()> {
        for element in self.elements(layout::RECALL) {
            let key = self.key(element)?;
            let recall = match leads(element) {
                Some(Shared::Recall(recall)) if recall.key == key => Some(recall),
                _ => None,
            };
            self.actual.count(None, recall.map(Shared::Recall));
            let ports = recall.map_or(Ports::default(), |recall| recall.ports);
            self.actual.entries.entry(key).or_default().recall = Some(Box::new(ports));
        }
        Some(())
    }

    /// What packets wrote is not compared, except that nobody may be sent to an endpoint that is gone (S42).
    fn affinity(&mut self) -> Option<()> {
        let ledgers = self.actual.ledgers.iter().map(|ledger| ledger.name());
        for map in ledgers.chain([layout::AFFINITY.into()]).collect::<Vec<Name>>() {
            for element in self.elements(&map) {
                let (key, backend) = ledger::read(self.family, &map, element)?;
                let entry = self.actual.entries.get(&key);
                if !entry.is_some_and(|entry| entry.memory.contains_key(&backend)) {
                    self.actual.outlived.insert((key, backend));
                }
            }
        }
        Some(())
    }

    fn holds(&mut self, gate: Option<Gate>) {
        if let Some(gate) = gate {
            self.actual.holds[gate as usize] += 1;
        }
    }

    fn source(&self, element: &Element) -> Option<(Key, IpNet)> {
        let (key, rest) = Key::read(self.family, &element.key)?;
        let (first, _) = key::read_address(self.family, rest)?;
        let last = match element.extra.as_ref().and_then(|extra| extra.range.as_ref()) {
            Some(Range::To(last)) => {
                let (last_key, rest) = Key::read(self.family, last)?;
                (last_key == key).then_some(key::read_address(self.family, rest)?.0)?
            }
            Some(Range::End) => return None,
            None => first,
        };
        Some((key, net(first, last)?))
    }

    fn key(&self, element: &Element) -> Option<Key> {
        let (key, rest) = Key::read(self.family, &element.key)?;
        (rest.is_empty() && element.extra.is_none()).then_some(key)
    }

    fn elements<'d>(&self, set: &str) -> impl Iterator<Item = &'d Element> + use<'d>
    where
        Self: 'd,
    {
        self.dumped.elements.get(set).into_iter().flatten()
    }
}

fn leads(element: &Element) -> Option<Shared> {
    match &element.value {
        Value::Verdict(Verdict::Jump(chain)) => Shared::parse(chain),
        _ => None,
    }
}

fn read_target(code: &[u8], side: Side, key: &Key) -> Option<Target> {
    let target = Target::of_code(u32::from_ne_bytes(code.try_into().ok()?));
    let place = (side, Shard::of(&key.address));
    let foreign = matches!(target, Target::Pick(pick) if (pick.side, pick.shard) != place);
    Some(if foreign { Target::Unknown } else { target })
}

/// The range as a prefix, if it is one.
fn net(first: IpAddr, last: IpAddr) -> Option<IpNet> {
    let mut nets: Vec<IpNet> = match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => Ipv4Subnets::new(a, b, 0).take(2).map(IpNet::from).collect(),
        (IpAddr::V6(a), IpAddr::V6(b)) => Ipv6Subnets::new(a, b, 0).take(2).map(IpNet::from).collect(),
        _ => return None,
    };
    let net = nets.pop();
    net.filter(|_| nets.is_empty())
}
