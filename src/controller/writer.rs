//! Carries decisions out: every write is a compare-and-swap, and none is made by someone who no longer leads (A6).

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::{Api, Client};
use portolan_api::conditions::event::{ALLOCATION_FAILED, CLEAR_ASSIGNMENT};
use portolan_api::conditions::{ADVERTISED, IP_ALLOCATED, event};
use portolan_api::{IPAllocation, IPAllocationSpec, IPAllocationStatus, Owner, allocation_name};
use portolan_index::{Change, Key, Kind, Seen};
use portolan_model::{Allocation, AllocationPhase, ObjectId, ServiceId};
use portolan_plan::allocate::{Status, Step};
use serde_json::json;
use tracing::info;

use super::desk::{Job, allocated};
use super::{FIELD_MANAGER, sentence};
use crate::events::{Events, about};
use crate::lease::Leadership;

#[derive(Clone)]
pub struct Writer {
    pub client: Client,
    pub leadership: Leadership,
    pub events: Events,
}

/// What the API server has now, as far as we know it, and what went wrong.
pub struct Outcome {
    pub service: ServiceId,
    pub changes: Vec<Change>,
    pub failure: Option<Failure>,
}

pub enum Failure {
    /// The decision was taken on what is no longer so; what is so is among the changes.
    Outdated,
    NotLeading,
    /// The API server said no, or nothing.
    Refused(String),
}

impl Writer {
    /// Does the steps in order, and none after one that failed (A5).
    pub async fn carry_out(&self, job: Job) -> Outcome {
        let service = job.decision.service.clone();
        let mut outcome = Outcome { service, changes: Vec::new(), failure: None };
        for step in &job.decision.steps {
            if !self.leadership.holds() {
                outcome.failure = Some(Failure::NotLeading);
                break;
            }
            match self.step(&job, step).await {
                Ok(change) => outcome.changes.push(change),
                Err(error) => {
                    let (change, failure) = self.look_again(&job, step, error).await;
                    outcome.changes.extend(change);
                    outcome.failure = Some(failure);
                    break;
                }
            }
        }
        outcome
    }

    async fn step(&self, job: &Job, step: &Step) -> kube::Result<Change> {
        let allocations = self.allocations();
        let id = &job.decision.service;
        match step {
            Step::Create(allocation) => {
                let created = allocations.create(&post(), &object(allocation)).await?;
                Ok(Change::Apply(created.into()))
            }
            Step::Update(allocation) => {
                let name = allocation_name(allocation.address);
                let IPAllocation { spec, status, .. } = object(allocation);
                let version = version(job.allocations.get(&allocation.address));
                let patch = json!({ "metadata": version, "spec": spec, "status": status });
                let patched = allocations.patch(&name, &patch_params(), &Patch::Merge(&patch)).await?;
                Ok(Change::Apply(patched.into()))
            }
            Step::Delete(address) => {
                let name = allocation_name(*address);
                allocations.delete(&name, &precondition(job.allocations.get(address))).await?;
                Ok(Change::Delete(Kind::Allocation, Key::cluster(name)))
            }
            Step::Status(status) => self.write_status(id, job.service.as_ref(), status).await,
            Step::ClearStatus => self.clear_status(id, job.service.as_ref()).await,
        }
    }

    /// Only our ingress and our condition, and only on the version that was decided on (A31).
    async fn write_status(
        &self,
        id: &ServiceId,
        seen: Option<&Seen>,
        status: &Status,
    ) -> kube::Result<Change> {
        let old = seen.and_then(allocated);
        let truth = if status.allocated { "True" } else { "False" };
        let same = old.filter(|old| old.status == truth);
        let since = same.map_or_else(|| Time(Timestamp::now()), |old| old.last_transition_time.clone());
        let ingress: Vec<_> = status.ingress.iter().map(|i| json!({ "ip": i.ip, "ipMode": "VIP" })).collect();
        let condition = json!({
            "type": IP_ALLOCATED, "status": truth, "reason": status.reason, "message": status.message,
            "lastTransitionTime": since,
        });
        let load_balancer = json!({ "ingress": if ingress.is_empty() { None } else { Some(ingress) } });
        let status_patch = json!({ "loadBalancer": load_balancer, "conditions": [condition] });
        let change = self.patch_status(id, seen, status_patch).await?;
        let news = old.is_none_or(|old| old.status != truth || old.reason != status.reason)
            || (status.allocated && old.is_some_and(|old| old.message != status.message));
        if news {
            self.announce(id, seen, status);
        }
        Ok(change)
    }

    fn announce(&self, id: &ServiceId, seen: Option<&Seen>, status: &Status) {
        let about = about(&ObjectId::service(id), seen.map_or("", |seen| &seen.uid));
        let message = &status.message;
        if status.allocated {
            info!(service = %id, "{message}");
            self.events.normal(about, event::IP_ALLOCATED, message);
        } else {
            info!(service = %id, reason = status.reason, "no address: {message}");
            self.events.warning(about, ALLOCATION_FAILED, &format!("{}: {message}", status.reason));
        }
    }

