//! Where the maps of frontends send a new connection: one of the shared chains.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use portolan_model::{Action, Backend, Family, Masquerade};

use crate::key::Key;
use crate::ledger::{Ledger, Recall};
use crate::shard::Shard;

/// Indices of endpoints from here on belong to `cluster-services`. Above any count of endpoints a Service may
/// have: Services with 100,000 are known (S12).
pub const CLUSTER_OFFSET: u32 = 1 << 20;

/// Which map of frontends, and with it which range of indices of endpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// `services`: every source, unless the other side took it first.
    Outside,
    /// `cluster-services`: pods and this node, for frontends that treat them differently (S45).
    Cluster,
}

/// A shared chain that picks one of `count` endpoints, which are in the map of the shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pick {
    pub side: Side,
    pub masquerade: Masquerade,
    /// Clients that are remembered go where they went before (S41).
    pub affine: bool,
    pub count: u32,
    pub shard: Shard,
}

/// A chain that stands as long as something leads to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Shared {
    Pick(Pick),
    /// IPv4: remembers the client of any frontend.
    Remember(Memory),
    /// IPv6: remembers the client of one frontend.
    Record(Memory, Ledger),
    /// IPv6: sends the frontend's clients where they went before.
    Recall(Recall),
}

/// How long clients are remembered, in seconds (S41). Zero, which no Service can ask for, is read from the kernel
/// where a verdict is not of our writing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Memory(pub u32);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Target {
    Pick(Pick),
    /// S38.
    Refuse,
    /// The same, counted: a node port at a loopback address that no relay can serve (S22).
    RefuseOnLocalhost,
    /// S39.
    Drop,
    /// Read from the kernel, never wanted: a number we do not write.
    Unknown,
}

impl Side {
    pub const ALL: [Side; 2] = [Side::Outside, Side::Cluster];

    pub fn offset(self) -> u32 {
        match self {
            Side::Outside => 0,
            Side::Cluster => CLUSTER_OFFSET,
        }
    }

    fn prefix(self) -> &'static str {
        match self {
            Side::Outside => "",
            Side::Cluster => "cluster-",
        }
    }
}

impl Target {
    /// Those that are the same in every cluster.
    pub const FIXED: [Target; 3] = [Target::Refuse, Target::RefuseOnLocalhost, Target::Drop];

    /// The chain that it leads to, where that is not always there.
    pub fn shared(self) -> Option<Shared> {
        match self {
            Target::Pick(pick) => Some(Shared::Pick(pick)),
            Target::Refuse | Target::RefuseOnLocalhost | Target::Drop | Target::Unknown => None,
        }
    }

    pub fn is_affine(self) -> bool {
        matches!(self, Target::Pick(pick) if pick.affine)
    }
}

impl Shared {
    /// What leads to it by way of `targets`.
    pub fn target(self) -> Option<Target> {
        match self {
            Shared::Pick(pick) => Some(Target::Pick(pick)),
            Shared::Remember(_) | Shared::Record(..) | Shared::Recall(_) => None,
        }
    }

    /// The chains that a verdict for this one needs, itself among them.
    pub fn chains(self) -> impl Iterator<Item = Shared> {
        let next = |shared: &Shared| match shared {
            Shared::Pick(pick) => pick.next().map(Shared::Pick),
            Shared::Remember(_) | Shared::Record(..) | Shared::Recall(_) => None,
        };
        std::iter::successors(Some(self), next)
    }

    /// The chain that remembers clients of the frontend for the endpoint.
    pub fn remembers(key: &Key, backend: &Backend, memory: Memory) -> Shared {
        match Family::of(&key.address) {
            Family::Ipv4 => Shared::Remember(memory),
            Family::Ipv6 => Shared::Record(memory, Ledger { key: *key, port: backend.port() }),
        }
    }

    /// The maps of clients that its rules name, but for the one that is always there.
    pub fn ledgers(self) -> Vec<Ledger> {
        match self {
            Shared::Pick(_) | Shared::Remember(_) => Vec::new(),
            Shared::Record(_, ledger) => vec![ledger],
            Shared::Recall(recall) => recall.ledgers().collect(),
        }
    }

    /// It may stand in the family's table.
    pub fn is_of(self, family: Family) -> bool {
        match self {
            Shared::Pick(_) => true,
            Shared::Remember(_) => family == Family::Ipv4,
            Shared::Record(..) | Shared::Recall(_) => family == Family::Ipv6,
        }
    }

