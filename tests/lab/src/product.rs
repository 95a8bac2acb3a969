//! Portolan's own processes. The lab has no images to run, so it starts what the chart's pods would: the agent in each node's
//! namespace, the controllers beside the control plane; with tokens of the chart's service accounts, so that its roles are
//! proved, with the capabilities its containers have, and with the configuration that it rendered.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context, bail};
use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use kube::Client;
use kube::api::{Api, PostParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::Command;

use crate::control_plane::api_from_nodes;
use crate::netns::Namespace;
use crate::pki;
use crate::process::Daemon;
use crate::site::Site;

/// The namespace that the chart is installed into.
pub const NAMESPACE: &str = "portolan-system";
const CONFIG_MAP: &str = "portolan";
const TOKEN_SECS: i64 = 24 * 3600;
/// What the chart's DaemonSet adds: NET_BIND_SERVICE, NET_ADMIN, NET_RAW (linux/capability.h). The controller has none.
const AGENT_CAPABILITIES: &[i32] = &[10, NET_ADMIN, 13];
const NET_ADMIN: i32 = 12;
const ORDERLY_END: Duration = Duration::from_secs(30);

/// The product's processes, by name: `agent-n1`, `controller-1`.
pub struct Product {
    site: Site,
    client: Client,
    running: BTreeMap<String, Daemon>,
}

impl Product {
    pub fn new(site: Site, client: Client) -> Product {
        Product { site, client, running: BTreeMap::new() }
    }

    /// Installs or upgrades the chart of this repository with the given values.
    pub async fn helm_install(&self, values: &str) -> anyhow::Result<String> {
        let file = self.site.dir().join("values.yaml");
        std::fs::write(&file, values)?;
        let (file, chart) = (file.display().to_string(), chart().display().to_string());
        let args =
            ["upgrade", "--install", "portolan", &chart, "--namespace", NAMESPACE, "--create-namespace"];
        self.site.helm(&[&args[..], &["--values", &file]].concat()).await
    }

    /// Starts the agent of every node and `controllers` controllers.
    pub async fn start_all(&mut self, controllers: u8) -> anyhow::Result<()> {
        for node in self.site.node_names() {
            self.start_agent(&node).await?;
        }
        for number in 1..=controllers {
            self.start_controller(number).await?;
        }
        Ok(())
    }

    pub async fn start_agent(&mut self, node: &str) -> anyhow::Result<()> {
        let name = format!("agent-{node}");
        let files = self.files(&name, "portolan-agent").await?;
        let ns = self.site.ns(node)?;
        self.start(&name, &ns, AGENT_CAPABILITIES, &["agent".into(), format!("--node-name={node}")], &files)
    }

    /// With the files of its last start: the API server may be away.
    pub async fn start_known_agent(&mut self, node: &str) -> anyhow::Result<()> {
        let name = format!("agent-{node}");
        let (files, ns) = (self.site.product_dir().join(&name), self.site.ns(node)?);
        self.start(&name, &ns, AGENT_CAPABILITIES, &["agent".into(), format!("--node-name={node}")], &files)
    }

    /// The same with no capability but NET_ADMIN, and with /proc/sys and /sys read-only, as container runtimes mount them.
    pub async fn start_confined_agent(&mut self, node: &str) -> anyhow::Result<()> {
        let name = format!("agent-{node}");
        let (files, ns) = (self.site.product_dir().join(&name), self.site.ns(node)?);
        let mut command = ns.command(binary()?)?;
        mount_settings_read_only(&mut command);
        self.start_by(command, &name, &[NET_ADMIN], &["agent".into(), format!("--node-name={node}")], &files)
    }

    pub async fn start_controller(&mut self, number: u8) -> anyhow::Result<()> {
        let name = format!("controller-{number}");
        let files = self.files(&name, "portolan-controller").await?;
        let ns = self.site.ns("cp")?;
        let bootstrap = format!("--bootstrap={}", files.join("objects.yaml").display());
        self.start(&name, &ns, &[], &["controller".into(), format!("--identity={name}"), bootstrap], &files)
    }

    /// By name: `agent-n1`, `controller-2`.
    pub async fn start_named(&mut self, name: &str) -> anyhow::Result<()> {
        let number = |name: &str| name.strip_prefix("controller-").and_then(|number| number.parse().ok());
        match (name.strip_prefix("agent-"), number(name)) {
            (Some(node), _) => self.start_agent(node).await,
            (None, Some(number)) => self.start_controller(number).await,
            (None, None) => bail!("{name:?} is neither agent-<node> nor controller-<number>"),
        }
    }

    /// `kill -9` of `agent-n1`, `controller-2`, …; also of one that another process of this lab started.
    pub async fn kill(&mut self, name: &str) -> anyhow::Result<()> {
        match self.running.remove(name) {
            Some(mut daemon) => daemon.kill().await.map(drop),
            None => {
                let pids = self.site.product_pids();
                let (_, pid) = pids
                    .iter()
                    .find(|(other, _)| other == name)
                    .with_context(|| format!("{name} does not run"))?;
                kill(Pid::from_raw(*pid), Signal::SIGKILL).with_context(|| format!("kill {name}"))
            }
        }
    }

    /// SIGTERM; how it ended.
    pub async fn terminate(&mut self, name: &str) -> anyhow::Result<ExitStatus> {
        self.taken(name)?.terminate(ORDERLY_END).await
    }

    /// Fails if processes that were started, and not ended here, are gone. They are forgotten then, and may start again.
    pub fn check(&mut self) -> anyhow::Result<()> {
        let mut said = Vec::new();
        self.running
            .retain(|_, daemon| daemon.check().map_err(|error| said.push(format!("{error:#}"))).is_ok());
        if said.is_empty() { Ok(()) } else { bail!("{}", said.join("\n")) }
    }

    pub fn names(&self) -> Vec<String> {
        self.running.keys().cloned().collect()
    }

    pub fn pid(&self, name: &str) -> Option<i32> {
        self.running.get(name).map(Daemon::pid)
    }

    pub fn log(&self, name: &str) -> PathBuf {
        self.site.logs().join(format!("{name}.log"))
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self, name: &str) -> anyhow::Result<u64> {
        let pid = self.pid(name).with_context(|| format!("{name} does not run"))?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        line.split_whitespace().next().context("VmRSS")?.parse().context("VmRSS")
    }

    fn taken(&mut self, name: &str) -> anyhow::Result<Daemon> {
        self.running.remove(name).with_context(|| format!("{name} does not run"))
    }

    fn start(
        &mut self,
        name: &str,
        ns: &Namespace,
        capabilities: &'static [i32],
        args: &[String],
        files: &Path,
    ) -> anyhow::Result<()> {
        self.start_by(ns.command(binary()?)?, name, capabilities, args, files)
    }

    fn start_by(
        &mut self,
        mut command: Command,
        name: &str,
        capabilities: &'static [i32],
        args: &[String],
        files: &Path,
    ) -> anyhow::Result<()> {
        if self.site.product_pids().iter().any(|(other, _)| other == name) {
            bail!("{name} runs already");
        }
        keep_capabilities(&mut command, capabilities);
        command.args(args);
        command.arg(format!("--kubeconfig={}", files.join("kubeconfig").display()));
        command.arg(format!("--config={}", files.join("config.yaml").display()));
        let daemon = Daemon::start(command, name, &self.site.logs())?;
        std::fs::write(files.join("pid"), daemon.pid().to_string())?;
        self.running.insert(name.into(), daemon);
        Ok(())
    }

    /// What a pod of the chart would find mounted: a kubeconfig with a token of `account`, and the keys of the ConfigMap. In a
    /// folder of this name.
    pub async fn files(&self, name: &str, account: &str) -> anyhow::Result<PathBuf> {
        let dir = self.site.product_dir().join(name);
        std::fs::create_dir_all(&dir)?;
        let token = self.token(account).await?;
        let ca = self.site.dir().join("ca.crt");
        pki::write_kubeconfig(&dir.join("kubeconfig"), api_from_nodes(self.site.families), &ca, &token)?;
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), NAMESPACE);
        let map = maps.get(CONFIG_MAP).await.context("the chart's ConfigMap; is it installed?")?;
        for key in ["config.yaml", "objects.yaml"] {
            let text = map.data.as_ref().and_then(|data| data.get(key));
            let text =
                text.with_context(|| format!("ConfigMap {NAMESPACE}/{CONFIG_MAP} has no key {key}"))?;
            std::fs::write(dir.join(key), text)?;
        }
        Ok(dir)
    }

    async fn token(&self, account: &str) -> anyhow::Result<String> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client.clone(), NAMESPACE);
        let spec = TokenRequestSpec { expiration_seconds: Some(TOKEN_SECS), ..Default::default() };
        let request = TokenRequest { spec, ..Default::default() };
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let answer = answer.with_context(|| format!("token of service account {NAMESPACE}/{account}"))?;
        Ok(answer.status.context("token request without an answer")?.token)
    }
}

