//! What the real API server takes, however odd it is: nothing else suffers, nothing opens, and each wrong field is named once.

use anyhow::Context;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use portolan_lab::topology::node_address;
use portolan_lab::{nft, probe, wait_for};
use serde_json::{Value, json};

use crate::fixture::{Cluster, PATIENCE, at, cluster_ip, test};

/// An EndpointSlice for the Service of the same name, with whatever `over` says.
async fn set_slice(cluster: &Cluster, name: &str, service: &str, over: Value) -> anyhow::Result<()> {
    let mut slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
        "metadata": { "name": name, "labels": { "kubernetes.io/service-name": service } },
        "addressType": "IPv4", "ports": [{ "name": "", "port": 80, "protocol": "TCP" }],
    });
    for (field, value) in over.as_object().context("an object")? {
        slice[field] = value.clone();
    }
    let params = PatchParams::apply("test").force();
    let applied = cluster.api::<EndpointSlice>().patch(name, &params, &Patch::Apply(&slice)).await;
    applied.with_context(|| format!("the API server takes EndpointSlice {name}"))?;
    Ok(())
}

/// Waits until n1's kernel has exactly this many endpoints at port 80 of the Service's ClusterIP.
async fn programmed(cluster: &Cluster, service: &Service, count: usize) -> anyhow::Result<()> {
    let (n1, key) = (cluster.ns("n1")?, format!("{} . tcp . 80 . ", cluster_ip(service)?));
    wait_for(&format!("n1 has {count} endpoints of {key}"), PATIENCE, async || {
        let found = nft::endpoints(&n1, "ip").await?.matches(&key).count();
        Ok(if found == count { Ok(()) } else { Err(found) })
    })
    .await
}

fn endpoints(addresses: &[&str]) -> Value {
    addresses.iter().map(|address| json!({ "addresses": [address] })).collect()
}

#[test]
fn s14_a_wrong_field_is_named_once_until_it_was_mended() {
    test("s14-once", async |cluster| {
        let plain =
            |name: &str| json!({ "metadata": { "name": name }, "spec": { "ports": [{ "port": 80 }] } });
        let service = cluster.create_service(plain("web")).await?;
        let other = cluster.create_service(plain("other")).await?;
        let log = cluster.lab.product.lock().await.log("agent-n1");
        let about = format!("EndpointSlice {}/web: ", cluster.namespace);
        let sentences = async |count: usize| {
            wait_for(&format!("{count} sentences begin with {about}"), PATIENCE, async || {
                let text = std::fs::read_to_string(&log)?;
                let lines: Vec<String> =
                    text.lines().filter(|line| line.contains(&about)).map(str::to_owned).collect();
                Ok(if lines.len() == count { Ok(lines) } else { Err(format!("{lines:#?}")) })
            })
            .await
        };
        // The API server takes multicast addresses.
        let set = async |addresses: &[&str]| {
            set_slice(cluster, "web", "web", json!({ "endpoints": endpoints(addresses) })).await
        };
        set(&["10.244.1.9", "239.1.1.1"]).await?;
        let said = sentences(1).await?;
        assert!(said[0].contains("endpoints[1].addresses[0]: 239.1.1.1 is a "), "{said:?}");
        programmed(cluster, &service, 1).await?;

        // Others change, and so does the same object around the wrong place.
        for round in 1..=10 {
            let own: Vec<String> = (1..=round).map(|n| format!("10.244.2.{n}")).collect();
            let own: Vec<&str> = own.iter().map(String::as_str).collect();
            set(&[&own[..], &["239.1.1.1"]].concat()).await?;
            set_slice(cluster, "other", "other", json!({ "endpoints": endpoints(&own) })).await?;
            let condition = json!({
                "type": "test", "status": "True", "reason": format!("Round{round}"), "message": "",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            });
            let status = Patch::Merge(json!({ "status": { "conditions": [condition] } }));
            cluster.api::<Service>().patch_status("web", &PatchParams::default(), &status).await?;
            programmed(cluster, &other, round).await?;
            programmed(cluster, &service, round).await?;
        }
        sentences(1).await?;
        set(&["10.244.1.9"]).await?;
        programmed(cluster, &service, 1).await?;
        set(&["239.1.1.1", "10.244.1.8", "10.244.1.9"]).await?;
        programmed(cluster, &service, 2).await?;
        sentences(2).await?;
        Ok(())
    });
}

