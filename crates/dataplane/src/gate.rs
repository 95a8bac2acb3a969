//! Rules for what many nodes do not use, and nearly every cluster: they stand, or something leads to them, only while a Service needs
//! them, so that a new connection does not pay for what nobody uses.

use portolan_model::Family;

use crate::actual::Actual;
use crate::change::Change;
use crate::changes::Changes;
use crate::layout::{self, Settings};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// To `source-ranges` (S27).
    SourceRanges,
    /// To `cluster-services`: frontends that treat pods and the node differently (S45).
    ClusterServices,
    /// To `remember`: session affinity (S41).
    Remember,
    /// The look-up of pods that reach themselves (S46): a node without endpoints of its own has none.
    Hairpin,
}

/// How many elements hold each gate open.
pub type Holds = [u32; Gate::ALL.len()];

/// The gates that are open.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Open(u8);

impl Gate {
    pub const ALL: [Gate; 4] = [Gate::SourceRanges, Gate::ClusterServices, Gate::Remember, Gate::Hairpin];
}

impl Open {
    pub fn of(gates: &[Gate]) -> Open {
        Open(gates.iter().fold(0, |bits, gate| bits | 1 << *gate as u8))
    }

    pub fn held(holds: &Holds) -> Open {
        let held: Vec<Gate> = Gate::ALL.into_iter().filter(|gate| holds[*gate as usize] > 0).collect();
        Open::of(&held)
    }

    pub fn has(self, gate: Gate) -> bool {
        self.0 & Open::of(&[gate]).0 != 0
    }

    pub fn and(self, other: Open) -> Open {
        Open(self.0 & other.0)
    }

    pub fn or(self, other: Open) -> Open {
        Open(self.0 | other.0)
    }

    /// Every choice among these.
    pub fn choices(self) -> impl Iterator<Item = Open> {
        (0..1 << Gate::ALL.len()).map(Open).filter(move |open| open.and(self) == *open)
    }
}

/// Takes note of what a change holds open and no longer holds.
pub fn count(holds: &mut Holds, change: &Change) {
    let (from, to) = change.holds();
    if let Some(to) = to {
        holds[to as usize] += 1;
    }
    if let Some(from) = from {
        holds[from as usize] = holds[from as usize].saturating_sub(1);
    }
}

/// Adds to `changes` the fixed chains that are not as they have to be once these are written. A gate opens before the first
/// element comes and closes after the last is gone.
pub fn diff(settings: &Settings, family: Family, actual: &Actual, changes: &mut Changes) {
    let mut holds = actual.holds;
    changes.iter().for_each(|change| count(&mut holds, change));
    let (before, after) = (Open::held(&actual.holds), Open::held(&holds));
    for name in layout::FIXED {
        let gates = layout::gates(settings, family, name);
        let (found, last) = (actual.fixed.get(name).copied().flatten(), after.and(gates));
        let first = found.unwrap_or(before.and(gates)).or(last);
        let mut write = |open, closes| changes.push(Change::Fixed { name: name.into(), open, closes });
        if found != Some(first) {
            write(first, false);
        }
        if first != last {
            write(last, true);
        }
    }
}
