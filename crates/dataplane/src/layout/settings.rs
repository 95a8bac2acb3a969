use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Detector, Family};

/// The node's facts that the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How pods are told from outside clients (S48).
    pub pods: Detector,
    /// The node's addresses that answer node ports (S20), of both families. At loopback addresses among them TCP is left to a
    /// relay and the rest is refused (S22).
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// The cluster's ranges of ClusterIPs: what of them is nobody's goes nowhere (S18).
    pub service_cidrs: Vec<IpNet>,
    /// The bit that says "masquerade" between our chains (S47).
    pub mark: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            pods: Detector::default(),
            node_port_addresses: BTreeSet::new(),
            service_cidrs: Vec::new(),
            mark: 0x4000,
        }
    }
}

/// Sorted and without overlaps, so that the order in which they were given changes nothing.
pub fn of_family(nets: &[IpNet], family: Family) -> Vec<IpNet> {
    let own = nets.iter().filter(|net| Family::of(&net.addr()) == family);
    IpNet::aggregate(&own.map(IpNet::trunc).collect())
}
