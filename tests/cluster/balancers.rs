//! Load-balancer IPs as upstream's tests of cloud providers have them, with the router as the cloud.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::api::{Patch, PatchParams};
use portolan_lab::pod_server::{PodServer, Port};
use portolan_lab::probe::Requests;
use portolan_lab::topology::CLIENT;
use portolan_lab::wait_for;
use serde_json::{Value, json};

use crate::asking::{Answered, Protocol, Refused, Silent, Tcp, Udp, answered_by, ends};
use crate::fixture::{Cluster, PATIENCE, at, beside, cluster_ip, ingress, node_port};
use crate::pods::Wanted;
use crate::udp::Flow;

async fn get(cluster: &Cluster) -> anyhow::Result<Service> {
    Ok(cluster.api::<Service>().get("web").await?)
}

/// ClusterIP, NodePort, LoadBalancer, another node port, another port, and back to ClusterIP.
async fn kinds_and_ports(cluster: &Cluster, protocol: Protocol) -> anyhow::Result<()> {
    let kind = if protocol == Tcp { "TCP" } else { "UDP" };
    let [_, asks] = cluster
        .run([Wanted::default(), Wanted { name: "asks", app: "asks", node: 2, ..Wanted::default() }])
        .await?;
    let client = cluster.ns("client")?;
    let ports = |port: u16, node_port: Option<u16>| json!([{ "port": port, "targetPort": 80, "protocol": kind, "nodePort": node_port }]);
    let change = async |spec: Value| cluster.patch_service("web", json!({ "spec": spec })).await;
    let service = cluster.expose("web", json!({ "type": "ClusterIP", "ports": ports(80, None) })).await?;
    let ip = cluster_ip(&service)?;
    ends(&asks.ns, at(ip, 80), protocol, Answered).await?;

    change(json!({ "type": "NodePort" })).await?;
    let first = node_port(&get(cluster).await?)?;
    ends(&client, at(cluster.node_ip(3), first), protocol, Answered).await?;

    change(json!({ "type": "LoadBalancer" })).await?;
    let vip = cluster.external_ip("web").await?;
    cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
    ends(&client, at(vip, 80), protocol, Answered).await?;
    ends(&client, at(cluster.node_ip(3), first), protocol, Answered).await?;

    let second = if first == 30_000 { first + 1 } else { first - 1 };
    change(json!({ "ports": ports(80, Some(second)) })).await?;
    ends(&client, at(cluster.node_ip(3), second), protocol, Answered).await?;
    ends(&client, at(cluster.node_ip(3), first), protocol, Refused).await?;
    ends(&client, at(vip, 80), protocol, Answered).await?;

    change(json!({ "ports": ports(81, Some(second)) })).await?;
    for to in [at(vip, 81), at(cluster.node_ip(1), second)] {
        ends(&client, to, protocol, Answered).await?;
    }
    ends(&asks.ns, at(ip, 81), protocol, Answered).await?;
    ends(&client, at(vip, 80), protocol, Refused).await?;

    change(json!({ "type": "ClusterIP", "ports": ports(81, None) })).await?;
    cluster.routed_by(&vip.to_string(), &[]).await?;
    ends(&client, at(cluster.node_ip(1), second), protocol, Refused).await?;
    ends(&asks.ns, at(ip, 81), protocol, Answered).await
}

#[test]
fn e85_types_and_ports_change_tcp() {
    beside("e85-types-and-ports-tcp", async |cluster| kinds_and_ports(cluster, Tcp).await);
}

#[test]
fn e86_types_and_ports_change_udp() {
    beside("e86-types-and-ports-udp", async |cluster| kinds_and_ports(cluster, Udp).await);
}

