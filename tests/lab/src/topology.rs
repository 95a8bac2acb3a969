//! The lab's wires and addresses.
//!
//! ```text
//!   client 10.8.0.2 ── 10.8.0.1 router 10.9.0.254 ──┐ AS 64500
//!                                                 fabric (a bridge)
//!     cp 10.9.0.10 ─────────────────────────────────┤
//!     n1 10.9.0.1, n2 10.9.0.2, n3 10.9.0.3 ────────┘ AS 64512
//!      └─ cbr0 (first address of the podCIDR) ── one veth per pod
//! ```
//!
//! Every box is a network namespace `<prefix>-<name>`; every address has an IPv6 twin (`fd08::2` for `10.8.0.2`). The host's
//! own namespace gets no interface and no route.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::netns::{self, Namespace};

pub const ROUTER_ASN: u32 = 64500;
pub const NODE_ASN: u32 = 64512;
pub const SERVICE_CIDRS: &str = "10.96.0.0/16,fd96::/108";
pub const POD_CIDRS: &str = "10.244.0.0/16,fd44::/48";
/// The first address of the service range: the `kubernetes` Service.
pub const KUBERNETES_VIP: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 1);

/// The address families of a lab: what its nodes, pods and Services have addresses of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Families {
    Ipv4,
    Ipv6,
    Both,
}

impl fmt::Display for Families {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Families::Ipv4 => "ipv4",
            Families::Ipv6 => "ipv6",
            Families::Both => "both",
        })
    }
}

impl FromStr for Families {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<Families> {
        let all = [Families::Ipv4, Families::Ipv6, Families::Both];
        let found = all.into_iter().find(|families| families.to_string() == name);
        found.with_context(|| format!("{name:?} is none of ipv4, ipv6, both"))
    }
}

impl Families {
    /// Those of `address` that this lab has, IPv4 first.
    pub fn of(self, address: Pair) -> Vec<IpAddr> {
        address.both().into_iter().filter(|ip| self.has(ip.is_ipv4())).collect()
    }

    /// The address of the cluster's first family.
    pub fn first(self, address: Pair) -> IpAddr {
        if self.has(true) { address.v4.into() } else { address.v6.into() }
    }

    /// Those of a list with commas.
    pub fn cidrs(self, list: &str) -> String {
        let own = list.split(',').filter(|cidr| self.has(!cidr.contains(':')));
        own.collect::<Vec<_>>().join(",")
    }

    fn has(self, is_ipv4: bool) -> bool {
        self == Families::Both || is_ipv4 == (self == Families::Ipv4)
    }
}

/// One address of each family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

impl Pair {
    /// `net` 9, `host` 1 is 10.9.0.1 and fd09::1.
    pub const fn new(net: u8, host: u8) -> Pair {
        let v6 = Ipv6Addr::new(0xfd00 + read_alike(net), 0, 0, 0, 0, 0, 0, read_alike(host));
        Pair { v4: Ipv4Addr::new(10, net, 0, host), v6 }
    }

    pub fn both(self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }
}

/// The number whose hexadecimal digits read like the decimal ones of `n`: host 10 is `fd09::10`.
const fn read_alike(n: u8) -> u16 {
    let n = n as u16;
    n / 100 * 0x100 + n / 10 % 10 * 0x10 + n % 10
}

pub const CONTROL_PLANE: Pair = Pair::new(9, 10);
pub const ROUTER: Pair = Pair::new(9, 254);
pub const ROUTER_CLIENT_SIDE: Pair = Pair::new(8, 1);
pub const CLIENT: Pair = Pair::new(8, 2);

/// The underlay address of node `n<number>`, counted from 1.
pub const fn node_address(number: u8) -> Pair {
    Pair::new(9, number)
}

const FORWARDING: &[(&str, &str)] = &[
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
];

