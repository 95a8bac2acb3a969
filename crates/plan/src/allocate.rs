//! Which address a Service has: pure, deterministic, and never two Services with one address (A1–A29).
//!
//! Call order: [`Supply::new`] when pools or nodes changed, [`services`] for the Services that an event touched (or
//! [`everyone`] at the start), [`expired`] when [`next_expiry`] has come. A [`Decision`]'s steps are to be carried out
//! in order, and none after one that failed: a crash between two leaves a state from which the same decision
//! follows again (A5). Sharing keys (A15) are not known yet: every address has one owner.

mod choose;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use portolan_model::{
    Allocation, AllocationPhase, Allocations, FamilyPolicy, IngressIp, IpMode, Problem, Service, ServiceId,
    ServiceType, Snapshot,
};

use crate::{Classes, Supply};
use choose::{Hold, Refusal};

/// What to write for one Service, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    pub service: ServiceId,
    pub steps: Vec<Step>,
    /// Decide again when an address becomes free or a pool changes (A12).
    pub waiting: bool,
    /// Why something that the Service asks for is not given.
    pub problems: Vec<Problem>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Create the IPAllocation; fails if the address has one.
    Create(Allocation),
    /// Replace the IPAllocation as this snapshot has it; fails if it has changed since.
    Update(Allocation),
    /// Delete the IPAllocation as this snapshot has it.
    Delete(IpAddr),
    /// What the Service's status is to say, if it does not yet.
    Status(Status),
    /// Take our ingress and conditions away, if there are any (A20).
    ClearStatus,
}

/// `status.loadBalancer.ingress`, and condition `portolan.dev/IPAllocated`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    pub ingress: Vec<IngressIp>,
    pub allocated: bool,
    pub reason: &'static str,
    pub message: String,
}

/// Decides for some Services, those that are gone included; oldest first (A3). Times are seconds since the epoch.
pub fn services<'a>(
    snapshot: &Snapshot,
    supply: &Supply,
    classes: &Classes,
    touched: impl IntoIterator<Item = &'a ServiceId>,
    now: i64,
) -> Vec<Decision> {
    let recorded = &snapshot.allocations;
    let mut pass = Pass { supply, classes, recorded, taken: recorded.clone(), now };
    let touched: BTreeSet<&ServiceId> = touched.into_iter().collect();
    let (mut here, mut gone) = (Vec::new(), Vec::new());
    for id in touched {
        match snapshot.services.get(id) {
            Some(service) => here.push(service),
            None => gone.push(id),
        }
    }
    here.sort_by_key(|service| (service.created, &service.id));
    let released = gone.into_iter().map(|id| pass.release(id));
    let mut decisions: Vec<_> = released.collect();
    here.iter().for_each(|service| pass.adopt(service));
    decisions.extend(here.into_iter().map(|service| pass.decide(service)));
    decisions.retain(|decision| decision.waiting || !decision.steps.is_empty());
    decisions
}

/// Every Service there is, or was when its address was given out: what the first pass decides for (A3, A18).
pub fn everyone(snapshot: &Snapshot) -> BTreeSet<ServiceId> {
    snapshot.services.keys().chain(snapshot.allocations.services()).cloned().collect()
}

/// Addresses whose rest is over: their IPAllocations go (A18).
pub fn expired(snapshot: &Snapshot, supply: &Supply, now: i64) -> Vec<Decision> {
    let over = snapshot.allocations.quarantined().filter(|allocation| expiry(allocation, supply) <= now);
    let decision = |allocation: &Arc<Allocation>| Decision {
        service: allocation
            .owners
            .first()
            .map_or_else(|| ServiceId::new("", ""), |owner| owner.service.clone()),
        steps: vec![Step::Delete(allocation.address)],
        waiting: false,
        problems: Vec::new(),
    };
    over.map(decision).collect()
}

/// When the next address has rested long enough.
pub fn next_expiry(snapshot: &Snapshot, supply: &Supply) -> Option<i64> {
    snapshot.allocations.quarantined().map(|allocation| expiry(allocation, supply)).min()
}

/// An address that no pool has any more need not rest.
fn expiry(allocation: &Allocation, supply: &Supply) -> i64 {
    let delay = supply.named(&allocation.pool).map_or(0, |stock| stock.pool.reuse_delay.as_secs());
    allocation.since.saturating_add(i64::try_from(delay).unwrap_or(i64::MAX))
}

/// One round of decisions that know of each other.
struct Pass<'a> {
    supply: &'a Supply,
    classes: &'a Classes,
    recorded: &'a Allocations,
    /// What is recorded, and what this pass takes besides. What it releases stays taken until that is written.
    taken: Allocations,
    now: i64,
}