    /// The inverse of [`Shared`]'s `Display`.
    pub fn parse(name: &str) -> Option<Shared> {
        if let Some(recall) = name.strip_prefix(RECALL) {
            return Recall::parse(recall).map(Shared::Recall);
        }
        let Some(memory) = name.strip_prefix(REMEMBER) else { return Pick::parse(name).map(Shared::Pick) };
        match memory.split_once('-') {
            None => Memory::parse(memory).map(Shared::Remember),
            Some((memory, ledger)) => Some(Shared::Record(Memory::parse(memory)?, Ledger::parse(ledger)?)),
        }
    }
}

impl Memory {
    pub fn new(timeout: Duration) -> Memory {
        Memory(u32::try_from(timeout.as_secs()).unwrap_or(u32::MAX).max(1))
    }

    fn parse(text: &str) -> Option<Memory> {
        let memory = Memory(text.parse().ok()?);
        (memory.0 > 0 && memory.0.to_string() == text).then_some(memory)
    }

    pub fn timeout(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl Pick {
    /// The chain that this one goes on to, if clients are remembered: marks first, then memory, then the choice.
    pub fn next(self) -> Option<Pick> {
        match self {
            Pick { affine: false, .. } => None,
            Pick { masquerade: Masquerade::Never, .. } => Some(Pick { affine: false, ..self }),
            _ => Some(Pick { masquerade: Masquerade::Never, ..self }),
        }
    }

    /// The inverse of [`Pick`]'s `Display`.
    pub fn parse(name: &str) -> Option<Pick> {
        let (side, rest) = match name.strip_prefix(Side::Cluster.prefix()) {
            Some(rest) => (Side::Cluster, rest),
            None => (Side::Outside, name),
        };
        let (rest, shard) = rest.rsplit_once(FROM)?;
        let (stem, count) = rest.rsplit_once('-')?;
        let stem = stem.strip_suffix("pick")?;
        let (stem, affine) = stem.strip_suffix(AFFINE).map_or((stem, false), |stem| (stem, true));
        let masquerade = [Masquerade::Never, Masquerade::NonPods, Masquerade::Always]
            .into_iter()
            .find(|m| stem == masquerade_prefix(*m))?;
        let pick = Pick { side, masquerade, affine, count: count.parse().ok()?, shard: Shard::parse(shard)? };
        (pick.count > 0 && pick.to_string() == name).then_some(pick)
    }
}

impl fmt::Display for Pick {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let affine = if self.affine { AFFINE } else { "" };
        let (side, masquerade) = (self.side.prefix(), masquerade_prefix(self.masquerade));
        write!(f, "{side}{masquerade}{affine}pick-{}{FROM}{}", self.count, self.shard)
    }
}

impl fmt::Display for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Shared::Pick(pick) => pick.fmt(f),
            Shared::Remember(Memory(secs)) => write!(f, "{REMEMBER}{secs}"),
            Shared::Record(Memory(secs), ledger) => write!(f, "{REMEMBER}{secs}-{ledger}"),
            Shared::Recall(recall) => write!(f, "{RECALL}{recall}"),
        }
    }
}

const AFFINE: &str = "affine-";
const FROM: &str = "-from-";
const REMEMBER: &str = "remember-";
const RECALL: &str = "recall-";

fn masquerade_prefix(masquerade: Masquerade) -> &'static str {
    match masquerade {
        Masquerade::Never => "",
        Masquerade::NonPods => "nonpod-",
        Masquerade::Always => "masq-",
    }
}

/// An action in the kernel's words, for a frontend of the shard. Without a detector nothing tells pods apart, and `NonPods` is
/// `Never`.
pub fn translate(action: &Action, side: Side, shard: Shard, detector: bool) -> (Target, &[Backend]) {
    let balance = match action {
        Action::Balance(balance) => balance,
        Action::Reject => return (Target::Refuse, &[]),
        Action::Drop => return (Target::Drop, &[]),
    };
    let masquerade = match balance.masquerade {
        Masquerade::NonPods if !detector => Masquerade::Never,
        masquerade => masquerade,
    };
    let backends = &balance.backends[..balance.backends.len().min(CLUSTER_OFFSET as usize)];
    match backends.len() as u32 {
        0 => (Target::Refuse, &[]),
        count => {
            let affine = balance.affinity.is_some();
            (Target::Pick(Pick { side, masquerade, affine, count, shard }), backends)
        }
    }
}

/// The endpoints that the action's plan lists.
pub fn list(action: &Action) -> Option<&Arc<[Backend]>> {
    match action {
        Action::Balance(balance) => Some(&balance.backends),
        Action::Reject | Action::Drop => None,
    }
}

/// How long a frontend's clients are remembered.
pub fn memory(action: &Action) -> Option<Memory> {
    match action {
        Action::Balance(balance) => balance.affinity.map(Memory::new),
        Action::Reject | Action::Drop => None,
    }
}
