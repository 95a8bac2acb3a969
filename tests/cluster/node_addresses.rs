//! What a node answers at which of its addresses (S20, S28, S60).

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use kube::api::{Patch, PatchParams};
use portolan_lab::netns::Namespace;
use portolan_lab::topology::node_address;
use portolan_lab::{probe, wait_for};
use serde_json::json;

use crate::fixture::{Cluster, PATIENCE, at, node_port, test};

async fn answers(ns: &Namespace, to: SocketAddr) -> anyhow::Result<()> {
    wait_for(&format!("{to} answers {}", ns.name()), PATIENCE, async || {
        Ok(probe::tcp_within(ns, to, Duration::from_secs(1))
            .await
            .map(drop)
            .map_err(|error| format!("{error:#}")))
    })
    .await
}

/// Waits until somebody listens there, or nobody.
async fn listens(ns: &Namespace, to: SocketAddr, wanted: bool) -> anyhow::Result<()> {
    wait_for(&format!("{to} listens: {wanted}"), PATIENCE, async || {
        let connected = ns.connect(to).await.map(drop).map_err(|error| format!("{error:#}"));
        Ok(if connected.is_ok() == wanted { Ok(()) } else { Err(format!("{connected:?}")) })
    })
    .await
}

/// A load balancer that is not ours has given the Service an address of n1.
async fn give_address_of_n1(cluster: &Cluster, service: &str) -> anyhow::Result<IpAddr> {
    let ip: IpAddr = node_address(1).v4.into();
    let patch = Patch::Merge(json!({ "status": { "loadBalancer": { "ingress": [{ "ip": ip }] } } }));
    cluster.api::<Service>().patch_status(service, &PatchParams::default(), &patch).await?;
    Ok(ip)
}

#[test]
fn s28_a_vip_that_is_a_nodes_address_leaves_the_hosts_own_ports_alone() {
    test("s28-node-address", async |cluster| {
        cluster.deploy("web", 1, Some(2)).await?;
        let service = cluster.expose("web", json!({ "loadBalancerClass": "example.com/other" })).await?;
        let vip = give_address_of_n1(cluster, "web").await?;
        let (client, n2) = (cluster.ns("client")?, cluster.ns("n2")?);
        for from in [&client, &cluster.ns("n1")?] {
            answers(from, at(vip, 80)).await?;
            answers(from, at(vip, node_port(&service)?)).await?;
            listens(from, at(vip, 10256), true).await?; // the agent's own /healthz
        }
        // On a node whose address it is not, it is a VIP as any other.
        answers(&n2, at(vip, 80)).await?;
        Ok(())
    });
}

#[test]
fn s60_health_check_ports_listen_where_node_ports_answer() {
    test("s60-addresses", async |cluster| {
        let spec = json!({ "externalTrafficPolicy": "Local", "healthCheckNodePort": 32663 });
        cluster.expose("own", spec).await?;
        let n1 = cluster.ns("n1")?;
        let (node, loopback): (SocketAddr, SocketAddr) =
            (at(node_address(1).v4.into(), 32663), "127.0.0.1:32663".parse()?);
        listens(&n1, node, true).await?;
        listens(&n1, at(node_address(1).v6.into(), 32663), true).await?;
        listens(&n1, loopback, false).await?;
        let all = cluster.configure(1, json!({ "proxy": { "nodePortAddresses": ["all"] } }))?;
        listens(&n1, loopback, true).await?;
        listens(&n1, node, true).await?;
        drop(all);
        listens(&n1, loopback, false).await?;
        listens(&n1, node, true).await
    });
}