/// E90: no node port; E96 to E98: policy Local, and the cluster's own pods.
#[test]
fn s26_s44_s45_e90_e96_e97_e98_no_node_ports_and_policy_local() {
    beside("s26-e90-e96-e98-local", async |cluster| {
        let [one, _, asks] = cluster
            .run([
                Wanted { name: "one", node: 1, ..Wanted::default() },
                Wanted { name: "two", node: 2, ..Wanted::default() },
                Wanted { name: "asks", app: "asks", node: 3, ..Wanted::default() },
            ])
            .await?;
        let client = cluster.ns("client")?;
        let bare = cluster.expose("web", json!({ "allocateLoadBalancerNodePorts": false })).await?;
        ensure!(node_port(&bare).is_err(), "it has a node port");
        let vip = at(cluster.external_ip("web").await?, 80);
        cluster.routed_by(&vip.ip().to_string(), &[1, 2, 3]).await?;
        answered_by(&client, vip, Tcp, &["one", "two"]).await?;
        answered_by(&asks.ns, vip, Tcp, &["one", "two"]).await?;
        cluster.delete_service("web").await?;

        let service = cluster.expose("web", json!({ "externalTrafficPolicy": "Local" })).await?;
        let vip = at(cluster.external_ip("web").await?, 80);
        let on = |node| at(cluster.node_ip(node), node_port(&service).unwrap_or_default());
        // E97: all nodes with endpoints are targets, and no other.
        cluster.routed_by(&vip.ip().to_string(), &[1, 2]).await?;
        let seen = answered_by(&client, vip, Tcp, &["one", "two"]).await?;
        ensure!(seen == [CLIENT.v4.into()].into(), "{seen:?}");
        // E96
        for (node, pod) in [(1, "one"), (2, "two")] {
            let seen = answered_by(&client, on(node), Tcp, &[pod]).await?;
            ensure!(seen == [CLIENT.v4.into()].into(), "{seen:?}");
        }
        ends(&client, on(3), Tcp, Silent).await?;
        // E98: from a pod on a node without an endpoint, and from one that is an endpoint; nodes as well.
        for from in [&asks.ns, &one.ns, &cluster.ns("n3")?] {
            answered_by(from, vip, Tcp, &["one", "two"]).await?;
        }
        // A pod more makes its node a target.
        cluster.run([Wanted { name: "three", node: 3, ..Wanted::default() }]).await?;
        cluster.routed_by(&vip.ip().to_string(), &[1, 2, 3]).await?;
        answered_by(&client, on(3), Tcp, &["three"]).await.map(drop)
    });
}

/// One client socket whose packets never pause, while its pod is replaced by one on another node (E91), and that by one on the
/// same node (E92).
#[test]
fn s51_e91_e92_a_udp_flow_to_the_load_balancer_ip_is_preserved() {
    beside("s51-e91-e92-udp-flow", async |cluster| {
        let pod = |name, node| Wanted { name, node, ..Wanted::default() };
        cluster.run([pod("first", 1)]).await?;
        let ports = json!([{ "port": 80, "protocol": "UDP" }]);
        cluster.expose("web", json!({ "ports": ports })).await?;
        let vip = at(cluster.external_ip("web").await?, 80);
        cluster.routed_by(&vip.ip().to_string(), &[1, 2, 3]).await?;
        let flow = Flow::open(cluster, "client", vip).await?;
        flow.answered_by(|pod| pod == "first").await?;
        for (old, new) in [("first", pod("second", 2)), ("second", pod("third", 2))] {
            // As upstream: the new one is there before the old one goes.
            let name = new.name;
            cluster.run([new]).await?;
            cluster.end(old).await?;
            flow.answered_by(|pod| pod == name).await?;
        }
        Ok(())
    });
}

