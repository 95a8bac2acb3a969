//! The configuration file of the agent and the controller: what the chart renders into its ConfigMap.

use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub mod kube_proxy;
mod proxy;
mod sources;
mod text;

pub use proxy::{Conntrack, DetectLocal, DetectLocalMode, MasqueradeBit, Mode, Proxy};
use sources::text_of;
pub use sources::{Given, Sources};

/// `config.yaml`. Unknown fields are errors, so that a typing mistake is named and not ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// How routes to other nodes' podCIDRs come about.
    pub node_routes: NodeRoutes,
    pub proxy: Proxy,
    pub bgp: Bgp,
    pub classes: Classes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeRoutes {
    /// Someone else's business (a CNI's).
    #[default]
    Off,
    /// From the Node objects, for nodes on the same subnet.
    Api,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Bgp {
    /// Our AS number, where a BGPPeer gives no `myASN`.
    pub asn: Option<u32>,
    /// Where to accept connections, for peers with `spec.passive`: `0.0.0.0:179`, `[::]:179`. Empty = nowhere.
    pub listen: Vec<std::net::SocketAddr>,
}

/// Which `spec.loadBalancerClass` values are ours (A1).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
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
        let read =
            || -> anyhow::Result<Config> { serde_saphyr::from_str::<Config>(&text_of(path)?)?.checked() };
        read().with_context(|| format!("config file {}", path.display()))
    }

    /// `text` is a file of ours; what it does not say comes from `under`, which has the same shape.
    pub fn over(under: serde_json::Value, text: &str) -> anyhow::Result<Config> {
        let own =
            if text.trim().is_empty() { serde_json::Value::Null } else { serde_saphyr::from_str(text)? };
        serde_json::from_value::<Config>(kube_proxy::lay(under, own))?.checked()
    }

    /// What fields say together.
    fn checked(self) -> anyhow::Result<Config> {
        let (mode, local) = (self.proxy.detect_local_mode, &self.proxy.detect_local);
        let lacks = match mode {
            DetectLocalMode::BridgeInterface => local.bridge_interface.is_none().then_some("bridgeInterface"),
            DetectLocalMode::InterfaceNamePrefix => {
                local.interface_name_prefix.is_none().then_some("interfaceNamePrefix")
            }
            DetectLocalMode::ClusterCidr | DetectLocalMode::NodeCidr => None,
        };
        match lacks {
            Some(field) => {
                anyhow::bail!("proxy.detectLocal.{field} is empty, and detectLocalMode {mode:?} needs it")
            }
            None => Ok(self),
        }
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

#[cfg(test)]
mod tests;
