//! Services that change while they are used, by the numbers of upstream's end-to-end tests (E) and of their semantics (S).

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams};
use portolan_lab::netns::Namespace;
use portolan_lab::topology::{CLIENT, node_address};
use portolan_lab::{probe, wait_for};
use serde_json::{Value, json};

use crate::fixture::{Cluster, NODES, PATIENCE, at, beside, cluster_ip, node_port};

async fn patch(cluster: &Cluster, service: &str, patch: Value) -> anyhow::Result<()> {
    let services = cluster.api::<Service>();
    services.patch(service, &PatchParams::default(), &Patch::Merge(patch)).await?;
    Ok(())
}

/// The namespace of a Deployment's only pod.
async fn pod(cluster: &Cluster, deployment: &str) -> anyhow::Result<Namespace> {
    let pod = cluster.pods(deployment).await?.pop().context("a pod")?;
    cluster.lab.pod_ns(&cluster.namespace, &pod.metadata.name.unwrap_or_default())
}

/// Waits until a request ends so: in an answer (""), or in an error with this word.
async fn ends(ns: &Namespace, to: SocketAddr, how: &str) -> anyhow::Result<()> {
    wait_for(&format!("{to} for {}: {how:?}", ns.name()), PATIENCE, async || {
        Ok(match probe::tcp_within(ns, to, Duration::from_secs(1)).await {
            Ok(_) if how.is_empty() => Ok(()),
            Ok(answer) => Err(format!("{answer}")),
            Err(error) if !how.is_empty() && format!("{error:#}").contains(how) => Ok(()),
            Err(error) => Err(format!("{error:#}")),
        })
    })
    .await
}

const ANSWERED: &str = "";
const REFUSED: &str = "refused";
const SILENT: &str = "no answer";

#[test]
fn s17_e5_ports_come_and_go() {
    beside("s17_e5_ports_come_and_go", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let service = cluster.expose("web", json!({ "type": "ClusterIP" })).await?;
        let (ip, n1) = (cluster_ip(&service)?, cluster.ns("n1")?);
        ends(&n1, at(ip, 80), ANSWERED).await?;
        ends(&n1, at(ip, 81), REFUSED).await?;
        let port = |number| json!({ "name": format!("p{number}"), "port": number, "targetPort": 80 });
        patch(cluster, "web", json!({ "spec": { "ports": [port(80), port(81)] } })).await?;
        ends(&n1, at(ip, 81), ANSWERED).await?;
        ends(&n1, at(ip, 80), ANSWERED).await?;
        patch(cluster, "web", json!({ "spec": { "ports": [port(81)] } })).await?;
        ends(&n1, at(ip, 80), REFUSED).await?;
        ends(&n1, at(ip, 81), ANSWERED).await
    });
}

#[test]
fn s15_s19_e11_cluster_ip_and_every_node_port_from_a_pod() {
    beside("s15_s19_e11_cluster_ip_and_every_node_port_from_a_pod", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        cluster.deploy("asks", 1, None).await?;
        let service = cluster.expose("web", json!({ "type": "NodePort" })).await?;
        let from = pod(cluster, "asks").await?;
        ends(&from, at(cluster_ip(&service)?, 80), ANSWERED).await?;
        for node in 1..=NODES {
            ends(&from, at(node_address(node).v4.into(), node_port(&service)?), ANSWERED).await?;
        }
        Ok(())
    });
}

#[test]
fn s19_e18_one_node_port_for_two_protocols() {
    beside("s19_e18_one_node_port_for_two_protocols", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let ports = json!([
            // Of those that no Service gets by chance.
            { "name": "tcp", "port": 80, "protocol": "TCP", "nodePort": 30018 },
            { "name": "udp", "port": 80, "protocol": "UDP", "nodePort": 30018 },
        ]);
        cluster.expose("web", json!({ "type": "NodePort", "ports": ports })).await?;
        let client = cluster.ns("client")?;
        for node in 1..=NODES {
            let to = at(node_address(node).v4.into(), 30018);
            ends(&client, to, ANSWERED).await?;
            probe::udp(&client, to).await?;
        }
        Ok(())
    });
}

