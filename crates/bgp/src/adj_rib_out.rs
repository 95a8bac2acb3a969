//! What one peer was told, and what it is still to be told.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::export::{Export, Outgoing};
use crate::speaker::Routes;
use crate::{Family, Prefix, Route, Withheld};

/// Prefixes taken per batch: one write to the socket, after which the newest routes count again.
const BATCH: usize = 2000;

/// How a prefix stands with the peer.
type Told = Result<Arc<Outgoing>, Withheld>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Due {
    IfChanged,
    /// The peer asked for it again (RFC 2918).
    Again,
}

#[derive(Default)]
pub(crate) struct AdjRibOut {
    told: BTreeMap<Prefix, Told>,
    due: BTreeMap<Prefix, Due>,
    pub(crate) advertised: BTreeMap<Family, usize>,
    pub(crate) withheld: BTreeMap<Withheld, usize>,
}

/// What a peer is to be told next. A prefix is in one place only.
#[derive(Default)]
pub(crate) struct Batch {
    pub(crate) withdrawn: BTreeMap<Family, Vec<Prefix>>,
    pub(crate) announced: BTreeMap<Arc<Outgoing>, Vec<Prefix>>,
}

impl AdjRibOut {
    pub(crate) fn is_up_to_date(&self) -> bool {
        self.due.is_empty()
    }

    /// The routes are now `new`; `old` is what they were at the last call.
    pub(crate) fn routes_changed(&mut self, old: &Routes, new: &Routes) {
        for prefix in changed(old, new) {
            self.due.entry(prefix).or_insert(Due::IfChanged);
        }
    }

    /// Every route is looked at again, because what it becomes on the wire may have changed.
    pub(crate) fn reconsider(&mut self, routes: &Routes) {
        self.routes_changed(&Routes::new(), routes);
    }

    /// The peer has forgotten this family's routes, and wants them again.
    pub(crate) fn resend(&mut self, family: Family, routes: &Routes) {
        let again = routes.keys().filter(|prefix| Family::of(prefix) == family);
        self.due.extend(again.map(|prefix| (*prefix, Due::Again)));
    }

    pub(crate) fn next_batch(&mut self, routes: &Routes, export: &Export) -> Batch {
        let mut batch = Batch::default();
        let mut resolved: BTreeMap<(Family, &Route), Told> = BTreeMap::new();
        for _ in 0..BATCH {
            let Some((prefix, due)) = self.due.pop_first() else { break };
            let family = Family::of(&prefix);
            let new = routes.get(&prefix).map(|route| {
                let resolve = || export.resolve(family, route).map(Arc::new);
                resolved.entry((family, route)).or_insert_with(resolve).clone()
            });
            let old = self.told.get(&prefix);
            if due == Due::IfChanged && old == new.as_ref() {
                continue;
            }
            let was_advertised = matches!(old, Some(Ok(_)));
            match &new {
                Some(Ok(outgoing)) => batch.announced.entry(outgoing.clone()).or_default().push(prefix),
                Some(Err(_)) | None if was_advertised => {
                    batch.withdrawn.entry(family).or_default().push(prefix)
                }
                Some(Err(_)) | None => {}
            }
            self.record(prefix, new);
        }
        batch
    }

    /// Withdraws everything the peer was told.
    pub(crate) fn withdraw_all(&mut self) -> BTreeMap<Family, Vec<Prefix>> {
        let mut withdrawn = BTreeMap::<_, Vec<_>>::new();
        for (prefix, told) in std::mem::take(self).told {
            if told.is_ok() {
                withdrawn.entry(Family::of(&prefix)).or_default().push(prefix);
            }
        }
        withdrawn
    }

    fn record(&mut self, prefix: Prefix, told: Option<Told>) {
        let family = Family::of(&prefix);
        match told.as_ref() {
            Some(Ok(_)) => *self.advertised.entry(family).or_default() += 1,
            Some(Err(why)) => *self.withheld.entry(*why).or_default() += 1,
            None => {}
        }
        let old = match told {
            Some(told) => self.told.insert(prefix, told),
            None => self.told.remove(&prefix),
        };
        match old {
            Some(Ok(_)) => decrement(&mut self.advertised, family),
            Some(Err(why)) => decrement(&mut self.withheld, why),
            None => {}
        }
    }
}

fn decrement<K: Ord>(counts: &mut BTreeMap<K, usize>, key: K) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// Prefixes whose routes differ, by walking both maps once.
fn changed(old: &Routes, new: &Routes) -> Vec<Prefix> {
    let mut changed = Vec::new();
    let (mut old, mut new) = (old.iter().peekable(), new.iter().peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return changed,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        if before != after {
            changed.extend(before.or(after).map(|(prefix, _)| *prefix));
        }
    }
}
