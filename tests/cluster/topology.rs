//! Traffic that stays in its zone or on its node: what the EndpointSlice controller writes as hints, packets follow.

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch, PatchParams};
use portolan_lab::topology::Families;
use serde_json::{Value, json};

use crate::asking::{Answered, Silent, Tcp, answered_by, ends};
use crate::fixture::{Cluster, at, beside, cluster_ip, node_port, on_own};

/// A Service of the pods `web`, and the address of its ClusterIP.
async fn service(cluster: &Cluster, name: &str, spec: Value) -> anyhow::Result<std::net::SocketAddr> {
    let mut spec = spec;
    spec["type"] = json!("NodePort");
    spec["selector"] = json!({ "app": "web" });
    Ok(at(cluster_ip(&cluster.expose(name, spec).await?)?, 80))
}

/// Every node is a zone, as the lab has it; a pod in each.
#[test]
fn s33_s34_s36_s37_e79_e80_e82_e83_traffic_stays_in_its_zone_and_on_its_node() {
    beside("s34-e79-e83-zones", async |cluster| {
        let pods = cluster.run_on_each_node("web", ["one", "two", "three"]).await?;
        let all = ["one", "two", "three"];
        let mut services = Vec::new();
        for (name, value) in
            [("close", "PreferClose"), ("zone", "PreferSameZone"), ("node", "PreferSameNode")]
        {
            services.push(service(cluster, name, json!({ "trafficDistribution": value })).await?);
        }
        // E83: the older annotation.
        let auto = json!({
            "metadata": { "name": "auto", "annotations": { "service.kubernetes.io/topology-mode": "Auto" } },
            "spec": { "type": "ClusterIP", "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
        });
        services.push(at(cluster_ip(&cluster.create_service(auto).await?)?, 80));
        let anywhere = service(cluster, "anywhere", json!({})).await?;
        for (pod, node) in pods.iter().zip(1..) {
            for from in [&pod.ns, &cluster.ns(&format!("n{node}"))?] {
                for to in &services {
                    answered_by(from, *to, Tcp, &[&pod.name]).await?;
                }
                answered_by(from, anywhere, Tcp, &all).await?;
            }
        }
        // S37: from outside, too, each node sends to its own zone.
        let zone = cluster.api::<k8s_openapi::api::core::v1::Service>().get("zone").await?;
        for (pod, node) in pods.iter().zip(1..) {
            let to = at(cluster.node_ip(node), node_port(&zone)?);
            answered_by(&cluster.ns("client")?, to, Tcp, &[&pod.name]).await?;
        }
        // Nobody is left without an answer when its own zone's pod goes.
        cluster.end("one").await?;
        for to in &services {
            answered_by(&cluster.ns("n1")?, *to, Tcp, &["two", "three"]).await?;
        }
        Ok(())
    });
}

/// E84: policies go before hints.
#[test]
fn s35_e84_traffic_policies_and_distribution_together() {
    beside("s35-e84-policies", async |cluster| {
        let pods = cluster.run_on_each_node("web", ["one", "two"]).await?;
        let close = |policy: &str| json!({ "trafficDistribution": "PreferClose", policy: "Local" });
        let internal = service(cluster, "internal", close("internalTrafficPolicy")).await?;
        let external = service(cluster, "external", close("externalTrafficPolicy")).await?;
        let api = cluster.api::<k8s_openapi::api::core::v1::Service>();
        let ports = [node_port(&api.get("internal").await?)?, node_port(&api.get("external").await?)?];
        let client = cluster.ns("client")?;
        for (pod, node) in pods.iter().zip(1..) {
            let on_node = |port| at(cluster.node_ip(node), port);
            answered_by(&pod.ns, internal, Tcp, &[&pod.name]).await?;
            answered_by(&client, on_node(ports[1]), Tcp, &[&pod.name]).await?;
            // Policy Cluster on the other side of each: by hints.
            answered_by(&pod.ns, external, Tcp, &[&pod.name]).await?;
            answered_by(&client, on_node(ports[0]), Tcp, &[&pod.name]).await?;
        }
        let n3 = cluster.ns("n3")?;
        ends(&n3, internal, Tcp, Silent).await?;
        ends(&client, at(cluster.node_ip(3), ports[1]), Tcp, Silent).await?;
        // No endpoint is of n3's zone, so that hints are no matter (S35).
        answered_by(&n3, external, Tcp, &["one", "two"]).await?;
        ends(&client, at(cluster.node_ip(3), ports[0]), Tcp, Answered).await
    });
}

/// Three zones of two nodes each, in a cluster of its own; then one node leaves its zone.
#[test]
fn s33_s34_s35_s36_e81_several_nodes_in_a_zone() {
    on_own("s36-e81-zones-of-two", Families::Ipv4, 6, async |cluster| {
        let pods = cluster.run_on_each_node("web", ["one", "two", "three", "four", "five", "six"]).await?;
        let zone = service(cluster, "zone", json!({ "trafficDistribution": "PreferSameZone" })).await?;
        let node = service(cluster, "node", json!({ "trafficDistribution": "PreferSameNode" })).await?;
        let zones = [["one", "four"], ["two", "five"], ["three", "six"]];
        for ((pod, number), in_zone) in pods.iter().zip(1..).zip(zones.iter().cycle()) {
            for from in [&pod.ns, &cluster.ns(&format!("n{number}"))?] {
                answered_by(from, zone, Tcp, in_zone).await?;
                answered_by(from, node, Tcp, &[&pod.name]).await?;
            }
        }
        let nodes: Api<Node> = Api::all(cluster.client.clone());
        let moved = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "z2" } } });
        nodes.patch("n6", &PatchParams::default(), &Patch::Merge(moved)).await?;
        answered_by(&cluster.ns("n6")?, zone, Tcp, &["two", "five"]).await?;
        // To a zone without an endpoint: hints are no matter there (S35), and elsewhere they are.
        let moved = json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": "z4" } } });
        nodes.patch("n6", &PatchParams::default(), &Patch::Merge(moved)).await?;
        let all = ["one", "two", "three", "four", "five", "six"];
        answered_by(&cluster.ns("n6")?, zone, Tcp, &all).await?;
        answered_by(&cluster.ns("n3")?, zone, Tcp, &["three", "six"]).await.map(drop)
    });
}
