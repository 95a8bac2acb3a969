//! Services of every kind and shape: types that change, several ports, names that mean other numbers, slices of one's own.

use std::net::IpAddr;

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, DeleteParams};
use portolan_lab::netns::run;
use portolan_lab::wait_for;
use serde_json::{Value, json};

use crate::asking::{Answered, Refused, Silent, Tcp, Udp, answered_by, ends};
use crate::fixture::{Cluster, NODES, PATIENCE, at, beside, cluster_ip, node_port};
use crate::pods::{Wanted, names};

#[test]
fn s2_e14_e15_e16_e17_external_name_and_back() {
    beside("s2-e14-e17-external-name", async |cluster| {
        let [_, asks] = cluster
            .run([Wanted::default(), Wanted { name: "asks", app: "asks", node: 2, ..Wanted::default() }])
            .await?;
        let service = json!({
            "metadata": { "name": "web" },
            "spec": { "type": "ExternalName", "externalName": "elsewhere.example", "ports": [{ "port": 80 }] },
        });
        cluster.create_service(service).await?;
        // E14, E15: from ExternalName to ClusterIP, to NodePort; E16, E17: back again.
        for kind in ["ClusterIP", "NodePort"] {
            let served = json!({ "type": kind, "externalName": null, "selector": { "app": "web" } });
            cluster.patch_service("web", json!({ "spec": served })).await?;
            let service = cluster.api::<Service>().get("web").await?;
            let to = at(cluster_ip(&service)?, 80);
            ends(&asks.ns, to, Tcp, Answered).await?;
            let mut on_nodes = Vec::new();
            if kind == "NodePort" {
                let port = node_port(&service)?;
                on_nodes = (1..=NODES).map(|node| at(cluster.node_ip(node), port)).collect();
            }
            for to in &on_nodes {
                ends(&asks.ns, *to, Tcp, Answered).await?;
            }
            let named = json!({
                "type": "ExternalName", "externalName": "elsewhere.example", "clusterIP": null, "clusterIPs": null,
            });
            cluster.patch_service("web", json!({ "spec": named })).await?;
            ends(&asks.ns, to, Tcp, Silent).await?; // S18: nobody's address
            for to in on_nodes {
                ends(&asks.ns, to, Tcp, Refused).await?; // by the node itself: nobody listens there
            }
        }
        Ok(())
    });
}

#[test]
fn s8_e3_e43_ports_by_name() {
    beside("s8-e3-e43-ports-by-name", async |cluster| {
        let n3 = cluster.ns("n3")?;
        let ports = json!([
            { "name": "portname1", "port": 80, "targetPort": "first" },
            { "name": "portname2", "port": 81, "targetPort": "second" },
        ]);
        let service = cluster.expose("web", json!({ "type": "ClusterIP", "ports": ports })).await?;
        let ip = cluster_ip(&service)?;
        // E3: each port has a pod of its own, as they come and go.
        cluster.run([Wanted { name: "one", ports: &[("first", 100, "TCP")], ..Wanted::default() }]).await?;
        answered_by(&n3, at(ip, 80), Tcp, &["one"]).await?;
        ends(&n3, at(ip, 81), Tcp, Refused).await?;
        let two = Wanted { name: "two", node: 2, ports: &[("second", 101, "TCP")], ..Wanted::default() };
        cluster.run([two]).await?;
        answered_by(&n3, at(ip, 81), Tcp, &["two"]).await?;
        answered_by(&n3, at(ip, 80), Tcp, &["one"]).await?;
        // E43: the name means another number on another pod.
        let three = Wanted {
            name: "three",
            node: 3,
            ports: &[("first", 300, "TCP"), ("second", 301, "TCP")],
            ..Wanted::default()
        };
        cluster.run([three]).await?;
        answered_by(&n3, at(ip, 80), Tcp, &["one", "three"]).await?;
        answered_by(&n3, at(ip, 81), Tcp, &["two", "three"]).await?;
        cluster.end("one").await?;
        answered_by(&n3, at(ip, 80), Tcp, &["three"]).await?;
        answered_by(&n3, at(ip, 81), Tcp, &["two", "three"]).await?;
        cluster.end("three").await?;
        cluster.end("two").await?;
        ends(&n3, at(ip, 80), Tcp, Refused).await?;
        ends(&n3, at(ip, 81), Tcp, Refused).await
    });
}

