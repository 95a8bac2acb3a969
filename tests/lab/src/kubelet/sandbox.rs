//! A pod's network: one namespace, one veth to the node's bridge, one address of each family.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::netns::{self, Namespace};
use crate::topology::Pair;

/// The pod addresses of one node. The first host address is the bridge's own.
#[derive(Clone, Copy, Debug)]
pub struct PodRange {
    v4: Ipv4Net,
    v6: Ipv6Net,
}

impl PodRange {
    /// Needs one range of each family.
    pub fn parse(cidrs: &[String]) -> anyhow::Result<PodRange> {
        let (mut v4, mut v6) = (None, None);
        for cidr in cidrs {
            match cidr.parse().with_context(|| cidr.clone())? {
                IpNet::V4(net) => v4 = Some(net),
                IpNet::V6(net) => v6 = Some(net),
            }
        }
        let (Some(v4), Some(v6)) = (v4, v6) else { bail!("not one range of each family") };
        Ok(PodRange { v4, v6 })
    }

    fn host(&self, host: u8) -> Pair {
        let v4 = Ipv4Addr::from_bits(self.v4.network().to_bits() + u32::from(host));
        let v6 = Ipv6Addr::from_bits(self.v6.network().to_bits() + u128::from(host));
        Pair { v4, v6 }
    }
}

/// The pod network of one node.
#[derive(Debug)]
pub struct Network {
    prefix: String,
    pub node: Namespace,
    range: PodRange,
    last_host: u8,
}

/// One pod's namespace. Its veth goes with it.
#[derive(Debug)]
pub struct Sandbox {
    pub ns: Namespace,
    pub address: Pair,
    host: u8,
}

const BRIDGE: u8 = 1;
const LINK_PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(20);
const HOSTS: std::ops::RangeInclusive<u8> = 2..=254;

impl Network {
    pub fn new(prefix: &str, node: Namespace, range: PodRange) -> Network {
        Network { prefix: prefix.into(), node, range, last_host: BRIDGE }
    }

    pub async fn make_bridge(&self) -> anyhow::Result<()> {
        let addresses = self.addresses(self.range.host(BRIDGE), "cbr0");
        self.node.ip(&format!("link add cbr0 type bridge\n{addresses}link set cbr0 up\n")).await
    }

    /// Makes the namespace of a pod; `used` are the hosts that are taken.
    pub async fn add(&mut self, namespace: &str, pod: &str, used: &[u8]) -> anyhow::Result<Sandbox> {
        let host = self.free_host(used).context("no free pod address on this node")?;
        let name = format!("{}-pod.{namespace}.{pod}", self.prefix);
        let (veth, node) = (format!("pod{host}"), self.node.name());
        netns::ip(&format!(
            "netns add {name}\nlink add {veth} netns {node} type veth peer name eth0 netns {name}\n"
        ))
        .await?;
        // As CNI's hairpinMode: a pod that reaches itself through a Service leaves by the port it came from.
        let port = format!("link set {veth} master cbr0 up\nlink set {veth} type bridge_slave hairpin on\n");
        self.node.ip(&port).await?;
        let ns = Namespace::open(&name)?;
        let (address, gateway) = (self.range.host(host), self.range.host(BRIDGE));
        let addresses = self.addresses(address, "eth0");
        ns.ip(&format!(
            "link set lo up\n{addresses}link set eth0 up\nroute add default via {}\nroute add default via {}\n",
            gateway.v4, gateway.v6
        ))
        .await?;
        self.forwards(&veth, &ns).await?;
        Ok(Sandbox { ns, address, host })
    }

    /// Waits, as the CNI plugin `bridge` does, until frames pass both ways: that is some time after both ends of the veth are
    /// up, and an ARP request that comes before is asked again a whole second later.
    async fn forwards(&self, veth: &str, pod: &Namespace) -> anyhow::Result<()> {
        let checks = [
            (&self.node, veth, "state forwarding"),
            // Without a port that forwards, the bridge is down itself.
            (&self.node, "cbr0", "state UP"),
            (pod, "eth0", "state UP"),
        ];
        for (ns, device, wanted) in checks {
            link_is(ns, device, wanted).await?;
        }
        Ok(())
    }

    /// Removes a pod's veth at once, and its namespace, which lives on unseen until the last socket in it is closed.
    pub async fn remove(&self, sandbox: Sandbox) -> anyhow::Result<()> {
        self.node.ip(&format!("link del pod{}\n", sandbox.host)).await?;
        netns::ip(&format!("netns del {}\n", sandbox.ns.name())).await
    }

    /// Addresses go round, as with the CNI plugin `host-local`: one that was just given back is not given out at once.
    fn free_host(&mut self, used: &[u8]) -> Option<u8> {
        let after = HOSTS.filter(|host| *host > self.last_host);
        let host = after.chain(HOSTS).find(|host| !used.contains(host))?;
        self.last_host = host;
        Some(host)
    }

    fn addresses(&self, Pair { v4, v6 }: Pair, device: &str) -> String {
        let (v4_len, v6_len) = (self.range.v4.prefix_len(), self.range.v6.prefix_len());
        format!("addr add {v4}/{v4_len} dev {device}\naddr add {v6}/{v6_len} dev {device} nodad\n")
    }
}

async fn link_is(ns: &Namespace, device: &str, wanted: &str) -> anyhow::Result<()> {
    let deadline = Instant::now() + LINK_PATIENCE;
    loop {
        let link = ns.output(&["ip", "-d", "link", "show", "dev", device]).await?;
        if link.contains(wanted) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "{device} of {} is not in {wanted}: {link}", ns.name());
        tokio::time::sleep(RETRY).await;
    }
}

impl Sandbox {
    pub fn host(&self) -> u8 {
        self.host
    }
}
