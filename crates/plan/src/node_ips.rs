//! The addresses that a node is known by (S76), and settings that do not fit its families (S77).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use portolan_model::{Family, Node, ObjectId, Problem};

use crate::node_ports::Selector;

/// Of each family, the first that there is: `bind_address`, unless it is 0.0.0.0 or ::; the Node object's internal IPs; its external
/// IPs; the loopback address. In the order of the Node object, which begins with the family that is the node's own.
pub fn node_ips(bind_address: Option<IpAddr>, node: Option<&Node>) -> Vec<IpAddr> {
    let bound = bind_address.filter(|ip| !ip.is_unspecified());
    let of = |ips: &[IpAddr], family| -> Vec<IpAddr> {
        ips.iter().copied().filter(|ip| Family::of(ip) == family).collect()
    };
    let of_node = |family| match node {
        Some(node) => [&node.internal_ips, &node.external_ips]
            .map(|ips| of(ips, family))
            .into_iter()
            .find(|ips| !ips.is_empty()),
        None => None,
    };
    let ips = |family| match bound.filter(|ip| Family::of(ip) == family) {
        Some(ip) => vec![ip],
        None => of_node(family).unwrap_or_else(|| vec![loopback(family)]),
    };
    let mut families = Family::ALL;
    families.sort_by_key(|family| bound.map(|ip| Family::of(&ip)).or(own_family(node)) != Some(*family));
    families.into_iter().flat_map(ips).collect()
}

fn own_family(node: Option<&Node>) -> Option<Family> {
    node?.internal_ips.iter().chain(&node?.external_ips).next().map(Family::of)
}

fn loopback(family: Family) -> IpAddr {
    match family {
        Family::Ipv4 => Ipv4Addr::LOCALHOST.into(),
        Family::Ipv6 => Ipv6Addr::LOCALHOST.into(),
    }
}

/// What of the configuration a node's families are compared with.
#[derive(Clone, Copy, Debug)]
pub struct Given<'a> {
    /// None where they are not what pods are told by.
    pub cluster_cidrs: Option<&'a [IpNet]>,
    /// Pods are told by the Node's podCIDRs.
    pub by_node_cidr: bool,
    pub node_port_addresses: &'a [Selector],
}

/// Settings that say nothing of the family of `node_ips`' first address, which is the node's own (S77). Each holds for the other
/// family as it is said.
pub fn mismatches(node: &Node, node_ips: &[IpAddr], given: Given) -> Vec<Problem> {
    let Some(own) = node_ips.first().filter(|ip| !ip.is_loopback()) else { return Vec::new() };
    let family = Family::of(own);
    let lacks = |nets: &[IpNet]| nets.iter().all(|net| Family::of(&net.addr()) != family);
    let untold =
        format!("pods of that family are not told from other clients on this node, whose address is {own}");
    let mut found = Vec::new();
    let mut add = |field: &str, message: String| {
        let (object, field) = (ObjectId::cluster("Node", node.name.clone()), field.into());
        found.push(Problem { object, field, reason: "FamilyMismatch", message });
    };
    if given.cluster_cidrs.is_some_and(|ranges| !ranges.is_empty() && lacks(ranges)) {
        add("proxy.clusterCIDRs (configuration)", format!("no range is {family}: {untold}"));
    }
    if given.by_node_cidr && lacks(&node.pod_cidrs) {
        let what =
            if node.pod_cidrs.is_empty() { "there are none yet".into() } else { format!("none is {family}") };
        add("spec.podCIDRs", format!("detectLocalMode is NodeCIDR, and {what}: {untold}"));
    }
    let is_other =
        |selector: &Selector| matches!(selector, Selector::Within(net) if Family::of(&net.addr()) != family);
    if !given.node_port_addresses.is_empty() && given.node_port_addresses.iter().all(is_other) {
        let message =
            format!("no range is {family}: node ports answer at every {family} address of this node");
        add("proxy.nodePortAddresses (configuration)", message);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ip, node};

    fn with(internal: &str, external: &str) -> Node {
        let ips = |text: &str| text.split_whitespace().map(ip).collect();
        Node { internal_ips: ips(internal), external_ips: ips(external), ..node("n1", 1) }
    }

    #[test]
    fn s76_bind_address_then_the_node_object_then_loopback() {
        let check = |bind: &str, node: Option<&Node>, expected: &str| {
            let found = node_ips((!bind.is_empty()).then(|| ip(bind)), node);
            let found: Vec<String> = found.iter().map(IpAddr::to_string).collect();
            assert_eq!(found.join(" "), expected, "{bind:?}");
        };
        let both = with("172.18.0.2 172.19.0.2 fd18::2", "192.0.2.1");
        check("", None, "127.0.0.1 ::1");
        check("0.0.0.0", Some(&both), "172.18.0.2 172.19.0.2 fd18::2");
        check("10.0.0.7", Some(&both), "10.0.0.7 fd18::2");
        check("::", Some(&both), "172.18.0.2 172.19.0.2 fd18::2");
        check("fd00::7", Some(&both), "fd00::7 172.18.0.2 172.19.0.2");
        check("10.0.0.7", None, "10.0.0.7 ::1");
        check("", Some(&with("fd18::2", "192.0.2.1")), "fd18::2 192.0.2.1");
        check("", Some(&with("fd18::2", "")), "fd18::2 127.0.0.1");
    }

    fn fields(node: &Node, cidrs: Option<&str>, selectors: &str) -> Vec<String> {
        let cidrs: Option<Vec<IpNet>> =
            cidrs.map(|text| text.split_whitespace().map(|cidr| cidr.parse().unwrap()).collect());
        let selectors: Vec<Selector> =
            selectors.split_whitespace().map(|text| text.parse().unwrap()).collect();
        let given = Given {
            cluster_cidrs: cidrs.as_deref(),
            by_node_cidr: cidrs.is_none(),
            node_port_addresses: &selectors,
        };
        let found = mismatches(node, &node_ips(None, Some(node)), given);
        found.iter().map(|problem| problem.field.split(' ').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn s77_settings_of_another_family_are_named() {
        let node = with("172.18.0.2 fd18::2", "");
        assert!(fields(&node, Some("10.1.0.0/16"), "primary").is_empty());
        assert!(fields(&node, Some("fd01::/48 10.1.0.0/16"), "").is_empty());
        assert!(fields(&node, Some(""), "172.18.0.0/16").is_empty(), "no range: no detection is asked for");
        assert!(fields(&node, None, "fd18::/16 primary").is_empty());
        assert_eq!(fields(&node, Some("fd01::/48"), "primary"), ["proxy.clusterCIDRs"]);
        assert_eq!(fields(&node, None, "fd18::/16"), ["proxy.nodePortAddresses"]);
        assert_eq!(fields(&with("fd18::2", ""), None, "primary"), ["spec.podCIDRs"]);
        let without = Node { pod_cidrs: vec![], ..node };
        let found = mismatches(
            &without,
            &[ip("172.18.0.2")],
            Given { cluster_cidrs: None, by_node_cidr: true, node_port_addresses: &[] },
        );
        assert_eq!(
            found[0].to_string(),
            "Node n1: spec.podCIDRs: detectLocalMode is NodeCIDR, and there are none yet: pods of that family are not told \
             from other clients on this node, whose address is 172.18.0.2"
        );
        assert!(
            mismatches(
                &without,
                &[ip("127.0.0.1")],
                Given { cluster_cidrs: None, by_node_cidr: true, node_port_addresses: &[] }
            )
            .is_empty()
        );
    }
}
