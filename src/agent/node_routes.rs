//! Routes to the pods of other nodes, and this node's own addresses, which they depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use anyhow::Context;
use ipnet::IpNet;
use tokio::sync::watch;

use crate::dataplane::addresses::{Addresses, NodeAddress};
use crate::dataplane::routes::{Routes, Step, diff, on_link};

/// Observes before each change: an interface that went down has taken its routes along.
pub struct NodeRoutes {
    routes: Routes,
    addresses: Addresses,
    changes: watch::Receiver<()>,
    current: Vec<NodeAddress>,
    /// Routes that were left out and said so already: their node is not on a subnet of ours.
    off_link: BTreeSet<IpNet>,
}

impl NodeRoutes {
    /// Of the network namespace that the caller is in.
    pub async fn open() -> anyhow::Result<NodeRoutes> {
        let routes = Routes::open().context("cannot open a route netlink socket")?;
        let addresses = Addresses::open().context("cannot open a route netlink socket")?;
        let (changes, current) = (addresses.changes(), addresses.read().await?);
        Ok(NodeRoutes { routes, addresses, changes, current, off_link: BTreeSet::new() })
    }

    /// Waits until the node's addresses or links change; fails when the kernel tells no more.
    pub async fn changed(&mut self) -> anyhow::Result<()> {
        self.changes.changed().await.context("the kernel's address notifications ended")
    }

    /// Reads the addresses again; after [`changed`](Self::changed).
    pub async fn refresh(&mut self) -> anyhow::Result<()> {
        self.current = self.addresses.read().await?;
        Ok(())
    }

    /// Addresses that others can reach this node at. Link-local ones come and go with every pod's interface, and no
    /// Service has one.
    pub fn addresses(&self) -> BTreeSet<IpAddr> {
        let current = self.current.iter().filter(|address| !address.host_scope);
        current.map(|address| address.address).filter(|ip| !is_link_local(ip)).collect()
    }

    /// Makes the kernel's routes of our protocol number those of `wanted` whose next hop is on a subnet of ours.
    pub async fn apply(&mut self, wanted: &BTreeMap<IpNet, IpAddr>) -> anyhow::Result<()> {
        let reachable = on_link(wanted, &self.current);
        self.say_off_link(wanted, &reachable);
        let steps = diff(&self.routes.observe().await?, &reachable);
        let failed = self.routes.apply(&steps).await;
        anyhow::ensure!(failed.is_empty(), "{}", sentences(&failed));
        Ok(())
    }

    fn say_off_link(&mut self, wanted: &BTreeMap<IpNet, IpAddr>, reachable: &BTreeMap<IpNet, IpAddr>) {
        let off_link: BTreeSet<IpNet> =
            wanted.keys().filter(|cidr| !reachable.contains_key(cidr)).copied().collect();
        for cidr in off_link.difference(&self.off_link) {
            let via = wanted[cidr].to_string();
            tracing::warn!(%cidr, via, "no route to another node's pods: the node is not on a subnet of this one");
        }
        self.off_link = off_link;
    }
}

fn sentences(failed: &[(Step, rtnetlink::Error)]) -> String {
    failed.iter().map(|(step, error)| format!("{step}: {error}")).collect::<Vec<_>>().join("; ")
}

fn is_link_local(ip: &IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
