//! Namespaces and the API server.
//!
//! ```text
//!   client ── node ── server: every endpoint address
//!               └── cp: etcd, API server, and this program
//! ```
//!
//! This program lives in the control plane's namespace: it talks to the API server without a detour, and sees its events
//! when the proxies do. Each start of a subject gets a fresh node, so that nothing of the one before is in its kernel; what
//! it wrote stays until packets were sent through all of them.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use nix::sched::{CloneFlags, setns};
use portolan_lab::binaries::Binaries;
use portolan_lab::control_plane::{self, ControlPlane};
use portolan_lab::netns::{self, Namespace};
use portolan_lab::{lab, topology, wait_for};

use crate::ask::Server;
use crate::load;
use crate::objects::{ENDPOINTS, Size};

const CLIENT: &str = "10.200.1.2";

/// Makes the control plane's namespace and moves the calling thread there: before there are other threads.
pub fn enter(prefix: &str) -> anyhow::Result<()> {
    let api = topology::CONTROL_PLANE.v4;
    let name = format!("{prefix}-cp");
    ip(&format!("netns add {name}\n")).context("make the control plane's namespace (as root?)")?;
    let file = File::open(Path::new("/run/netns").join(&name))?;
    setns(file, CloneFlags::CLONE_NEWNET).context("enter the namespace")?;
    ip(&format!("link set lo up\naddr add {api}/32 dev lo\n"))
}

fn ip(batch: &str) -> anyhow::Result<()> {
    let mut child = std::process::Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().context("stdin")?.write_all(batch.as_bytes())?;
    let status = child.wait()?;
    ensure!(status.success(), "ip -batch: {status}");
    Ok(())
}

/// The API server with the objects of one size.
pub struct World {
    pub prefix: String,
    pub dir: PathBuf,
    pub size: Size,
    pub client: Client,
    pub binaries: Binaries,
    plane: ControlPlane,
}

impl World {
    /// Starts the API server on a copy of the kept objects; the first time they are written, which takes minutes.
    pub async fn up(prefix: &str, size: Size, binaries: &Binaries) -> anyhow::Result<World> {
        let kept = load::kept(size, binaries).await?;
        if !kept.exists() {
            let dir = folder(prefix, "load")?;
            let plane = start(prefix, &dir, binaries).await?;
            load::post_all(&connect(&dir).await?, size).await?;
            plane.stop().await?;
            load::keep(&dir.join("etcd"), &kept)?;
            std::fs::remove_dir_all(dir)?;
        }
        let dir = folder(prefix, &format!("{}x{}", size.services, size.endpoints))?;
        load::copy(&kept, &dir.join("etcd"))?;
        let plane = start(prefix, &dir, binaries).await?;
        let client = connect(&dir).await?;
        load::check(&client, size).await?;
        definitions(&client).await?;
        let (prefix, binaries) = (prefix.into(), binaries.clone());
        Ok(World { prefix, dir, size, client, binaries, plane })
    }

    pub async fn down(self) -> anyhow::Result<()> {
        self.plane.stop().await?;
        Ok(std::fs::remove_dir_all(self.dir)?)
    }

    /// CPU time of the API server so far, in hundredths of a second.
    pub fn apiserver_cpu(&self) -> anyhow::Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.plane.apiserver_pid()))?;
        let after_name = stat.rsplit(") ").next().context("stat")?;
        // proc(5): the 14th and 15th field, of which these are the 12th and 13th after the name.
        let ticks = after_name.split(' ').skip(11).take(2).map(str::parse::<u64>);
        let ticks = ticks.sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(10 * ticks))
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.dir.join("kubeconfig-nodes")
    }

    pub fn logs(&self) -> PathBuf {
        self.dir.join("logs")
    }
}

fn folder(prefix: &str, name: &str) -> anyhow::Result<PathBuf> {
    let dir = lab::folder(prefix).join(name);
    std::fs::create_dir_all(dir.join("logs")).with_context(|| dir.display().to_string())?;
    Ok(dir)
}

async fn start(prefix: &str, dir: &Path, binaries: &Binaries) -> anyhow::Result<ControlPlane> {
    ControlPlane::start_server(
        Namespace::open(&format!("{prefix}-cp"))?,
        dir,
        binaries,
        topology::Families::Both,
    )
    .await
}

/// Directly, not by the relay of tests.
async fn connect(dir: &Path) -> anyhow::Result<Client> {
    control_plane::client(&dir.join("kubeconfig-nodes")).await
}

