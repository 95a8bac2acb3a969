//! The statuses of pools, Advertisements and peers: aggregates and conditions, written when they change.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, Patch, PatchParams};
use kube::{Api, Client};
use portolan_api::conditions::{ACCEPTED, CONFLICT, EXHAUSTED, READY, RESOLVED_REFS, object};
use portolan_api::{Advertisement, BGPPeer, IPAddressPool};
use portolan_index::{Key, Kind, Seen};
use portolan_model::{LabelSelector, Problem, Snapshot};
use portolan_plan::supply::{PoolUse, Use};
use portolan_plan::{Supply, advertise, peers};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::warn;

use super::desk::Desk;
use super::{FIELD_MANAGER, sentence};
use crate::events::{Events, about};

/// Counts change with every Service: they may be this old.
const PAUSE: Duration = Duration::from_secs(1);

pub struct PolicyStatus {
    client: Client,
    events: Events,
    /// The agents' own AS number.
    asn: Option<u32>,
    /// What was written last; only work is saved by it.
    written: BTreeMap<(Kind, Key), (Vec<Said>, Value)>,
    due: Instant,
    trouble: Option<String>,
}

/// A condition, without its time.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Said {
    kind: &'static str,
    status: bool,
    /// Nobody need look at it.
    good: bool,
    reason: &'static str,
    message: String,
}

impl PolicyStatus {
    pub fn new(client: Client, events: Events, asn: Option<u32>) -> PolicyStatus {
        PolicyStatus { client, events, asn, written: BTreeMap::new(), due: Instant::now(), trouble: None }
    }

    pub fn due(&self) -> Instant {
        self.due
    }

    pub fn is_due(&self) -> bool {
        self.due <= Instant::now()
    }

    /// Another may have written since we last led.
    pub fn forget(&mut self) {
        self.written.clear();
    }

    /// Whether everything is written.
    pub async fn write(&mut self, desk: &Desk, supply: &Supply, established: BTreeMap<String, i64>) -> bool {
        self.due = Instant::now() + PAUSE;
        let Some(snapshot) = desk.index.snapshot() else { return true };
        let mut all = true;
        for (kind, key, conditions, counts) in self.desired(desk, &snapshot, supply, &established) {
            let at = (kind, key);
            let desired = (conditions, counts);
            if self.written.get(&at) == Some(&desired) {
                continue;
            }
            let Some(seen) = desk.seen(at.0, &at.1) else { continue };
            match self.patch(at.0, &at.1, seen, &desired.0, &desired.1).await {
                Ok(()) => drop(self.written.insert(at, desired)),
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => {
                    all = false;
                    let text = format!("status of {}: {}", at.1.object(at.0), sentence(&error));
                    if self.trouble.as_ref() != Some(&text) {
                        warn!("{text}");
                        self.trouble = Some(text);
                    }
                }
            }
        }
        all
    }

    fn desired(
        &self,
        desk: &Desk,
        snapshot: &Snapshot,
        supply: &Supply,
        established: &BTreeMap<String, i64>,
    ) -> Vec<(Kind, Key, Vec<Said>, Value)> {
        let usage = supply.usage(&snapshot.allocations);
        let counts = advertise::counts(snapshot, &desk.classes);
        let unresolved = advertise::problems(snapshot);
        let unusable = peers::problems(snapshot, self.asn);
        let invalid = |kind, key| desk.index.problems_of(kind, key);
        let mut desired = Vec::new();
        for (key, _) in desk.keys(Kind::Pool) {
            let usage = usage.get(&key.name).cloned().unwrap_or_default();
            let overlaps = of(&supply.problems, Kind::Pool, key);
            let conditions = pool_conditions(invalid(Kind::Pool, key), &overlaps, &usage);
            let [ipv4, ipv6] = [&usage.ipv4, &usage.ipv6].map(family_use);
            let counts = json!({ "ipv4": ipv4, "ipv6": ipv6, "servicesOutside": usage.outside });
            desired.push((Kind::Pool, key.clone(), conditions, counts));
        }
        for (key, _) in desk.keys(Kind::Advertisement) {
            let problems = of(&unresolved, Kind::Advertisement, key);
            let accepted = accepted(invalid(Kind::Advertisement, key));
            let resolved =
                good_unless(RESOLVED_REFS, true, &problems, object::REFERENCE_NOT_FOUND, object::RESOLVED);
            let count = counts.get(&key.name).copied().unwrap_or_default();
            let counts = json!({
                "services": count.services, "prefixes": count.prefixes, "nodes": count.nodes, "peers": count.peers,
            });
            desired.push((Kind::Advertisement, key.clone(), vec![accepted, resolved], counts));
        }
        for (key, _) in desk.keys(Kind::Peer) {
            let mut problems = invalid(Kind::Peer, key).to_vec();
            problems.extend(of(&unusable, Kind::Peer, key));
            let nodes = snapshot.peers.get(&key.name).map_or(0, |peer| {
                let selected = snapshot.nodes.values();
                selected.filter(|node| LabelSelector::any(&peer.node_selectors, &node.labels)).count()
            });
            let established = established.get(&*key.name).copied().unwrap_or(0);
            let counts = json!({ "sessions": { "selected": nodes, "established": established } });
            desired.push((Kind::Peer, key.clone(), vec![accepted(&problems)], counts));
        }
        desired
    }

