//! The BGP sessions that a node holds.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use portolan_bgp::{PeerAsn, PeerConfig, PeerName};
use portolan_model::{Family, LabelSelector, Name, Node, Peer, Problem, Snapshot};

/// The sessions of node `me`; `asn` is the agent's own AS number (`bgp.asn`), for peers that give none. A peer that
/// cannot be used is left out and reported; a node that is gone has no session (A54).
pub fn selected(
    snapshot: &Snapshot,
    me: &Name,
    asn: Option<u32>,
) -> (BTreeMap<PeerName, PeerConfig>, Vec<Problem>) {
    let (mut configs, mut problems) = (BTreeMap::new(), Vec::new());
    let mut taken = BTreeSet::new();
    let Some(node) = snapshot.nodes.get(me) else { return (configs, problems) };
    for peer in snapshot.peers.values() {
        if !LabelSelector::any(&peer.node_selectors, &node.labels) {
            continue;
        }
        match config(peer, node, asn) {
            // An incoming connection tells its peer by the address alone.
            Ok(config) if !taken.insert(config.remote.ip()) => problems.push(same_address(peer, &config)),
            Ok(config) => drop(configs.insert(peer.name.clone(), config)),
            Err(problem) => problems.push(problem),
        }
    }
    (configs, problems)
}

/// Peers that no node can have a session with.
pub fn problems(snapshot: &Snapshot, asn: Option<u32>) -> Vec<Problem> {
    snapshot.peers.values().filter(|peer| peer.my_asn.or(asn).is_none()).map(|peer| no_asn(peer)).collect()
}

/// The node's first IPv4 InternalIP, else a number that its name alone decides (RFC 6286 allows any but zero).
pub fn router_id(node: &Node) -> Ipv4Addr {
    let hash = u32::try_from(fnv1a(&node.name) >> 32).unwrap_or(1).max(1);
    internal_v4(node).unwrap_or(Ipv4Addr::from_bits(hash))
}

fn config(peer: &Peer, node: &Node, asn: Option<u32>) -> Result<PeerConfig, Problem> {
    let local_asn = peer.my_asn.or(asn).ok_or_else(|| no_asn(peer))?;
    let remote = SocketAddr::new(peer.address, peer.port);
    Ok(PeerConfig {
        passive: peer.passive,
        hold_time: peer.hold_time,
        keepalive: peer.keepalive_time,
        connect_time: peer.connect_time,
        families: peer.families.iter().map(family).collect(),
        source: peer.source_address,
        ttl: is_external(peer.peer_asn, local_asn).then_some(peer.multihop_ttl),
        local_v4: internal_v4(node),
        local_v6: node.internal_ips.iter().find_map(|ip| match ip {
            IpAddr::V6(ip) => Some(*ip),
            IpAddr::V4(_) => None,
        }),
        seed: fnv1a(&format!("{}/{}", node.name, peer.name)),
        ..PeerConfig::new(peer.name.clone(), remote, local_asn, peer.peer_asn, router_id(node))
    })
}

/// Packets to peers of our own AS keep the system's TTL: they may be far away.
fn is_external(peer: PeerAsn, local_asn: u32) -> bool {
    match peer {
        PeerAsn::Number(asn) => asn != local_asn,
        PeerAsn::External | PeerAsn::Any => true,
        PeerAsn::Internal => false,
    }
}

fn family(family: &Family) -> portolan_bgp::Family {
    match family {
        Family::Ipv4 => portolan_bgp::Family::Ipv4Unicast,
        Family::Ipv6 => portolan_bgp::Family::Ipv6Unicast,
    }
}

fn internal_v4(node: &Node) -> Option<Ipv4Addr> {
    node.internal_ips.iter().find_map(|ip| match ip {
        IpAddr::V4(ip) => Some(*ip),
        IpAddr::V6(_) => None,
    })
}

fn no_asn(peer: &Peer) -> Problem {
    Problem {
        object: peer.object(),
        field: "spec.myASN".into(),
        reason: "NoASN",
        message: "is not given, and neither is bgp.asn in the agent's configuration".into(),
    }
}

