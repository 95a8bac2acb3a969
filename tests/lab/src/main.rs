//! `portolan-lab`: a lab for a person, and the demo.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::process::CommandExt;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use clap::{Parser, Subcommand};
use portolan_lab::binaries::Binaries;
use portolan_lab::product::Product;
use portolan_lab::topology::Families;
use portolan_lab::{Options, Router, RouterKind, Site, demo, held, probe};
use tracing_subscriber::EnvFilter;

/// A Kubernetes cluster of real parts in network namespaces, with a BGP router and a client behind it.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Bring a cluster up, install the chart, expose a deployment, ask it; the cluster stays up
    Demo {
        #[arg(long, default_value = "bird")]
        router: RouterKind,
    },
    /// Bring a bare cluster up and leave it up
    Up {
        #[arg(long, default_value = "bird")]
        router: RouterKind,
        /// ipv4, ipv6, or both
        #[arg(long, default_value = "both")]
        families: Families,
    },
    /// Remove the cluster and every trace of it
    Down,
    /// Where the cluster's parts are and what the router has
    Status,
    /// Run a command in a namespace: client, router, cp, n1, or a pod's name
    Exec {
        name: String,
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true)]
        command: Vec<String>,
    },
    /// Ask a pod's server, directly or through a Service: who answers, and whom it sees
    Request {
        /// The namespace to ask from: client, n1, or a pod's name
        from: String,
        to: SocketAddr,
        #[arg(long, default_value_t = 1)]
        count: usize,
        #[arg(long)]
        udp: bool,
    },
    /// Start a process of the product: agent-n1, controller-1
    Start { name: String },
    /// kill -9 a process of the product: agent-n1, controller-1
    Kill { name: String },
    /// Find Kubernetes' and Helm's binaries, or build them
    Binaries,
    /// Hold a lab until SIGTERM
    #[command(name = held::SERVE, hide = true)]
    Serve { prefix: String, router: RouterKind, families: Families },
}

#[tokio::main]
async fn main() -> ExitCode {
    // A client that repeats its requests while a server starts has nothing to report.
    let quiet = || EnvFilter::new("warn,kube_client=off");
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| quiet());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    match run(Arguments::parse().command).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portolan-lab: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Demo { router } => unless_interrupted(demo::run(router)).await,
        Command::Up { router, families } => unless_interrupted(up(router, families)).await,
        Command::Down => down().await,
        Command::Status => status(&site()?).await,
        Command::Exec { name, command } => exec(&site()?, &name, &command),
        Command::Request { from, to, count, udp } => request(&site()?, &from, to, count, udp).await,
        Command::Start { name } => product(&site()?).await?.start_named(&name).await,
        Command::Kill { name } => product(&site()?).await?.kill(&name).await,
        Command::Binaries => binaries(),
        Command::Serve { prefix, router, families } => {
            held::serve(Options { families, ..Options::with_prefix(&prefix, router) }).await
        }
    }
}

/// Ctrl-C removes what is half up.
async fn unless_interrupted(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    root()?;
    tokio::select! {
        result = work => result,
        _ = tokio::signal::ctrl_c() => {
            eprintln!("interrupted: removing the lab");
            held::down(demo::PREFIX).await?;
            anyhow::bail!("interrupted")
        }
    }
}

fn root() -> anyhow::Result<()> {
    ensure!(nix::unistd::geteuid().is_root(), "the lab makes network namespaces: run it as root");
    Ok(())
}

fn site() -> anyhow::Result<Site> {
    held::load(demo::PREFIX)?.context("no lab is up: make demo, or portolan-lab up")
}

async fn product(site: &Site) -> anyhow::Result<Product> {
    Ok(Product::new(site.clone(), site.connect().await?))
}

async fn up(router: RouterKind, families: Families) -> anyhow::Result<()> {
    let site = held::up(&Options { families, ..Options::with_prefix(demo::PREFIX, router) }).await?;
    for part in &site.steps {
        println!("{:<28}{:>6.1} s", part.name, part.took.as_secs_f64());
    }
    println!("{}", site.how_to_look());
    Ok(())
}

async fn down() -> anyhow::Result<()> {
    root()?;
    let text = if held::down(demo::PREFIX).await? { "the lab is gone" } else { "no lab was up" };
    println!("{text}");
    Ok(())
}

async fn status(site: &Site) -> anyhow::Result<()> {
    println!("held by process {}\n{}\n", site.pid, site.how_to_look());
    for (name, pid) in site.product_pids() {
        println!("{name:<20} process {pid}");
    }
    let router = Router::new(site.router_kind, site.ns("router")?, site.dir());
    println!("\nrouter ({}) has sessions with {}", router.kind, show(&router.established().await?));
    for (prefix, by) in router.bgp_routes().await? {
        println!("  {prefix:<18} by {}", show(&by));
    }
    Ok(())
}

fn show(addresses: &BTreeSet<IpAddr>) -> String {
    addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", ")
}

fn exec(site: &Site, name: &str, command: &[String]) -> anyhow::Result<()> {
    let ns = site.find_ns(name)?;
    let mut enter = std::process::Command::new("ip");
    enter.args(["netns", "exec", &ns]).args(command).env("KUBECONFIG", site.kubeconfig());
    Err(enter.exec()).context("ip netns exec")
}

async fn request(site: &Site, from: &str, to: SocketAddr, count: usize, udp: bool) -> anyhow::Result<()> {
    let ns = portolan_lab::netns::Namespace::open(&site.find_ns(from)?)?;
    let mut failed = 0;
    for _ in 0..count {
        let answer = if udp { probe::udp(&ns, to).await } else { probe::tcp(&ns, to).await };
        match answer {
            Ok(answer) => print!("{answer}"),
            Err(error) => {
                failed += 1;
                println!("{error:#}");
            }
        }
    }
    ensure!(failed == 0, "{failed} of {count} requests failed");
    Ok(())
}

fn binaries() -> anyhow::Result<()> {
    let Binaries { kubernetes, helm } = Binaries::ensure()?;
    println!("kubernetes: {}\nhelm: {}", kubernetes.display(), helm.display());
    Ok(())
}
