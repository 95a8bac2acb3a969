//! The command line: clap types, and which function each command runs.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::trace::{Destination, Source};

/// Service VIP load balancer and advertiser for Kubernetes.
#[derive(Debug, Parser)]
#[command(name = "portolan", version, about, propagate_version = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
    /// Log as JSON lines instead of text. RUST_LOG sets the level (default: info).
    #[arg(long, global = true)]
    pub log_json: bool,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run on every node: service proxy, node routes and BGP speaker.
    Agent(Agent),
    /// Run on a few nodes: address allocation, leader-elected.
    Controller(Controller),
    /// Show nodes, BGP sessions, pools, and what is announced or withheld, and why.
    Status(Status),
    /// Print what a node would do for the objects of a YAML file: no cluster, no root.
    Plan(Plan),
    /// Say what becomes of a packet on a node, and why: by the rules of this node's kernel, or of a YAML file's plan.
    Trace(Trace),
    /// Print the CustomResourceDefinitions.
    Crds,
    /// Remove everything Portolan made in this node's kernel: its nftables tables and its routes.
    Cleanup(Cleanup),
}

/// How to reach the API server.
#[derive(Debug, Args)]
pub struct Api {
    /// Kubeconfig file; without it the pod's service account.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Agent {
    /// This node's name, as its Node object has it; without it `hostnameOverride` of the KubeProxyConfiguration.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    #[command(flatten)]
    pub api: Api,
    /// Configuration file (the chart's ConfigMap, key config.yaml).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A KubeProxyConfiguration (kubeproxy.config.k8s.io/v1alpha1) to take settings from, as it is; --config lies over it.
    #[arg(long, value_name = "FILE")]
    pub kube_proxy_config: Option<PathBuf>,
    /// Write the kernel settings that need a privileged container, then exit; fails if one cannot be written.
    #[arg(long)]
    pub init_only: bool,
    /// Serve /healthz and /readyz here.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
}

#[derive(Debug, Args)]
pub struct Cleanup {
    /// Remove what a kube-proxy left instead, in any mode: its tables, its chains in iptables' tables, its IPVS virtual
    /// servers (open connections through them end), interface and ipsets. Nothing of Portolan's is touched, so an agent may run; a kube-proxy must not.
    #[arg(long)]
    pub kube_proxy: bool,
}

#[derive(Debug, Args)]
pub struct Controller {
    #[command(flatten)]
    pub api: Api,
    /// Configuration file (the chart's ConfigMap, key config.yaml).
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// YAML stream of objects to apply and keep (the chart's ConfigMap, key objects.yaml).
    #[arg(long, value_name = "FILE")]
    pub bootstrap: Option<PathBuf>,
    /// Who holds the Lease: unique per replica, for example the pod's name.
    #[arg(long, env = "POD_NAME", value_name = "NAME")]
    pub identity: String,
    /// Namespace of the Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "portolan-system", value_name = "NAME")]
    pub namespace: String,
    /// Serve /healthz and /readyz here.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub http: Option<SocketAddr>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    #[default]
    Text,
    Json,
}

#[derive(Debug, Args)]
pub struct Status {
    #[command(flatten)]
    pub api: Api,
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Plan {
    /// Kubernetes and Portolan objects, as a YAML stream.
    #[arg(short, long = "filename", value_name = "FILE")]
    pub file: PathBuf,
    /// The node to plan for.
    #[arg(long, value_name = "NAME")]
    pub node: String,
    /// Configuration file, as for the agent.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print only one part.
    #[arg(long, value_enum)]
    pub only: Option<Part>,
}

#[derive(Debug, Args)]
pub struct Trace {
    /// The client: 10.244.1.5.
    #[arg(long, value_name = "ADDRESS[:PORT]")]
    pub from: Source,
    /// What it asks for: 10.96.0.10:80/tcp.
    #[arg(long, value_name = "ADDRESS:PORT[/PROTOCOL]")]
    pub to: Destination,
    /// The interface that it comes in by, for rules that know pods by theirs (detectLocalMode BridgeInterface,
    /// InterfaceNamePrefix): cbr0.
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,
    /// Kubernetes and Portolan objects, as a YAML stream; without it this node's kernel is read, as root.
    #[arg(short, long = "filename", value_name = "FILE", requires = "node")]
    pub file: Option<PathBuf>,
    /// The node of the file to plan for.
    #[arg(long, value_name = "NAME", requires = "file")]
    pub node: Option<String>,
    /// Configuration file, as for the agent.
    #[arg(long, value_name = "FILE", requires = "file")]
    pub config: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Allocations and problems.
    Status,
    /// The nftables tables.
    Nft,
    /// Routes to other nodes and BGP routes per peer.
    Routes,
}
