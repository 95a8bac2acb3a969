//! One change of one element or chain: the smallest thing that is written, ordered so that every prefix is safe.

use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Backend, Family};
use portolan_nft::{Atom, Bytes, Command, Element, Name, Value, Verdict};

use crate::gate::{Gate, Open};
use crate::key::{self, Key};
use crate::layout::{self, Settings};
use crate::ledger::{Ledger, Ports, Recall};
use crate::shard::Shard;
use crate::target::{Memory, Shared, Side, Target};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The table and its sets; `replace` = whatever is there goes first.
    Table {
        replace: bool,
    },
    Set(Name),
    /// A fixed chain's rules; `closes` = they are fewer, for what nobody uses any more.
    Fixed {
        name: Name,
        open: Open,
        closes: bool,
    },
    Ledger(Ledger),
    Chain(Shared),
    /// An element of `targets`; `replaces` = something stands there.
    Dispatch {
        code: u32,
        replaces: bool,
        to: Option<Target>,
    },
    /// An element of a map of endpoints that nothing reaches.
    Stray {
        shard: Shard,
        key: Key,
        index: u32,
    },
    /// The ranges of one key, all at once, so that it is never open in between.
    Sources {
        key: Key,
        from: Option<Box<[IpNet]>>,
        to: Option<Box<[IpNet]>>,
    },
    Hairpin {
        address: IpAddr,
        there: bool,
    },
    /// Membership in `host-ports` or `cluster-ports`.
    Listed {
        key: Key,
        side: Side,
        there: bool,
    },
    /// `index` counts from zero on either side; `replaces` = something stands there.
    Endpoint {
        key: Key,
        side: Side,
        index: u32,
        replaces: bool,
        to: Option<Backend>,
    },
    Publish {
        key: Key,
        side: Side,
        from: Option<Target>,
        to: Option<Target>,
    },
    Vip {
        address: IpAddr,
        there: bool,
    },
    /// An element of `recall`. No ports: a verdict that we do not write.
    Recall {
        key: Key,
        from: Option<Ports>,
        to: Option<Ports>,
    },
    /// Membership in `affine`. An endpoint that leaves it is forgotten; a shorter time holds for the clients of
    /// before as well.
    Remember {
        key: Key,
        backend: Backend,
        from: Option<Memory>,
        to: Option<Memory>,
    },
    /// Clients of the endpoint choose again, though some may be remembered for it from now on.
    Forget {
        key: Key,
        backend: Backend,
    },
    DropChain(Shared),
    DropLedger(Ledger),
    DropForeignChain(Name),
    DropForeignSet(Name),
}

/// The order of writing: what a rule or verdict leads to is there before it and goes after it (invariant 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    Frame,
    Chains,
    Supply,
    Publish,
    Unpublish,
    Remove,
    /// Rules that led to elements which are gone now.
    Close,
    /// A transaction of its own: a chain that a verdict deleted in the same one still leads to is busy.
    Chaff,
}

/// Of a ledger's name: the kernel walks the list of all sets for it, a tenth of a millisecond where there are thousands.
const LEDGER_COST: usize = 16;

impl Phase {
    pub const COUNT: usize = Phase::Chaff as usize + 1;
}

impl Change {
    pub fn phase(&self) -> Phase {
        match self {
            Change::Table { .. } | Change::Set(_) | Change::Ledger(_) => Phase::Frame,
            Change::Fixed { closes: true, .. } => Phase::Close,
            Change::Fixed { .. } | Change::Chain(_) | Change::Dispatch { to: Some(_), .. } => Phase::Chains,
            Change::Stray { .. } => Phase::Supply,
            Change::Sources { to: Some(_), .. } | Change::Endpoint { to: Some(_), .. } => Phase::Supply,
            Change::Remember { .. } | Change::Forget { .. } | Change::Recall { to: Some(_), .. } => {
                Phase::Supply
            }
            Change::Hairpin { there: true, .. } | Change::Listed { there: true, .. } => Phase::Supply,
            Change::Publish { to: Some(_), .. } | Change::Vip { there: true, .. } => Phase::Publish,
            Change::Publish { to: None, .. } => Phase::Unpublish,
            Change::Sources { to: None, .. } | Change::Endpoint { to: None, .. } => Phase::Remove,
            Change::Dispatch { to: None, .. } => Phase::Remove,
            Change::Hairpin { there: false, .. } | Change::Listed { there: false, .. } => Phase::Remove,
            Change::Vip { there: false, .. } | Change::Recall { to: None, .. } => Phase::Remove,
            Change::DropChain(_)
            | Change::DropLedger(_)
            | Change::DropForeignChain(_)
            | Change::DropForeignSet(_) => Phase::Chaff,
        }
    }

