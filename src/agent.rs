//! `portolan agent`: one node's line from the Kubernetes API to the kernel to the routers.
//!
//! ```text
//!   watch ──Change──> Line (index, plans, kernel) ──Intent──> speaker ──SpeakerStatus──┐
//!                       └──────────LineReport──────────────> report ──> NodeStatus <───┘
//! ```
//!
//! `reload` hands the Line a changed configuration. Each task owns one thing; a `watch` channel carries the latest value and nothing points back up.

use std::sync::Arc;

use anyhow::Context as _;
use portolan_index::{Index, Kind};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::config::{Config, Sources};
use crate::dataplane::conntrack;
use crate::events::Events;
use crate::health::{self, Bind, Health};
use crate::metrics::{self, Metrics};
use crate::reporter::Reporter;
use crate::speaker::{self, Intent, SpeakerStatus};
use crate::{cli, http, localhost, watch as kubernetes};

mod announcer;
mod connections;
mod here;
mod line;
mod meter;
mod node_routes;
mod programmer;
mod reload;
mod report;
mod sentry;
mod tables;

pub use announcer::Announcer;
pub use here::Here;
use line::{Line, Outlets};

/// Runs until SIGTERM or SIGINT. The kernel keeps its rules and routes when the agent ends.
///
/// Fails when the kernel, the configuration or the kubeconfig cannot be used; a cluster that cannot be reached is
/// waited for.
pub async fn run(arguments: cli::Agent) -> anyhow::Result<()> {
    let sources = Sources { own: arguments.config.clone(), kube_proxy: arguments.kube_proxy_config.clone() };
    let given = sources.read()?;
    given.notes.iter().for_each(|note| tracing::warn!("KubeProxyConfiguration: {note}"));
    if arguments.init_only {
        return init(&given.config);
    }
    let by_file = given.node_name.filter(|_| arguments.node_name.is_none());
    let node_name = arguments.node_name.or(by_file.clone());
    let node_name =
        node_name.context("--node-name, or hostnameOverride in a KubeProxyConfiguration, is needed")?;
    let metrics = Arc::new(Metrics::new());
    let client = kubernetes::counted_client(arguments.api.kubeconfig.as_deref(), metrics.clone()).await?;
    check_forwarding();
    let (ready_tx, ready) = watch::channel(Some("waiting for the first complete lists"));
    if let Some(address) = arguments.http {
        http::serve(address, ready).await?;
    }

    let (intent_tx, intent) = watch::channel(Arc::new(Intent::default()));
    let (status_tx, status) = watch::channel(Arc::new(SpeakerStatus::default()));
    let (report_tx, line_report) = watch::channel(report::LineReport::default());
    let (health_tx, health) = watch::channel(Health::default());
    let events = Events::start(client.clone(), "portolan-agent", &node_name);
    let reporter = Reporter::new(&node_name, events.clone(), health.clone());
    tokio::spawn(reporter.clone().birth_cry());
    let (config_tx, config) = watch::channel(given.config.clone());
    let mut servers = JoinSet::new();
    let bind = |address| Bind { address, hard_fail: given.config.proxy.bind_address_hard_fail };
    if let Some(address) = given.config.proxy.healthz_bind_address {
        let node = health::serve_node(bind(address), health.clone(), metrics.clone(), reporter.clone());
        servers.spawn(node);
    }
    if let Some(address) = given.config.proxy.metrics_bind_address {
        let pages = metrics::server::Pages {
            metrics: metrics.clone(),
            speaker: status.clone(),
            config: config.clone(),
        };
        servers.spawn(metrics::server::serve(bind(address), pages, reporter.clone()));
    }
    tokio::spawn(health::serve_ports(health, events.clone()));
    let (localhost_tx, relayed) = watch::channel(Default::default());
    tokio::spawn(localhost::serve(relayed, events.clone(), metrics.clone()));
    let proxy_name = given.config.proxy.service_proxy_name.clone();
    let index = Index::new(&Kind::ALL).claiming(proxy_name.clone());
    let listen = given.config.bgp.listen.clone();
    let outlets = Outlets {
        intent: intent_tx.clone(),
        report: report_tx,
        ready: ready_tx,
        health: health_tx,
        localhost: localhost_tx,
        metrics,
        reporter,
    };
    let line = Line::new(&node_name, config, index, outlets).await?;

    let changes = kubernetes::start(&client, &Kind::ALL, proxy_name.as_deref());
    let mut speaker = tokio::spawn(async move { speaker::run(intent, &listen, status_tx).await });
    let mut report = tokio::spawn(report::run(client, node_name.clone(), line_report, status));
    tokio::spawn(reload::run(sources, by_file, config_tx));

    tracing::info!(node = node_name, version = env!("CARGO_PKG_VERSION"), "the agent runs");
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        ended = line.run(changes) => ended.context("the agent's line ended")?,
        ended = &mut speaker => ended.context("the BGP speaker ended")??,
        Some(ended) = servers.join_next() => ended.context("a server of the node's ended")??,
        ended = &mut report => ended.context("the writer of the NodeStatus ended")?,
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tracing::info!("stopping: the sessions are closed, the kernel keeps its rules");
    intent_tx.send_modify(|intent| Arc::make_mut(intent).shutdown = Some("portolan agent stops".into()));
    speaker.await.context("the BGP speaker ended")?
}

