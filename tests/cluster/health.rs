//! What load balancers ask a node: /healthz, /livez, and healthCheckNodePorts.

use std::net::SocketAddr;

use k8s_openapi::api::core::v1::{Event, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{ListParams, Patch, PatchParams};
use portolan_lab::topology::node_address;
use portolan_lab::{probe, wait_for};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::fixture::{Cluster, PATIENCE, at, node_port, test};

/// Status, head and body of a GET by the client outside.
async fn get(cluster: &Cluster, to: SocketAddr, path: &str) -> anyhow::Result<(u16, String, Value)> {
    let mut stream = cluster.ns("client")?.connect(to).await?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).unwrap_or_default().parse()?;
    Ok((status, head.to_lowercase(), serde_json::from_str(body).unwrap_or_default()))
}

/// Waits until a GET answers with this status.
async fn answers(
    cluster: &Cluster,
    to: SocketAddr,
    path: &str,
    status: u16,
) -> anyhow::Result<(String, Value)> {
    wait_for(&format!("http://{to}{path} answers {status}"), PATIENCE, async || {
        Ok(match get(cluster, to, path).await {
            Ok((found, head, body)) if found == status => Ok((head, body)),
            other => Err(format!("{other:?}")),
        })
    })
    .await
}

fn on_node(node: u8, port: u16) -> SocketAddr {
    at(node_address(node).v4.into(), port)
}

#[test]
fn s58_s59_e76_healthz_and_livez() {
    test("s58-s59", async |cluster| {
        let taint =
            async |taints: Value| cluster.patch_node("n3", json!({ "spec": { "taints": taints } })).await;
        let (head, body) = answers(cluster, on_node(3, 10256), "/healthz", 200).await?;
        assert!(head.contains("content-type: application/json"), "{head}");
        assert!(head.contains("x-content-type-options: nosniff"), "{head}");
        assert_eq!((&body["nodeEligible"], &body["lastUpdated"]), (&json!(true), &body["currentTime"]));
        taint(json!([{ "key": "ToBeDeletedByClusterAutoscaler", "effect": "PreferNoSchedule" }])).await?;
        let (_, body) = answers(cluster, on_node(3, 10256), "/healthz", 503).await?;
        assert_eq!(body["nodeEligible"], json!(false));
        let (_, body) = answers(cluster, on_node(3, 10256), "/livez", 200).await?;
        assert_eq!(body.get("nodeEligible"), None);
        taint(json!(null)).await?;
        answers(cluster, on_node(3, 10256), "/healthz", 200).await?;
        Ok(())
    });
}

/// A Service of policy Local whose one endpoint, a pod on n1, is as we say.
async fn set_endpoint(cluster: &Cluster, address: &str, conditions: Value) -> anyhow::Result<()> {
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": "own", "labels": { "kubernetes.io/service-name": "own" } },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 80, "protocol": "TCP" }],
        "endpoints": [{ "addresses": [address], "nodeName": "n1", "conditions": conditions }],
    });
    let params = PatchParams::apply("test").force();
    cluster.api::<EndpointSlice>().patch("own", &params, &Patch::Apply(&slice)).await?;
    Ok(())
}

fn local(number: u16) -> Value {
    json!({
        "metadata": { "name": "own" },
        "spec": {
            "type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": number,
            "ports": [{ "port": 80 }],
        },
    })
}

