//! What clients, pods and nodes reach by which address, and whom the pods see.

use std::net::IpAddr;
use std::time::Duration;

use kube::ResourceExt;
use portolan_lab::topology::{CLIENT, node_address};
use portolan_lab::{Answer, probe, wait_for};
use serde_json::json;

use crate::fixture::{Cluster, NODES, PATIENCE, at, beside, cluster_ip, node_port};

/// Waits until `to` answers from the given namespace: programming is behind the API by a few milliseconds.
async fn answers(cluster: &Cluster, from: &str, to: std::net::SocketAddr) -> anyhow::Result<Answer> {
    let ns = cluster.ns(from)?;
    wait_for(&format!("{to} answers {from}"), PATIENCE, async || {
        Ok(probe::tcp_within(&ns, to, Duration::from_secs(1)).await.map_err(|error| format!("{error:#}")))
    })
    .await
}

#[test]
fn s15_e6_cluster_ip_from_a_pod_and_from_every_node() {
    beside("s15_e6_cluster_ip_from_a_pod_and_from_every_node", async |cluster| {
        cluster.deploy("web", 3, None).await?;
        let service = cluster.expose("web", json!({ "type": "ClusterIP" })).await?;
        let to = at(cluster_ip(&service)?, 80);
        cluster.endpoints("web", 3).await?;
        for node in 1..=NODES {
            answers(cluster, &format!("n{node}"), to).await?;
        }
        for pod in cluster.pods("web").await? {
            let name = pod.metadata.name.unwrap_or_default();
            let ns = cluster.lab.pod_ns(&cluster.namespace, &name)?;
            let tally = probe::many(&ns, to, 30).await;
            assert_eq!((tally.answered, tally.pods.len()), (30, 3), "all pods answer {name}: {tally:?}");
            // S15: pods see the pod's own address; S46: but for the pod itself, which sees its node's.
            let own: IpAddr = pod.status.and_then(|status| status.pod_ip).unwrap_or_default().parse()?;
            assert!(tally.clients.contains_key(&own), "{own} is among {:?}", tally.clients);
        }
        Ok(())
    });
}

#[test]
fn s46_e7_e64_a_pod_reaches_itself_through_its_service() {
    beside("s46_e7_e64_a_pod_reaches_itself_through_its_service", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let service = cluster.expose("web", json!({ "type": "ClusterIP" })).await?;
        let to = at(cluster_ip(&service)?, 80);
        let pod = cluster.pods("web").await?.remove(0);
        let ns = cluster.lab.pod_ns(&cluster.namespace, &pod.name_any())?;
        wait_for("the pod reaches itself", PATIENCE, async || {
            Ok(probe::tcp_within(&ns, to, Duration::from_secs(1)).await.map_err(|error| format!("{error:#}")))
        })
        .await?;
        let tally = probe::many(&ns, to, 10).await;
        assert_eq!(tally.answered, 10, "{tally:?}");
        let own: IpAddr = pod.status.and_then(|status| status.pod_ip).unwrap_or_default().parse()?;
        assert!(!tally.clients.contains_key(&own), "it sees its node and not itself: {:?}", tally.clients);
        Ok(())
    });
}

#[test]
fn s19_node_port_from_outside_by_every_node() {
    beside("s19_node_port_from_outside_by_every_node", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let service = cluster.expose("web", json!({ "type": "NodePort" })).await?;
        for node in 1..=NODES {
            {
                let to = at(node_address(node).v4.into(), node_port(&service)?);
                answers(cluster, "client", to).await?;
                let tally = probe::many(&cluster.ns("client")?, to, 20).await;
                assert_eq!((tally.answered, tally.pods.len()), (20, 2), "{to}: {tally:?}");
                // S43: the client's address gives way to the node's, so that answers come back the same way.
                assert!(!tally.clients.contains_key(&CLIENT.v4.into()), "{:?}", tally.clients);
            }
        }
        Ok(())
    });
}

