//! The waist: what a node must do with packets, said once for every backend.
//!
//! All Kubernetes policy (traffic policies, readiness, terminating fallback, topology) is decided above these
//! types, and no backend decides any of it again.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::{Family, Protocol, SortedMap, SortedSet};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A service address: ClusterIP, external IP or load-balancer IP.
    Vip(IpAddr),
    /// Every node address that serves node ports, of one family (S19, S20).
    NodePort(Family),
}

/// What clients hit: (VIP or NodePort, protocol, port).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Frontend {
    pub address: Address,
    pub protocol: Protocol,
    pub port: u16,
}

impl Frontend {
    pub fn family(&self) -> Family {
        match &self.address {
            Address::Vip(ip) => Family::of(ip),
            Address::NodePort(family) => *family,
        }
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Address::Vip(ip) => write!(f, "{}/{}", SocketAddr::new(ip, self.port), self.protocol),
            Address::NodePort(family) => write!(f, "{family} NodePort {}/{}", self.port, self.protocol),
        }
    }
}

/// (address, port) this node may send to, after all policy.
pub type Backend = SocketAddr;

/// Which sources are masqueraded when a connection is balanced (S16, S43–S45).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Masquerade {
    Never,
    /// Sources that the local detector does not recognise as pods (S16). The same as `Never` without a detector.
    NonPods,
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scheduler {
    /// Uniform per connection (S40).
    Random,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Balance {
    /// Never empty; sorted, no duplicates, all of the frontend's family. Shared among the frontends of one port.
    pub backends: Arc<[Backend]>,
    /// ClientIP affinity timeout (S41).
    pub affinity: Option<Duration>,
    pub masquerade: Masquerade,
    pub scheduler: Scheduler,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    Balance(Balance),
    /// No usable endpoint anywhere: an ICMP error or a TCP reset (S38).
    Reject,
    /// Policy Local and none here, but some elsewhere: silence, so that clients retry elsewhere (S39).
    Drop,
}

/// What happens to a new connection to a frontend, by where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Forwarding {
    /// Sources that the local detector recognises as pods, and this node itself (S45).
    pub from_cluster: Action,
    /// Everyone else; equal to `from_cluster` except under externalTrafficPolicy Local.
    pub from_outside: Action,
    /// When given, sources outside these ranges are dropped before anything else (S27).
    pub allowed_sources: Option<Arc<[IpNet]>>,
}

/// Everything one node does for one Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicePlan {
    pub frontends: SortedMap<Frontend, Forwarding>,
    /// VIPs whose other ports are refused (S17): ClusterIPs and load-balancer IPs. Never a node's own address (S28).
    pub vips: SortedSet<IpAddr>,
    /// This node's own backends: a pod that reaches itself through the Service is masqueraded (S46).
    pub hairpin: SortedSet<IpAddr>,
}

impl ServicePlan {
    /// The service addresses of its frontends, each as often as it has ports.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.frontends.keys().filter_map(|frontend| match frontend.address {
            Address::Vip(ip) => Some(ip),
            Address::NodePort(_) => None,
        })
    }
}
