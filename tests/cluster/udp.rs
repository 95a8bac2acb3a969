//! UDP flows of one client socket that never pause: they go on when what is behind their Service changes.

use std::net::SocketAddr;
use std::time::Duration;

use portolan_lab::topology::node_address;
use portolan_lab::{Answer, wait_for};
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::fixture::{Cluster, PATIENCE, at, beside, cluster_ip, node_port};
use crate::pods::Wanted;

/// One socket, so that the kernel has one flow which every packet keeps alive.
pub struct Flow {
    socket: UdpSocket,
    to: SocketAddr,
}

impl Flow {
    pub async fn open(cluster: &Cluster, from: &str, to: SocketAddr) -> anyhow::Result<Flow> {
        Ok(Flow { socket: cluster.ns(from)?.udp(to).await?, to })
    }

    /// One packet, and the answer if one comes soon.
    async fn ask(&self) -> Result<Answer, String> {
        let exchange = async {
            self.socket.send(b"who").await.map_err(|error| error.to_string())?;
            let mut buffer = [0u8; 512];
            let length = self.socket.recv(&mut buffer).await.map_err(|error| error.to_string())?;
            let text = std::str::from_utf8(&buffer[..length]).map_err(|error| error.to_string())?;
            text.parse().map_err(|error| format!("{error:#}"))
        };
        timeout(Duration::from_millis(200), exchange).await.unwrap_or_else(|_| Err("no answer".into()))
    }

    /// Keeps asking until a pod whose name `is_right` accepts answers.
    pub async fn answered_by(&self, is_right: impl Fn(&str) -> bool) -> anyhow::Result<String> {
        wait_for(&format!("{} goes on to the right pod", self.to), PATIENCE, async || {
            Ok(match self.ask().await {
                Ok(answer) if is_right(&answer.pod) => Ok(answer.pod),
                Ok(answer) => Err(format!("{} answers", answer.pod)),
                Err(error) => Err(error),
            })
        })
        .await
    }

    pub async fn not_answered(&self) -> anyhow::Result<()> {
        wait_for(&format!("{} answers no more", self.to), PATIENCE, async || {
            Ok(match self.ask().await {
                Ok(answer) => Err(format!("{} answers", answer.pod)),
                Err(_) => Ok(()),
            })
        })
        .await
    }
}

fn udp() -> Value {
    json!([{ "port": 80, "protocol": "UDP" }])
}

/// Two Deployments under one Service: `old` goes, `new` comes, the flows go on.
async fn pods_are_replaced(cluster: &Cluster, kind: &str, targets: &[(&str, To)]) -> anyhow::Result<()> {
    cluster.deploy("web", 1, None).await?;
    let service = cluster.expose("web", json!({ "type": kind, "ports": udp() })).await?;
    let mut flows = Vec::new();
    for (from, to) in targets {
        let to = match to {
            To::ClusterIp => at(cluster_ip(&service)?, 80),
            To::NodePort(node) => at(node_address(*node).v4.into(), node_port(&service)?),
        };
        flows.push(Flow::open(cluster, from, to).await?);
    }
    let mut first = Vec::new();
    for flow in &flows {
        first.push(flow.answered_by(|_| true).await?);
    }
    // Down to nothing and up again: the flow meets a Service with no endpoint on its way.
    cluster.scale("web", 0).await?;
    for flow in &flows {
        flow.not_answered().await?;
    }
    cluster.scale("web", 1).await?;
    for (flow, first) in flows.iter().zip(&first) {
        flow.answered_by(|pod| pod != first).await?;
    }
    Ok(())
}

enum To {
    ClusterIp,
    NodePort(u8),
}

#[test]
fn s51_e70_node_port_goes_on_when_its_pod_is_replaced() {
    beside("s51-e70", async |cluster| {
        pods_are_replaced(cluster, "NodePort", &[("client", To::NodePort(1)), ("client", To::NodePort(2))])
            .await
    });
}

#[test]
fn s51_e71_e72_cluster_ip_goes_on_when_its_pod_is_replaced() {
    beside("s51-e71", async |cluster| {
        pods_are_replaced(cluster, "ClusterIP", &[("n1", To::ClusterIp), ("n3", To::ClusterIp)]).await
    });
}

/// E72: server and client have their node's network; the server's successor is on another node.
#[test]
fn s51_e72_with_the_nodes_network() {
    beside("s51-e72-host-network", async |cluster| {
        let ports = &[("u", 18_072, "UDP")];
        let server = |name, node| Wanted { name, node, ports, host_network: true, ..Wanted::default() };
        cluster.run([server("first", 1)]).await?;
        let ports = json!([{ "port": 80, "targetPort": 18_072, "protocol": "UDP" }]);
        let service = cluster.expose("web", json!({ "type": "NodePort", "ports": ports })).await?;
        let flows = [
            Flow::open(cluster, "n3", at(cluster_ip(&service)?, 80)).await?,
            Flow::open(cluster, "n2", at(cluster_ip(&service)?, 80)).await?,
            Flow::open(cluster, "client", at(cluster.node_ip(3), node_port(&service)?)).await?,
        ];
        for (name, old) in [("first", None), ("second", Some("first"))] {
            if let Some(old) = old {
                cluster.run([server(name, 2)]).await?;
                cluster.end(old).await?;
            }
            for flow in &flows {
                flow.answered_by(|pod| pod == name).await?;
            }
        }
        Ok(())
    });
}

/// #105657: the endpoint is there but not ready while the packets come, then it is.
#[test]
fn s52_e73_from_unready_to_ready_while_packets_come() {
    beside("s52-e73", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let pod = cluster.pods("web").await?.remove(0);
        let ip = pod.status.and_then(|status| status.pod_ip).unwrap_or_default();
        let object = json!({
            "metadata": { "name": "own" }, "spec": { "type": "NodePort", "ports": udp() },
        });
        let service = cluster.create_service(object).await?;
        let flows = [
            Flow::open(cluster, "n1", at(cluster_ip(&service)?, 80)).await?,
            Flow::open(cluster, "client", at(node_address(1).v4.into(), node_port(&service)?)).await?,
        ];
        cluster.set_endpoint("own", &ip, false).await?;
        for flow in &flows {
            flow.not_answered().await?;
        }
        cluster.set_endpoint("own", &ip, true).await?;
        for flow in &flows {
            flow.answered_by(|_| true).await?;
        }
        Ok(())
    });
}

/// Upstream forgets the VIPs of Services that are gone (S51).
#[test]
fn s51_a_removed_service_answers_no_more() {
    beside("s51-removed", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let service = cluster.expose("web", json!({ "type": "NodePort", "ports": udp() })).await?;
        let flows = [
            Flow::open(cluster, "n1", at(cluster_ip(&service)?, 80)).await?,
            Flow::open(cluster, "client", at(node_address(2).v4.into(), node_port(&service)?)).await?,
        ];
        for flow in &flows {
            flow.answered_by(|_| true).await?;
        }
        cluster.delete_service("web").await?;
        for flow in &flows {
            flow.not_answered().await?;
        }
        Ok(())
    });
}
