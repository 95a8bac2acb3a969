//! Node ports on loopback addresses (S22, KEP-6032).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{ListParams, Patch, PatchParams};
use portolan_lab::probe::{self, Connection};
use portolan_lab::wait_for;
use serde_json::{Value, json};

use crate::fixture::{Cluster, Configured, PATIENCE, at, node_port, test};

fn localhost(cluster: &Cluster) -> anyhow::Result<Configured> {
    cluster.configure(1, json!({ "proxy": { "nodePortAddresses": ["primary", "localhost"] } }))
}

/// Waits until a connection from a node to itself is answered (Ok, by this pod if one is named) or refused.
async fn ends(cluster: &Cluster, node: u8, to: SocketAddr, answered: bool) -> anyhow::Result<()> {
    let ns = cluster.ns(&format!("n{node}"))?;
    wait_for(&format!("n{node} to {to}: answered {answered}"), PATIENCE, async || {
        let answer = probe::tcp_within(&ns, to, Duration::from_secs(1)).await;
        let text = answer.as_ref().map_or_else(|error| format!("{error:#}"), ToString::to_string);
        let is_wanted = answer.is_ok() == answered && (answered || text.contains("refused"));
        Ok(if is_wanted { Ok(()) } else { Err(text) })
    })
    .await
}

async fn patch(cluster: &Cluster, spec: Value) -> anyhow::Result<()> {
    let patch = Patch::Merge(json!({ "spec": spec }));
    cluster.api::<Service>().patch("web", &PatchParams::default(), &patch).await?;
    Ok(())
}

/// Waits until n1's metric has this value or more.
async fn counts(cluster: &Cluster, metric: &str, least: f64) -> anyhow::Result<()> {
    let n1 = cluster.ns("n1")?;
    let metric = format!("kubeproxy_nftables_localhost_nodeport_{metric}");
    wait_for(&format!("{metric} is {least} or more"), PATIENCE, async || {
        let text = n1.output(&["curl", "-s", "http://127.0.0.1:10249/metrics"]).await?;
        let value = text.lines().find_map(|line| line.strip_prefix(&metric)?.trim().parse::<f64>().ok());
        Ok(if value.is_some_and(|value| value >= least) { Ok(()) } else { Err(format!("{value:?}")) })
    })
    .await
}

#[test]
fn s22_s50_e101_node_ports_answer_on_loopback_where_it_is_asked_for() {
    test("s22-e101", async |cluster| {
        let _configured = localhost(cluster)?;
        cluster.deploy("web", 1, Some(2)).await?;
        let spec = json!({ "type": "NodePort", "ipFamilyPolicy": "RequireDualStack" });
        let port = node_port(&cluster.expose("web", spec).await?)?;
        let (v4, v6): (IpAddr, IpAddr) = (Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into());
        ends(cluster, 1, at(v4, port), true).await?;
        ends(cluster, 1, at(v6, port), true).await?;
        ends(cluster, 2, at(v4, port), false).await?;
        counts(cluster, "listeners{ip_family=\"IPv4\"}", 1.0).await?;
        counts(cluster, "listeners{ip_family=\"IPv6\"}", 1.0).await?;
        let mut open = Connection::open(&cluster.ns("n1")?, at(v4, port)).await?;
        open.ask().await?;

        patch(cluster, json!({ "externalTrafficPolicy": "Local" })).await?;
        ends(cluster, 1, at(v4, port), false).await?;
        open.ask().await?; // S50
        patch(cluster, json!({ "externalTrafficPolicy": "Cluster" })).await?;
        ends(cluster, 1, at(v4, port), true).await?;
        cluster.scale("web", 0).await?;
        ends(cluster, 1, at(v4, port), false).await
    });
}

#[test]
fn s22_s41_e101_client_ip_affinity_pins_all_to_one_endpoint() {
    test("s22-affinity", async |cluster| {
        let _configured = localhost(cluster)?;
        cluster.deploy("web", 3, None).await?;
        let port = node_port(&cluster.expose("web", json!({ "type": "NodePort" })).await?)?;
        cluster.endpoints("web", 3).await?;
        let (to, n1) = (at(Ipv4Addr::LOCALHOST.into(), port), cluster.ns("n1")?);
        ends(cluster, 1, to, true).await?;
        wait_for("all three pods answer", PATIENCE, async || {
            let tally = probe::many(&n1, to, 30).await;
            Ok(if tally.failures.is_empty() && tally.pods.len() == 3 {
                Ok(())
            } else {
                Err(format!("{tally:?}"))
            })
        })
        .await?;
        patch(cluster, json!({ "sessionAffinity": "ClientIP" })).await?;
        wait_for("one pod answers", PATIENCE, async || {
            let tally = probe::many(&n1, to, 30).await;
            Ok(if tally.failures.is_empty() && tally.pods.len() == 1 {
                Ok(())
            } else {
                Err(format!("{tally:?}"))
            })
        })
        .await
    });
}

#[test]
fn s22_e101_udp_is_refused_and_counted() {
    test("s22-udp", async |cluster| {
        let _configured = localhost(cluster)?;
        cluster.deploy("web", 1, Some(1)).await?;
        let ports = json!([{ "port": 80, "protocol": "UDP" }]);
        let port = node_port(&cluster.expose("web", json!({ "type": "NodePort", "ports": ports })).await?)?;
        // Somebody's own server behind the node port must not be taken for the Service.
        let n1 = cluster.ns("n1")?;
        let _server = n1.listen_udp(at(Ipv4Addr::LOCALHOST.into(), port))?;
        wait_for("the packet is refused", PATIENCE, async || {
            let socket = n1.udp(at(Ipv4Addr::LOCALHOST.into(), port)).await?;
            let sent = socket.send(b"who").await;
            let mut buffer = [0; 64];
            let answer = tokio::time::timeout(Duration::from_millis(500), socket.recv(&mut buffer)).await;
            let refused = sent.is_err() || matches!(answer, Ok(Err(_)));
            Ok(if refused { Ok(()) } else { Err(format!("{sent:?}, {answer:?}")) })
        })
        .await?;
        counts(cluster, "rejected_packets_total{ip_family=\"IPv4\",protocol=\"UDP\"}", 1.0).await
    });
}

#[test]
fn s22_a_taken_port_is_said_and_tried_again() {
    test("s22-taken", async |cluster| {
        let to: SocketAddr = at(Ipv4Addr::LOCALHOST.into(), 30922);
        let taken = cluster.ns("n1")?.listen_tcp(to)?;
        let _configured = localhost(cluster)?;
        cluster.deploy("web", 1, Some(1)).await?;
        let ports = json!([{ "port": 80, "nodePort": to.port() }]);
        cluster.expose("web", json!({ "type": "NodePort", "ports": ports })).await?;
        let events = cluster.api::<Event>();
        let about =
            ListParams::default().fields("reason=FailedToStartLocalhostNodePort,involvedObject.name=web");
        wait_for("the Service is told", PATIENCE, async || {
            let found = events.list(&about).await?.items;
            Ok(if found.is_empty() { Err("no Event") } else { Ok(()) })
        })
        .await?;
        counts(cluster, "listener_creation_failures_total{ip_family=\"IPv4\"}", 1.0).await?;
        drop(taken);
        ends(cluster, 1, to, true).await
    });
}