/// Services that want what is another's or the node's, and slices as no controller writes them.
#[test]
fn s14_s25_s28_odd_objects_cost_no_other() {
    test("s14-odd", async |cluster| {
        cluster.deploy("good", 2, None).await?;
        let good = cluster.expose("good", json!({ "type": "ClusterIP" })).await?;
        cluster.endpoints("good", 2).await?;
        let (good_ip, n1) = (cluster_ip(&good)?, node_address(1).v4);
        let thief = json!({ "externalIPs": [good_ip, n1, n1, "198.51.100.9"], "ports": [{ "port": 80 }] });
        let thief = json!({ "metadata": { "name": "thief" }, "spec": thief });
        let thief = cluster.create_service(thief).await?;
        set_slice(cluster, "thief", "thief", json!({ "endpoints": endpoints(&["10.244.250.250"]) })).await?;
        // Endpoints that are a Service's VIP and a node; ports without a number, and thousands; names instead of addresses.
        let to_vip = endpoints(&[&good_ip.to_string(), &n1.to_string()]);
        let plain = json!({ "metadata": { "name": "odd" }, "spec": { "ports": [{ "port": 80 }] } });
        let odd = cluster.create_service(plain).await?;
        let many: Vec<Value> = (1..=3000u16).map(|n| json!({ "name": format!("p{n}"), "port": n })).collect();
        set_slice(
            cluster,
            "odd-1",
            "odd",
            json!({ "endpoints": to_vip, "ports": [{ "name": "", "port": 80 }, { "name": "any" }] }),
        )
        .await?;
        set_slice(
            cluster,
            "odd-2",
            "odd",
            json!({ "endpoints": endpoints(&["10.244.250.251"]), "ports": many }),
        )
        .await?;
        set_slice(
            cluster,
            "odd-3",
            "odd",
            json!({ "addressType": "FQDN", "endpoints": endpoints(&["host.example"]) }),
        )
        .await?;
        set_slice(
            cluster,
            "odd-4",
            "nobody",
            json!({ "endpoints": endpoints(&["10.244.250.252"]), "ports": null }),
        )
        .await?;
        programmed(cluster, &odd, 2).await?;
        programmed(cluster, &thief, 1).await?;

        let client = cluster.ns("n2")?;
        let tally = probe::many(&client, at(good_ip, 80), 20).await;
        assert_eq!((tally.answered, tally.pods.len()), (20, 2), "the older claim has the address: {tally:?}");
        // S28: the node's own servers are where they were.
        let livez = format!("http://{n1}:10256/livez");
        client.output(&["curl", "--silent", "--fail", "--max-time", "5", &livez]).await?;
        // What was never a port of the VIP is none.
        let refused = client.connect(at(cluster_ip(&odd)?, 443)).await.map(drop);
        assert!(refused.as_ref().is_err_and(|error| format!("{error:#}").contains("refused")), "{refused:?}");
        Ok(())
    });
}

/// The API server checks source ranges now; old ones may have stored anything. Blanks it still takes.
#[test]
fn s14_s27_a_range_with_blanks_is_that_range() {
    test("s14-blanks", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let ranges = json!([" 10.9.0.0/24 "]);
        let service = json!({
            "metadata": { "name": "web" },
            "spec": { "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [{ "port": 80 }], "loadBalancerSourceRanges": ranges },
        });
        let service: Service = serde_json::from_value(service)?;
        if let Err(error) = cluster.api::<Service>().create(&PostParams::default(), &service).await {
            // Then nobody can have stored one lately.
            assert!(error.to_string().contains("loadBalancerSourceRanges"), "{error}");
            return Ok(());
        }
        let vip = cluster.external_ip("web").await?;
        cluster.endpoints("web", 1).await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        probe::tcp(&cluster.ns("n1")?, at(vip, 80)).await?;
        let outside =
            probe::tcp_within(&cluster.ns("client")?, at(vip, 80), std::time::Duration::from_secs(1)).await;
        assert!(outside.is_err(), "{outside:?}");
        Ok(())
    });
}
