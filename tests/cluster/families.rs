//! Clusters of IPv4 alone, of IPv6 alone, and of both with IPv6 first or second: the whole line in each. A control plane of its
//! own for every one that is not the shared cluster.

use k8s_openapi::api::core::v1::Service;
use kube::api::Api;
use portolan_api::NodeStatus;
use portolan_lab::probe;
use portolan_lab::topology::Families;
use portolan_lab::wait_for;
use serde_json::{Value, json};

use crate::asking::{Refused, Tcp, Udp, answered_by, ends};
use crate::fixture::{Cluster, NODES, PATIENCE, at, beside, on_own};
use crate::granular::all_ways;
use crate::pods::names;

#[test]
fn s6_a_cluster_of_ipv4_alone() {
    on_own("s6-ipv4", Families::Ipv4, NODES, async |cluster| whole_line(cluster, json!({})).await);
}

#[test]
fn s6_a_cluster_of_ipv6_alone() {
    on_own("s6-ipv6", Families::Ipv6, NODES, async |cluster| whole_line(cluster, json!({})).await);
}

#[test]
fn s6_a_cluster_of_both_families() {
    beside("s6-both", async |cluster| {
        let families = json!({ "ipFamilyPolicy": "RequireDualStack", "ipFamilies": ["IPv6", "IPv4"] });
        whole_line(cluster, families).await
    });
}

/// A Service of type LoadBalancer, from its address to its end, from every side.
async fn whole_line(cluster: &Cluster, families: Value) -> anyhow::Result<()> {
    let pods = cluster.run_on_each_node("web", ["one", "two", "three"]).await?;
    let mut spec = families;
    spec["ports"] = json!([{ "name": "t", "port": 80 }, { "name": "u", "port": 80, "protocol": "UDP" }]);
    let service = cluster.expose("web", spec).await?;
    let vips = cluster.external_ips("web").await?;
    all_ways(cluster, &names(&pods), &service).await?;
    for vip in &vips {
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        for from in [&cluster.ns("client")?, &pods[1].ns, &cluster.ns("n3")?] {
            for protocol in [Tcp, Udp] {
                answered_by(from, at(*vip, 80), protocol, &names(&pods)).await?;
            }
        }
        // Policy Cluster masquerades, so that no pod sees the client.
        let tally = probe::many(&cluster.ns("client")?, at(*vip, 80), 20).await;
        assert!(tally.answered == 20 && !tally.clients.keys().any(|ip| is_client(*ip)), "{tally:?}");
    }
    policy_local(cluster, &service).await?;
    health(cluster).await?;
    for pod in &pods {
        cluster.end(&pod.name).await?;
    }
    for vip in &vips {
        cluster.routed_by(&vip.to_string(), &[]).await?;
        ends(&cluster.ns("n1")?, at(*vip, 80), Tcp, Refused).await?;
    }
    cluster.delete_service("web").await
}

fn is_client(ip: std::net::IpAddr) -> bool {
    portolan_lab::topology::CLIENT.both().contains(&ip)
}

/// The client is seen, and only nodes with a pod announce.
async fn policy_local(cluster: &Cluster, service: &Service) -> anyhow::Result<()> {
    let name = service.metadata.name.clone().unwrap_or_default();
    cluster.set_ready("three", false).await?;
    cluster.patch_service(&name, json!({ "spec": { "externalTrafficPolicy": "Local" } })).await?;
    for vip in cluster.external_ips(&name).await? {
        cluster.routed_by(&vip.to_string(), &[1, 2]).await?;
        let seen = answered_by(&cluster.ns("client")?, at(vip, 80), Tcp, &["one", "two"]).await?;
        assert!(seen.iter().all(|ip| is_client(*ip)), "{seen:?}");
    }
    cluster.set_ready("three", true).await
}

/// Probes by the node's address of either family, and nothing amiss in what the agents say of themselves.
async fn health(cluster: &Cluster) -> anyhow::Result<()> {
    let client = cluster.ns("client")?;
    for node in 1..=3 {
        for ip in cluster.lab.families.of(portolan_lab::topology::node_address(node)) {
            let url = format!("http://{}/healthz", at(ip, 10_256));
            let text = client.output(&["curl", "-sg", "--max-time", "3", &url]).await?;
            assert!(text.contains("\"nodeEligible\":true"), "{url}: {text}");
        }
    }
    let statuses: Api<NodeStatus> = Api::all(cluster.client.clone());
    wait_for("every node says that its kernel is in sync", PATIENCE, async || {
        let all = statuses.list(&Default::default()).await?.items;
        let synced = |status: &NodeStatus| {
            status
                .status
                .as_ref()
                .and_then(|status| status.agent.as_ref())
                .is_some_and(|agent| agent.dataplane.synced)
        };
        let count = all.iter().filter(|status| synced(status)).count();
        Ok(if count == 3 { Ok(()) } else { Err(count) })
    })
    .await
}