    /// Elements or rules that it writes, roughly: what the length of a transaction is measured in.
    pub fn cost(&self) -> usize {
        let ranges = |sources: &Option<Box<[IpNet]>>| sources.as_ref().map_or(0, |s| s.len() + 1);
        match self {
            Change::Sources { from, to, .. } => ranges(from) + ranges(to),
            Change::Endpoint { replaces, to, .. } => *replaces as usize + to.is_some() as usize,
            Change::Publish { from, to, .. } => from.is_some() as usize + to.is_some() as usize,
            Change::Remember { from, to, .. } => from.is_some() as usize + to.is_some() as usize,
            Change::Recall { from, to, .. } => from.is_some() as usize + to.is_some() as usize,
            Change::Table { .. } | Change::Set(_) | Change::Fixed { .. } => 4,
            Change::Chain(shared) => 4 + LEDGER_COST * shared.ledgers().len(),
            Change::Ledger(_) => LEDGER_COST,
            _ => 1,
        }
    }
}

impl Change {
    /// The shared chain that an element led to before, and the one that it leads to after.
    pub fn leads(&self) -> (Option<Shared>, Option<Shared>) {
        match self {
            Change::Publish { from, to, .. } => (from.and_then(Target::shared), to.and_then(Target::shared)),
            Change::Remember { key, backend, from, to } => {
                let chain = |memory: Option<Memory>| {
                    Some(Shared::remembers(key, backend, memory.filter(|m| m.0 > 0)?))
                };
                (chain(*from), chain(*to))
            }
            Change::Recall { key, from, to } => (recall(key, *from), recall(key, *to)),
            _ => (None, None),
        }
    }

    /// The gate that its element held open before, and the one that it holds open after.
    pub fn holds(&self) -> (Option<Gate>, Option<Gate>) {
        let when = |gate, before: bool, after: bool| (before.then_some(gate), after.then_some(gate));
        match self {
            Change::Sources { from, to, .. } => when(Gate::SourceRanges, from.is_some(), to.is_some()),
            // there before the element of `cluster-services`, and gone after it
            Change::Listed { side: Side::Cluster, there, .. } => when(Gate::ClusterServices, !there, *there),
            Change::Remember { from, to, .. } => when(Gate::Remember, from.is_some(), to.is_some()),
            Change::Hairpin { there, .. } => when(Gate::Hairpin, !there, *there),
            _ => (None, None),
        }
    }

    /// The frontend whose endpoints it moves.
    pub fn places(&self) -> Option<&Key> {
        match self {
            Change::Endpoint { key, .. } => Some(key),
            _ => None,
        }
    }

    /// Whose clients are to be forgotten (None), or remembered for no longer than this.
    pub fn forgets(&self) -> Option<((Key, Backend), Option<Memory>)> {
        match self {
            Change::Remember { key, backend, from: Some(from), to } if to.is_none_or(|to| to < *from) => {
                Some(((*key, *backend), *to))
            }
            Change::Forget { key, backend } => Some(((*key, *backend), None)),
            _ => None,
        }
    }
}

