//! etcd, kube-apiserver, kube-controller-manager and kube-scheduler: the real ones, in one namespace.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use kube::Client;

use crate::binaries::Binaries;
use crate::netns::Namespace;
use crate::process::Daemon;
use crate::topology::{CONTROL_PLANE, Families, POD_CIDRS, SERVICE_CIDRS};
use crate::wait::wait_for;
use crate::{pki, relay};

const API_PORT: u16 = 6443;
const START_TIME: Duration = Duration::from_secs(90);
const CONNECT_TIME: Duration = Duration::from_secs(5);
/// Until the first byte of an answer, and from one to the next.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// The API server as nodes and the product see it.
pub fn api_from_nodes(families: Families) -> SocketAddr {
    (families.first(CONTROL_PLANE), API_PORT).into()
}

/// What everybody else needs of the cluster: files and an address.
#[derive(Clone, Debug)]
pub struct Access {
    /// The administrator's kubeconfig, for programs in the host's namespace.
    pub kubeconfig: PathBuf,
    pub ca: PathBuf,
}

pub struct ControlPlane {
    ns: Namespace,
    dir: PathBuf,
    binaries: Binaries,
    families: Families,
    client: Client,
    pub access: Access,
    etcd: Daemon,
    apiserver: Daemon,
    controllers: Vec<Daemon>,
}

impl ControlPlane {
    /// Starts everything in `ns` and waits until the API server is ready. Files go to `dir`, logs to `dir/logs`.
    pub async fn start(
        ns: Namespace,
        dir: &Path,
        binaries: &Binaries,
        families: Families,
    ) -> anyhow::Result<ControlPlane> {
        let mut plane = ControlPlane::start_server(ns, dir, binaries, families).await?;
        plane.controllers = vec![plane.controller_manager()?, plane.scheduler()?];
        Ok(plane)
    }

    /// Only etcd and the API server: whoever wants a Service's EndpointSlices writes them himself. Where `dir/etcd` is
    /// there already, its objects are.
    pub async fn start_server(
        ns: Namespace,
        dir: &Path,
        binaries: &Binaries,
        families: Families,
    ) -> anyhow::Result<ControlPlane> {
        pki::write(dir)?;
        let token = pki::random_token()?;
        std::fs::write(dir.join("tokens.csv"), format!("{token},admin,admin,\"system:masters\"\n"))?;
        let access = Access { kubeconfig: dir.join("kubeconfig"), ca: dir.join("ca.crt") };
        let relay = relay::start(ns.clone(), SocketAddr::from(([127, 0, 0, 1], API_PORT))).await?;
        pki::write_kubeconfig(&access.kubeconfig, relay, &access.ca, &token)?;
        pki::write_kubeconfig(&dir.join("kubeconfig-nodes"), api_from_nodes(families), &access.ca, &token)?;

        let etcd = etcd(&ns, dir)?;
        let apiserver = apiserver(&ns, dir, binaries, families)?;
        let client = client(&access.kubeconfig).await?;
        let (dir, binaries) = (dir.to_path_buf(), binaries.clone());
        let controllers = Vec::new();
        let mut plane =
            ControlPlane { ns, dir, binaries, families, client, access, etcd, apiserver, controllers };
        plane.wait_ready().await?;
        Ok(plane)
    }

    pub fn apiserver_pid(&self) -> i32 {
        self.apiserver.pid()
    }

    /// Kills everything; the objects stay in `dir/etcd`.
    pub async fn stop(mut self) -> anyhow::Result<()> {
        for daemon in self.controllers.iter_mut().chain([&mut self.apiserver, &mut self.etcd]) {
            daemon.kill().await?;
        }
        Ok(())
    }

    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Kills the API server: an outage as everybody else sees it.
    pub async fn stop_apiserver(&mut self) -> anyhow::Result<()> {
        self.apiserver.kill().await?;
        Ok(())
    }

    /// Starts the API server again, if it is gone, and waits until it is ready.
    pub async fn start_apiserver(&mut self) -> anyhow::Result<()> {
        if self.apiserver.exited().is_some() {
            self.apiserver = apiserver(&self.ns, &self.dir, &self.binaries, self.families)?;
        }
        self.wait_ready().await
    }

    async fn wait_ready(&mut self) -> anyhow::Result<()> {
        let client = self.client.clone();
        let (etcd, apiserver) = (&mut self.etcd, &mut self.apiserver);
        wait_for("the API server is ready", START_TIME, async || {
            etcd.check()?;
            apiserver.check()?;
            Ok(client.request_text(request("/readyz")?).await.map_err(|error| error.to_string()))
        })
        .await?;
        Ok(())
    }

