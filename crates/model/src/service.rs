//! A Service with the EndpointSlices that belong to it, as one value.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::{Family, Labels, Name, Problem, ServiceId};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// The IANA protocol number, as `meta l4proto` and conntrack carry it.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ServiceType {
    ClusterIp,
    NodePort,
    LoadBalancer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TrafficPolicy {
    Cluster,
    Local,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FamilyPolicy {
    SingleStack,
    PreferDualStack,
    RequireDualStack,
}

/// `status.loadBalancer.ingress[].ipMode` (S23, S24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IpMode {
    Vip,
    Proxy,
}

/// One IP of `status.loadBalancer.ingress`; entries with only a host name are dropped at the door (S24).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IngressIp {
    pub ip: IpAddr,
    pub mode: IpMode,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServicePort {
    /// Empty for the unnamed single port (S1).
    pub name: Name,
    pub protocol: Protocol,
    pub port: u16,
    /// None where no node port was allocated (S26).
    pub node_port: Option<u16>,
}

/// A Service that the proxy serves: headless and ExternalName services never become one (S2), nor those
/// labelled for another proxy (S3).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub id: ServiceId,
    /// `metadata.uid`; empty only in offline input.
    pub uid: Name,
    /// `metadata.creationTimestamp` in seconds since the epoch; orders claims to one frontend or address.
    pub created: i64,
    pub labels: Labels,
    pub kind: ServiceType,
    /// At most one per family, in `spec.clusterIPs`' order.
    pub cluster_ips: Vec<IpAddr>,
    pub families: Vec<Family>,
    pub family_policy: FamilyPolicy,
    pub external_ips: Box<[IpAddr]>,
    pub ingress: Box<[IngressIp]>,
    pub ports: Vec<ServicePort>,
    pub internal_policy: TrafficPolicy,
    pub external_policy: TrafficPolicy,
    /// ClientIP session affinity's timeout (S41); None = no affinity.
    pub affinity: Option<Duration>,
    /// `spec.loadBalancerSourceRanges`; None when not given, which is not the same as an empty list (S27).
    pub source_ranges: Option<Vec<IpNet>>,
    pub health_check_node_port: Option<u16>,
    /// `spec.loadBalancerClass`.
    pub class: Option<Name>,
    /// Requested addresses: `portolan.dev/ips` (or metallb.io's) and `spec.loadBalancerIP`, as text that parsed.
    pub requested_ips: Box<[IpAddr]>,
    /// What is wrong with the request for addresses: it did not parse (RequestedIPInvalid), or says two things
    /// (RequestAmbiguous). Nothing is allocated until it is mended; what the Service holds, it keeps.
    pub request_problem: Option<Box<Problem>>,
    /// Requested pools in order of preference: `portolan.dev/pool`.
    pub requested_pools: Box<[Name]>,
    /// In order of slice name; one address may stand in several (S10).
    pub slices: Vec<Arc<EndpointSlice>>,
}

impl Service {
    /// As the API server completes one of type ClusterIP that names nothing else, but without an address: IPv4 alone, policy
    /// Cluster, no affinity.
    pub fn new(id: ServiceId) -> Service {
        Service {
            id,
            uid: "".into(),
            created: 0,
            labels: Labels::default(),
            kind: ServiceType::ClusterIp,
            cluster_ips: vec![],
            families: vec![Family::Ipv4],
            family_policy: FamilyPolicy::SingleStack,
            external_ips: [].into(),
            ingress: [].into(),
            ports: vec![],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity: None,
            source_ranges: None,
            health_check_node_port: None,
            class: None,
            requested_ips: [].into(),
            request_problem: None,
            requested_pools: [].into(),
            slices: vec![],
        }
    }

    /// The cluster IP of a family, if the Service has one: it does not exist in the other family (S6).
    pub fn cluster_ip(&self, family: Family) -> Option<IpAddr> {
        self.cluster_ips.iter().copied().find(|ip| Family::of(ip) == family)
    }
}

/// One EndpointSlice: every endpoint listens on every port (Kubernetes' `discovery/v1`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    pub name: Name,
    pub family: Family,
    /// (port name, protocol, number); ports without a number are dropped at the door (S8).
    pub ports: Vec<(Name, Protocol, u16)>,
    pub endpoints: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The first address of the Kubernetes endpoint (S7).
    pub address: IpAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    /// None = not local to any node (S11).
    pub node: Option<Name>,
    pub zone: Option<Name>,
    /// None where the endpoint has no hints at all (S35).
    pub hints: Option<Box<Hints>>,
}

/// For which clients an endpoint is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hints {
    /// `hints.forZones` (S34).
    pub zones: Option<Box<[Name]>>,
    /// `hints.forNodes` (S33).
    pub nodes: Option<Box<[Name]>>,
}

impl Endpoint {
    pub fn zone_hints(&self) -> Option<&[Name]> {
        self.hints.as_ref()?.zones.as_deref()
    }

    pub fn node_hints(&self) -> Option<&[Name]> {
        self.hints.as_ref()?.nodes.as_deref()
    }

    /// Takes new connections in the ordinary case (S9, S30).
    pub fn is_ready(&self) -> bool {
        self.ready
    }

    /// Takes new connections only when nothing is ready: the terminating fallback (S30, S31).
    pub fn is_fallback(&self) -> bool {
        self.serving && self.terminating
    }
}