/// Of the product under test, so not among the kept objects.
async fn definitions(client: &Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in portolan_api::crds() {
        let name = crd.metadata.name.clone().context("name")?;
        api.patch(&name, &PatchParams::apply("bench").force(), &Patch::Apply(&crd)).await?;
        wait_for(&format!("{name} is served"), Duration::from_secs(30), async || {
            let conditions = api.get(&name).await?.status.and_then(|status| status.conditions);
            let is_served =
                conditions.into_iter().flatten().any(|c| c.type_ == "Established" && c.status == "True");
            Ok(if is_served { Ok(()) } else { Err("not established") })
        })
        .await?;
    }
    Ok(())
}

/// A node with a client on one side and every endpoint on the other.
pub struct Node {
    wires: Wires,
    _server: Server,
}

/// The namespaces of it, and what leads from one to the next.
pub struct Wires {
    name: String,
    pub node: Namespace,
    pub client: Namespace,
    pub server: Namespace,
}

impl Wires {
    pub async fn up(prefix: &str) -> anyhow::Result<Wires> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("{prefix}-{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let p = &name;
        netns::ip(&format!(
            "netns add {p}-node\nnetns add {p}-client\nnetns add {p}-server\n\
             link add eth0 netns {p}-client type veth peer name client netns {p}-node\n\
             link add eth0 netns {p}-server type veth peer name server netns {p}-node\n"
        ))
        .await?;
        let open = |name: &str| Namespace::open(&format!("{p}-{name}"));
        let (node, client, server) = (open("node")?, open("client")?, open("server")?);
        node.sysctl(&[
            ("net/ipv4/ip_forward", "1"),
            ("net/ipv6/conf/all/forwarding", "1"),
            ("net/ipv4/conf/all/rp_filter", "0"),
            ("net/ipv4/conf/default/rp_filter", "0"),
        ])?;
        node.ip(&format!(
            "link set lo up\n\
             addr add 10.200.1.1/24 dev client\nlink set client up\n\
             addr add 10.200.2.1/24 dev server\nlink set server up\n\
             route add {ENDPOINTS} via 10.200.2.2\n"
        ))
        .await?;
        client
            .ip(&format!(
                "link set lo up\naddr add {CLIENT}/24 dev eth0\nlink set eth0 up\nroute add default via 10.200.1.1\n"
            ))
            .await?;
        server
            .ip(&format!(
                "link set lo up\naddr add 10.200.2.2/24 dev eth0\nlink set eth0 up\n\
                 route add local {ENDPOINTS} dev lo\nroute add default via 10.200.2.1\n"
            ))
            .await?;
        Ok(Wires { name, node, client, server })
    }

    pub async fn down(self) -> anyhow::Result<()> {
        let name = self.name.clone();
        drop(self);
        let delete = |end| format!("netns del {name}-{end}\n");
        netns::ip(&["node", "client", "server"].map(delete).concat()).await
    }
}

impl std::ops::Deref for Node {
    type Target = Wires;

    fn deref(&self) -> &Wires {
        &self.wires
    }
}

impl Node {
    pub async fn up(prefix: &str) -> anyhow::Result<Node> {
        let wires = Wires::up(prefix).await?;
        let api = topology::CONTROL_PLANE.v4;
        let node = &wires.name;
        netns::ip(&format!("link add node netns {prefix}-cp type veth peer name eth0 netns {node}-node\n"))
            .await?;
        let cp = Namespace::open(&format!("{prefix}-cp"))?;
        cp.ip("addr add 10.9.0.11/24 dev node\nlink set node up\n").await?;
        let to_api =
            format!("addr add 10.9.0.1/24 dev eth0\nlink set eth0 up\nroute add {api}/32 dev eth0\n");
        wires.node.ip(&to_api).await?;
        let _server = Server::start(&wires.server)?;
        Ok(Node { wires, _server })
    }

    /// Bytes that came from the API server so far.
    pub async fn received(&self) -> anyhow::Result<u64> {
        let text = self.node.output(&["ip", "-j", "-s", "link", "show", "dev", "eth0"]).await?;
        let json: serde_json::Value = serde_json::from_str(&text)?;
        json[0]["stats64"]["rx"]["bytes"].as_u64().context("rx.bytes")
    }

    /// Packets can still be sent through its kernel. The processes in its namespaces must have ended.
    pub async fn retire(self) -> anyhow::Result<Wires> {
        let Node { wires, _server } = self;
        drop(_server);
        // The namespaces' ends of the wires go at the kernel's leisure, this one at once.
        netns::ip("link del node\n").await?;
        Ok(wires)
    }

    pub async fn down(self) -> anyhow::Result<()> {
        self.retire().await?.down().await
    }
}
