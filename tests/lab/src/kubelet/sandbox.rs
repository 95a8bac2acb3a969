//! A pod's network: one namespace, one veth to the node's bridge, one address of each family.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use ipnet::IpNet;

use crate::netns::{self, Namespace};

/// The pod addresses of one node, a range per family. The first host address is the bridge's own.
#[derive(Clone, Debug)]
pub struct PodRange(Vec<IpNet>);

impl PodRange {
    pub fn parse(cidrs: &[String]) -> anyhow::Result<PodRange> {
        ensure!(!cidrs.is_empty(), "none");
        let parse = |cidr: &String| cidr.parse().with_context(|| cidr.clone());
        Ok(PodRange(cidrs.iter().map(parse).collect::<anyhow::Result<_>>()?))
    }

    fn host(&self, host: u8) -> Vec<IpAddr> {
        let of = |range: &IpNet| match range.network() {
            IpAddr::V4(network) => Ipv4Addr::from_bits(network.to_bits() + u32::from(host)).into(),
            IpAddr::V6(network) => Ipv6Addr::from_bits(network.to_bits() + u128::from(host)).into(),
        };
        self.0.iter().map(of).collect()
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
    pub addresses: Vec<IpAddr>,
    host: u8,
}

const BRIDGE: u8 = 1;
/// Given, as the CNI plugin `bridge` does: a bridge without an address of its own takes the lowest of its ports, and each time
/// that a pod comes or goes the others may send their answers to one that is nobody's.
const BRIDGE_MAC: &str = "0a:58:00:00:00:01";
const LINK_PATIENCE: Duration = Duration::from_secs(30);
const RETRY: Duration = Duration::from_millis(20);
const HOSTS: std::ops::RangeInclusive<u8> = 2..=254;

impl Network {
    pub fn new(prefix: &str, node: Namespace, range: PodRange) -> Network {
        Network { prefix: prefix.into(), node, range, last_host: BRIDGE }
    }

    pub async fn make_bridge(&self) -> anyhow::Result<()> {
        let addresses = self.addresses(&self.range.host(BRIDGE), "cbr0");
        self.node
            .ip(&format!("link add cbr0 address {BRIDGE_MAC} type bridge\n{addresses}link set cbr0 up\n"))
            .await
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
        let addresses = self.range.host(host);
        let routes =
            self.range.host(BRIDGE).into_iter().map(|gateway| format!("route add default via {gateway}\n"));
        let (given, routes) = (self.addresses(&addresses, "eth0"), routes.collect::<String>());
        ns.ip(&format!("link set lo up\n{given}link set eth0 up\n{routes}")).await?;
        self.forwards(&veth, &ns).await?;
        Ok(Sandbox { ns, addresses, host })
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

    fn addresses(&self, addresses: &[IpAddr], device: &str) -> String {
        let line = |(address, range): (&IpAddr, &IpNet)| {
            let unchecked = if address.is_ipv6() { " nodad" } else { "" };
            format!("addr add {address}/{} dev {device}{unchecked}\n", range.prefix_len())
        };
        addresses.iter().zip(&self.range.0).map(line).collect()
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
