//! Changes cut into transactions.

use std::collections::BTreeMap;
use std::sync::Arc;

use portolan_model::Family;
use portolan_nft::{Command, Element, Extra, Name, TableId};

use crate::change::{Change, Phase, Script};
use crate::key;
use crate::layout::{self, Settings};

/// One transaction on one table: applied whole or not at all, and safe alone and in order (invariant 13).
#[derive(Clone, Debug)]
pub struct Step {
    pub(crate) family: Family,
    pub(crate) changes: Vec<Change>,
    /// The last of its round.
    pub(crate) ends: Option<u64>,
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
        Limits { elements: 2_500, replacement: 40_000, pool: 32, spare: 64 }
    }
}

impl Step {
    pub fn family(&self) -> Family {
        self.family
    }

    /// The map of remembered clients must be read before the step is written, for [`forget`](Self::forget).
    pub fn forgets(&self) -> bool {
        self.changes.iter().any(|change| change.forgets().is_some())
    }

    /// Where clients are remembered.
    pub fn memory(&self) -> Name {
        layout::AFFINITY.into()
    }

    /// What of `remembered`, the elements of [`memory`](Self::memory), goes with the endpoints that this step takes away, or
    /// lives shorter from now on (S41, S42): to be written with the step, and once more after it, since packets
    /// go on writing until it is committed. Written again, it is empty.
    pub fn forget(&self, remembered: &[Element]) -> Vec<Command> {
        let forgets: BTreeMap<_, _> = self.changes.iter().filter_map(Change::forgets).collect();
        let (mut gone, mut shortened) = (Vec::new(), Vec::new());
        for element in remembered {
            let Some(pair) = key::read_remembered(self.family, element) else { continue };
            let left = element.extra.as_ref().and_then(|extra| extra.expires);
            match forgets.get(&pair) {
                Some(Some(memory)) if left.is_some_and(|left| left > memory.timeout()) => {
                    let extra = Extra { timeout: Some(memory.timeout()), ..Extra::default() };
                    shortened.push(Element { extra: Some(Box::new(extra)), ..element.clone() });
                }
                Some(None) => {}
                _ => continue,
            }
            gone.push(Element::member(element.key.clone()));
        }
        let delete = (!gone.is_empty())
            .then(|| Command::DeleteElements { set: layout::AFFINITY.into(), elements: gone });
        let add = (!shortened.is_empty())
            .then(|| Command::AddElements { set: layout::AFFINITY.into(), elements: shortened });
        delete.into_iter().chain(add).collect()
    }

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
            steps.push(Step { family, changes: Vec::new(), ends: None, settings: settings.clone() });
            cost = 0;
        }
        (cost, last) = (cost + change.cost(), phase);
        if let Some(step) = steps.last_mut() {
            step.changes.push(change);
        }
    }
    steps
}