/// `--init-only`: what needs more rights than the agent has in its daily work, which is NET_ADMIN (S75).
fn init(config: &Config) -> anyhow::Result<()> {
    let failed = conntrack::tune(&(&config.proxy.conntrack).into());
    let many = failed.len();
    anyhow::ensure!(many == 0, "{many} settings of connection tracking could not be written, see above");
    tracing::info!("the node is prepared");
    Ok(())
}

/// S78. Warnings and no more: a node may have pods of one family only, and a bridge is not every node's.
fn check_forwarding() {
    let read = |file: &str| std::fs::read_to_string(file).ok();
    for (file, note) in missing(read) {
        tracing::warn!(file, "{note}");
    }
}

const FORWARDING: &str = "this node does not forward packets: clients elsewhere cannot reach pods by it";
const BRIDGES: &str = "answers between pods on one bridge of this node do not pass its rules, so that a Service's answer may not find back";
/// What is wrong where the file says 0. Files of a bridge are there when the kernel has bridges that filter.
const SYSCTLS: [(&str, &str); 4] = [
    ("/proc/sys/net/ipv4/ip_forward", FORWARDING),
    ("/proc/sys/net/ipv6/conf/all/forwarding", FORWARDING),
    ("/proc/sys/net/bridge/bridge-nf-call-iptables", BRIDGES),
    ("/proc/sys/net/bridge/bridge-nf-call-ip6tables", BRIDGES),
];

fn missing(read: impl Fn(&str) -> Option<String>) -> impl Iterator<Item = (&'static str, &'static str)> {
    SYSCTLS.into_iter().filter(move |(file, _)| read(file).is_some_and(|value| value.trim() == "0"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s78_settings_that_are_off_are_said() {
        let said = |files: &[(&str, &str)]| -> Vec<&str> {
            let read =
                |file: &str| files.iter().find(|(f, _)| file.ends_with(f)).map(|(_, v)| format!("{v}\n"));
            missing(read).map(|(file, _)| file.rsplit('/').next().unwrap_or_default()).collect()
        };
        assert!(said(&[]).is_empty(), "what is not there is not off");
        assert!(
            said(&[("ip_forward", "1"), ("forwarding", "1"), ("bridge-nf-call-iptables", "1")]).is_empty()
        );
        assert_eq!(said(&[("ip_forward", "0"), ("all/forwarding", "1")]), ["ip_forward"]);
        assert_eq!(said(&[("all/forwarding", "0")]), ["forwarding"]);
        assert_eq!(said(&[("bridge-nf-call-iptables", "0")]), ["bridge-nf-call-iptables"]);
    }
}