    /// A20.
    async fn clear_status(&self, id: &ServiceId, seen: Option<&Seen>) -> kube::Result<Change> {
        let gone = [IP_ALLOCATED, ADVERTISED].map(|each| json!({ "$patch": "delete", "type": each }));
        let patch = json!({ "loadBalancer": { "ingress": null }, "conditions": gone });
        let change = self.patch_status(id, seen, patch).await?;
        let about = about(&ObjectId::service(id), seen.map_or("", |seen| &seen.uid));
        self.events.normal(about, CLEAR_ASSIGNMENT, "no longer of type LoadBalancer");
        Ok(change)
    }

    async fn patch_status(
        &self,
        id: &ServiceId,
        seen: Option<&Seen>,
        status: serde_json::Value,
    ) -> kube::Result<Change> {
        let patch = json!({ "metadata": version(seen), "status": status });
        let services = self.services(id);
        let patched = services.patch_status(&id.name, &patch_params(), &Patch::Strategic(&patch)).await?;
        Ok(Change::Apply(patched.into()))
    }

    /// Conflicts are no failures of the world: what there is now is read, and decided on again.
    async fn look_again(&self, job: &Job, step: &Step, error: kube::Error) -> (Option<Change>, Failure) {
        let outdated = matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409));
        if !outdated {
            return (None, Failure::Refused(format!("{}: {}", subject(job, step), sentence(&error))));
        }
        let found = match step {
            Step::Create(allocation) | Step::Update(allocation) => self.allocation(allocation.address).await,
            Step::Delete(address) => self.allocation(*address).await,
            Step::Status(_) | Step::ClearStatus => self.service(&job.decision.service).await,
        };
        match found {
            Ok(change) => (Some(change), Failure::Outdated),
            Err(error) => (None, Failure::Refused(format!("{}: {}", subject(job, step), sentence(&error)))),
        }
    }

    async fn allocation(&self, address: IpAddr) -> kube::Result<Change> {
        let name = allocation_name(address);
        let found = self.allocations().get_opt(&name).await?;
        let gone = || Change::Delete(Kind::Allocation, Key::cluster(name.as_str()));
        Ok(found.map_or_else(gone, |allocation| Change::Apply(allocation.into())))
    }

    async fn service(&self, id: &ServiceId) -> kube::Result<Change> {
        let found = self.services(id).get_opt(&id.name).await?;
        let gone = || Change::Delete(Kind::Service, Key::namespaced(id.namespace.clone(), id.name.clone()));
        Ok(found.map_or_else(gone, |service| Change::Apply(service.into())))
    }

    fn allocations(&self) -> Api<IPAllocation> {
        Api::all(self.client.clone())
    }

    fn services(&self, id: &ServiceId) -> Api<Service> {
        Api::namespaced(self.client.clone(), &id.namespace)
    }
}

fn subject(job: &Job, step: &Step) -> String {
    match step {
        Step::Create(allocation) | Step::Update(allocation) => {
            format!("IPAllocation of {}", allocation.address)
        }
        Step::Delete(address) => format!("IPAllocation of {address}"),
        Step::Status(_) | Step::ClearStatus => format!("status of Service {}", job.decision.service),
    }
}

fn post() -> PostParams {
    PostParams { field_manager: Some(FIELD_MANAGER.into()), ..PostParams::default() }
}

fn patch_params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.into()), ..PatchParams::default() }
}

/// The API server refuses what carries another version than the newest.
fn version(seen: Option<&Seen>) -> serde_json::Value {
    json!({ "resourceVersion": known(seen) })
}

fn precondition(seen: Option<&Seen>) -> DeleteParams {
    let resource_version = Some(known(seen).to_owned());
    DeleteParams::default().preconditions(Preconditions { resource_version, uid: None })
}

/// Without a version a write would be unconditional: what we never saw gets one that no object has.
fn known(seen: Option<&Seen>) -> &str {
    seen.map(|seen| seen.resource_version.as_str()).filter(|version| !version.is_empty()).unwrap_or("1")
}

fn object(allocation: &Allocation) -> IPAllocation {
    let owner = |owner: &portolan_model::Owner| Owner {
        namespace: owner.service.namespace.to_string(),
        name: owner.service.name.to_string(),
        uid: owner.uid.to_string(),
    };
    let phase = match allocation.phase {
        AllocationPhase::Reserved => portolan_api::AllocationPhase::Reserved,
        AllocationPhase::Bound => portolan_api::AllocationPhase::Bound,
        AllocationPhase::Quarantined => portolan_api::AllocationPhase::Quarantined,
    };
    let since = Timestamp::from_second(allocation.since).ok().map(Time);
    let spec = IPAllocationSpec {
        address: allocation.address.to_string(),
        pool: allocation.pool.to_string(),
        owners: allocation.owners.iter().map(owner).collect(),
    };
    let metadata = ObjectMeta { name: Some(allocation_name(allocation.address)), ..ObjectMeta::default() };
    IPAllocation { metadata, spec, status: Some(IPAllocationStatus { phase: Some(phase), since }) }
}
