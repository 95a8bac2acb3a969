//! The programs that are measured: ours, and the real kube-proxy in two modes, all on the same node with the same objects.

use std::time::{Duration, Instant};

use anyhow::bail;
use portolan_lab::process::Daemon;
use portolan_lab::product;
use tokio::process::Command;

use crate::commits::Generation;
use crate::objects::{NODE, PODS};
use crate::usage::{self, Cgroup};
use crate::world::{Node, World};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Kind {
    Portolan,
    /// kube-proxy in nftables mode.
    Nftables,
    /// kube-proxy in iptables mode.
    Iptables,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::Portolan => "portolan",
            Kind::Nftables => "kube-proxy (nftables)",
            Kind::Iptables => "kube-proxy (iptables)",
        }
    }

    /// A process that has taken no CPU, and written nothing, for so long has done its work. kube-proxy pauses for a second
    /// between two syncs (`minSyncPeriod`, its default).
    fn quiet(self) -> Duration {
        match self {
            Kind::Portolan => Duration::from_secs(1),
            Kind::Nftables | Kind::Iptables => Duration::from_secs(3),
        }
    }
}

/// Kills its process when dropped.
pub struct Subject {
    pub kind: Kind,
    pub cgroup: Cgroup,
    daemon: Daemon,
    started: Instant,
    first_generation: u32,
    generation: Generation,
}

/// What it took until a subject had nothing left to do.
#[derive(Clone, Copy, Debug)]
pub struct Settled {
    /// From the start of the process to its last transaction; zero if there was none.
    pub active: Duration,
    pub cpu: Duration,
    /// Of that, in the kernel.
    pub system: Duration,
    /// How many transactions were committed.
    pub commits: u32,
}

const STEP: Duration = Duration::from_millis(10);
/// Of one core, while waiting for nothing.
const IDLE_SHARE: f64 = 0.02;
const PATIENCE: Duration = Duration::from_secs(900);

struct Sample {
    at: Duration,
    cpu: Duration,
    system: Duration,
}

impl Subject {
    pub fn start(kind: Kind, world: &World, node: &Node) -> anyhow::Result<Subject> {
        let cgroup = Cgroup::new()?;
        let mut command = match kind {
            Kind::Portolan => portolan(world, node)?,
            Kind::Nftables => kube_proxy("nftables", world, node)?,
            Kind::Iptables => kube_proxy("iptables", world, node)?,
        };
        cgroup.hold(&mut command)?;
        let generation = Generation::open(&node.node)?;
        let first_generation = generation.get()?;
        let name = kind.name().split(' ').next().unwrap_or_default();
        let started = Instant::now();
        let daemon = Daemon::start(command, name, &world.logs())?;
        Ok(Subject { kind, cgroup, daemon, started, first_generation, generation })
    }

    /// Waits until it has nothing left to do.
    pub async fn settle(&mut self) -> anyhow::Result<Settled> {
        let window = (self.kind.quiet().as_secs_f64() / STEP.as_secs_f64()) as usize;
        let mut samples: Vec<Sample> = Vec::new();
        let (mut last, mut changed) = (self.first_generation, Duration::ZERO);
        loop {
            let at = self.started.elapsed();
            let now = self.generation.get()?;
            if now != last {
                (last, changed) = (now, at);
            }
            samples.push(Sample { at, cpu: self.cgroup.cpu()?, system: self.cgroup.system()? });
            self.daemon.check()?;
            let newest = &samples[samples.len() - 1];
            if let Some(oldest) = samples.len().checked_sub(window + 1).map(|index| &samples[index]) {
                let share = (newest.cpu - oldest.cpu).as_secs_f64() / (newest.at - oldest.at).as_secs_f64();
                if changed < oldest.at && share < IDLE_SHARE {
                    let commits = last.wrapping_sub(self.first_generation);
                    let Sample { cpu, system, .. } = *oldest;
                    return Ok(Settled { active: changed, cpu, system, commits });
                }
            }
            if at > PATIENCE {
                bail!("{} does not come to rest in {PATIENCE:?}", self.kind.name());
            }
            tokio::time::sleep(STEP).await;
        }
    }

    pub fn cpu(&self) -> anyhow::Result<Duration> {
        self.cgroup.cpu()
    }

    /// Resident memory in KiB, now and its peak; of the process without its children.
    pub fn resident_kib(&self) -> anyhow::Result<(u64, u64)> {
        usage::resident_kib(self.daemon.pid())
    }

    pub fn check(&mut self) -> anyhow::Result<()> {
        self.daemon.check()
    }

    /// `kill -9`: its rules stay.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.daemon.kill().await.map(drop)
    }
}

impl Drop for Subject {
    fn drop(&mut self) {
        let _ = self.daemon.signal(nix::sys::signal::Signal::SIGKILL);
    }
}

fn portolan(world: &World, node: &Node) -> anyhow::Result<Command> {
    let config = world.dir.join("portolan.yaml");
    let text = format!("proxy:\n  clusterCIDRs: [{PODS}]\n  conntrack: {{ maxPerCore: 0, min: 0 }}\n");
    std::fs::write(&config, text)?;
    let mut command = node.node.command(product::binary()?)?;
    command.args(["agent", "--node-name", NODE]);
    command.arg("--kubeconfig").arg(world.kubeconfig()).arg("--config").arg(config);
    command.env_remove("RUST_LOG");
    Ok(command)
}

/// Its own defaults, but for what belongs to the whole machine.
fn kube_proxy(mode: &str, world: &World, node: &Node) -> anyhow::Result<Command> {
    let config = world.dir.join("kube-proxy.yaml");
    let text = format!(
        "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\nmode: {mode}\n\
         hostnameOverride: {NODE}\nclusterCIDR: {PODS}\nclientConnection:\n  kubeconfig: {}\n\
         conntrack:\n  maxPerCore: 0\n  min: 0\n",
        world.kubeconfig().display()
    );
    std::fs::write(&config, text)?;
    let mut command = node.node.command(world.binaries.kubernetes.join("kube-proxy"))?;
    command.arg("--config").arg(config);
    Ok(command)
}
