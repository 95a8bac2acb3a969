//! One lab: brought up by `Lab::up`, removed when its process ends, however that comes about.

use std::ops::Deref;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::{Api, Client};
use tokio::process::{Child, Command};
use tokio::sync::Mutex;

use crate::binaries::Binaries;
use crate::control_plane::ControlPlane;
use crate::product::Product;
use crate::router::{Router, RouterKind, RouterProcesses};
use crate::site::{Site, Step};
use crate::topology::Families;
use crate::wait::wait_for;
use crate::{kubelet, netns, topology};

/// Where labs keep their files, one folder each.
pub const LABS: &str = "/run/portolan-lab";

const REAP: &str = include_str!("reap.sh");

/// What a lab is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// Namespaces are `<prefix>-<name>`, files are in `/run/portolan-lab/<prefix>`.
    pub prefix: String,
    pub nodes: u8,
    pub router: RouterKind,
    pub families: Families,
}

impl Options {
    /// A lab of this process's own: three nodes, BIRD, both families.
    pub fn own() -> Options {
        Options::with_prefix(&format!("plab{}", std::process::id()), RouterKind::Bird)
    }

    /// Three nodes and both families.
    pub fn with_prefix(prefix: &str, router: RouterKind) -> Options {
        Options { prefix: prefix.into(), nodes: 3, router, families: Families::Both }
    }
}

/// A running lab. All methods of [`Site`] are there, too.
pub struct Lab {
    site: Site,
    client: Client,
    control_plane: Mutex<ControlPlane>,
    router: Mutex<(Router, RouterProcesses)>,
    pub product: Mutex<Product>,
    /// Cleans up once its input ends, which is when this process does.
    guard: Mutex<Child>,
}

impl Deref for Lab {
    type Target = Site;

    fn deref(&self) -> &Site {
        &self.site
    }
}

impl Lab {
    /// Brings everything up: namespaces, control plane, nodes, router. Call it inside a tokio runtime that lives as long as
    /// the lab is used: the relay, the kubelets and the pods' servers are its tasks.
    pub async fn up(options: Options) -> anyhow::Result<Lab> {
        let mut clock = Clock::new();
        let binaries = tokio::task::spawn_blocking(Binaries::ensure).await??;
        clock.step("binaries");
        let dir = folder(&options.prefix);
        reap(&options.prefix).await?;
        std::fs::create_dir_all(dir.join("logs")).with_context(|| dir.display().to_string())?;
        std::fs::write(pid_file(&options.prefix), std::process::id().to_string())?;
        let mut guard = spawn_reaper(&options.prefix, Stdio::piped())?;
        let mut site = Site::new(&options, dir, &binaries);
        match bring_up(&options, &site, &binaries, &mut clock).await {
            Ok((control_plane, router, client)) => {
                site.steps = clock.steps;
                let product = Mutex::new(Product::new(site.clone(), client.clone()));
                let (control_plane, router) = (Mutex::new(control_plane), Mutex::new(router));
                let guard = Mutex::new(guard);
                Ok(Lab { site, client, control_plane, router, product, guard })
            }
            Err(error) => {
                site.keep_logs();
                drop(guard.stdin.take());
                let _ = guard.wait().await;
                Err(error.context(format!("the lab did not come up; logs: {}", site.logs().display())))
            }
        }
    }

    /// Removes every trace, and waits until it is gone.
    pub async fn down(&self) {
        let mut guard = self.guard.lock().await;
        drop(guard.stdin.take());
        let _ = guard.wait().await;
    }

    /// The administrator's client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The router as it is now.
    pub async fn router(&self) -> Router {
        self.router.lock().await.0.clone()
    }

    /// Stops the router and starts another kind in its place, without a route left over.
    pub async fn use_router(&self, kind: RouterKind) -> anyhow::Result<()> {
        let mut current = self.router.lock().await;
        if current.0.kind == kind {
            return Ok(());
        }
        current.1.kill().await?;
        let router = Router::new(kind, current.0.ns.clone(), self.dir());
        router.flush().await?;
        let processes = router.start(self.nodes, &self.logs()).await?;
        *current = (router, processes);
        Ok(())
    }

