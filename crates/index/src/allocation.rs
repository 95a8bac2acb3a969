//! IPAllocations (vips.md 2.6).

use std::sync::Arc;

use portolan_api as api;
use portolan_model::{Allocation, AllocationPhase, Owner, ServiceId};

use crate::change::Value;
use crate::policy::{Checks, whole};
use crate::service::created;
use crate::{Key, Kind, Object};

impl From<api::IPAllocation> for Object {
    fn from(allocation: api::IPAllocation) -> Object {
        whole(Kind::Allocation, Key::of(&allocation.metadata), |key, check| {
            match parse(&allocation, key, check) {
                Some(allocation) => Value::Allocation(Arc::new(allocation)),
                None => Value::Invalid,
            }
        })
        .seen_as(&allocation.metadata, Vec::new())
    }
}

fn parse(allocation: &api::IPAllocation, key: &Key, check: &mut Checks) -> Option<Allocation> {
    let spec = &allocation.spec;
    let address = check.address("spec.address", &spec.address)?;
    // Two names for one address would undo the compare-and-swap that creation is.
    let name = api::allocation_name(address);
    if *key.name != name {
        check.wrong("metadata.name", format!("the allocation of {address} must be named {name}"));
    }
    let owner = |owner: &api::Owner| Owner {
        service: ServiceId::new(owner.namespace.as_str(), owner.name.as_str()),
        uid: owner.uid.as_str().into(),
    };
    let status = allocation.status.clone().unwrap_or_default();
    Some(Allocation {
        address,
        pool: spec.pool.as_str().into(),
        owners: spec.owners.iter().map(owner).collect(),
        phase: match status.phase {
            Some(api::AllocationPhase::Reserved) => AllocationPhase::Reserved,
            Some(api::AllocationPhase::Bound) => AllocationPhase::Bound,
            Some(api::AllocationPhase::Quarantined) => AllocationPhase::Quarantined,
            None if spec.owners.is_empty() => AllocationPhase::Reserved,
            None => AllocationPhase::Bound,
        },
        since: status.since.map_or_else(|| created(&allocation.metadata), |time| time.0.as_second()),
    })
}