fn same_address(peer: &Peer, config: &PeerConfig) -> Problem {
    Problem {
        object: peer.object(),
        field: "spec.peerAddress".into(),
        reason: "Conflict",
        message: format!("{} is also another BGPPeer's of the same node", config.remote.ip()),
    }
}

/// FNV-1a, 64 bits: the same on every node and in every version.
fn fnv1a(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use expect_test::{Expect, expect};

    use super::*;
    use crate::fixture::*;

    fn check(peers: Vec<Peer>, asn: Option<u32>, expect: Expect) {
        let mut snapshot = Snapshot::default();
        snapshot.nodes.insert_mut("n1".into(), Arc::new(node("n1", 2)));
        peers.into_iter().for_each(|peer| snapshot.peers.insert_mut(peer.name.clone(), Arc::new(peer)));
        let (configs, problems) = selected(&snapshot, &"n1".into(), asn);
        let config = |c: &PeerConfig| {
            let ttl = c.ttl.map_or("default".into(), |ttl| ttl.to_string());
            format!(
                "{} {} as {} of {}, id {}, ttl {ttl}\n",
                c.name, c.remote, c.local_asn, c.peer_asn, c.router_id
            )
        };
        let mut out: String = configs.values().map(config).collect();
        problems.iter().for_each(|problem| out += &format!("{problem}\n"));
        expect.assert_eq(&out);
    }

    #[test]
    fn peers_without_any_as_number_are_named() {
        let own = Peer { my_asn: Some(65001), ..peer("b") };
        check(
            vec![peer("a"), own],
            None,
            expect![[r#"
            b 172.18.0.254:179 as 65001 of 64500, id 172.18.0.2, ttl 1
            BGPPeer a: spec.myASN: is not given, and neither is bgp.asn in the agent's configuration
        "#]],
        );
    }

    #[test]
    fn internal_peers_keep_the_systems_ttl() {
        let internal = Peer { peer_asn: PeerAsn::Number(64512), ..peer("a") };
        let far = Peer { multihop_ttl: 4, address: ip("203.0.113.1"), ..peer("b") };
        check(
            vec![internal, far],
            Some(64512),
            expect![[r#"
            a 172.18.0.254:179 as 64512 of 64512, id 172.18.0.2, ttl default
            b 203.0.113.1:179 as 64512 of 64500, id 172.18.0.2, ttl 4
        "#]],
        );
    }

    #[test]
    fn node_selectors_and_conflicting_addresses() {
        let elsewhere = Peer { node_selectors: vec![selector("rack=2")], ..peer("a") };
        let here = Peer { node_selectors: vec![selector("kubernetes.io/hostname=n1")], ..peer("b") };
        check(
            vec![elsewhere, here, peer("c")],
            Some(64512),
            expect![[r#"
            b 172.18.0.254:179 as 64512 of 64500, id 172.18.0.2, ttl 1
            BGPPeer c: spec.peerAddress: 172.18.0.254 is also another BGPPeer's of the same node
        "#]],
        );
    }

    #[test]
    fn a_node_without_ipv4_still_has_a_router_id() {
        let v6 = Node { internal_ips: vec![ip("fd00::1")], ..node("n1", 2) };
        assert_eq!(router_id(&v6), router_id(&v6.clone()));
        assert_ne!(router_id(&v6), router_id(&Node { name: "n2".into(), ..v6.clone() }));
        assert!(!router_id(&v6).is_unspecified());
    }

    #[test]
    fn times_are_copied() {
        let mut snapshot = Snapshot::default();
        snapshot.nodes.insert_mut("n1".into(), Arc::new(node("n1", 2)));
        let hold_time = Duration::from_secs(9);
        snapshot.peers.insert_mut("a".into(), Arc::new(Peer { hold_time, ..peer("a") }));
        let (configs, _) = selected(&snapshot, &"n1".into(), Some(1));
        assert_eq!(configs["a"].hold_time, hold_time);
    }
}
