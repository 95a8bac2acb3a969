//! What the router learns of Services, and in which order things come and go.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;
use kube::api::{Api, DeleteParams};
use portolan_api::{Advertisement, NodeStatus};
use portolan_lab::monitor::Monitor;
use portolan_lab::topology::CLIENT;
use portolan_lab::{probe, wait_for};
use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::fixture::{PATIENCE, at, beside, cluster_ip, test};
use crate::process::event;

#[test]
fn a39_s44_s45_e95_policy_local_keeps_the_client_and_only_nodes_with_endpoints_announce() {
    beside("a39-policy-local", async |cluster| {
        cluster.deploy("web", 1, Some(2)).await?;
        cluster.expose("web", json!({ "externalTrafficPolicy": "Local" })).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[2]).await?;
        let tally = probe::many(&cluster.ns("client")?, at(vip, 80), 20).await;
        assert_eq!(tally.answered, 20, "{tally:?}");
        assert!(
            tally.clients.keys().eq([&std::net::IpAddr::from(CLIENT.v4)]),
            "S44: the pod sees the client: {:?}",
            tally.clients
        );
        // S45: from the cluster it is Cluster policy, also where no endpoint is.
        let tally = probe::many(&cluster.ns("n1")?, at(vip, 80), 10).await;
        assert_eq!(tally.answered, 10, "{tally:?}");
        // The last endpoint goes, and with it the route.
        cluster.scale("web", 0).await?;
        cluster.routed_by(&vip.to_string(), &[]).await?;
        cluster.scale("web", 1).await?;
        cluster.routed_by(&vip.to_string(), &[2]).await
    });
}

#[test]
fn a40_without_endpoints_the_route_goes() {
    beside("a40-without-endpoints", async |cluster| {
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.deploy("web", 1, None).await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        cluster.scale("web", 0).await?;
        cluster.routed_by(&vip.to_string(), &[]).await
    });
}

#[test]
fn a61_deletion_withdraws_the_route_before_the_rules_go() {
    test("a61-deletion", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        let routes = Monitor::routes(&cluster.ns("router")?).await?;
        let rules = Monitor::nftables(&cluster.ns("n1")?).await?;
        let began = Instant::now();
        let requests = probe::Requests::start(&cluster.ns("client")?, at(vip, 80), 100);
        wait_for("requests are answered", PATIENCE, async || {
            let answered = requests.so_far().answered;
            Ok(if answered > 10 { Ok(()) } else { Err(answered) })
        })
        .await?;
        cluster.delete_service("web").await?;
        let text = vip.to_string();
        let is_gone = |line: &str| line.contains("Deleted") && line.contains(&text);
        let withdrawn = routes.first("the route's removal", PATIENCE, is_gone).await?;
        let is_removed =
            |line: &str| line.contains("delete element ip portolan services") && line.contains(&text);
        let removed = rules.first("the rules' removal", PATIENCE, is_removed).await?;
        assert!(withdrawn.at < removed.at, "the route went after the rules: {removed:?}, {withdrawn:?}");
        let tally = requests.stop().await?;
        // While there was a route everything was answered. (A request that began just before may have met the end of it.)
        let until = withdrawn.at.saturating_duration_since(began).saturating_sub(Duration::from_millis(50));
        let early: Vec<_> = tally.failures.iter().filter(|(at, _)| *at < until).collect();
        assert!(early.is_empty() && tally.answered > 0, "lost before the route went: {early:?}");
        let refused: Vec<_> = tally.failures.iter().filter(|(_, why)| why.contains("refused")).collect();
        assert!(refused.is_empty(), "no node refused anything: {refused:?}");
        Ok(())
    });
}

