//! The fixture itself: a test that errs and one that panics leave nothing that later tests would meet.

use std::panic::AssertUnwindSafe;

use anyhow::{bail, ensure};
use futures::FutureExt;
use k8s_openapi::api::core::v1::{Namespace, Node};
use kube::ResourceExt;
use kube::api::Api;
use portolan_api::IPAddressPool;
use portolan_lab::probe::Requests;
use portolan_lab::{Lab, testing, wait_for};
use serde_json::json;

use crate::fixture::{Cluster, PATIENCE, alone_on_cluster, at, node_port};

const NAMES: [&str; 2] = ["fails-by-error", "fails-by-panic"];

#[test]
fn a_failed_test_leaves_nothing() {
    testing::in_lab("failing", async |lab| {
        let (by_error, by_panic) = (fails(lab, NAMES[0], false).await, fails(lab, NAMES[1], true).await);
        ensure!(matches!(&by_error, Ok(Err(error)) if format!("{error:#}") == "on purpose"), "{by_error:?}");
        let said = by_panic.as_ref().expect_err("it panics").downcast_ref::<&str>().copied();
        ensure!(said == Some("on purpose, too"), "{said:?}");
        alone_on_cluster("after-failures", lab, no_mess).await
    });
}

async fn fails(lab: &'static Lab, name: &str, panics: bool) -> std::thread::Result<anyhow::Result<()>> {
    let body = async |cluster: &Cluster| {
        mess(cluster).await.expect("the mess is made");
        assert!(!panics, "on purpose, too");
        bail!("on purpose")
    };
    AssertUnwindSafe(alone_on_cluster(name, lab, body)).catch_unwind().await
}

/// One of each kind of thing that tests make, with the same names and numbers each time.
async fn mess(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.deploy("web", 1, Some(1)).await?;
    let ports = json!([{ "port": 80, "nodePort": 30_999 }]);
    let service = cluster.expose("web", json!({ "ports": ports })).await?;
    let to = at(cluster.node_ip(2), node_port(&service)?);
    let requests = Requests::start(&cluster.ns("client")?, to, 100);
    wait_for("requests are answered", PATIENCE, async || {
        let answered = requests.so_far().answered;
        Ok(if answered > 0 { Ok(()) } else { Err(answered) })
    })
    .await?;
    let pool = json!({
        "apiVersion": "portolan.dev/v1alpha1", "kind": "IPAddressPool", "metadata": { "name": "mess" },
        "spec": { "addresses": ["198.51.100.64/30"] },
    });
    cluster.make::<IPAddressPool>(pool).await?;
    cluster.patch_node("n3", json!({ "metadata": { "labels": { "mess": "yes" } } })).await?;
    cluster.ip("n1", "addr add 10.9.0.99/32 dev eth0\n", "addr del 10.9.0.99/32 dev eth0\n").await?;
    // Even a configuration that nobody puts back.
    std::mem::forget(cluster.configure(2, json!({ "proxy": { "masqueradeAll": true } }))?);
    cluster.lab.product.lock().await.kill("agent-n3").await?;
    cluster.stop_apiserver().await
}

/// The cluster is whole again, or this would not have begun.
async fn no_mess(cluster: &Cluster) -> anyhow::Result<()> {
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    for name in NAMES {
        let left = namespaces.get_opt(name).await?;
        let goes = left.is_none_or(|namespace| namespace.metadata.deletion_timestamp.is_some());
        ensure!(goes, "the namespace {name} stays");
    }
    let pools: Api<IPAddressPool> = Api::all(cluster.client.clone());
    ensure!(pools.get_opt("mess").await?.is_none(), "the pool stays");
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    ensure!(!nodes.get("n3").await?.labels().contains_key("mess"), "the label stays");
    let addresses = cluster.ns("n1")?.output(&["ip", "addr"]).await?;
    ensure!(!addresses.contains("10.9.0.99"), "the address stays: {addresses}");
    let dir = cluster.lab.product_dir().join("agent-n2/config.yaml");
    ensure!(!std::fs::read_to_string(dir)?.contains("\"masqueradeAll\":true"), "the configuration stays");
    cluster.alone().await
}
