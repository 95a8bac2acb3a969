//! Every detectLocalMode (S48), applied to an agent that runs.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use portolan_lab::netns::Namespace;
use portolan_lab::topology::node_address;
use portolan_lab::{probe, wait_for};
use serde_json::{Value, json};

use crate::fixture::{Cluster, PATIENCE, at, node_port, test};

/// Whether `to` answers or says nothing.
async fn answers(ns: &Namespace, to: SocketAddr, wanted: bool) -> anyhow::Result<()> {
    wait_for(&format!("{to} answers {}: {wanted}", ns.name()), PATIENCE, async || {
        let answer = probe::tcp_within(ns, to, Duration::from_secs(1)).await;
        let text = answer.as_ref().map_or_else(|error| format!("{error:#}"), ToString::to_string);
        let is_wanted = answer.is_ok() == wanted && (wanted || text.contains("no answer"));
        Ok(if is_wanted { Ok(()) } else { Err(text) })
    })
    .await
}

async fn pod(cluster: &Cluster, deployment: &str) -> anyhow::Result<Namespace> {
    let pod = cluster.pods(deployment).await?.pop().context("a pod")?;
    cluster.lab.pod_ns(&cluster.namespace, &pod.metadata.name.unwrap_or_default())
}

/// Under externalTrafficPolicy Local, with all endpoints on n3, a node port of n1 answers whom n1 takes for a pod (S45).
#[test]
fn s45_s48_each_way_to_tell_pods_is_applied_in_place() {
    test("s48-detection", async |cluster| {
        cluster.deploy("web", 1, Some(3)).await?;
        cluster.deploy("asks", 1, Some(1)).await?;
        let spec = json!({ "type": "NodePort", "externalTrafficPolicy": "Local" });
        let port = node_port(&cluster.expose("web", spec).await?)?;
        let to = at(node_address(1).v4.into(), port);
        let (pod, node, client) = (pod(cluster, "asks").await?, cluster.ns("n1")?, cluster.ns("client")?);
        answers(&pod, to, true).await?; // ClusterCIDR
        let other =
            json!({ "detectLocalMode": "BridgeInterface", "detectLocal": { "bridgeInterface": "cbr" } });
        let _other = cluster.configure(1, json!({ "proxy": other }))?;
        answers(&pod, to, false).await?;
        let modes: [Value; 3] = [
            json!({ "detectLocalMode": "NodeCIDR" }),
            json!({ "detectLocal": { "bridgeInterface": "cbr0" } }),
            json!({ "detectLocalMode": "InterfaceNamePrefix", "detectLocal": { "interfaceNamePrefix": "cb" } }),
        ];
        for mode in modes {
            let configured = cluster.configure(1, json!({ "proxy": mode }))?;
            answers(&pod, to, true).await?;
            answers(&node, to, true).await?;
            answers(&client, to, false).await?;
            drop(configured);
            answers(&pod, to, false).await?;
        }
        Ok(())
    });
}