#[test]
fn s23_vip_from_the_client_over_all_nodes() {
    beside("s23_vip_from_the_client_over_all_nodes", async |cluster| {
        cluster.deploy("web", 4, None).await?;
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        cluster.endpoints("web", 4).await?;
        let tally = probe::many(&cluster.ns("client")?, at(vip, 80), 60).await;
        assert_eq!((tally.answered, tally.pods.len()), (60, 4), "{tally:?}");
        // The router spreads flows over the nodes, and each masquerades as itself (S43): to other nodes' pods by this address.
        for node in 1..=NODES {
            let address: IpAddr = node_address(node).v4.into();
            assert!(tally.clients.contains_key(&address), "{address} is not among {:?}", tally.clients);
        }
        assert!(!tally.clients.contains_key(&CLIENT.v4.into()), "{:?}", tally.clients);
        // S23: pods and nodes are short-circuited to the endpoints.
        for node in 1..=NODES {
            answers(cluster, &format!("n{node}"), at(vip, 80)).await?;
        }
        let pod = cluster.pods("web").await?.remove(0).metadata.name.unwrap_or_default();
        let tally = probe::many(&cluster.lab.pod_ns(&cluster.namespace, &pod)?, at(vip, 80), 10).await;
        assert_eq!(tally.answered, 10, "{tally:?}");
        Ok(())
    });
}

#[test]
fn s06_both_families_of_one_service() {
    beside("s06_both_families_of_one_service", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        cluster.expose("web", json!({ "ipFamilyPolicy": "RequireDualStack" })).await?;
        let vips = cluster.external_ips("web").await?;
        assert!(vips[0].is_ipv4() != vips[1].is_ipv4(), "{vips:?}");
        for vip in vips {
            cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
            answers(cluster, "client", at(vip, 80)).await?;
            let tally = probe::many(&cluster.ns("client")?, at(vip, 80), 30).await;
            assert_eq!((tally.answered, tally.pods.len()), (30, 2), "{vip}: {tally:?}");
        }
        Ok(())
    });
}

#[test]
fn s01_e4_udp_and_tcp_on_one_number() {
    beside("s01_e4_udp_and_tcp_on_one_number", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let ports = json!([
            { "name": "tcp", "port": 80, "protocol": "TCP" },
            { "name": "udp", "port": 80, "protocol": "UDP" },
        ]);
        cluster.expose("web", json!({ "ports": ports })).await?;
        let to = at(cluster.external_ip("web").await?, 80);
        answers(cluster, "client", to).await?;
        let ns = cluster.ns("client")?;
        for _ in 0..10 {
            probe::udp(&ns, to).await?;
        }
        Ok(())
    });
}

#[test]
fn s25_e12_external_ip() {
    beside("s25_e12_external_ip", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let external: IpAddr = "203.0.113.80".parse()?;
        cluster.expose("web", json!({ "type": "ClusterIP", "externalIPs": [external] })).await?;
        for node in 1..=NODES {
            answers(cluster, &format!("n{node}"), at(external, 80)).await?;
        }
        let pod = cluster.pods("web").await?.remove(0).metadata.name.unwrap_or_default();
        let tally = probe::many(&cluster.lab.pod_ns(&cluster.namespace, &pod)?, at(external, 80), 10).await;
        assert_eq!(tally.answered, 10, "{tally:?}");
        Ok(())
    });
}

#[test]
fn s17_s38_e33_refused_without_endpoints_and_on_other_ports() {
    beside("s17_s38_e33_refused_without_endpoints_and_on_other_ports", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let service = cluster.expose("web", json!({ "type": "ClusterIP" })).await?;
        let ip = cluster_ip(&service)?;
        answers(cluster, "n2", at(ip, 80)).await?;
        refused(cluster, "n2", at(ip, 81)).await?; // S17
        cluster.scale("web", 0).await?;
        refused(cluster, "n2", at(ip, 80)).await?;
        cluster.scale("web", 1).await?;
        answers(cluster, "n2", at(ip, 80)).await?;
        Ok(())
    });
}

async fn refused(cluster: &Cluster, from: &str, to: std::net::SocketAddr) -> anyhow::Result<()> {
    let ns = cluster.ns(from)?;
    wait_for(&format!("{to} refuses {from}"), PATIENCE, async || {
        Ok(match probe::tcp(&ns, to).await {
            Ok(answer) => Err(format!("{answer}")),
            Err(error) if format!("{error:#}").contains("refused") => Ok(()),
            Err(error) => Err(format!("{error:#}")),
        })
    })
    .await
}
