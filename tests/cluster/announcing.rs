//! What the router learns of Services, and in which order things come and go.

use std::time::Duration;

use kube::api::{Api, DeleteParams, PostParams};
use portolan_api::Advertisement;
use portolan_lab::monitor::Monitor;
use portolan_lab::topology::CLIENT;
use portolan_lab::{probe, wait_for};
use serde_json::json;

use crate::fixture::{PATIENCE, at, cluster_ip, test};

#[test]
fn a39_s44_s45_e95_policy_local_keeps_the_client_and_only_nodes_with_endpoints_announce() {
    test("a39-policy-local", async |cluster| {
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
    test("a40-without-endpoints", async |cluster| {
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
        let requests = probe::Requests::start(&cluster.ns("client")?, at(vip, 80), 100);
        cluster.delete_service("web").await?;
        let text = vip.to_string();
        let is_gone = |line: &str| line.contains("Deleted") && line.contains(&text);
        let withdrawn = routes.first("the route's removal", PATIENCE, is_gone).await?;
        let is_removed =
            |line: &str| line.contains("delete element ip portolan services") && line.contains(&text);
        let removed = rules.first("the rules' removal", PATIENCE, is_removed).await?;
        assert!(withdrawn.at < removed.at, "the route went after the rules: {removed:?}, {withdrawn:?}");
        let tally = requests.stop().await?;
        // Until the router had no route, everything was answered: nothing was ever refused by a node.
        let refused: Vec<_> = tally.failures.iter().filter(|(_, why)| why.contains("refused")).collect();
        assert!(refused.is_empty(), "{refused:?}");
        Ok(())
    });
}

#[test]
fn b46_the_route_comes_after_the_rules() {
    test("b46-route-after-rules", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let routes = Monitor::routes(&cluster.ns("router")?).await?;
        let rules = Monitor::nftables(&cluster.ns("n1")?).await?;
        cluster.expose("web", json!({})).await?;
        let text = cluster.external_ip("web").await?.to_string();
        let programmed = rules
            .first("the VIP in the rules", PATIENCE, |line| {
                line.contains("create element ip portolan services") && line.contains(&text)
            })
            .await?;
        let via_n1 = |line: &str| line.contains(&text) && line.contains("10.9.0.1");
        let announced = routes.first("the route by n1", PATIENCE, via_n1).await?;
        // The two monitors are read by one process each; a few milliseconds are their own.
        let early = programmed.at.saturating_duration_since(announced.at);
        assert!(early < Duration::from_millis(20), "the route came {early:?} before the rules");
        Ok(())
    });
}

#[test]
fn a41_cluster_ips_when_an_advertisement_asks() {
    test("a41-cluster-ips", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let service = cluster.expose("web", json!({ "type": "ClusterIP" })).await?;
        let ip = cluster_ip(&service)?;
        let adverts: Api<Advertisement> = Api::all(cluster.client.clone());
        let selector = json!([{ "matchLabels": { "test": "a41" } }]);
        let advert: Advertisement = serde_json::from_value(json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "Advertisement", "metadata": { "name": "a41" },
            "spec": { "sources": ["ClusterIP"], "serviceSelectors": selector, "bgp": {} },
        }))?;
        adverts.create(&PostParams::default(), &advert).await?;
        let services = cluster.api::<k8s_openapi::api::core::v1::Service>();
        let label = kube::api::Patch::Merge(json!({ "metadata": { "labels": { "test": "a41" } } }));
        services.patch("web", &Default::default(), &label).await?;
        let result = async {
            cluster.routed_by(&ip.to_string(), &[1, 2, 3]).await?;
            let tally = probe::many(&cluster.ns("client")?, at(ip, 80), 20).await;
            anyhow::ensure!((tally.answered, tally.pods.len()) == (20, 2), "{tally:?}");
            Ok(())
        }
        .await;
        adverts.delete("a41", &DeleteParams::default()).await?;
        result?;
        cluster.routed_by(&ip.to_string(), &[]).await
    });
}

#[test]
fn a18_a_deleted_services_address_is_freed() {
    test("a18-freed", async |cluster| {
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
    test("a43-pod-cidrs", async |cluster| {
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