    /// Kills the API server.
    pub async fn stop_apiserver(&self) -> anyhow::Result<()> {
        self.control_plane.lock().await.stop_apiserver().await
    }

    /// Starts it again and waits until it is ready.
    pub async fn start_apiserver(&self) -> anyhow::Result<()> {
        self.control_plane.lock().await.start_apiserver().await
    }
}

type Parts = (ControlPlane, (Router, RouterProcesses), Client);

async fn bring_up(
    options: &Options,
    site: &Site,
    binaries: &Binaries,
    clock: &mut Clock,
) -> anyhow::Result<Parts> {
    topology::build(&options.prefix, options.nodes, options.families).await?;
    let router = Router::new(options.router, site.ns("router")?, site.dir());
    let processes = router.start(options.nodes, &site.logs()).await?;
    clock.step("namespaces and router");
    let control_plane = ControlPlane::start(site.ns("cp")?, site.dir(), binaries, options.families).await?;
    clock.step("etcd and API server");
    let client = control_plane.client();
    let numbers = 1..=options.nodes;
    let kubelets = numbers.map(|number| kubelet::start(&control_plane.access.kubeconfig, options, number));
    futures::future::try_join_all(kubelets).await?;
    clock.step("nodes with podCIDRs");
    default_service_account(&client).await?;
    clock.step("controllers at work");
    Ok((control_plane, (router, processes), client))
}

/// Pods cannot be made in a namespace before its service account is there.
async fn default_service_account(client: &Client) -> anyhow::Result<()> {
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), "default");
    wait_for("the namespace default has its service account", Duration::from_secs(60), async || {
        Ok(accounts.get("default").await.map_err(|error| error.to_string()))
    })
    .await?;
    Ok(())
}

/// The folder of the lab with this prefix.
pub fn folder(prefix: &str) -> PathBuf {
    PathBuf::from(LABS).join(prefix)
}

/// The number of the process that holds it.
pub fn pid_file(prefix: &str) -> PathBuf {
    folder(prefix).join("pid")
}

/// Removes what a lab of this prefix may have left, processes first; whether there was anything.
pub async fn reap(prefix: &str) -> anyhow::Result<bool> {
    if netns::list(&format!("{prefix}-")).is_empty() && !folder(prefix).exists() {
        return Ok(false);
    }
    let _ = std::fs::remove_file(folder(prefix).join("keep"));
    spawn_reaper(prefix, Stdio::null())?.wait().await?;
    Ok(true)
}

fn spawn_reaper(prefix: &str, input: Stdio) -> anyhow::Result<Child> {
    Command::from(reaper(prefix)).stdin(input).spawn().context("start the guard")
}

/// The guard: removes namespaces, their processes and the folder of `prefix` once its input ends. It must not run inside one of
/// them, or it ends itself.
pub fn reaper(prefix: &str) -> std::process::Command {
    let mut command = std::process::Command::new("sh");
    command.arg("-c").arg(REAP).arg("portolan-lab-reap").arg(prefix).arg(folder(prefix));
    command.stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: setsid is a plain system call. A session of its own: neither Ctrl-C nor a closed terminal reaches the guard.
    unsafe {
        std::os::unix::process::CommandExt::pre_exec(&mut command, || {
            nix::unistd::setsid().map(drop).map_err(std::io::Error::from)
        });
    }
    command
}

struct Clock {
    last: std::time::Instant,
    steps: Vec<Step>,
}

impl Clock {
    fn new() -> Clock {
        Clock { last: std::time::Instant::now(), steps: Vec::new() }
    }

    fn step(&mut self, name: &str) {
        let now = std::time::Instant::now();
        self.steps.push(Step { name: name.into(), took: now - self.last });
        self.last = now;
    }
}
