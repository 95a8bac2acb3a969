//! The nouns of Portolan: what every other crate talks about, and nothing that talks.
//!
//! ```text
//!   index ──> Snapshot ──> plan ──> ServicePlan ──> dataplane ──> kernel
//!                 │                                     │
//!                 └──────> plan ──> routes per Peer <── frontends the kernel serves
//! ```
//!
//! Values only: no Kubernetes client types, no kernel words, no behaviour beyond small predicates that
//! more than one stage must answer alike (such as [`Endpoint::is_ready`]).

mod allocations;
mod cluster;
mod id;
mod plan;
mod policy;
mod problem;
mod service;
mod sorted;

pub use allocations::{Allocations, next, previous};
pub use cluster::{Detector, Map, Node, ServiceCidr, Set, Snapshot};
pub use id::{Family, Name, ObjectId, ServiceId};
pub use plan::{Action, Address, Backend, Balance, Forwarding, Frontend, Masquerade, Scheduler, ServicePlan};
pub use policy::{
    Advertisement, Allocation, AllocationPhase, BgpAdvertisement, IpRange, LabelSelector, Labels, Operator,
    Owner, Peer, Pool, Requirement, ServiceAllocation, Source, WhenNoEndpoints,
};
pub use problem::Problem;
pub use service::{
    Endpoint, EndpointSlice, FamilyPolicy, Hints, IngressIp, IpMode, Protocol, Service, ServicePort,
    ServiceType, TrafficPolicy,
};
pub use sorted::{SortedMap, SortedSet};