/// Makes every namespace and wire of a lab with `nodes` nodes.
pub async fn build(prefix: &str, nodes: u8, families: Families) -> anyhow::Result<()> {
    if !std::path::Path::new("/proc/sys/net/bridge").exists() {
        // Where this fails, the setting that needs the module says so.
        let _ = tokio::process::Command::new("modprobe").arg("br_netfilter").status().await;
    }
    let names: Vec<String> = (1..=nodes).map(|n| format!("n{n}")).collect();
    let mut batch = String::new();
    for name in ["fabric", "router", "client", "cp"].into_iter().chain(names.iter().map(String::as_str)) {
        batch += &format!("netns add {prefix}-{name}\n");
    }
    for name in ["router", "cp"].into_iter().chain(names.iter().map(String::as_str)) {
        batch += &format!(
            "link add {name} netns {prefix}-fabric type veth peer name eth0 netns {prefix}-{name}\n"
        );
    }
    batch +=
        &format!("link add client netns {prefix}-router type veth peer name eth0 netns {prefix}-client\n");
    netns::ip(&batch).await?;

    fabric(&open(prefix, "fabric")?, &names).await?;
    router(&open(prefix, "router")?, families).await?;
    end(&open(prefix, "client")?, CLIENT, ROUTER_CLIENT_SIDE, families).await?;
    end(&open(prefix, "cp")?, CONTROL_PLANE, ROUTER, families).await?;
    for (name, number) in names.iter().zip(1..) {
        node(&open(prefix, name)?, number, families).await?;
    }
    Ok(())
}

fn open(prefix: &str, name: &str) -> anyhow::Result<Namespace> {
    Namespace::open(&format!("{prefix}-{name}"))
}

async fn fabric(ns: &Namespace, nodes: &[String]) -> anyhow::Result<()> {
    let mut batch = "link add br0 type bridge\nlink set br0 up\n".to_string();
    for port in ["router", "cp"].into_iter().chain(nodes.iter().map(String::as_str)) {
        batch += &format!("link set {port} master br0 up\n");
    }
    // A switch, not a router: frames cross it without meeting netfilter.
    ns.sysctl(&[("net/ipv6/conf/default/disable_ipv6", "1")])?;
    bridge_netfilter(ns, "0")?;
    ns.ip(&batch).await
}

async fn router(ns: &Namespace, families: Families) -> anyhow::Result<()> {
    ns.sysctl(FORWARDING)?;
    // Layer 4 hashing, as data-centre routers do: each connection of one client may take another node.
    ns.sysctl(&[("net/ipv4/fib_multipath_hash_policy", "1"), ("net/ipv6/fib_multipath_hash_policy", "1")])?;
    let fabric = interface("eth0", &families.of(ROUTER));
    ns.ip(&(fabric + &interface("client", &families.of(ROUTER_CLIENT_SIDE)))).await
}

async fn end(ns: &Namespace, address: Pair, gateway: Pair, families: Families) -> anyhow::Result<()> {
    ns.ip(&(interface("eth0", &families.of(address)) + &default_routes(&families.of(gateway)))).await
}

async fn node(ns: &Namespace, number: u8, families: Families) -> anyhow::Result<()> {
    ns.sysctl(FORWARDING)?;
    // Answers between two pods of one bridge must pass conntrack too, or a translated connection breaks.
    bridge_netfilter(ns, "1")?;
    end(ns, node_address(number), ROUTER, families).await
}

fn bridge_netfilter(ns: &Namespace, value: &str) -> anyhow::Result<()> {
    ns.sysctl(&[
        ("net/bridge/bridge-nf-call-iptables", value),
        ("net/bridge/bridge-nf-call-ip6tables", value),
    ])
    .context("bridge netfilter is missing: load the kernel module br_netfilter")
}

/// Batch lines that give `device` its addresses and bring it, and loopback, up.
fn interface(device: &str, addresses: &[IpAddr]) -> String {
    let mut batch = "link set lo up\n".to_string();
    for address in addresses {
        batch += &match address {
            IpAddr::V4(v4) => format!("addr add {v4}/24 dev {device}\n"),
            IpAddr::V6(v6) => format!("addr add {v6}/64 dev {device} nodad\n"),
        };
    }
    batch + &format!("link set {device} up\n")
}

fn default_routes(gateways: &[IpAddr]) -> String {
    gateways.iter().map(|gateway| format!("route add default via {gateway}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_families_read_alike() {
        assert_eq!(node_address(1).v6.to_string(), "fd09::1");
        assert_eq!(CONTROL_PLANE.v6.to_string(), "fd09::10");
        assert_eq!(ROUTER.v6.to_string(), "fd09::254");
    }

    #[test]
    fn a_lab_of_one_family_has_nothing_of_the_other() {
        assert_eq!(Families::Ipv4.cidrs(POD_CIDRS), "10.244.0.0/16");
        assert_eq!(Families::Ipv6.cidrs(POD_CIDRS), "fd44::/48");
        assert_eq!(Families::Both.cidrs(POD_CIDRS), POD_CIDRS);
        assert_eq!(Families::Ipv6.of(CLIENT), [IpAddr::from(CLIENT.v6)]);
        assert_eq!(Families::Both.first(CLIENT), IpAddr::from(CLIENT.v4));
    }
}
