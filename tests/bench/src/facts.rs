//! Under what circumstances the figures came about.

use std::fmt;
use std::path::Path;
use std::process::Command;

use anyhow::Context;
use portolan_lab::product;
use serde::Serialize;

/// Above it, times on the clock say more of others than of what is measured.
const BUSY: f64 = 1.5;

#[derive(Clone, Debug, Serialize)]
pub struct Facts {
    pub date: String,
    pub processor: String,
    pub cores: usize,
    pub kernel: String,
    /// Processes that wanted to run in the minute before the start.
    pub load: f64,
    pub portolan: String,
    pub kube_proxy: String,
    pub nft: String,
    pub iptables: String,
}

impl Facts {
    /// As they are at the start.
    pub fn gather(kubernetes: &Path) -> anyhow::Result<Facts> {
        let read = |path: &str| std::fs::read_to_string(path).with_context(|| path.to_string());
        let cpus = read("/proc/cpuinfo")?;
        let model =
            cpus.lines().find(|line| line.starts_with("model name")).and_then(|line| line.split(": ").nth(1));
        let load = read("/proc/loadavg")?;
        let program = |path: &Path| said(path, "--version");
        Ok(Facts {
            date: jiff::Zoned::now().strftime("%Y-%m-%d").to_string(),
            processor: model.unwrap_or("unknown").trim().into(),
            cores: std::thread::available_parallelism()?.get(),
            kernel: read("/proc/sys/kernel/osrelease")?.trim().into(),
            load: load.split(' ').next().context("loadavg")?.parse()?,
            portolan: format!("{} {}", program(&product::binary()?)?, commit()).trim().into(),
            kube_proxy: program(&kubernetes.join("kube-proxy")).unwrap_or_default(),
            nft: said("nft", "--version")?,
            iptables: said("iptables", "--version").unwrap_or_default(),
        })
    }

    pub fn is_busy(&self) -> bool {
        self.load > BUSY
    }
}

impl fmt::Display for Facts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Facts { date, processor, cores, kernel, load, portolan, kube_proxy, nft, iptables } = self;
        writeln!(
            f,
            "{date}, {processor}, {cores} cores, Linux {kernel}; {portolan}; kube-proxy {}",
            bare(kube_proxy)
        )?;
        write!(f, "with {nft} and {iptables}; load at the start {load}")?;
        if self.is_busy() {
            write!(f, ": others worked on this machine, so CPU times hold and times on the clock do not")?;
        }
        Ok(())
    }
}

/// `Kubernetes v1.36.3` is `v1.36.3`.
fn bare(version: &str) -> &str {
    version.split_whitespace().last().unwrap_or_default()
}

fn said(program: impl AsRef<std::ffi::OsStr>, argument: &str) -> anyhow::Result<String> {
    let output = Command::new(program).arg(argument).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(text.lines().next().unwrap_or_default().split(" (").next().unwrap_or_default().trim().into())
}

/// Of the sources, where they are a git clone and the binary was built with this program.
fn commit() -> String {
    if std::env::var_os("PORTOLAN_BIN").is_some() {
        return "of PORTOLAN_BIN".into();
    }
    let mut git = Command::new("git");
    git.arg("-C").arg(env!("CARGO_MANIFEST_DIR")).args(["describe", "--always", "--dirty", "--abbrev=9"]);
    let output = git.output().ok().filter(|output| output.status.success());
    output.map_or_else(String::new, |output| String::from_utf8_lossy(&output.stdout).trim().into())
}