/// Every pod of a Deployment is replaced under requests without pause.
async fn rolling_update(cluster: &Cluster, policy: &str) -> anyhow::Result<portolan_lab::probe::Tally> {
    cluster.deploy_draining("web", 3, None, Duration::from_secs(3)).await?;
    cluster.expose("web", json!({ "externalTrafficPolicy": policy })).await?;
    let vip = at(cluster.external_ip("web").await?, 80);
    cluster.endpoints("web", 3).await?;
    cluster.routed_by(&vip.ip().to_string(), &[1, 2, 3]).await?;
    let before = cluster.pods("web").await?;
    let requests = Requests::start(&cluster.ns("client")?, vip, 100);
    let template = json!({ "spec": { "template": { "metadata": { "annotations": { "version": "2" } } } } });
    let deployments = cluster.api::<Deployment>();
    deployments.patch("web", &PatchParams::default(), &Patch::Merge(template)).await?;
    let is_old = |pod: &Pod| before.iter().any(|old| old.metadata.uid == pod.metadata.uid);
    wait_for("every pod is new", PATIENCE, async || {
        let old = cluster.pods("web").await?.iter().filter(|pod| is_old(pod)).count();
        Ok(if old == 0 { Ok(()) } else { Err(old) })
    })
    .await?;
    cluster.ready("web", 3).await?;
    requests.stop().await
}

#[test]
fn s50_e93_a_rolling_update_under_policy_cluster_loses_nothing() {
    beside("s50-e93-rolling-cluster", async |cluster| {
        let tally = rolling_update(cluster, "Cluster").await?;
        ensure!(
            tally.failures.is_empty() && tally.asked() > 100,
            "{:?} of {}",
            tally.failures,
            tally.asked()
        );
        ensure!(tally.pods.len() >= 6, "{:?}", tally.pods);
        Ok(())
    });
}

/// Upstream's bound of 95 %. A node announces for as long as a pod of its own serves, terminating or not (A38, A39), so that
/// connections that stand end in peace. When its last pod closes its socket before a new one is there, clients come until the
/// withdrawal has reached the router; and with the routes the router's choice of a node changes for connections half open.
#[test]
fn s50_a39_e94_a_rolling_update_under_policy_local() {
    beside("s50-e94-rolling-local", async |cluster| {
        let tally = rolling_update(cluster, "Local").await?;
        let lost = tally.failures.len();
        ensure!(
            lost * 100 <= tally.asked() && tally.asked() > 100,
            "{:?} of {}",
            tally.failures,
            tally.asked()
        );
        Ok(())
    });
}

/// The balancer is a server of this test's own beside the client, whose address only it has.
#[test]
fn s23_s24_e100_ip_mode_proxy_goes_through_the_balancer() {
    beside("s24-e100-ip-mode", async |cluster| {
        let pods = cluster.run_on_each_node("web", ["one", "two"]).await?;
        let vip: SocketAddr = "203.0.113.100:80".parse()?;
        let address = format!("addr add {}/32 dev eth0\n", vip.ip());
        cluster.ip("client", &address, &address.replace(" add ", " del ")).await?;
        let route = format!("route add {}/32 via {}\n", vip.ip(), CLIENT.v4);
        cluster.ip("router", &route, &route.replace(" add ", " del ")).await?;
        let client = cluster.ns("client")?;
        let server =
            PodServer::start_on(&[vip.ip()], &client, "balancer", "none", &[Port::Tcp(80), Port::Udp(80)])?;
        // Another implementation's Service: it alone writes the status, and we serve what it says.
        let ports = json!([{ "name": "t", "port": 80 }, { "name": "u", "port": 80, "protocol": "UDP" }]);
        cluster.expose("web", json!({ "loadBalancerClass": "example.com/cloud", "ports": ports })).await?;
        let mode = async |mode: &str| {
            let ingress = json!([{ "ip": vip.ip(), "ipMode": mode }]);
            let status = Patch::Merge(json!({ "status": { "loadBalancer": { "ingress": ingress } } }));
            let params = PatchParams::default();
            cluster.api::<Service>().patch_status("web", &params, &status).await.context("status")
        };
        let shown = mode("Proxy").await?;
        ensure!(ingress(&shown) == [vip.ip()], "{shown:?}");
        let from = [&pods[0].ns, &cluster.ns("n3")?];
        for (now, answering) in
            [("Proxy", &["balancer"][..]), ("VIP", &["one", "two"]), ("Proxy", &["balancer"])]
        {
            mode(now).await?;
            for from in from {
                for protocol in [Tcp, Udp] {
                    answered_by(from, vip, protocol, answering).await?;
                }
            }
        }
        drop(server);
        Ok(())
    });
}