#[test]
fn s3_e31_the_label_of_another_proxy_hides_a_service() {
    beside("s3_e31_the_label_of_another_proxy_hides_a_service", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let service = cluster.expose("web", json!({ "type": "NodePort" })).await?;
        let to = at(node_address(1).v4.into(), node_port(&service)?);
        let label = |value: Value| json!({ "metadata": { "labels": { "service.kubernetes.io/service-proxy-name": value } } });
        let client = cluster.ns("client")?;
        ends(&client, to, ANSWERED).await?;
        patch(cluster, "web", label(json!("another"))).await?;
        ends(&client, to, REFUSED).await?; // by the node itself: nobody listens there
        patch(cluster, "web", label(Value::Null)).await?;
        ends(&client, to, ANSWERED).await
    });
}

/// On the slice, as upstream's test has it: the controller keeps the label of a Service with a ClusterIP to itself.
#[test]
fn s4_e32_the_headless_label_hides_a_slice() {
    beside("s4_e32_the_headless_label_hides_a_slice", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let spec = json!({ "type": "ClusterIP", "selector": null });
        let to = at(cluster_ip(&cluster.expose("web", spec).await?)?, 80);
        let pod = cluster.pods("web").await?.remove(0).status.and_then(|status| status.pod_ip);
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 80, "protocol": "TCP" }],
            "endpoints": [{ "addresses": [pod.context("the pod's address")?] }],
        });
        let slices = cluster.api::<EndpointSlice>();
        slices.patch("web", &PatchParams::apply("test"), &Patch::Apply(&slice)).await?;
        let label = async |value: Value| {
            let label = json!({ "metadata": { "labels": { "service.kubernetes.io/headless": value } } });
            slices.patch("web", &PatchParams::default(), &Patch::Merge(label)).await
        };
        let n2 = cluster.ns("n2")?;
        ends(&n2, to, ANSWERED).await?;
        label(json!("")).await?;
        ends(&n2, to, REFUSED).await?;
        label(Value::Null).await?;
        ends(&n2, to, ANSWERED).await
    });
}

#[test]
fn s39_e35_internal_policy_local_answers_on_its_own_node_only() {
    beside("s39_e35_internal_policy_local_answers_on_its_own_node_only", async |cluster| {
        cluster.deploy("web", 1, Some(2)).await?;
        cluster.deploy("here", 1, Some(2)).await?;
        cluster.deploy("elsewhere", 1, Some(1)).await?;
        let spec = json!({ "type": "ClusterIP", "internalTrafficPolicy": "Local" });
        let to = at(cluster_ip(&cluster.expose("web", spec).await?)?, 80);
        ends(&pod(cluster, "here").await?, to, ANSWERED).await?;
        let elsewhere = pod(cluster, "elsewhere").await?;
        ends(&elsewhere, to, SILENT).await?;
        patch(cluster, "web", json!({ "spec": { "internalTrafficPolicy": "Cluster" } })).await?;
        ends(&elsewhere, to, ANSWERED).await
    });
}

#[test]
fn s27_e87_source_ranges_are_followed() {
    beside("s27_e87_source_ranges_are_followed", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        cluster.deploy("asks", 1, None).await?;
        let client_only = json!([format!("{}/32", CLIENT.v4)]);
        cluster.expose("web", json!({ "loadBalancerSourceRanges": client_only })).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        let (client, from, to) = (cluster.ns("client")?, pod(cluster, "asks").await?, at(vip, 80));
        ends(&client, to, ANSWERED).await?;
        ends(&from, to, SILENT).await?;
        patch(cluster, "web", json!({ "spec": { "loadBalancerSourceRanges": ["10.244.0.0/16"] } })).await?;
        ends(&from, to, ANSWERED).await?;
        ends(&client, to, SILENT).await
    });
}
