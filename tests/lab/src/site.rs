//! A lab as anybody may see it, from its own process or another: names, files, and what can be done with them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use kube::Client;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use crate::binaries::Binaries;
use crate::lab::Options;
use crate::netns::{self, Namespace};
use crate::process::tail;
use crate::router::RouterKind;
use crate::topology::Families;

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    pub name: String,
    pub took: Duration,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Site {
    prefix: String,
    dir: PathBuf,
    pub nodes: u8,
    pub families: Families,
    /// The router that the lab was brought up with.
    pub router_kind: RouterKind,
    /// The process that holds the lab.
    pub pid: u32,
    kubectl: PathBuf,
    helm: PathBuf,
    /// How long each part of bringing it up took.
    pub steps: Vec<Step>,
}

impl Site {
    pub fn new(options: &Options, dir: PathBuf, binaries: &Binaries) -> Site {
        Site {
            prefix: options.prefix.clone(),
            dir,
            nodes: options.nodes,
            families: options.families,
            router_kind: options.router,
            pid: std::process::id(),
            kubectl: binaries.kubectl(),
            helm: binaries.helm.clone(),
            steps: Vec::new(),
        }
    }

    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The administrator's kubeconfig, for programs on the host.
    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig")
    }

    pub fn node_names(&self) -> Vec<String> {
        (1..=self.nodes).map(|number| format!("n{number}")).collect()
    }

    /// A program of Kubernetes' own, built with kubectl.
    pub fn kubernetes_binary(&self, name: &str) -> PathBuf {
        self.kubectl.with_file_name(name)
    }

    /// `client`, `router`, `cp`, `n1`, …
    pub fn ns(&self, name: &str) -> anyhow::Result<Namespace> {
        Namespace::open(&format!("{}-{name}", self.prefix))
    }

    /// The namespace of a pod in the Kubernetes namespace `namespace`.
    pub fn pod_ns(&self, namespace: &str, pod: &str) -> anyhow::Result<Namespace> {
        self.ns(&format!("pod.{namespace}.{pod}"))
    }

    /// The full name of what a person may call `n1`, `web-5d-x2` or `default.web-5d-x2`.
    pub fn find_ns(&self, name: &str) -> anyhow::Result<String> {
        let all = netns::list(&format!("{}-", self.prefix));
        let wanted = [format!("{}-{name}", self.prefix), format!("{}-pod.{name}", self.prefix)];
        let exact = all.iter().find(|ns| wanted.contains(ns));
        let Some(found) = exact.or_else(|| all.iter().find(|ns| ns.ends_with(&format!(".{name}")))) else {
            let known: Vec<&str> =
                all.iter().filter_map(|ns| ns.strip_prefix(&self.prefix)?.strip_prefix('-')).collect();
            bail!("the lab has no {name:?}; it has {}", known.join(", "))
        };
        Ok(found.clone())
    }

    /// A new client with the administrator's rights.
    pub async fn connect(&self) -> anyhow::Result<Client> {
        crate::control_plane::client(&self.kubeconfig()).await
    }

    /// Runs the real kubectl; what it printed.
    pub async fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.run(&self.kubectl, args).await.with_context(|| format!("kubectl {}", args.join(" ")))
    }

    /// Runs the real helm; what it printed.
    pub async fn helm(&self, args: &[&str]) -> anyhow::Result<String> {
        self.run(&self.helm, args).await.with_context(|| format!("helm {}", args.join(" ")))
    }

    async fn run(&self, program: &Path, args: &[&str]) -> anyhow::Result<String> {
        let mut command = Command::new(program);
        // Nothing of the user's own helm or kubectl takes part.
        let home = self.dir.join("home");
        command.args(args).env("KUBECONFIG", self.kubeconfig()).env("HOME", home);
        command.env_remove("XDG_CACHE_HOME").env_remove("XDG_CONFIG_HOME").env_remove("XDG_DATA_HOME");
        netns::run(command).await
    }

    pub fn kubectl_path(&self) -> &Path {
        &self.kubectl
    }

    pub fn helm_path(&self) -> &Path {
        &self.helm
    }

    /// One folder per process of the product: its kubeconfig, its configuration, its number in `pid`.
    pub fn product_dir(&self) -> PathBuf {
        self.dir.join("product")
    }

    /// The product's running processes, whichever process started them: name and number.
    pub fn product_pids(&self) -> Vec<(String, i32)> {
        let folders = std::fs::read_dir(self.product_dir()).into_iter().flatten().flatten();
        let mut running: Vec<(String, i32)> = folders
            .filter_map(|folder| {
                let pid = std::fs::read_to_string(folder.path().join("pid")).ok()?;
                // A number may have gone to another process; its kubeconfig, named in its arguments, is only ours.
                let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
                let folder_name = folder.path().display().to_string();
                String::from_utf8_lossy(&command_line).contains(&folder_name).then_some(())?;
                Some((folder.file_name().into_string().ok()?, pid.parse().ok()?))
            })
            .collect();
        running.sort();
        running
    }

    /// Leaves the logs when the lab is removed.
    pub fn keep_logs(&self) {
        let _ = std::fs::write(self.dir.join("keep"), "");
    }

    /// How to look into this lab, for a person with a failed test.
    pub fn how_to_look(&self) -> String {
        let all = netns::list(&format!("{}-", self.prefix));
        let short: Vec<&str> =
            all.iter().filter_map(|ns| ns.strip_prefix(&self.prefix)?.strip_prefix('-')).collect();
        let (pods, names): (Vec<&str>, Vec<&str>) =
            short.into_iter().partition(|name| name.starts_with("pod."));
        format!(
            "look into the lab:\n  export KUBECONFIG={}\n  ip netns exec {prefix}-n1 bash        # or {prefix}-: {}; {} pods: ip netns list\n  logs: {}",
            self.kubeconfig().display(),
            names.join(", "),
            pods.len(),
            self.logs().display(),
            prefix = self.prefix,
        )
    }

    /// The end of the product's logs, for the output of a failed test.
    pub fn product_logs(&self, lines: usize) -> String {
        let files = std::fs::read_dir(self.logs()).into_iter().flatten().flatten().map(|entry| entry.path());
        let ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("agent") || name.starts_with("controller")
        };
        let mut logs: Vec<PathBuf> = files.filter(ours).collect();
        logs.sort();
        logs.iter().map(|log| tail(log, lines) + "\n").collect()
    }
}
