//! The router outside the cluster: a real BIRD or FRR in the router's namespace, AS 64500, that takes routes of both families
//! from every node (AS 64512) and forwards the client's packets by its kernel.

mod bird;
mod frr;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use crate::netns::Namespace;
use crate::process::Daemon;
use crate::wait::wait_for;

const START_TIME: Duration = Duration::from_secs(30);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RouterKind {
    Bird,
    Frr,
}

impl fmt::Display for RouterKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RouterKind::Bird => "bird",
            RouterKind::Frr => "frr",
        })
    }
}

impl FromStr for RouterKind {
    type Err = anyhow::Error;

    fn from_str(name: &str) -> anyhow::Result<RouterKind> {
        match name {
            "bird" => Ok(RouterKind::Bird),
            "frr" => Ok(RouterKind::Frr),
            other => bail!("there is no router {other:?}: bird or frr"),
        }
    }
}

/// A view of the router, running or not: its namespace and where its files are.
#[derive(Clone, Debug)]
pub struct Router {
    pub kind: RouterKind,
    pub ns: Namespace,
    dir: std::path::PathBuf,
}

/// The router's processes.
#[derive(Debug)]
pub struct RouterProcesses(Vec<Daemon>);

impl RouterProcesses {
    /// Kills the router as a power failure would: its routes stay in the kernel of its namespace.
    pub async fn kill(&mut self) -> anyhow::Result<()> {
        for daemon in &mut self.0 {
            daemon.kill().await?;
        }
        Ok(())
    }
}

impl Router {
    /// `dir` is the lab's; the router's files are below `dir/router`.
    pub fn new(kind: RouterKind, ns: Namespace, dir: &Path) -> Router {
        Router { kind, ns, dir: dir.join("router") }
    }

    /// Writes the configuration for `nodes` neighbours, starts the daemons and waits until they answer.
    pub async fn start(&self, nodes: u8, logs: &Path) -> anyhow::Result<RouterProcesses> {
        std::fs::create_dir_all(&self.dir)?;
        let daemons = match self.kind {
            RouterKind::Bird => bird::start(&self.ns, &self.dir, nodes, logs),
            RouterKind::Frr => frr::start(&self.ns, &self.dir, logs).await,
        };
        let mut processes =
            RouterProcesses(daemons.with_context(|| format!("start the router {}", self.kind))?);
        wait_for(&format!("the router {} answers", self.kind), START_TIME, async || {
            processes.0.iter_mut().try_for_each(Daemon::check)?;
            Ok(self.established().await.map_err(|error| format!("{error:#}")))
        })
        .await?;
        Ok(processes)
    }

    /// Removes what a router that was killed left in the kernel.
    pub async fn flush(&self) -> anyhow::Result<()> {
        // FRR's routes go with its next-hop objects, and cannot be flushed before them.
        self.ns.output(&["ip", "nexthop", "flush"]).await?;
        for family in ["-4", "-6"] {
            for protocol in ["bird", "bgp"] {
                self.ns.output(&["ip", family, "route", "flush", "proto", protocol]).await?;
            }
        }
        Ok(())
    }

    /// The established sessions, by neighbour address.
    pub async fn established(&self) -> anyhow::Result<BTreeSet<IpAddr>> {
        match self.kind {
            RouterKind::Bird => bird::established(&self.ns, &self.dir).await,
            RouterKind::Frr => frr::established(&self.ns, &self.dir).await,
        }
    }

    /// Runs a command of the router's own shell (`birdc`, `vtysh`).
    pub async fn ask(&self, command: &str) -> anyhow::Result<String> {
        match self.kind {
            RouterKind::Bird => bird::ask(&self.ns, &self.dir, command).await,
            RouterKind::Frr => frr::ask(&self.ns, &self.dir, command).await,
        }
    }

    /// The next hops of exactly `prefix` (`192.0.2.10/32`; `/32` and `/128` may be left out) in the router's kernel; empty
    /// when there is no such route.
    pub async fn routes(&self, prefix: &str) -> anyhow::Result<BTreeSet<IpAddr>> {
        let prefix = prefix.trim_end_matches("/32").trim_end_matches("/128");
        Ok(self.bgp_routes().await?.remove(prefix).unwrap_or_default())
    }

    /// All routes that came by BGP to the router's kernel, as the kernel writes prefixes: host routes without a length.
    pub async fn bgp_routes(&self) -> anyhow::Result<BTreeMap<String, BTreeSet<IpAddr>>> {
        let mut routes: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for family in ["-4", "-6"] {
            let text = self.ns.output(&["ip", "-j", family, "route", "show"]).await?;
            for route in serde_json::from_str::<Vec<KernelRoute>>(&text).context("ip -j route")? {
                if matches!(route.protocol.as_str(), "bird" | "bgp") {
                    routes.entry(route.dst.clone()).or_default().extend(route.gateways());
                }
            }
        }
        Ok(routes)
    }
}

#[derive(Deserialize)]
struct KernelRoute {
    dst: String,
    #[serde(default)]
    protocol: String,
    gateway: Option<IpAddr>,
    via: Option<Via>,
    #[serde(default)]
    nexthops: Vec<NextHop>,
}

#[derive(Deserialize)]
struct NextHop {
    gateway: Option<IpAddr>,
    via: Option<Via>,
}

/// A gateway of the other family.
#[derive(Deserialize)]
struct Via {
    host: IpAddr,
}

impl KernelRoute {
    fn gateways(self) -> impl Iterator<Item = IpAddr> {
        let one = self.gateway.into_iter().chain(self.via.map(|via| via.host));
        let many = self.nexthops.into_iter().filter_map(|hop| hop.gateway.or(hop.via.map(|via| via.host)));
        one.chain(many)
    }
}
