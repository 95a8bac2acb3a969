//! The real kube-proxy on a node: what a cluster has before us, and may have again after us.

use anyhow::Context;

use crate::process::Daemon;
use crate::site::Site;
use crate::topology::POD_CIDRS;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nftables,
    Iptables,
}

impl Mode {
    /// Its name in the configuration, where its section has the same.
    fn name(self) -> &'static str {
        match self {
            Mode::Nftables => "nftables",
            Mode::Iptables => "iptables",
        }
    }
}

/// Ends with this value: one that outlived a failed test would stand in every other test's way.
pub struct KubeProxy {
    daemon: Daemon,
}

impl KubeProxy {
    pub fn start(site: &Site, node: &str, mode: Mode) -> anyhow::Result<KubeProxy> {
        let dir = site.dir().join(format!("kube-proxy-{node}"));
        std::fs::create_dir_all(&dir)?;
        let config = dir.join("config.yaml");
        std::fs::write(&config, configuration(site, node, mode))?;
        let mut command = site.ns(node)?.command(site.kubernetes_binary("kube-proxy"))?;
        command.arg(format!("--config={}", config.display()));
        let name = format!("kube-proxy-{node}");
        Ok(KubeProxy { daemon: Daemon::start(command, &name, &site.logs()).context("kube-proxy")? })
    }

    /// Fails if it is gone.
    pub fn check(&mut self) -> anyhow::Result<()> {
        self.daemon.check()
    }

    /// `kill -9`: its rules stay.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.daemon.kill().await.map(drop)
    }
}

impl Drop for KubeProxy {
    fn drop(&mut self) {
        let _ = self.daemon.signal(nix::sys::signal::Signal::SIGKILL);
    }
}

/// Limits of conntrack are the machine's and not a namespace's to set.
pub fn configuration(site: &Site, node: &str, mode: Mode) -> String {
    let mode = mode.name();
    let kubeconfig = site.dir().join("kubeconfig-nodes");
    format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: {mode}
hostnameOverride: {node}
clusterCIDR: {POD_CIDRS}
clientConnection:
  kubeconfig: {}
conntrack:
  maxPerCore: 0
  min: 0
{mode}:
  minSyncPeriod: 1s
",
        kubeconfig.display()
    )
}
