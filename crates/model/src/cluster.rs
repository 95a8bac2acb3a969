use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::{Advertisement, Allocations, Family, Labels, Name, Peer, Pool, Service, ServiceId};

/// A persistent ordered map: cloning a [`Snapshot`] costs nothing, changing one entry costs O(log n).
pub type Map<K, V> = rpds::RedBlackTreeMapSync<K, V>;
pub type Set<K> = rpds::RedBlackTreeSetSync<K>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: Name,
    pub uid: Name,
    pub labels: Labels,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Name>,
    /// `status.addresses` of type InternalIP, in order.
    pub internal_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    /// `spec.podCIDRs`.
    pub pod_cidrs: Vec<IpNet>,
    /// Condition NetworkUnavailable is True (A50).
    pub network_unavailable: bool,
    /// It is being deleted, or the cluster autoscaler is about to (S59).
    pub leaving: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceCidr {
    pub name: Name,
    pub cidrs: Vec<IpNet>,
}

/// How pods are told from other clients (S48).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detector {
    /// By their addresses. A family without a range has no detection.
    Ranges(Vec<IpNet>),
    /// By the interface that they come in by: only pods of this node are told, of both families.
    Interface(Name),
    /// By how its name begins. Never empty.
    InterfacePrefix(Name),
}

/// No detection.
impl Default for Detector {
    fn default() -> Self {
        Detector::Ranges(Vec::new())
    }
}

impl Detector {
    /// Whether pods of this family are told from others at all.
    pub fn detects(&self, family: Family) -> bool {
        match self {
            Detector::Ranges(ranges) => ranges.iter().any(|range| Family::of(&range.addr()) == family),
            Detector::Interface(_) | Detector::InterfacePrefix(_) => true,
        }
    }
}

/// The typed, in-sync view of the cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub services: Map<ServiceId, Arc<Service>>,
    pub nodes: Map<Name, Arc<Node>>,
    pub service_cidrs: Map<Name, Arc<ServiceCidr>>,
    pub pools: Map<Name, Arc<Pool>>,
    pub advertisements: Map<Name, Arc<Advertisement>>,
    pub peers: Map<Name, Arc<Peer>>,
    pub allocations: Allocations,
}
