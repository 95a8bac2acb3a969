//! Fixed chains that look up sets which nearly every cluster has empty: they have rules only while these have elements, so that a
//! new connection does not pay for what nobody uses.

use crate::actual::{Actual, Form};
use crate::change::Change;
use crate::changes::Changes;
use crate::layout;

/// Such a chain; open = with its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Source ranges (S27).
    SourceRanges,
    /// Frontends that treat pods and the node differently (S45).
    ClusterServices,
    /// Session affinity (S41).
    Remember,
}

/// How many elements hold each gate open.
pub type Holds = [u32; Gate::ALL.len()];

impl Gate {
    pub const ALL: [Gate; 3] = [Gate::SourceRanges, Gate::ClusterServices, Gate::Remember];

    pub fn chain(self) -> &'static str {
        match self {
            Gate::SourceRanges => layout::SOURCE_RANGES,
            Gate::ClusterServices => layout::CLUSTER_SERVICES,
            Gate::Remember => layout::REMEMBER,
        }
    }

    pub fn of(chain: &str) -> Option<Gate> {
        Gate::ALL.into_iter().find(|gate| gate.chain() == chain)
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

/// Whether the fixed chain has its rules, or none.
pub fn is_open(chain: &str, holds: &Holds) -> bool {
    Gate::of(chain).is_none_or(|gate| holds[gate as usize] > 0)
}

/// Adds to `changes` the fixed chains that are not as they have to be once these are written. A gate opens before the first
/// element comes and closes after the last is gone.
pub fn diff(actual: &Actual, changes: &mut Changes) {
    let mut holds = actual.holds;
    changes.iter().for_each(|change| count(&mut holds, change));
    for name in layout::FIXED {
        match (actual.fixed.get(name), is_open(name, &holds), Gate::of(name)) {
            (Some(Form::Full), true, _) | (Some(Form::Empty), false, _) => {}
            (Some(Form::Full), false, Some(gate)) => changes.push(Change::Close(gate)),
            (_, full, _) => changes.push(Change::Fixed { name: name.into(), full }),
        }
    }
}
