//! Changes cut into transactions.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portolan_model::{Backend, Family};
use portolan_nft::{Command, Element, Extra, Name, TableId};

use crate::change::{Change, Phase, Script};
use crate::changes::Changes;
use crate::key::Key;
use crate::layout::{self, Settings};
use crate::ledger;
use crate::target::Memory;

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
    /// How many chains may stand that nothing leads to any more.
    pub spare: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits { elements: 2_500, replacement: 40_000, spare: 64 }
    }
}

impl Step {
    pub fn family(&self) -> Family {
        self.family
    }

    /// The maps of remembered clients that must be read before the step is written, for [`forget`](Self::forget). One that is
    /// not there yet has no elements.
    pub fn forgets(&self) -> BTreeSet<Name> {
        let pairs = self.changes.iter().filter_map(Change::forgets);
        pairs.map(|((key, backend), _)| ledger::map_of(&key, &backend)).collect()
    }

    /// What of `remembered`, the elements of [those maps](Self::forgets), goes with the endpoints that this step takes away, or
    /// lives shorter from now on (S41, S42): to be written with the step, and once more after it, since packets
    /// go on writing until it is committed. Written again, it is empty.
    pub fn forget(&self, remembered: &BTreeMap<Name, Vec<Element>>) -> Vec<Command> {
        let forgets: BTreeMap<_, _> = self.changes.iter().filter_map(Change::forgets).collect();
        remembered.iter().flat_map(|(map, elements)| self.forget_of(&forgets, map, elements)).collect()
    }

    fn forget_of(
        &self,
        forgets: &BTreeMap<(Key, Backend), Option<Memory>>,
        map: &Name,
        elements: &[Element],
    ) -> impl Iterator<Item = Command> + use<> {
        let (mut gone, mut shortened) = (Vec::new(), Vec::new());
        for element in elements {
            let Some(pair) = ledger::read(self.family, map, element) else { continue };
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
        let delete = (!gone.is_empty()).then(|| Command::DeleteElements { set: map.clone(), elements: gone });
        let add =
            (!shortened.is_empty()).then(|| Command::AddElements { set: map.clone(), elements: shortened });
        delete.into_iter().chain(add)
    }

    pub fn table(&self) -> TableId {
        layout::table_id(self.family)
    }

    /// The transaction, built anew on each call: kept, those of a cold load would be the agent's largest memory.
    pub fn commands(&self) -> Vec<Command> {
        Script::write(&self.settings, self.family, &self.changes)
    }
}

pub fn cut(changes: Changes, family: Family, settings: &Arc<Settings>, limits: Limits) -> Vec<Step> {
    let replaces = changes.iter().next() == Some(&Change::Table { replace: true });
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