#[test]
fn e8_e46_services_up_and_down_and_from_another_namespace() {
    beside("e8-e46-up-and-down", async |cluster| {
        let name = |name| Wanted { name, ..Wanted::default() };
        let first = cluster.run([name("a1"), Wanted { node: 2, ..name("a2") }]).await?;
        let of_b = |name, node| Wanted { name, app: "b", node, ..Wanted::default() };
        let second = cluster.run([of_b("b1", 2), of_b("b2", 3)]).await?;
        let (first, second) = (names(&first), names(&second));
        let service = async |name: &str, app: &str| -> anyhow::Result<IpAddr> {
            let spec = json!({ "type": "ClusterIP", "selector": { "app": app } });
            cluster_ip(&cluster.expose(name, spec).await?)
        };
        // The client is in a Kubernetes namespace of another name (E46).
        let other = cluster.in_namespace("default");
        let asks = Wanted { name: "asks-up-and-down", app: "asks", node: 3, ..Wanted::default() };
        let pods = other.api::<Pod>();
        cluster.afterwards("delete the pod of the other namespace", async move {
            pods.delete("asks-up-and-down", &DeleteParams::default()).await?;
            Ok(())
        });
        let [asks] = other.run([asks]).await?;
        let (up1, up2) = (service("up1", "web").await?, service("up2", "b").await?);
        answered_by(&asks.ns, at(up1, 80), Tcp, &first).await?;
        answered_by(&asks.ns, at(up2, 80), Tcp, &second).await?;
        cluster.delete_service("up1").await?;
        ends(&asks.ns, at(up1, 80), Tcp, Silent).await?;
        answered_by(&asks.ns, at(up2, 80), Tcp, &second).await?;
        let up3 = service("up3", "web").await?;
        answered_by(&asks.ns, at(up3, 80), Tcp, &first).await?;
        let up1 = service("up1", "web").await?;
        answered_by(&asks.ns, at(up1, 80), Tcp, &first).await?;
        answered_by(&asks.ns, at(up2, 80), Tcp, &second).await.map(drop)
    });
}

#[test]
fn s10_e54_e55_slices_of_ones_own() {
    beside("s10-e54-e55-own-slices", async |cluster| {
        let pods = cluster.run_on_each_node("web", ["one", "two", "three"]).await?;
        let ports = json!([{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }]);
        let spec = json!({ "type": "ClusterIP", "selector": null, "ports": ports });
        let ip = cluster_ip(&cluster.expose("own", spec).await?)?;
        // E54: several addresses in several slices; E55: several ports in several slices.
        cluster.slice("own-1", "own", &[pods[0].ip()], &[("a", 80, "TCP")]).await?;
        cluster.slice("own-2", "own", &[pods[1].ip()], &[("a", 8080, "TCP")]).await?;
        cluster.slice("own-3", "own", &[pods[2].ip(), pods[0].ip()], &[("b", 8080, "TCP")]).await?;
        for from in ["n1", "n2"] {
            let from = cluster.ns(from)?;
            answered_by(&from, at(ip, 80), Tcp, &["one", "two"]).await?;
            answered_by(&from, at(ip, 81), Tcp, &["one", "three"]).await?;
        }
        Ok(())
    });
}

#[test]
fn s18_e51_a_range_of_cluster_ips_more() {
    beside("s18-e51-service-cidr", async |cluster| {
        let ranges: Api<ServiceCIDR> = Api::all(cluster.client.clone());
        let range = json!({ "metadata": { "name": "e51" }, "spec": { "cidrs": ["10.151.0.0/24"] } });
        cluster.make::<ServiceCIDR>(range).await?;
        wait_for("the range is ready", PATIENCE, async || {
            let status = ranges.get("e51").await?.status.unwrap_or_default();
            let is_ready =
                status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            Ok(if is_ready { Ok(()) } else { Err("not yet") })
        })
        .await?;
        let [_, asks] = cluster
            .run([Wanted::default(), Wanted { name: "asks", app: "asks", node: 2, ..Wanted::default() }])
            .await?;
        let ip: IpAddr = "10.151.0.51".parse()?;
        let spec = json!({ "type": "NodePort", "clusterIP": ip });
        // The allocator learns of the range after its condition.
        let service = wait_for("the Service has its address of the new range", PATIENCE, async || {
            Ok(cluster.expose("web", spec.clone()).await.map_err(|error| format!("{error:#}")))
        })
        .await?;
        for to in [at(ip, 80), at(cluster.node_ip(3), node_port(&service)?)] {
            ends(&asks.ns, to, Tcp, Answered).await?;
        }
        ends(&asks.ns, at("10.151.0.52".parse()?, 80), Tcp, Silent).await?; // S18
        cluster.delete_service("web").await?;
        ranges.delete("e51", &DeleteParams::default()).await?;
        wait_for("the range is gone", PATIENCE, async || {
            Ok(if ranges.get_opt("e51").await?.is_none() { Ok(()) } else { Err("it is there") })
        })
        .await
    });
}

