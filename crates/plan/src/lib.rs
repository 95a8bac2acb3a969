//! Every decision Portolan takes, as functions from a snapshot of the cluster to plain values.
//!
//! ```text
//!   Service + NodeView ──> service::plan ──────> ServicePlan        what this node does with packets
//!   Service + Context  ──> advertise::service ─> Announcements ┐
//!   Node, ServiceCIDRs ──> advertise::node ────> Announcements ┴──> advertise::merge ──> routes per peer
//!   Peers + Node       ──> peers::selected ────> sessions to hold
//!   Service + what runs ──> flows::Flows ──────> Stale              tracked connections to delete
//!   Service + NodeView ──> health::Ports ──────> what each healthCheckNodePort answers
//!   Node, bindAddress ──> node_ips::node_ips ──> addresses that the node is known by
//!   nodePortAddresses  ──> node_ports::addresses ─> addresses that answer node ports
//!   ServicePlan        ──> localhost::Listeners ─> relays of node ports on loopback addresses
//!   Problems           ──> complaints::Complaints ─> what is to be said of them, once
//!   Nodes              ──> routes::to_nodes ───> podCIDR routes
//!   Snapshot + Supply  ──> allocate::services ──> Decisions          what the leader writes
//! ```
//!
//! Nothing here fails, waits or remembers: wrong input gives a smaller plan and a [`portolan_model::Problem`].
//! Readiness and traffic policies are decided in [`endpoints`] alone, so that forwarding and announcing agree (A38).

pub mod advertise;
pub mod allocate;
mod classes;
pub mod complaints;
pub mod endpoints;
pub mod flows;
pub mod health;
pub mod linger;
pub mod localhost;
pub mod node_ips;
pub mod node_ports;
pub mod peers;
mod ranges;
pub mod routes;
pub mod service;
pub mod supply;

#[cfg(test)]
mod fixture;
#[cfg(test)]
mod properties;

pub use classes::Classes;
pub use service::NodeView;
pub use supply::Supply;
