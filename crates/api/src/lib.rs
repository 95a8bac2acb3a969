//! Portolan's public contract: the custom resources of `portolan.dev/v1alpha1`, and the names that Services carry.
//!
//! ```text
//!   written by people:   IPAddressPool   Advertisement   BGPPeer
//!   written by us:       IPAllocation (controller)       NodeStatus (each node's agent)
//!   on Services:         annotations (requests)          conditions (answers)
//! ```
//!
//! Every kind is cluster-scoped. Everything that one object alone can say wrong is refused by the API server (schema
//! and CEL, Kubernetes >= 1.31, no webhooks); what needs a second object becomes a condition. Lists and strings are
//! bounded because CEL has a cost budget. Fields bear MetalLB's names where they mean the same (vips.md 2.0).
//!
//! This crate knows the shapes only: `index` gives them meaning.

#![allow(
    clippy::duplicated_attributes,
    reason = "it takes the printer columns of one kind for one attribute"
)]

mod advertisement;
mod allocation;
pub mod conditions;
mod node_status;
mod peer;
mod pool;
mod schema;
pub mod service;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::core::CustomResourceExt;

pub use advertisement::{
    Advertisement, AdvertisementSpec, AdvertisementStatus, BgpAdvertisement, Source, WELL_KNOWN_COMMUNITIES,
    WhenNoEndpoints,
};
pub use allocation::{
    AllocationPhase, IPAllocation, IPAllocationSpec, IPAllocationStatus, Owner, allocation_name,
};
pub use node_status::{
    Agent, BgpStatus, Dataplane, DataplaneMode, NodeStatus, NodeStatusFields, NodeStatusSpec, Routes,
    Session, SessionError, SessionState, Vips, Withheld,
};
pub use peer::{AsnRelation, BGPPeer, BGPPeerSpec, BGPPeerStatus, Family, PeerAsn, Sessions};
pub use pool::{Avoid, FamilyUse, IPAddressPool, IPAddressPoolSpec, IPAddressPoolStatus, ServiceAllocation};

/// The API group of every kind.
pub const GROUP: &str = "portolan.dev";

/// Every custom resource definition, in the order in which they are printed and installed.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        IPAddressPool::crd(),
        Advertisement::crd(),
        BGPPeer::crd(),
        one_write(IPAllocation::crd()),
        one_write(NodeStatus::crd()),
    ]
}

/// Without a status subresource: these kinds have a single writer, which says everything in one request (for an
/// IPAllocation that request is the compare-and-swap of A5).
fn one_write(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        version.subresources = None;
    }
    crd
}

fn is_false(value: &bool) -> bool {
    !value
}