/// Today's API servers refuse such addresses, but what an older one stored is served: so it is put into etcd.
#[test]
fn s14_e69_stored_addresses_with_leading_zeros() {
    beside("s14-e69-leading-zeros", async |cluster| {
        let [pod] = cluster.run([Wanted::default()]).await?;
        let spec = json!({ "type": "ClusterIP", "selector": null });
        let ip = cluster_ip(&cluster.expose("funny", spec).await?)?;
        let (n1, n3) = (cluster.ns("n1")?, cluster.ns("n3")?);
        ends(&n3, at(ip, 80), Tcp, Refused).await?;
        cluster.slice("funny", "funny", &[pod.ip()], &[("", 80, "TCP")]).await?;
        ends(&n3, at(ip, 80), Tcp, Answered).await?;
        let slices = cluster.api::<k8s_openapi::api::discovery::v1::EndpointSlice>();
        let mut stored = serde_json::to_value(slices.get("funny").await?)?;
        slices.delete("funny", &DeleteParams::default()).await?;
        ends(&n3, at(ip, 80), Tcp, Refused).await?;
        stored["endpoints"][0]["addresses"][0] = json!(with_zeros(pod.ip()));
        stored["metadata"]["resourceVersion"].take();
        put_into_etcd(cluster, &format!("endpointslices/{}/funny", cluster.namespace), &stored).await?;
        let shown = slices.get("funny").await?.endpoints[0].addresses[0].clone();
        ensure!(shown == with_zeros(pod.ip()), "the server shows {shown}");
        for from in [n1, n3] {
            answered_by(&from, at(ip, 80), Tcp, &["web"]).await?;
        }
        Ok(())
    });
}

/// 10.244.1.5 as 010.244.001.005, whose parts are decimal all the same.
fn with_zeros(ip: IpAddr) -> String {
    ip.to_string().split('.').map(|part| format!("{part:0>3}")).collect::<Vec<_>>().join(".")
}

async fn put_into_etcd(cluster: &Cluster, key: &str, object: &Value) -> anyhow::Result<()> {
    // In JSON, bytes are written in base64.
    let encode = |text: String| k8s_openapi::ByteString(text.into_bytes());
    let body = json!({ "key": encode(format!("/registry/{key}")), "value": encode(object.to_string()) });
    let mut command = cluster.ns("cp")?.command("curl")?;
    command.args(["-sf", "-d", &body.to_string(), "http://127.0.0.1:2379/v3/kv/put"]);
    run(command).await.context("etcd")?;
    Ok(())
}

/// This kernel has no SCTP sockets: that the packets would find their way is what the evaluator says (S56).
#[test]
fn s56_e45_sctp_is_kept_and_programmed() {
    beside("s56-e45-sctp", async |cluster| {
        let ports = &[("sctp", 132, "SCTP"), ("udp", 80, "UDP")];
        cluster.run([Wanted { ports, ..Wanted::default() }]).await?;
        let ports = json!([
            { "name": "sctp", "port": 132, "protocol": "SCTP" }, { "name": "udp", "port": 80, "protocol": "UDP" },
        ]);
        let service = cluster.expose("web", json!({ "type": "NodePort", "ports": ports })).await?;
        let listed = cluster.api::<Service>().get("web").await?.spec.and_then(|spec| spec.ports);
        ensure!(listed.context("ports")?[0].protocol.as_deref() == Some("SCTP"), "the protocol is kept");
        cluster
            .endpoints_that("web", "ready", 1, |e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true))
            .await?;
        let (ip, port) = (cluster_ip(&service)?, node_port(&service)?);
        for node in 1..=NODES {
            let ns = cluster.ns(&format!("n{node}"))?;
            let keys = [format!("{ip} . sctp . 132"), format!("{} . sctp . {port}", cluster.node_ip(node))];
            wait_for(&format!("n{node} serves {keys:?}"), PATIENCE, async || {
                let map = ns.output(&["nft", "list", "map", "ip", "portolan", "services"]).await?;
                Ok(if keys.iter().all(|key| map.contains(key)) { Ok(()) } else { Err("not both") })
            })
            .await?;
        }
        // The other protocol of the same Service is served beside it.
        ends(&cluster.ns("n2")?, at(ip, 80), Udp, Answered).await
    });
}