#[test]
fn s60_s61_e38_e99_health_check_node_port() {
    test("s60-s61", async |cluster| {
        cluster.deploy("web", 1, Some(1)).await?;
        let pod =
            cluster.pods("web").await?.remove(0).status.and_then(|status| status.pod_ip).unwrap_or_default();
        let service = cluster.create_service(local(32660)).await?;
        set_endpoint(cluster, &pod, json!({ "ready": true })).await?;
        let (head, body) = answers(cluster, on_node(1, 32660), "/any", 200).await?;
        assert!(head.contains("x-load-balancing-endpoint-weight: 1"), "{head}");
        assert_eq!(
            body,
            json!({
                "service": { "namespace": cluster.namespace, "name": "own" },
                "localEndpoints": 1, "serviceProxyHealthy": true,
            })
        );
        answers(cluster, on_node(2, 32660), "/", 503).await?;

        // S61, e38: only a terminating pod is left.
        set_endpoint(cluster, &pod, json!({ "ready": false, "serving": true, "terminating": true })).await?;
        let (_, body) = answers(cluster, on_node(1, 32660), "/", 503).await?;
        assert_eq!(body["localEndpoints"], json!(0));
        probe::tcp(&cluster.ns("client")?, on_node(1, node_port(&service)?)).await?;

        // e99: with policy Cluster there is no such port.
        let patch = Patch::Merge(json!({ "spec": { "externalTrafficPolicy": "Cluster" } }));
        cluster.api::<Service>().patch("own", &PatchParams::default(), &patch).await?;
        wait_for("the port is closed", PATIENCE, async || {
            let connected = cluster.ns("client")?.connect(on_node(1, 32660)).await;
            Ok(if connected.is_err() { Ok(()) } else { Err("it is open") })
        })
        .await
    });
}

#[test]
fn s60_a_taken_port_is_said_and_tried_again() {
    test("s60-taken", async |cluster| {
        let taken = cluster.ns("n1")?.listen_tcp("[::]:32661".parse()?)?;
        cluster.create_service(local(32661)).await?;
        let events = cluster.api::<Event>();
        let about =
            ListParams::default().fields("reason=FailedToStartServiceHealthcheck,involvedObject.name=own");
        wait_for("the Service is told", PATIENCE, async || {
            let found = events.list(&about).await?.items;
            Ok(if found.is_empty() { Err("no Event") } else { Ok(()) })
        })
        .await?;
        drop(taken);
        answers(cluster, on_node(1, 32661), "/", 503).await?;
        Ok(())
    });
}

/// The names that dashboards rely on are numbered in src/metrics/names.txt; here they move.
#[test]
fn s62_s67_e76_metrics() {
    test("s62-s67", async |cluster| {
        cluster.deploy("web", 1, Some(1)).await?;
        let ports = json!([{ "port": 80, "protocol": "UDP" }]);
        cluster.expose("web", json!({ "externalTrafficPolicy": "Local", "ports": ports })).await?;
        cluster.endpoints("web", 1).await?;
        let n2 = cluster.ns("n2")?;
        let curl =
            async |path: &str| n2.output(&["curl", "-s", &format!("http://127.0.0.1:10249{path}")]).await;
        assert_eq!(curl("/proxyMode").await?, "nftables");
        assert_eq!(curl("/healthz").await?, "ok");
        let at_least_one = [
            "kubeproxy_network_programming_duration_seconds_count{ip_family=\"IPv4\"}",
            "kubeproxy_sync_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}",
            "kubeproxy_sync_full_proxy_rules_duration_seconds_count{ip_family=\"IPv6\"}",
            "kubeproxy_sync_partial_proxy_rules_duration_seconds_count{ip_family=\"IPv4\"}",
            "kubeproxy_sync_proxy_rules_endpoint_changes_total",
            "kubeproxy_sync_proxy_rules_service_changes_total",
            "kubeproxy_sync_proxy_rules_last_timestamp_seconds{ip_family=\"IPv4\"}",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{ip_family=\"IPv4\",traffic_policy=\"external\"}",
            "kubeproxy_conntrack_reconciler_sync_duration_seconds_count{ip_family=\"IPv4\"}",
            "portolan_dataplane_transactions_total",
            "portolan_bgp_sessions{state=\"established\"}",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
        ];
        for name in at_least_one {
            wait_for(&format!("{name} counts"), PATIENCE, async || {
                let text = curl("/metrics").await?;
                let value = text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
                Ok(if value.is_some_and(|value| value > 0.0) { Ok(()) } else { Err(format!("{value:?}")) })
            })
            .await?;
        }
        Ok(())
    });
}