impl Pass<'_> {
    /// Before anything is given out, every address that a Service shows is its own (A3).
    fn adopt(&mut self, service: &Service) {
        if !self.classes.own(service) {
            return;
        }
        for family in choose::wanted(service) {
            if choose::held(self, service, family).is_none() {
                let shown = choose::shown(self, service, family);
                shown.into_iter().for_each(|hold| self.take(&hold, service));
            }
        }
    }

    fn take(&mut self, hold: &Hold, service: &Service) {
        self.taken.insert_mut(Arc::new(hold.allocation(self.now, service)));
    }

    fn decide(&mut self, service: &Service) -> Decision {
        if self.classes.own(service) {
            return self.allocate(service);
        }
        let mut decision = Decision::of(&service.id);
        if service.kind == ServiceType::LoadBalancer {
            // Another's: no write to it at all, and what it has of us stays its own (A1, A21).
            let stale = |a: &&Arc<Allocation>| {
                a.owners.iter().any(|o| o.service == service.id && o.uid != service.uid)
            };
            decision
                .steps
                .extend(self.bound(&service.id).filter(stale).map(|a| self.relinquish(a, &service.id)));
        } else {
            decision.steps.push(Step::ClearStatus); // A20
            decision.steps.extend(self.release(&service.id).steps);
        }
        decision
    }

    /// The Service is gone: its addresses rest (A18).
    fn release(&self, id: &ServiceId) -> Decision {
        Decision { steps: self.bound(id).map(|a| self.relinquish(a, id)).collect(), ..Decision::of(id) }
    }

    fn bound(&self, id: &ServiceId) -> impl Iterator<Item = &Arc<Allocation>> {
        self.taken.of(id).filter(|allocation| allocation.phase == AllocationPhase::Bound)
    }

    fn allocate(&mut self, service: &Service) -> Decision {
        let chosen = choose::families(self, service);
        let (mut holds, mut refusals) = (Vec::new(), Vec::new());
        for (hold, refusal) in chosen {
            holds.extend(hold);
            refusals.extend(refusal);
        }
        // RequireDualStack is all or nothing: for one family alone nothing is taken, and nothing more is shown (A10).
        let lacking = service.family_policy == FamilyPolicy::RequireDualStack
            && holds.len() < choose::wanted(service).len();
        holds.retain(|hold| !lacking || !hold.new);
        holds.iter().filter(|hold| hold.new).for_each(|hold| self.take(hold, service));
        let mut steps: Vec<Step> = holds.iter().filter_map(|hold| self.bind(hold.address)).collect();
        let is_shown = |hold: &&Hold| service.ingress.iter().any(|ingress| ingress.ip == hold.address);
        let shown: Vec<&Hold> = holds.iter().filter(|hold| !lacking || is_shown(hold)).collect();
        steps.push(Step::Status(self.status(service, &shown, &refusals)));
        steps.extend(self.surplus(service, &holds));
        let problems = refusals.iter().map(|refusal| refusal.problem(service)).collect();
        Decision { service: service.id.clone(), steps, waiting: !refusals.is_empty(), problems }
    }

    /// Records what was taken, if that is not recorded yet.
    fn bind(&self, address: IpAddr) -> Option<Step> {
        let taken = self.taken.get(&address)?;
        match self.recorded.get(&address) {
            None => Some(Step::Create((**taken).clone())),
            Some(recorded) => (recorded != taken).then(|| Step::Update((**taken).clone())),
        }
    }

    /// Addresses that the Service, or an earlier one of its name, holds and no longer needs (A11).
    fn surplus(&self, service: &Service, holds: &[Hold]) -> Vec<Step> {
        let kept = |address| holds.iter().any(|hold| hold.address == address);
        let surplus = self.bound(&service.id).filter(|allocation| !kept(allocation.address));
        surplus.map(|allocation| self.relinquish(allocation, &service.id)).collect()
    }

    /// An address without owners rests; the last one stays named, because it may come back for it (A19).
    fn relinquish(&self, allocation: &Allocation, id: &ServiceId) -> Step {
        let others: Vec<_> = allocation.owners.iter().filter(|owner| owner.service != *id).cloned().collect();
        if !others.is_empty() {
            return Step::Update(Allocation { owners: others, ..allocation.clone() });
        }
        let phase = AllocationPhase::Quarantined;
        Step::Update(Allocation { phase, since: self.now, ..allocation.clone() })
    }

    fn status(&self, service: &Service, holds: &[&Hold], refusals: &[Refusal]) -> Status {
        let ingress = holds.iter().map(|hold| IngressIp { ip: hold.address, mode: IpMode::Vip }).collect();
        let partial = !holds.is_empty() && service.family_policy == FamilyPolicy::PreferDualStack;
        let given = join(holds.iter().map(|hold| self.describe(hold)), " and ");
        let refused = join(refusals.iter().map(Refusal::to_string), "; ");
        match refusals.first() {
            None if service.families.is_empty() => Status {
                ingress,
                allocated: false,
                reason: "Pending",
                message: "spec.ipFamilies: is empty".into(),
            },
            None => {
                let outside = holds.iter().any(|hold| self.supply.of(hold.address).is_none());
                let reason = if outside { "OutsidePool" } else { "Allocated" }; // A22
                Status { ingress, allocated: true, reason, message: given }
            }
            Some(refusal) if partial && !refusal.of_request() => Status {
                ingress,
                allocated: true,
                reason: "Allocated",
                message: format!("{given}; {refused}"),
            },
            Some(refusal) => {
                let keeps = if holds.is_empty() { String::new() } else { format!("; keeps {given}") };
                Status { ingress, allocated: false, reason: refusal.reason, message: refused + &keeps }
            }
        }
    }

    fn describe(&self, hold: &Hold) -> String {
        match self.supply.of(hold.address) {
            Some(stock) => format!("{} of IPAddressPool {}", hold.address, stock.pool.name),
            None => format!("{}, which no IPAddressPool covers", hold.address),
        }
    }
}

impl Decision {
    fn of(id: &ServiceId) -> Decision {
        Decision { service: id.clone(), steps: Vec::new(), waiting: false, problems: Vec::new() }
    }
}

fn join(parts: impl Iterator<Item = String>, between: &str) -> String {
    parts.collect::<Vec<_>>().join(between)
}
