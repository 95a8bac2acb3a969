//! What the line does, in numbers: only counted here, decided nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use portolan_index::{Change, Kind, Object};
use portolan_model::{Family, ServiceId, ServicePlan};
use portolan_plan::service::lacks_local;

use crate::dataplane::conntrack::Cleaned;
use crate::dataplane::kernel::Measured;
use crate::metrics::Metrics;

pub struct Meter {
    metrics: Arc<Metrics>,
    started: Timestamp,
    /// When what the line is about to program happened, and in which family (S67).
    triggers: Vec<(Family, Timestamp)>,
    /// Of the writing in this turn.
    measured: Measured,
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
            measured: Measured::default(),
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
        let at = object.seen().triggered_at.filter(|at| *at >= self.started);
        self.triggers.extend(object.family().zip(at));
    }

    /// A turn about Services: `full` = about all of them; `plans` = what the kernel now runs of those that it touched.
    pub fn turned<'a>(
        &mut self,
        full: bool,
        start: Instant,
        succeeded: bool,
        plans: impl Iterator<Item = (&'a ServiceId, Option<&'a ServicePlan>)>,
    ) {
        let Measured { took, failed } = std::mem::take(&mut self.measured);
        let total = start.elapsed();
        for ip in Family::ALL {
            // A family's time is what both need and its own writing.
            let others = took.iter().filter(|(other, _)| **other != ip).map(|(_, took)| *took).sum();
            self.metrics.turned(ip, full, total.saturating_sub(others));
            match succeeded || (!failed.is_empty() && !failed.contains(&ip)) {
                true => self.metrics.synced(ip),
                false => self.metrics.sync_failed(ip),
            }
        }
        if !succeeded {
            return;
        }
        self.metrics.nothing_pending();
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
        for (ip, at) in self.triggers.drain(..) {
            let took = Duration::try_from(now.duration_since(at)).unwrap_or_default();
            self.metrics.programmed_after(ip, took);
        }
    }

    pub fn measured(&mut self, measured: Measured) {
        self.measured = measured;
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

#[cfg(test)]
mod tests {
    use jiff::ToSpan;
    use portolan_index::Key;
    use serde_json::json;

    use super::*;

    /// An EndpointSlice version with this trigger time.
    fn slice(family: &str, at: Option<Timestamp>) -> Object {
        let annotations =
            at.map(|at| json!({ "endpoints.kubernetes.io/last-change-trigger-time": at.to_string() }));
        Object::from_manifest(json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": family,
            "metadata": { "name": "a", "labels": { "kubernetes.io/service-name": "a" }, "annotations": annotations },
            "endpoints": [],
        }))
        .expect("a manifest")
    }

    /// How many times were observed, by family, after one turn that `succeeded`.
    fn observed(changes: &[Change], turns: &[bool]) -> [u64; 2] {
        let metrics = Arc::new(Metrics::new());
        let mut meter = Meter::new(metrics.clone());
        // The clock of the trigger times is that of another machine, to the second.
        meter.started = Timestamp::now() - 60.seconds();
        changes.iter().for_each(|change| meter.came(change));
        turns
            .iter()
            .for_each(|succeeded| meter.turned(false, Instant::now(), *succeeded, std::iter::empty()));
        let page = metrics.render(std::iter::empty());
        ["IPv4", "IPv6"].map(|ip| {
            let name = format!("kubeproxy_network_programming_duration_seconds_count{{ip_family=\"{ip}\"}} ");
            page.lines().find_map(|line| line.strip_prefix(&name)?.parse().ok()).unwrap_or_default()
        })
    }

    #[test]
    fn s67_which_changes_are_measured() {
        let (now, old) = (Timestamp::now(), Timestamp::now() - 1.hour());
        let key = Key::namespaced("default", "a");
        let apply = |family, at| Change::Apply(slice(family, at));
        /// What it is, the changes, the turns after them and whether they succeed, the observations.
        type Case<'a> = (&'a str, Vec<Change>, &'a [bool], [u64; 2]);
        let cases: [Case; 9] = [
            ("a change", vec![apply("IPv4", Some(now))], &[true], [1, 0]),
            ("of its own family", vec![apply("IPv6", Some(now))], &[true], [0, 1]),
            ("several at once", vec![apply("IPv4", Some(now)), apply("IPv6", Some(now))], &[true], [1, 1]),
            (
                "in a list",
                vec![Change::Replace(Kind::EndpointSlice, vec![slice("IPv4", Some(now))])],
                &[true],
                [1, 0],
            ),
            ("from before our start", vec![apply("IPv4", Some(old))], &[true], [0, 0]),
            ("without a time", vec![apply("IPv4", None)], &[true], [0, 0]),
            ("a deletion", vec![Change::Delete(Kind::EndpointSlice, key)], &[true], [0, 0]),
            ("names are none of ours", vec![apply("FQDN", Some(now))], &[true], [0, 0]),
            ("once it is programmed", vec![apply("IPv4", Some(now))], &[false, true, true], [1, 0]),
        ];
        for (what, changes, turns, expected) in cases {
            assert_eq!(observed(&changes, turns), expected, "{what}");
        }
        assert_eq!(observed(&[apply("IPv4", Some(now))], &[false]), [0, 0], "not while the kernel refuses");
    }
}
