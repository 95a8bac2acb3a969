//! `portolan-bench`: what the whole agent costs beside the real kube-proxy, on the same objects of a real API server.
//!
//! Everything runs in network namespaces that go when this program ends. CPU is the process's and its children's. A figure is
//! printed only when its result was checked: see [`measure`].

use std::process::Stdio;

use clap::Parser;
use portolan_lab::binaries::Binaries;
use portolan_lab::lab;

mod ask;
mod chart;
mod commits;
mod docs;
mod events;
mod facts;
mod listing;
mod load;
mod measure;
mod objects;
mod pace;
mod packet_figures;
mod packets;
mod pipeline;
mod plan;
mod report;
mod stats;
mod subject;
mod usage;
mod watchers;
mod wire;
mod world;

/// Measures Portolan beside kube-proxy. Needs root.
#[derive(Debug, Parser)]
pub struct Arguments {
    /// Services x endpoints of each; several times for several sizes.
    #[arg(long = "size", value_name = "NxE", default_values = ["1000x3", "10000x3", "30000x10"])]
    sizes: Vec<objects::Size>,
    /// What is measured: several times for several.
    #[arg(long = "subject", value_enum, default_values = ["portolan", "nftables", "iptables"])]
    subjects: Vec<subject::Kind>,
    /// Largest number of Services for kube-proxy, whose cost grows with the square.
    #[arg(long, default_value_t = 10_000)]
    rivals_up_to: u32,
    /// The same for its iptables mode alone, which takes the most time of all.
    #[arg(long, default_value_t = 10_000)]
    iptables_up_to: u32,
    /// Starts and this alone: several times for several. Everything where it is left out.
    #[arg(long, value_enum)]
    only: Vec<plan::Part>,
    /// Fewer repetitions.
    #[arg(long)]
    quick: bool,
    /// Where results.json goes.
    #[arg(long, default_value = "target/bench")]
    output: std::path::PathBuf,
    /// Folder whose performance.md and bench.svg are to show the results.
    #[arg(long)]
    docs: Option<std::path::PathBuf>,
}

impl Arguments {
    fn wants(&self, part: plan::Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }

    fn measures(&self, kind: subject::Kind, size: objects::Size) -> bool {
        let most = match kind {
            subject::Kind::Portolan => u32::MAX,
            subject::Kind::Nftables => self.rivals_up_to,
            subject::Kind::Iptables => self.rivals_up_to.min(self.iptables_up_to),
        };
        size.services <= most
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    std::fs::create_dir_all(&arguments.output)?;
    let prefix = format!("pbench{}", std::process::id());
    let binaries = Binaries::ensure()?;
    // Removes everything once this process has ended, however that came about; it stays where it starts.
    let guard = lab::reaper(&prefix).stdin(Stdio::piped()).spawn()?;
    world::enter(&prefix)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let result = runtime.block_on(plan::run(&arguments, &prefix, &binaries));
    if result.is_err() {
        let _ = std::fs::write(lab::folder(&prefix).join("keep"), "");
        eprintln!("logs: {}", lab::folder(&prefix).display());
    }
    // Its input ends with this process.
    std::mem::forget(guard);
    result
}
