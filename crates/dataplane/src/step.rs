//! Changes cut into transactions.

use std::sync::Arc;

use portolan_model::Family;
use portolan_nft::{Command, TableId};

use crate::change::{Change, Phase, Script};
use crate::layout::{self, Settings};

/// One transaction on one table: applied whole or not at all, and safe alone and in order (invariant 13).
#[derive(Clone, Debug)]
pub struct Step {
    pub(crate) family: Family,
    pub(crate) changes: Vec<Change>,
    settings: Arc<Settings>,
}

/// How much of what is written at once, or stands by.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Elements in a transaction: about 10 ms in the kernel, which holds up everyone else in the namespace (nftables.md, decision 3).
    pub elements: usize,
    /// The same when the table is replaced: a longer wait is better than traffic without rules.
    pub replacement: usize,
    /// Chains for up to so many endpoints stand from the beginning.
    pub pool: u32,
    /// How many chains may stand that nothing leads to any more.
    pub spare: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { elements: 4_000, replacement: 40_000, pool: 32, spare: 64 }
    }
}

impl Step {
    pub fn table(&self) -> TableId {
        layout::table_id(self.family)
    }

    /// The transaction, built anew on each call: kept, those of a cold load would be the agent's largest memory.
    pub fn commands(&self) -> Vec<Command> {
        Script::write(&self.settings, self.family, &self.changes)
    }
}

/// `changes` in order of phase.
pub fn cut(changes: Vec<Change>, family: Family, settings: &Arc<Settings>, limits: Limits) -> Vec<Step> {
    let replaces = changes.first() == Some(&Change::Table { replace: true });
    let limit = if replaces { limits.replacement } else { limits.elements };
    let mut steps: Vec<Step> = Vec::new();
    let (mut cost, mut last) = (0, Phase::Frame);
    for change in changes {
        let phase = change.phase();
        let full = cost + change.cost() > limit && phase != Phase::Chaff;
        if full || (phase == Phase::Chaff && last != Phase::Chaff) || steps.is_empty() {
            steps.push(Step { family, changes: Vec::new(), settings: settings.clone() });
            cost = 0;
        }
        (cost, last) = (cost + change.cost(), phase);
        if let Some(step) = steps.last_mut() {
            step.changes.push(change);
        }
    }
    steps
}
