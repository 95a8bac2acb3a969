//! Which of the shared chains stand, and what `targets` has: every pick chain that stands, and the targets that have none.
//!
//! They are made when they are first needed. What is no longer needed stays, up to a bound, since counts come back.

use std::collections::{BTreeMap, BTreeSet};

use crate::actual::{Actual, SharedChain};
use crate::change::Change;
use crate::changes::Changes;
use crate::ledger::Ledger;
use crate::step::Limits;
use crate::target::{Shared, Target};

/// Adds to `changes`, which publish and unpublish, the chains and targets that they need and those that are too many. `everything`:
/// chains that no change leads to are looked at too.
pub fn diff(actual: &Actual, limits: &Limits, everything: bool, changes: &mut Changes) {
    let mut needed: BTreeSet<Shared> =
        changes.iter().filter_map(|change| change.leads().1).flat_map(Shared::chains).collect();
    let moved = changes.iter().any(|change| change.leads() != (None, None));
    let used =
        (everything || moved && may_be_too_many(actual, limits, changes)).then(|| used(actual, changes));
    needed.extend(used.iter().flatten().filter(|_| everything));
    let dropped = used.map_or(BTreeSet::new(), |used| too_many(actual, limits, &used));
    let intact = |shared: &&Shared| actual.shared.get(shared).is_some_and(|chain| chain.intact);
    let missing: Vec<Shared> = needed.iter().filter(|shared| !intact(shared)).copied().collect();
    ledgers(actual, &missing, &dropped, everything, changes);
    let fixed = Target::FIXED.into_iter().filter(|_| everything);
    let targets = needed.iter().filter_map(|shared| shared.target()).chain(fixed);
    let mut dispatched: Vec<Change> = targets.filter_map(|target| dispatch(actual, target)).collect();
    let stands = |pick: Shared| actual.shared.get(&pick).is_some_and(|chain| chain.exists);
    let stays = |pick: Shared| needed.contains(&pick) || stands(pick) && !dropped.contains(&pick);
    if everything || !dropped.is_empty() {
        let gone = actual.targets.keys().copied().filter(|code| match Target::of_code(*code) {
            Target::Pick(pick) => !stays(Shared::Pick(pick)),
            target => target == Target::Unknown,
        });
        dispatched.extend(gone.map(|code| Change::Dispatch { code, replaces: true, to: None }));
    }
    changes.extend(dropped.into_iter().map(Change::DropChain));
    changes.extend(missing.into_iter().map(Change::Chain).chain(dispatched));
}

/// A ledger is there before the chains that name it, and goes with the last of them.
fn ledgers(
    actual: &Actual,
    missing: &[Shared],
    dropped: &BTreeSet<Shared>,
    everything: bool,
    changes: &mut Changes,
) {
    let wanted: BTreeSet<Ledger> = missing.iter().flat_map(|shared| shared.ledgers()).collect();
    changes.extend(wanted.difference(&actual.ledgers).copied().map(Change::Ledger));
    if everything || dropped.iter().any(|shared| !shared.ledgers().is_empty()) {
        let stands = actual.shared.iter().filter(|(shared, chain)| chain.exists && !dropped.contains(shared));
        let named: BTreeSet<Ledger> = stands.flat_map(|(shared, _)| shared.ledgers()).chain(wanted).collect();
        changes.extend(actual.ledgers.difference(&named).copied().map(Change::DropLedger));
    }
}

/// What leads to the target, unless it is there.
fn dispatch(actual: &Actual, target: Target) -> Option<Change> {
    let code = target.code();
    let there = actual.targets.get(&code);
    let change = Change::Dispatch { code, replaces: there.is_some(), to: Some(target) };
    (there != Some(&true)).then_some(change)
}

/// A first look, so that a change costs little for all the chains that it has nothing to do with. Each verdict that goes may
/// leave one more without a use.
fn may_be_too_many(actual: &Actual, limits: &Limits, changes: &Changes) -> bool {
    let idle = |(_, chain): &(&Shared, &SharedChain)| chain.uses == 0;
    let left = changes.iter().filter(|change| change.leads().0.is_some()).count();
    actual.shared.iter().filter(idle).count() + left > limits.spare
}

/// What leads somewhere when `changes` are written.
fn used(actual: &Actual, changes: &Changes) -> BTreeSet<Shared> {
    let mut uses: BTreeMap<Shared, i64> =
        actual.shared.iter().map(|(shared, chain)| (*shared, chain.uses.into())).collect();
    for (from, to) in changes.iter().map(Change::leads) {
        for (shared, by) in from.map(|from| (from, -1)).into_iter().chain(to.map(|to| (to, 1))) {
            *uses.entry(shared).or_default() += by;
        }
    }
    uses.iter().filter(|(_, uses)| **uses > 0).flat_map(|(shared, _)| shared.chains()).collect()
}

/// Chains without a use: those that were tampered with, and all when they are many.
fn too_many(actual: &Actual, limits: &Limits, used: &BTreeSet<Shared>) -> BTreeSet<Shared> {
    let idle = actual.shared.iter().filter(|(shared, chain)| chain.exists && !used.contains(shared));
    let all = idle.clone().count() > limits.spare;
    idle.filter(|(_, chain)| all || !chain.intact).map(|(shared, _)| *shared).collect()
}
