//! The configuration file of the agent and the controller: what the chart renders into its ConfigMap.

use std::path::Path;

use anyhow::Context;
use ipnet::IpNet;
use serde::Deserialize;

/// `config.yaml`. Unknown fields are errors, so that a typing mistake is named and not ignored.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// How routes to other nodes' podCIDRs come about.
    pub node_routes: NodeRoutes,
    pub proxy: Proxy,
    pub bgp: Bgp,
    pub classes: Classes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeRoutes {
    /// Someone else's business (a CNI's).
    #[default]
    Off,
    /// From the Node objects, for nodes on the same subnet.
    Api,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Proxy {
    pub mode: Mode,
    /// The cluster's pod ranges: how pods are told from outside clients (S48). Empty = no detection.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<IpNet>,
    /// Masquerade every connection to a ClusterIP (S16).
    pub masquerade_all: bool,
    /// Serve `spec.externalIPs` (S25).
    #[serde(rename = "externalIPs")]
    pub external_ips: bool,
}

/// What the agent programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    #[default]
    Nftables,
}

impl Default for Proxy {
    fn default() -> Self {
        Proxy { mode: Mode::Nftables, cluster_cidrs: Vec::new(), masquerade_all: false, external_ips: true }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Bgp {
    /// Our AS number, where a BGPPeer gives no `myASN`.
    pub asn: Option<u32>,
}

/// Which `spec.loadBalancerClass` values are ours (A1).
#[derive(Clone, Debug, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Classes {
    pub own: String,
    /// Services without a class are ours too.
    pub default: bool,
    /// Foreign class strings to serve as well.
    pub accept: Vec<String>,
}

impl Default for Classes {
    fn default() -> Self {
        Classes { own: "portolan.dev/lb".into(), default: true, accept: Vec::new() }
    }
}

impl Config {
    /// Reads a YAML file; an error names the file and the field.
    pub fn read(path: &Path) -> anyhow::Result<Config> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("config file {}", path.display()))?;
        serde_saphyr::from_str(&text).with_context(|| format!("config file {}", path.display()))
    }
}

impl From<&Classes> for portolan_plan::Classes {
    fn from(classes: &Classes) -> Self {
        let names = std::iter::once(&classes.own).chain(&classes.accept);
        portolan_plan::Classes {
            names: names.map(|name| name.as_str().into()).collect(),
            default: classes.default,
        }
    }
}