/// Changes in commands: deletions before additions within a phase, many elements to a command.
pub struct Script<'a> {
    settings: &'a Settings,
    family: Family,
    commands: Vec<Command>,
    phase: Phase,
    chains: Vec<Command>,
    rules: Vec<Command>,
    deleted: Vec<(&'static str, Vec<Element>)>,
    added: Vec<(&'static str, Vec<Element>)>,
}

impl<'a> Script<'a> {
    /// `changes` in order of phase.
    pub fn write(settings: &'a Settings, family: Family, changes: &[Change]) -> Vec<Command> {
        let mut script = Script {
            settings,
            family,
            commands: Vec::new(),
            phase: Phase::Frame,
            chains: Vec::new(),
            rules: Vec::new(),
            deleted: Vec::new(),
            added: Vec::new(),
        };
        for change in changes {
            if change.phase() != script.phase {
                script.flush();
                script.phase = change.phase();
            }
            script.push(change);
        }
        script.flush();
        script.commands
    }

    fn push(&mut self, change: &Change) {
        match change {
            Change::Table { replace } => self.table(*replace),
            Change::Set(name) => self.sets(|set| set == &**name),
            Change::Fixed { name, open, .. } => {
                let chain = layout::fixed(self.settings, self.family, name, *open);
                self.chain(name.clone(), chain.base, chain.rules);
            }
            Change::Ledger(ledger) => {
                self.commands.push(Command::AddSet { name: ledger.name(), set: layout::ledger() });
            }
            Change::Chain(shared) => {
                let rules = layout::shared(self.settings, self.family, *shared);
                self.chain(shared.to_string().into(), None, rules);
            }
            Change::Dispatch { code, replaces, to } => {
                self.replace(layout::TARGETS, *replaces, *to, |to| dispatch(*code, to));
            }
            Change::Stray { shard, key, index } => {
                self.delete(shard.map(), Element::member(key.slot(*index)));
            }
            Change::Sources { key, from, to } => self.sources(key, from.as_deref(), to.as_deref()),
            Change::Hairpin { address, there } => {
                self.member(layout::HAIRPIN, Element::member(key::hairpin_bytes(*address)), *there);
            }
            Change::Listed { key, side, there } => {
                self.member(ports(*side), Element::member(key.bytes()), *there);
            }
            Change::Vip { address, there } => {
                self.member(layout::VIPS, Element::member(key::address_bytes(*address)), *there);
            }
            Change::Endpoint { key, side, index, replaces, to } => {
                let map = Shard::of(&key.address).map();
                self.replace(map, *replaces, *to, |to| endpoint(key, *side, *index, to));
            }
            Change::Publish { key, side, from, to } => {
                self.replace(map(*side), from.is_some(), *to, |to| service(key, to));
            }
            Change::Remember { key, backend, from, to } => {
                self.replace(layout::AFFINE, from.is_some(), *to, |to| affine(key, backend, to));
            }
            Change::Recall { key, from, to } => {
                self.replace(layout::RECALL, from.is_some(), *to, |to| recalled(key, to));
            }
            Change::Forget { .. } => {} // the step does: it takes a look at the kernel
            Change::DropChain(shared) => self.drop_chain(shared.to_string().into()),
            Change::DropForeignChain(name) => self.drop_chain(name.clone()),
            Change::DropLedger(ledger) => self.rules.push(Command::DeleteSet { name: ledger.name() }),
            Change::DropForeignSet(name) => self.rules.push(Command::DeleteSet { name: name.clone() }),
        }
    }

    fn table(&mut self, replace: bool) {
        self.commands.push(Command::AddTable);
        if replace {
            self.commands.extend([Command::DeleteTable, Command::AddTable]);
        }
        self.sets(|_| true);
    }

    fn sets(&mut self, wanted: impl Fn(&str) -> bool) {
        let sets = layout::sets(self.family).into_iter().filter(|(name, _)| wanted(name));
        self.commands.extend(sets.map(|(name, set)| Command::AddSet { name: name.into(), set }));
    }

    fn chain(&mut self, chain: Name, base: Option<portolan_nft::Base>, rules: Vec<portolan_nft::Rule>) {
        self.chains.push(Command::AddChain { chain: chain.clone(), base });
        self.rules.push(Command::FlushChain { chain: chain.clone() });
        self.rules.extend(rules.into_iter().map(|rule| Command::AddRule { chain: chain.clone(), rule }));
    }

    fn drop_chain(&mut self, chain: Name) {
        self.chains.push(Command::FlushChain { chain: chain.clone() });
        self.rules.push(Command::DeleteChain { chain });
    }

    fn sources(&mut self, key: &Key, from: Option<&[IpNet]>, to: Option<&[IpNet]>) {
        let range = |net: &IpNet| Element::range(key.source(net.network()), key.source(net.broadcast()));
        for net in from.unwrap_or_default() {
            self.delete(layout::FW_ALLOW, range(net));
        }
        for net in to.unwrap_or_default() {
            self.add(layout::FW_ALLOW, range(net));
        }
        match (from, to) {
            (None, Some(_)) => self.add(layout::FW_VIPS, Element::member(key.bytes())),
            (Some(_), None) => self.delete(layout::FW_VIPS, Element::member(key.bytes())),
            _ => {}
        }
    }

    /// The kernel has no other way to replace a value than to delete and add in one transaction.
    fn replace<T: Copy>(
        &mut self,
        set: &'static str,
        replaces: bool,
        to: Option<T>,
        element: impl Fn(Option<T>) -> Element,
    ) {
        if replaces {
            self.delete(set, element(None));
        }
        if to.is_some() {
            self.add(set, element(to));
        }
    }

    fn member(&mut self, set: &'static str, element: Element, there: bool) {
        match there {
            true => self.add(set, element),
            false => self.delete(set, element),
        }
    }

    fn add(&mut self, set: &'static str, element: Element) {
        list(&mut self.added, set).push(element);
    }

    fn delete(&mut self, set: &'static str, element: Element) {
        list(&mut self.deleted, set).push(element);
    }

    fn flush(&mut self) {
        self.commands.append(&mut self.chains);
        self.commands.append(&mut self.rules);
        let delete = |(set, elements): (&str, _)| Command::DeleteElements { set: set.into(), elements };
        let add = |(set, elements): (&str, _)| Command::AddElements { set: set.into(), elements };
        self.commands.extend(self.deleted.drain(..).map(delete));
        self.commands.extend(self.added.drain(..).map(add));
    }
}

fn list<'a>(lists: &'a mut Vec<(&'static str, Vec<Element>)>, set: &'static str) -> &'a mut Vec<Element> {
    let at = lists.iter().position(|(name, _)| *name == set).unwrap_or_else(|| {
        lists.push((set, Vec::new()));
        lists.len() - 1
    });
    &mut lists[at].1
}

