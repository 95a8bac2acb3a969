//! What the line does, in numbers: only counted here, decided nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portolan_index::{Change, Kind, Object};
use portolan_model::{Family, ServiceId, ServicePlan};
use portolan_plan::service::lacks_local;

use crate::dataplane::conntrack::Cleaned;
use crate::metrics::Metrics;

pub struct Meter {
    metrics: Arc<Metrics>,
    started: Timestamp,
    /// When what the line is about to program happened (S67).
    triggers: Vec<Timestamp>,
    lacking: BTreeMap<ServiceId, BTreeSet<(Family, bool)>>,
    /// How many of `lacking` have each.
    lack: BTreeMap<(Family, bool), usize>,
}

impl Meter {
    pub fn new(metrics: Arc<Metrics>) -> Meter {
        Meter {
            metrics,
            started: Timestamp::now(),
            triggers: Vec::new(),
            lacking: BTreeMap::new(),
            lack: BTreeMap::new(),
        }
    }

    /// A change came that is to be programmed.
    pub fn came(&mut self, change: &Change) {
        match change {
            Change::Apply(object) => {
                self.count(object.kind(), 1);
                self.trigger(object);
            }
            Change::Delete(kind, _) => self.count(*kind, 1),
            Change::Replace(kind, objects) => {
                self.count(*kind, objects.len() as u64);
                objects.iter().for_each(|object| self.trigger(object));
            }
        }
    }

    fn count(&self, kind: Kind, many: u64) {
        let changes = match kind {
            Kind::Service => &self.metrics.service_changes,
            Kind::EndpointSlice => &self.metrics.endpoint_changes,
            _ => return,
        };
        changes.total.inc_by(many);
        changes.pending.inc_by(many as i64);
        self.metrics.queued();
    }

    /// S67: what happened before our start says nothing of us.
    fn trigger(&mut self, object: &Object) {
        self.triggers.extend(object.seen().triggered_at.filter(|at| *at >= self.started));
    }

    /// A turn about Services: `full` = about all of them; `plans` = what the kernel now runs of those that it touched.
    pub fn turned<'a>(
        &mut self,
        full: bool,
        start: Instant,
        succeeded: bool,
        plans: impl Iterator<Item = (&'a ServiceId, Option<&'a ServicePlan>)>,
    ) {
        self.metrics.turned(full, start.elapsed());
        if !succeeded {
            self.metrics.sync_failed();
            return;
        }
        self.metrics.synced();
        self.observe_triggers(Timestamp::now());
        for (id, plan) in plans {
            self.lacks(id, plan.map(lacks_local).unwrap_or_default());
        }
        self.metrics.no_local(|ip, inside| self.lack.get(&(ip, inside)).copied().unwrap_or_default());
    }

    fn lacks(&mut self, id: &ServiceId, now: BTreeSet<(Family, bool)>) {
        now.iter().for_each(|what| *self.lack.entry(*what).or_default() += 1);
        let before = match now.is_empty() {
            true => self.lacking.remove(id),
            false => self.lacking.insert(id.clone(), now),
        };
        for what in before.unwrap_or_default() {
            self.lack.entry(what).and_modify(|count| *count = count.saturating_sub(1));
        }
    }

    fn observe_triggers(&mut self, now: Timestamp) {
        for at in self.triggers.drain(..) {
            let took = Duration::try_from(now.duration_since(at)).unwrap_or_default();
            Family::ALL.iter().for_each(|ip| self.metrics.programmed_after(*ip, took));
        }
    }

    pub fn wrote(&self, transactions: usize) {
        self.metrics.transactions.inc_by(transactions as u64);
    }

    pub fn cleaned(&self, cleaned: &BTreeMap<Family, Cleaned>) {
        for (ip, cleaned) in cleaned {
            self.metrics.conntrack_cleaned(*ip, cleaned.deleted, cleaned.took);
        }
    }

    pub fn announced(&self, prefixes: usize) {
        self.metrics.announced_prefixes.set(prefixes as i64);
    }
}
