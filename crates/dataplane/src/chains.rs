//! Which pick chains stand.
//!
//! A chain that looks up `endpoints` is dear to make once the map is full: the kernel walks the whole map for each chain
//! that is bound to it (150 ms at 300,000 endpoints). So those for small counts are made with the table, others when
//! they are first needed, and what is no longer needed stays, up to a bound, since counts come back.

use std::collections::{BTreeMap, BTreeSet};

use portolan_model::Masquerade;

use crate::actual::Actual;
use crate::change::Change;
use crate::step::Limits;
use crate::target::{Pick, Side, Target};

/// Adds to `changes`, which publish and unpublish, the chains that they need and those that are too many. `everything`:
/// chains that no change leads to are looked at too.
pub fn diff(actual: &Actual, limits: &Limits, everything: bool, changes: &mut Vec<Change>) {
    let mut needed: BTreeSet<Pick> = changes.iter().filter_map(published).flat_map(Pick::chains).collect();
    let moved = changes.iter().any(|change| matches!(change, Change::Publish { .. }));
    if everything {
        needed.extend(pool(limits));
        let used = actual.picks.iter().filter(|(_, chain)| chain.uses > 0);
        needed.extend(used.flat_map(|(pick, _)| pick.chains()));
    }
    let intact = |pick: &&Pick| actual.picks.get(pick).is_some_and(|chain| chain.intact);
    let missing: Vec<Change> =
        needed.iter().filter(|pick| !intact(pick)).map(|p| Change::Chain(*p)).collect();
    if everything || moved {
        let dropped = too_many(actual, limits, changes);
        changes.extend(dropped.into_iter().map(Change::DropChain));
    }
    changes.extend(missing);
}

fn published(change: &Change) -> Option<Pick> {
    match change {
        Change::Publish { to: Some(Target::Pick(pick)), .. } => Some(*pick),
        _ => None,
    }
}

/// The chains that stand from the beginning.
fn pool(limits: &Limits) -> impl Iterator<Item = Pick> {
    let counts = 1..=limits.pool;
    let plain = |side, count| Pick { side, masquerade: Masquerade::Never, count };
    counts.flat_map(move |count| Side::ALL.map(|side| plain(side, count)))
}

/// Chains without a use when `changes` are written: those that were tampered with, and all when they are many.
fn too_many(actual: &Actual, limits: &Limits, changes: &[Change]) -> Vec<Pick> {
    let mut uses: BTreeMap<Pick, i64> =
        actual.picks.iter().map(|(pick, chain)| (*pick, chain.uses.into())).collect();
    for change in changes {
        if let Change::Publish { from, to, .. } = change {
            count(&mut uses, from, -1);
            count(&mut uses, to, 1);
        }
    }
    let used = uses.iter().filter(|(_, uses)| **uses > 0).flat_map(|(pick, _)| pick.chains());
    let stays: BTreeSet<Pick> = used.chain(pool(limits)).collect();
    let idle = actual.picks.iter().filter(|(pick, chain)| chain.exists && !stays.contains(pick));
    let all = idle.clone().count() > limits.spare;
    idle.filter(|(_, chain)| all || !chain.intact).map(|(pick, _)| *pick).collect()
}

fn count(uses: &mut BTreeMap<Pick, i64>, target: &Option<Target>, by: i64) {
    if let Some(Target::Pick(pick)) = target {
        *uses.entry(*pick).or_default() += by;
    }
}
