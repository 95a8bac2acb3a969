//! What administrators wrote in our custom resources, parsed and validated (vips.md 2).

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use portolan_bgp::{Community, PeerAsn};

use crate::{Family, Name, ObjectId, ServiceId, SortedMap};

pub type Labels = SortedMap<Name, Name>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: Name,
    pub operator: Operator,
    pub values: Vec<Name>,
}

/// `metav1.LabelSelector`: every requirement must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(pub Vec<Requirement>);

impl LabelSelector {
    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.iter().all(|requirement| {
            let value = labels.get(&requirement.key);
            match requirement.operator {
                Operator::In => value.is_some_and(|v| requirement.values.contains(v)),
                Operator::NotIn => value.is_none_or(|v| !requirement.values.contains(v)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }

    /// A list of selectors matches when any of them does; an empty list matches everything (vips.md 2.0, 5).
    pub fn any(selectors: &[LabelSelector], labels: &Labels) -> bool {
        selectors.is_empty() || selectors.iter().any(|selector| selector.matches(labels))
    }
}

/// Inclusive; both ends of one family, first <= last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct IpRange {
    pub first: IpAddr,
    pub last: IpAddr,
}

impl IpRange {
    pub fn contains(&self, ip: &IpAddr) -> bool {
        Family::of(ip) == Family::of(&self.first) && self.first <= *ip && *ip <= self.last
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceAllocation {
    /// Lower wins; None = last (A7).
    pub priority: Option<u32>,
    pub namespaces: Vec<Name>,
    pub service_selectors: Vec<LabelSelector>,
}

/// IPAddressPool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pool {
    pub name: Name,
    pub labels: Labels,
    pub created: i64,
    /// As written: sorted within a family is not implied.
    pub addresses: Vec<IpRange>,
    pub exclude: Vec<IpRange>,
    pub auto_assign: bool,
    /// Leave out addresses that end in .0 or .255 (`avoid: Dot0Dot255`).
    pub avoid_dot0_dot255: bool,
    pub service_allocation: ServiceAllocation,
    pub reuse_delay: Duration,
    pub disabled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum AllocationPhase {
    /// Pre-created by an administrator, bound to no Service yet.
    Reserved,
    Bound,
    /// Its Service is gone; not given out before `since` + the pool's reuse delay (A18).
    Quarantined,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Owner {
    pub service: ServiceId,
    pub uid: Name,
}

/// IPAllocation: one address given to one Service; the only truth of allocation (vips.md 2.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    pub address: IpAddr,
    pub pool: Name,
    pub owners: Vec<Owner>,
    pub phase: AllocationPhase,
    /// When the phase was entered, in seconds since the epoch.
    pub since: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    LoadBalancerIp,
    ClusterIp,
    ExternalIp,
    ServiceCidr,
    PodCidr,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenNoEndpoints {
    Withdraw,
    Keep,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BgpAdvertisement {
    /// Names of peers; empty = all.
    pub peers: Vec<Name>,
    pub aggregation_length: u8,
    pub aggregation_length_v6: u8,
    pub local_pref: Option<u32>,
    pub med: Option<u32>,
    pub as_path_prepend: u8,
    pub communities: Vec<Community>,
    pub when_no_endpoints: WhenNoEndpoints,
}

impl Default for BgpAdvertisement {
    /// As the API server completes one that says nothing: to all peers, each address by itself.
    fn default() -> Self {
        BgpAdvertisement {
            peers: vec![],
            aggregation_length: 32,
            aggregation_length_v6: 128,
            local_pref: None,
            med: None,
            as_path_prepend: 0,
            communities: vec![],
            when_no_endpoints: WhenNoEndpoints::Withdraw,
        }
    }
}

/// Advertisement: what the user wants announced, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advertisement {
    pub name: Name,
    pub pools: Vec<Name>,
    pub pool_selectors: Vec<LabelSelector>,
    pub service_selectors: Vec<LabelSelector>,
    pub namespaces: Vec<Name>,
    pub node_selectors: Vec<LabelSelector>,
    pub sources: Vec<Source>,
    pub external_ip_cidrs: Vec<IpNet>,
    pub disabled: bool,
    pub bgp: Option<BgpAdvertisement>,
}

/// BGPPeer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    pub name: Name,
    pub labels: Labels,
    pub address: IpAddr,
    pub port: u16,
    pub peer_asn: PeerAsn,
    /// None = the agent's own (`bgp.asn`).
    pub my_asn: Option<u32>,
    pub passive: bool,
    pub source_address: Option<IpAddr>,
    pub hold_time: Duration,
    pub keepalive_time: Option<Duration>,
    pub connect_time: Duration,
    pub families: Vec<Family>,
    /// IP TTL of packets to an external peer; 1 unless the peer is routed (RFC 4271 says nothing; B23).
    pub multihop_ttl: u8,
    pub node_selectors: Vec<LabelSelector>,
}

impl Peer {
    pub fn object(&self) -> ObjectId {
        ObjectId::cluster("BGPPeer", self.name.clone())
    }
}
