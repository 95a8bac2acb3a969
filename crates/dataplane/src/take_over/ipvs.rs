//! What kube-proxy's IPVS mode has beside its chains, and which of it is kube-proxy's (S74).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

/// The interface that the IPVS mode gives all VIPs to.
pub const DEVICE: &str = "kube-ipvs0";
/// The API server's default range. A server at a node's own address with another port may be anybody's.
const NODE_PORTS: RangeInclusive<u16> = 30000..=32767;
/// ipset's, without the NUL.
const LONGEST_SET_NAME: usize = 31;

/// kube-proxy's ipsets. Others begin with KUBE- too (kube-router's KUBE-SRC- and KUBE-DST-).
const SETS: [&str; 17] = [
    "KUBE-CLUSTER-IP",
    "KUBE-EXTERNAL-IP",
    "KUBE-EXTERNAL-IP-LOCAL",
    "KUBE-HEALTH-CHECK-NODE-PORT",
    "KUBE-IPVS-IPS",
    "KUBE-LOAD-BALANCER",
    "KUBE-LOAD-BALANCER-FW",
    "KUBE-LOAD-BALANCER-LOCAL",
    "KUBE-LOAD-BALANCER-SOURCE-CIDR",
    "KUBE-LOAD-BALANCER-SOURCE-IP",
    "KUBE-LOOP-BACK",
    "KUBE-NODE-PORT-LOCAL-SCTP-HASH",
    "KUBE-NODE-PORT-LOCAL-TCP",
    "KUBE-NODE-PORT-LOCAL-UDP",
    "KUBE-NODE-PORT-SCTP-HASH",
    "KUBE-NODE-PORT-TCP",
    "KUBE-NODE-PORT-UDP",
];

/// The node's addresses, as far as they tell whose a virtual server is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeAddresses {
    /// Of [`DEVICE`]; None without it.
    pub device: Option<BTreeSet<IpAddr>>,
    /// Of every other interface.
    pub own: BTreeSet<IpAddr>,
}

impl NodeAddresses {
    /// Whether a virtual server is kube-proxy's; `server` is None for one of a firewall mark, which kube-proxy never makes. Without
    /// the interface none is: it is the last that goes.
    pub fn is_kube_proxys(&self, server: Option<SocketAddr>) -> bool {
        let (Some(server), Some(device)) = (server, &self.device) else { return false };
        let is_node_port = self.own.contains(&server.ip()) && NODE_PORTS.contains(&server.port());
        device.contains(&server.ip()) || is_node_port
    }
}

/// Whether kube-proxy makes an ipset of this name, for IPv4 or (KUBE-6-, cut to the longest name) for IPv6.
pub fn is_kube_proxys_set(name: &str) -> bool {
    let is_v6 = |set: &&str| {
        let long = set.replacen("KUBE-", "KUBE-6-", 1);
        long.get(..LONGEST_SET_NAME).unwrap_or(&long) == name
    };
    SETS.contains(&name) || SETS.iter().any(is_v6)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(device: Option<&[&str]>) -> NodeAddresses {
        let set = |ips: &[&str]| ips.iter().map(|ip| ip.parse().unwrap()).collect();
        NodeAddresses { device: device.map(set), own: set(&["192.168.1.10", "127.0.0.1", "fd00::10"]) }
    }

    #[test]
    fn s74_which_virtual_servers_are_kube_proxys() {
        let vips = ["10.96.0.1", "203.0.113.9", "fd96::1"];
        for (server, expected) in [
            ("10.96.0.1:443", true),
            ("203.0.113.9:80", true),
            ("[fd96::1]:53", true),
            ("192.168.1.10:30000", true),
            ("127.0.0.1:32767", true),
            ("[fd00::10]:31000", true),
            // A keepalived's on the node's own address, and on another.
            ("192.168.1.10:443", false),
            ("192.168.1.10:29999", false),
            ("192.168.1.10:32768", false),
            ("192.168.1.77:30000", false),
            ("10.96.0.2:443", false),
        ] {
            let address = Some(server.parse().unwrap());
            assert_eq!(addresses(Some(&vips)).is_kube_proxys(address), expected, "{server}");
            assert!(!addresses(None).is_kube_proxys(address), "{server} without the interface");
        }
        assert!(!addresses(Some(&vips)).is_kube_proxys(None), "of a firewall mark");
    }

    #[test]
    fn s74_which_sets_are_kube_proxys() {
        for (name, expected) in [
            ("KUBE-LOOP-BACK", true),
            ("KUBE-6-LOOP-BACK", true),
            ("KUBE-6-LOAD-BALANCER-SOURCE-CID", true),
            ("KUBE-6-LOAD-BALANCER-SOURCE-CIDR", false),
            ("KUBE-6-NODE-PORT-LOCAL-SCTP-HAS", true),
            // kube-router's
            ("KUBE-SRC-ABCDEF", false),
            ("KUBE-6-", false),
            ("cali40all-ipam-pools", false),
        ] {
            assert_eq!(is_kube_proxys_set(name), expected, "{name}");
        }
    }
}
