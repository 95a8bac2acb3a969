//! One clear sentence that names the object and the field, and everything else goes on.

use std::process::Stdio;

use k8s_openapi::api::core::v1::{Event, Service};
use kube::api::{Api, ListParams, PostParams};
use portolan_api::{Advertisement, IPAddressPool};
use portolan_lab::product::binary;
use portolan_lab::{probe, wait_for};
use serde_json::json;
use tokio::process::Command;

use crate::fixture::{Cluster, PATIENCE, at, test};

#[test]
fn a_malformed_pool_range_is_refused_by_the_api_server() {
    test("bad-pool-range", async |cluster| {
        let pools: Api<IPAddressPool> = Api::all(cluster.client.clone());
        for range in ["192.0.2.300-192.0.2.310", "192.0.2.0/33", "192.0.2.9-2001:db8::1", "all"] {
            let pool: IPAddressPool = serde_json::from_value(json!({
                "apiVersion": "portolan.dev/v1alpha1", "kind": "IPAddressPool", "metadata": { "name": "broken" },
                "spec": { "addresses": [range] },
            }))?;
            let error = pools.create(&PostParams::default(), &pool).await.expect_err(range).to_string();
            assert!(error.contains("broken") && error.contains("spec.addresses"), "{range}: {error}");
        }
        still_works(cluster).await
    });
}

/// `b < a` is beyond CEL, which cannot order addresses: the controller says so, in the object's own condition.
#[test]
fn a_pool_that_cannot_be_used_says_so_in_its_condition() {
    test("bad-pool-order", async |cluster| {
        let pools: Api<IPAddressPool> = Api::all(cluster.client.clone());
        let pool = json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "IPAddressPool", "metadata": { "name": "backwards" },
            "spec": { "addresses": ["192.0.2.9-192.0.2.1"] },
        });
        cluster.make::<IPAddressPool>(pool).await?;
        let message = condition_of_pool(&pools, "backwards").await?;
        assert!(message.contains("spec.addresses[0]"), "{message}");
        still_works(cluster).await
    });
}

async fn condition_of_pool(pools: &Api<IPAddressPool>, name: &str) -> anyhow::Result<String> {
    wait_for("the pool is not Ready, and says why", PATIENCE, async || {
        let status = pools.get(name).await?.status.unwrap_or_default();
        let bad = status.conditions.iter().find(|c| c.type_ == "Ready" && c.status == "False");
        Ok(bad.map(|condition| condition.message.clone()).ok_or(format!("{:?}", status.conditions)))
    })
    .await
}

#[test]
fn an_unknown_peer_name_is_named_and_the_others_are_told() {
    test("bad-peer-name", async |cluster| {
        let adverts: Api<Advertisement> = Api::all(cluster.client.clone());
        let advert = json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "Advertisement", "metadata": { "name": "half" },
            "spec": { "sources": ["LoadBalancerIP"], "bgp": { "peers": ["tor", "tor-b"], "communities": ["64512:77"] } },
        });
        cluster.make::<Advertisement>(advert).await?;
        let said = wait_for("the Advertisement says which peer is unknown", PATIENCE, async || {
            let status = adverts.get("half").await?.status.unwrap_or_default();
            let bad = status.conditions.iter().find(|c| c.type_ == "ResolvedRefs" && c.status == "False");
            Ok(bad.map(|condition| condition.message.clone()).ok_or(format!("{:?}", status.conditions)))
        })
        .await?;
        assert!(said.contains("spec.bgp.peers[1]") && said.contains("tor-b"), "{said}");
        still_works(cluster).await
    });
}

#[test]
fn an_address_outside_every_pool_is_refused_with_a_condition_and_an_event() {
    test("bad-requested-ip", async |cluster| {
        cluster
            .create_service(json!({
                "metadata": { "name": "outside", "annotations": { "portolan.dev/ips": "203.0.113.7" } },
                "spec": { "type": "LoadBalancer", "selector": { "app": "none" }, "ports": [{ "port": 80 }] },
            }))
            .await?;
        let services = cluster.api::<Service>();
        let message = wait_for("the Service says why it has no address", PATIENCE, async || {
            let status = services.get("outside").await?.status.unwrap_or_default();
            let conditions = status.conditions.unwrap_or_default();
            let bad =
                conditions.iter().find(|c| c.type_ == "portolan.dev/IPAllocated" && c.status == "False");
            Ok(bad
                .filter(|c| c.reason == "RequestedIPNotInPool")
                .map(|c| c.message.clone())
                .ok_or(format!("{conditions:?}")))
        })
        .await?;
        assert!(message.contains("203.0.113.7"), "{message}");
        let events = cluster.api::<Event>();
        wait_for("an Event says so, too", PATIENCE, async || {
            let list = events.list(&ListParams::default()).await?;
            let said = list.items.iter().any(|event| {
                event.reason.as_deref() == Some("AllocationFailed")
                    && event.message.as_deref().is_some_and(|message| message.contains("203.0.113.7"))
            });
            Ok(if said { Ok(()) } else { Err(format!("{} events", list.items.len())) })
        })
        .await?;
        still_works(cluster).await
    });
}

#[test]
fn a_wrong_kubeconfig_is_one_sentence_and_an_exit() {
    test("bad-kubeconfig", async |cluster| {
        let file = cluster.lab.dir().join("broken-kubeconfig");
        std::fs::write(&file, "clusters: 7\n")?;
        let commands: [&[&str]; 3] =
            [&["status"], &["agent", "--node-name=n1"], &["controller", "--identity=x"]];
        for path in [file.clone(), cluster.lab.dir().join("no-such-kubeconfig")] {
            for arguments in commands {
                let mut command = Command::new(binary()?);
                command.args(arguments).arg("--kubeconfig").arg(&path).stdin(Stdio::null());
                let output = command.output().await?;
                let text = String::from_utf8_lossy(&output.stderr).into_owned();
                assert!(!output.status.success(), "{arguments:?}: {text}");
                let named = text.contains(&path.display().to_string());
                assert!(named && text.trim().lines().count() == 1, "{arguments:?}: {text}");
            }
        }
        Ok(())
    });
}

/// A Service that has nothing wrong is served and announced.
async fn still_works(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.deploy("good", 1, None).await?;
    cluster.expose("good", json!({})).await?;
    let vip = cluster.external_ip("good").await?;
    cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
    cluster.endpoints("good", 1).await?;
    let tally = probe::many(&cluster.ns("client")?, at(vip, 80), 10).await;
    anyhow::ensure!(tally.answered == 10, "{tally:?}");
    Ok(())
}