    async fn patch(
        &self,
        kind: Kind,
        key: &Key,
        seen: &Seen,
        conditions: &[Said],
        counts: &Value,
    ) -> kube::Result<()> {
        let Some(resource) = resource(kind) else { return Ok(()) };
        let mut status = counts.clone();
        status["conditions"] = conditions.iter().map(|said| said.condition(seen)).collect();
        status["observedGeneration"] = json!(seen.generation);
        let api: Api<DynamicObject> = Api::all_with(self.client.clone(), &resource);
        let params = PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() };
        api.patch_status(&key.name, &params, &Patch::Merge(json!({ "status": status }))).await?;
        for said in conditions.iter().filter(|said| said.is_news(seen)) {
            let about = about(&key.object(kind), &seen.uid);
            match said.good {
                true => self.events.normal(about, said.reason, &said.message),
                false => self.events.warning(about, said.reason, &said.message),
            }
        }
        Ok(())
    }
}

impl Said {
    /// The time of the last transition is kept while the status stays.
    fn condition(&self, seen: &Seen) -> Value {
        let status = if self.status { "True" } else { "False" };
        let same = seen.conditions.iter().find(|old| old.type_ == self.kind && old.status == status);
        let since = same.map_or_else(|| Time(Timestamp::now()), |old| old.last_transition_time.clone());
        json!({
            "type": self.kind, "status": status, "reason": self.reason, "message": self.message,
            "lastTransitionTime": since, "observedGeneration": seen.generation,
        })
    }

    /// Worth an Event: something is wrong in another way than before, or is no longer wrong.
    fn is_news(&self, seen: &Seen) -> bool {
        let old = seen.conditions.iter().find(|old| old.type_ == self.kind);
        match old {
            Some(old) => old.reason != self.reason || (!self.good && old.message != self.message),
            None => !self.good,
        }
    }
}

fn resource(kind: Kind) -> Option<ApiResource> {
    match kind {
        Kind::Pool => Some(ApiResource::erase::<IPAddressPool>(&())),
        Kind::Advertisement => Some(ApiResource::erase::<Advertisement>(&())),
        Kind::Peer => Some(ApiResource::erase::<BGPPeer>(&())),
        Kind::Service | Kind::EndpointSlice | Kind::Node | Kind::ServiceCidr | Kind::Allocation => None,
    }
}

fn of(problems: &[Problem], kind: Kind, key: &Key) -> Vec<Problem> {
    let object = key.object(kind);
    problems.iter().filter(|problem| problem.object == object).cloned().collect()
}

fn pool_conditions(invalid: &[Problem], overlaps: &[Problem], usage: &PoolUse) -> Vec<Said> {
    let ready = good_unless(READY, true, invalid, object::INVALID, object::READY);
    let reason = overlaps.first().map_or(CONFLICT, |problem| problem.reason);
    let conflict = good_unless(CONFLICT, false, overlaps, reason, "NoConflict");
    let is_exhausted = |family: &Use| family.total > 0 && family.available == 0;
    let families = [("IPv4", &usage.ipv4), ("IPv6", &usage.ipv6)].into_iter();
    let gone: Vec<_> = families.filter(|(_, family)| is_exhausted(family)).map(|(name, _)| name).collect();
    let exhausted = Said {
        kind: EXHAUSTED,
        status: !gone.is_empty(),
        good: gone.is_empty(),
        reason: if gone.is_empty() { "Available" } else { EXHAUSTED },
        message: match gone.is_empty() {
            true => String::new(),
            false => format!("spec.addresses: no {} address is left", gone.join(" and no ")),
        },
    };
    vec![ready, conflict, exhausted]
}

fn accepted(problems: &[Problem]) -> Said {
    let reason = problems.first().map_or(object::INVALID, |problem| problem.reason);
    good_unless(ACCEPTED, true, problems, reason, object::ACCEPTED)
}

/// A condition that is `when_good` while there is no problem.
fn good_unless(
    kind: &'static str,
    when_good: bool,
    problems: &[Problem],
    bad: &'static str,
    good: &'static str,
) -> Said {
    let sentences = problems.iter().map(|problem| format!("{}: {}", problem.field, problem.message));
    let message = sentences.collect::<Vec<_>>().join("; ");
    let is_good = problems.is_empty();
    Said {
        kind,
        status: when_good == is_good,
        good: is_good,
        reason: if is_good { good } else { bad },
        message,
    }
}

/// In 64 bits, as the API has it.
fn family_use(family: &Use) -> Value {
    let count = |count: u128| i64::try_from(count).unwrap_or(i64::MAX);
    json!({
        "total": count(family.total), "assigned": count(family.assigned), "available": count(family.available),
        "quarantined": count(family.quarantined), "reserved": count(family.reserved),
    })
}
