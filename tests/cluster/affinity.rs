//! Clients that keep their pod: session affinity by every address of a Service, turned on and off, and its time.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::ensure;
use k8s_openapi::api::core::v1::Service;
use portolan_lab::netns::Namespace;
use portolan_lab::wait_for;
use serde_json::{Value, json};

use crate::asking::{Protocol, Tcp, Udp, answered_by, ask};
use crate::fixture::{PATIENCE, at, beside, cluster_ip};
use crate::pods::{Wanted, names};

/// Upstream's tests take as many.
const IN_A_ROW: usize = 15;

/// A client and the address it asks.
struct Way<'a> {
    from: &'a Namespace,
    to: SocketAddr,
    protocol: Protocol,
}

impl Way<'_> {
    /// Waits until many requests in a row are answered by one pod; its name.
    async fn sticks(&self) -> anyhow::Result<String> {
        let what = format!("{:?} {} -> {} keeps its pod", self.protocol, self.from.name(), self.to);
        wait_for(&what, PATIENCE, async || {
            let mut pods = BTreeSet::new();
            for _ in 0..IN_A_ROW {
                match ask(self.from, self.to, self.protocol).await {
                    Ok(answer) => pods.insert(answer.pod),
                    Err(error) => return Ok(Err(error)),
                };
            }
            let only = pods.pop_first().filter(|_| pods.is_empty());
            Ok(only.ok_or_else(|| format!("{pods:?} and another")))
        })
        .await
    }

    async fn spreads(&self, pods: &[&str]) -> anyhow::Result<()> {
        answered_by(self.from, self.to, self.protocol, pods).await.map(drop)
    }

    /// Waits for another pod, with pauses in which nobody asks and which are longer than the affinity's time.
    async fn changes_after(&self, time: Duration) -> anyhow::Result<()> {
        let first = self.sticks().await?;
        // One of three pods is chosen again by one pause in three, by twenty in a row never.
        for _ in 0..20 {
            tokio::time::sleep(time + Duration::from_millis(300)).await;
            if ask(self.from, self.to, self.protocol).await.is_ok_and(|answer| answer.pod != first) {
                return Ok(());
            }
        }
        anyhow::bail!("{:?} {} -> {}: always {first}", self.protocol, self.from.name(), self.to)
    }
}

fn affinity(seconds: Option<u32>) -> Value {
    match seconds {
        None => json!({ "spec": { "sessionAffinity": "None", "sessionAffinityConfig": null } }),
        Some(seconds) => json!({ "spec": {
            "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": seconds } },
        } }),
    }
}

fn node_ports(service: &Service) -> Vec<u16> {
    let ports = service.spec.iter().flat_map(|spec| spec.ports.iter().flatten());
    ports.filter_map(|port| u16::try_from(port.node_port?).ok()).collect()
}

/// ClusterIP (E25, E27, E29), NodePort (E26, E28, E30) and load-balancer IP (E88, E89), each with TCP and UDP (E62).
#[test]
fn s41_e25_e26_e27_e28_e29_e30_e62_e88_e89_affinity_on_off_and_its_time() {
    beside("s41-e25-e30-affinity", async |cluster| {
        let pods = cluster.run_on_each_node("web", ["one", "two", "three"]).await?;
        let pods = names(&pods);
        let [asks] =
            cluster.run([Wanted { name: "asks", app: "asks", node: 2, ..Wanted::default() }]).await?;
        let ports = json!([{ "name": "t", "port": 80 }, { "name": "u", "port": 80, "protocol": "UDP" }]);
        let service = cluster.expose("web", json!({ "sessionAffinity": "ClientIP", "ports": ports })).await?;
        let vip = at(cluster.external_ip("web").await?, 80);
        let (client, outside) = (cluster.ns("client")?, cluster.ns("cp")?);
        let by_node = format!("route add {}/32 via {}\n", vip.ip(), cluster.node_ip(1));
        cluster.ip("cp", &by_node, &by_node.replace(" add ", " del ")).await?;
        let (ip, node) = (at(cluster_ip(&service)?, 80), cluster.node_ip(3));
        let mut ways = Vec::new();
        for (protocol, port) in [Tcp, Udp].into_iter().zip(node_ports(&service)) {
            ways.push(Way { from: &asks.ns, to: ip, protocol });
            ways.push(Way { from: &client, to: at(node, port), protocol });
            // Through one node: each node remembers for itself.
            ways.push(Way { from: &outside, to: vip, protocol });
        }
        for way in &ways {
            way.sticks().await?;
        }
        cluster.patch_service("web", affinity(None)).await?;
        for way in &ways {
            way.spreads(&pods).await?;
        }
        cluster.patch_service("web", affinity(Some(3600))).await?;
        for way in &ways {
            way.sticks().await?;
        }
        cluster.patch_service("web", affinity(Some(1))).await?;
        let changes = ways.iter().map(|way| way.changes_after(Duration::from_secs(1)));
        futures::future::try_join_all(changes).await.map(drop)
    });
}

/// E88 with policy Local: of the pods on the node that the client comes by, it keeps one.
#[test]
fn s41_s44_e88_affinity_under_policy_local() {
    beside("s41-e88-local", async |cluster| {
        let on_n2 = |name| Wanted { name, node: 2, ..Wanted::default() };
        let here = cluster.run([on_n2("one"), on_n2("two"), on_n2("three")]).await?;
        let spec = json!({ "sessionAffinity": "ClientIP", "externalTrafficPolicy": "Local" });
        cluster.expose("web", spec).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[2]).await?;
        let client = cluster.ns("client")?;
        let way = Way { from: &client, to: at(vip, 80), protocol: Tcp };
        let first = way.sticks().await?;
        cluster.end(&first).await?;
        let second = wait_for("the client has another pod", PATIENCE, async || {
            let pod = way.sticks().await?;
            Ok(if pod == first { Err(pod) } else { Ok(pod) })
        })
        .await?;
        ensure!(here.iter().any(|pod| pod.name == second), "{second}");
        cluster.patch_service("web", affinity(None)).await?;
        let left: Vec<&str> =
            here.iter().map(|pod| pod.name.as_str()).filter(|name| *name != first).collect();
        way.spreads(&left).await
    });
}
