//! The controller's decisions, carried out on a snapshot instead of a cluster.

use std::sync::Arc;

use portolan_model::{Problem, Service, ServiceId, Snapshot};
use portolan_plan::allocate::{self, Decision, Status, Step};
use portolan_plan::{Classes, Supply};

/// What was decided, as lines for people, and what could not be given.
#[derive(Default)]
pub struct Made {
    pub lines: Vec<String>,
    pub problems: Vec<Problem>,
}

/// Gives every Service of the file its addresses, as the controller would at its start.
pub fn all(snapshot: &mut Snapshot, classes: &Classes) -> Made {
    let supply = Supply::new(snapshot);
    let everyone = allocate::everyone(snapshot);
    let mut made = Made { problems: supply.problems.clone(), ..Made::default() };
    for Decision { service, steps, problems, .. } in
        allocate::services(snapshot, &supply, classes, &everyone, 0)
    {
        made.problems.extend(problems);
        for step in steps {
            made.lines.extend(line(&service, &step));
            carry_out(snapshot, &service, step);
        }
    }
    made
}

fn carry_out(snapshot: &mut Snapshot, id: &ServiceId, step: Step) {
    match step {
        Step::Create(allocation) | Step::Update(allocation) => {
            snapshot.allocations.insert_mut(Arc::new(allocation))
        }
        Step::Delete(address) => drop(snapshot.allocations.remove_mut(&address)),
        Step::Status(Status { ingress, .. }) => {
            change(snapshot, id, |service| service.ingress = ingress.into())
        }
        Step::ClearStatus => change(snapshot, id, |service| service.ingress = Box::default()),
    }
}

fn change(snapshot: &mut Snapshot, id: &ServiceId, edit: impl FnOnce(&mut Service)) {
    let Some(service) = snapshot.services.get(id) else { return };
    let mut service = Service::clone(service);
    edit(&mut service);
    snapshot.services.insert_mut(id.clone(), Arc::new(service));
}

/// Only what is written to a Service; the allocation behind it follows from that.
fn line(id: &ServiceId, step: &Step) -> Option<String> {
    match step {
        Step::Status(status) => Some(format!("{id}: {}: {}", status.reason, status.message)),
        Step::Create(_) | Step::Update(_) | Step::Delete(_) | Step::ClearStatus => None,
    }
}
