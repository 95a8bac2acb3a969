//! Routes to the pods of other nodes (`nodeRoutes: api`).

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Family, Name, Node, Snapshot};

/// The podCIDRs of every other node, each by that node's first InternalIP of the CIDR's family. A node without one
/// cannot be reached in that family and has no route; of two nodes that claim one CIDR the first by name has it.
pub fn to_nodes(snapshot: &Snapshot, me: &Name) -> BTreeMap<IpNet, IpAddr> {
    let mut routes = BTreeMap::new();
    for node in snapshot.nodes.values().filter(|node| node.name != *me) {
        for cidr in &node.pod_cidrs {
            if let Some(gateway) = internal_ip(node, Family::of(&cidr.addr())) {
                routes.entry(cidr.trunc()).or_insert(gateway);
            }
        }
    }
    routes
}

fn internal_ip(node: &Node, family: Family) -> Option<IpAddr> {
    node.internal_ips.iter().copied().find(|ip| Family::of(ip) == family)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use expect_test::expect;

    use super::*;
    use crate::fixture::*;

    #[test]
    fn each_family_by_its_own_address() {
        let mut dual = node("n3", 3);
        dual.pod_cidrs.push("fd00:3::/64".parse().unwrap());
        let mut both = node("n4", 4);
        both.pod_cidrs.push("fd00:4::/64".parse().unwrap());
        both.internal_ips.push(ip("fd18::4"));
        let mut snapshot = Snapshot::default();
        for node in [node("n1", 1), dual, both] {
            snapshot.nodes.insert_mut(node.name.clone(), Arc::new(node));
        }
        let routes = to_nodes(&snapshot, &"n1".into());
        let lines: String = routes.iter().map(|(to, by)| format!("{to} via {by}\n")).collect();
        expect![[r#"
            10.1.3.0/24 via 172.18.0.3
            10.1.4.0/24 via 172.18.0.4
            fd00:4::/64 via fd18::4
        "#]]
        .assert_eq(&lines);
    }
}