/// The kernel of n1 refuses (another program owns a table of our name): n1 says so and keeps silent, the others announce; once
/// it can, it programs and announces, by itself.
#[test]
fn b46_a_node_announces_only_what_its_kernel_took() {
    test("b46-kernel-refuses", async |cluster| {
        let n1 = cluster.ns("n1")?;
        cluster.lab.product.lock().await.kill("agent-n1").await?;
        n1.output(&["nft", "delete", "table", "ip", "portolan"]).await?;
        // A table with an owner can be written by the owner's socket alone, and goes with it.
        let mut owner = n1.command("nft")?;
        owner.arg("-i").stdin(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
        let mut owner = owner.spawn()?;
        let input = owner.stdin.as_mut().context("nft's standard input")?;
        input.write_all(b"table ip portolan { flags owner; }\n").await?;
        wait_for("the table has an owner", PATIENCE, async || {
            let tables = n1.output(&["nft", "list", "tables"]).await?;
            Ok(if tables.contains("ip portolan") { Ok(()) } else { Err(tables) })
        })
        .await?;
        cluster.lab.product.lock().await.start_agent("n1").await?;

        cluster.deploy("web", 2, None).await?;
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.sessions_of(&[1, 2, 3]).await?;
        cluster.routed_by(&vip.to_string(), &[2, 3]).await?;
        let statuses: Api<NodeStatus> = Api::all(cluster.client.clone());
        wait_for("n1 says that its kernel refused, and what it withholds", PATIENCE, async || {
            let status = statuses.get_opt("n1").await?.and_then(|status| status.status).unwrap_or_default();
            let synced = status.agent.as_ref().is_some_and(|agent| agent.dataplane.synced);
            let withheld = status.vips.clone().unwrap_or_default().withheld;
            let said = withheld.iter().any(|w| w.ip == vip.to_string() && w.reason == "DataplaneNotReady");
            Ok(if !synced && said { Ok(()) } else { Err(format!("{status:?}")) })
        })
        .await?;
        assert_eq!(cluster.router().await.routes(&vip.to_string()).await?.len(), 2, "n1 still keeps silent");
        let refused = event(cluster, 1, "KernelRefused").await?;
        assert_eq!(refused.type_.as_deref(), Some("Warning"));
        assert_eq!(refused.count.unwrap_or(1), 1, "at once, then at most one in five minutes");

        owner.kill().await?;
        event(cluster, 1, "KernelRulesWritten").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await
    });
}

#[test]
fn a41_cluster_ips_when_an_advertisement_asks() {
    beside("a41-cluster-ips", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let service = cluster.expose("web", json!({ "type": "ClusterIP" })).await?;
        let ip = cluster_ip(&service)?;
        let adverts: Api<Advertisement> = Api::all(cluster.client.clone());
        let selector = json!([{ "matchLabels": { "test": "a41" } }]);
        let advert = json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "Advertisement", "metadata": { "name": "a41" },
            "spec": { "sources": ["ClusterIP"], "serviceSelectors": selector, "bgp": {} },
        });
        cluster.make::<Advertisement>(advert).await?;
        let services = cluster.api::<k8s_openapi::api::core::v1::Service>();
        let label = kube::api::Patch::Merge(json!({ "metadata": { "labels": { "test": "a41" } } }));
        services.patch("web", &Default::default(), &label).await?;
        cluster.routed_by(&ip.to_string(), &[1, 2, 3]).await?;
        let tally = probe::many(&cluster.ns("client")?, at(ip, 80), 20).await;
        assert_eq!((tally.answered, tally.pods.len()), (20, 2), "{tally:?}");
        adverts.delete("a41", &DeleteParams::default()).await?;
        cluster.routed_by(&ip.to_string(), &[]).await
    });
}

#[test]
fn a18_a_deleted_services_address_is_freed() {
    beside("a18-freed", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        let allocations: Api<portolan_api::IPAllocation> = Api::all(cluster.client.clone());
        let name = portolan_api::allocation_name(vip);
        let bound = allocations.get(&name).await?;
        assert_eq!(bound.spec.owners[0].name, "web");
        cluster.delete_service("web").await?;
        wait_for("the IPAllocation goes after its reuse delay", PATIENCE, async || {
            Ok(allocations.get_opt(&name).await?.map_or(Ok(()), |object| Err(format!("{:?}", object.status))))
        })
        .await
    });
}

#[test]
fn a43_pod_cidrs_by_their_nodes() {
    beside("a43-pod-cidrs", async |cluster| {
        let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(cluster.client.clone());
        for number in 1..=3u8 {
            let node = nodes.get(&format!("n{number}")).await?;
            for cidr in node.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default() {
                cluster.routed_by(&cidr, &[number]).await?;
            }
        }
        Ok(())
    });
}