/// The process will be root with these capabilities and no others, and can never gain one, as in its container.
fn keep_capabilities(command: &mut Command, keep: &'static [i32]) {
    // SAFETY: prctl is a plain system call; nothing is allocated and no lock is taken between fork and exec.
    unsafe {
        command.pre_exec(move || {
            for capability in (0..64).filter(|capability| !keep.contains(capability)) {
                // Fails for numbers that this kernel does not know.
                libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0);
            }
            match libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            }
        });
    }
}

/// In a mount namespace of the process's own.
fn mount_settings_read_only(command: &mut Command) {
    let mount = |from: Option<&CStr>, to: &CStr, flags| {
        let from = from.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: all pointers are to texts that end with a zero, or null where the kernel takes that.
        match unsafe { libc::mount(from, to.as_ptr(), std::ptr::null(), flags, std::ptr::null()) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: unshare and mount are plain system calls; nothing is allocated and no lock is taken between fork and exec.
    unsafe {
        command.pre_exec(move || {
            if libc::unshare(libc::CLONE_NEWNS) != 0 {
                return Err(std::io::Error::last_os_error());
            }
            mount(None, c"/", libc::MS_REC | libc::MS_PRIVATE)?;
            for folder in [c"/proc/sys", c"/sys"] {
                mount(Some(folder), folder, libc::MS_BIND)?;
                mount(None, folder, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY)?;
            }
            Ok(())
        });
    }
}

pub fn chart() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../charts/portolan")
}

/// `PORTOLAN_BIN`, or the binary beside the program or the test that runs.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("PORTOLAN_BIN") {
        return Ok(path.into());
    }
    let exe = std::env::current_exe()?;
    let found = exe.ancestors().skip(1).take(2).map(|dir| dir.join("portolan")).find(|path| path.is_file());
    found.with_context(|| format!("no portolan beside {}: cargo build, or set PORTOLAN_BIN", exe.display()))
}