    fn controller_manager(&self) -> anyhow::Result<Daemon> {
        let key = self.file("service-account.key");
        let mut command = self.ns.command(self.binaries.kubernetes.join("kube-controller-manager"))?;
        command.args([
            format!("--kubeconfig={}", self.file("kubeconfig-nodes")),
            format!("--service-account-private-key-file={key}"),
            format!("--root-ca-file={}", self.file("ca.crt")),
            format!("--cluster-cidr={}", self.families.cidrs(POD_CIDRS)),
            format!("--service-cluster-ip-range={}", self.families.cidrs(SERVICE_CIDRS)),
            // Its default is a folder of the host, which it makes.
            format!("--flex-volume-plugin-dir={}", self.file("flexvolume")),
            "--allocate-node-cidrs".into(),
            "--configure-cloud-routes=false".into(),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
        ]);
        command.args(match self.families {
            Families::Ipv4 => &["--node-cidr-mask-size=24"][..],
            Families::Ipv6 => &["--node-cidr-mask-size=64"],
            Families::Both => &["--node-cidr-mask-size-ipv4=24", "--node-cidr-mask-size-ipv6=64"],
        });
        Daemon::start(command, "kube-controller-manager", &self.dir.join("logs"))
    }

    fn scheduler(&self) -> anyhow::Result<Daemon> {
        let mut command = self.ns.command(self.binaries.kubernetes.join("kube-scheduler"))?;
        command.args([
            format!("--kubeconfig={}", self.file("kubeconfig-nodes")),
            "--leader-elect=false".into(),
            "--secure-port=0".into(),
        ]);
        Daemon::start(command, "kube-scheduler", &self.dir.join("logs"))
    }

    fn file(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }
}

/// A client of the cluster by a kubeconfig file, with limits that a server that is away cannot stretch.
pub async fn client(kubeconfig: &Path) -> anyhow::Result<Client> {
    Client::try_from(config(kubeconfig).await?).context("client")
}

/// One for whoever has nobody to give up for him: a request that nobody answers any more ends, and so does a watch that is
/// silent for as long, to be begun again.
pub async fn impatient_client(kubeconfig: &Path) -> anyhow::Result<Client> {
    let mut config = config(kubeconfig).await?;
    config.read_timeout = Some(ANSWER_TIME);
    // The time that a connection was idle before does not count.
    config.reset_reader_on_write = true;
    Client::try_from(config).context("client")
}

async fn config(kubeconfig: &Path) -> anyhow::Result<kube::Config> {
    let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig)?;
    let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await?;
    config.connect_timeout = Some(CONNECT_TIME);
    Ok(config)
}

fn request(path: &str) -> anyhow::Result<http::Request<Vec<u8>>> {
    Ok(http::Request::get(path).body(Vec::new())?)
}

fn etcd(ns: &Namespace, dir: &Path) -> anyhow::Result<Daemon> {
    let mut command = ns.command("etcd")?;
    command.arg("--data-dir").arg(dir.join("etcd"));
    command.args(["--unsafe-no-fsync", "--log-level=warn"]);
    // Debian's etcd reads settings from the environment, too.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ETCD_")) {
        command.env_remove(name);
    }
    Daemon::start(command, "etcd", &dir.join("logs"))
}

fn apiserver(ns: &Namespace, dir: &Path, binaries: &Binaries, families: Families) -> anyhow::Result<Daemon> {
    let file = |name: &str| dir.join(name).display().to_string();
    let mut command = ns.command(binaries.kubernetes.join("kube-apiserver"))?;
    command.args([
        "--etcd-servers=http://127.0.0.1:2379".into(),
        format!("--advertise-address={}", families.first(CONTROL_PLANE)),
        format!("--secure-port={API_PORT}"),
        format!("--tls-cert-file={}", file("server.crt")),
        format!("--tls-private-key-file={}", file("server.key")),
        format!("--token-auth-file={}", file("tokens.csv")),
        "--authorization-mode=RBAC".into(),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", file("service-account.pub")),
        format!("--service-account-signing-key-file={}", file("service-account.key")),
        format!("--service-cluster-ip-range={}", families.cidrs(SERVICE_CIDRS)),
        "--profiling=false".into(),
    ]);
    Daemon::start(command, "kube-apiserver", &dir.join("logs"))
}