fn map(side: Side) -> &'static str {
    match side {
        Side::Outside => layout::SERVICES,
        Side::Cluster => layout::CLUSTER_SERVICES,
    }
}

fn ports(side: Side) -> &'static str {
    match side {
        Side::Outside => layout::HOST_PORTS,
        Side::Cluster => layout::CLUSTER_PORTS,
    }
}

fn endpoint(key: &Key, side: Side, index: u32, to: Option<Backend>) -> Element {
    let value = to.map_or(Value::None, |backend| Value::Bytes(key::backend_bytes(&backend)));
    Element::new(key.slot(side.offset() + index), value)
}

fn service(key: &Key, to: Option<Target>) -> Element {
    Element::new(key.bytes(), to.map_or(Value::None, |target| Value::Bytes(code_bytes(target.code()))))
}

fn dispatch(code: u32, to: Option<Target>) -> Element {
    let value = to.map_or(Value::None, |target| Value::Verdict(layout::verdict(target)));
    Element::new(code_bytes(code), value)
}

fn code_bytes(code: u32) -> Bytes {
    Bytes::concat(&[Atom::Priority(code)])
}

fn affine(key: &Key, backend: &Backend, to: Option<Memory>) -> Element {
    Element::new(key.pair(backend), jump(to.map(|memory| Shared::remembers(key, backend, memory))))
}

fn recalled(key: &Key, to: Option<Ports>) -> Element {
    Element::new(key.bytes(), jump(recall(key, to)))
}

fn recall(key: &Key, ports: Option<Ports>) -> Option<Shared> {
    ports.filter(|ports| !ports.is_empty()).map(|ports| Shared::Recall(Recall { key: *key, ports }))
}

fn jump(to: Option<Shared>) -> Value {
    to.map_or(Value::None, |shared| Value::Verdict(Verdict::Jump(shared.to_string().into())))
}
