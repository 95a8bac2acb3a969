//! The objects of a size: written by the real API server once, kept as etcd's folder, copied for each run.

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::core::v1::{Namespace, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, ListParams, PostParams};
use kube::{Client, Resource};
use portolan_lab::binaries::Binaries;
use portolan_lab::cache;
use portolan_lab::wait_for;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::objects::{self, NAMESPACE, NODE, Size, VERSION};

const CONNECTIONS: usize = 16;

/// Where the objects of a size are kept: by the version of what is written and of who writes.
pub async fn kept(size: Size, binaries: &Binaries) -> anyhow::Result<PathBuf> {
    let kubernetes = version(&binaries.kubernetes.join("kube-apiserver")).await?;
    let name = format!("{}x{}-v{VERSION}-{kubernetes}", size.services, size.endpoints);
    Ok(cache::dir()?.join("bench").join(name))
}

/// The last word that a program says of its version.
async fn version(program: &Path) -> anyhow::Result<String> {
    let output = tokio::process::Command::new(program).arg("--version").output().await?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.split_whitespace().last().map(String::from).context("--version")
}

pub async fn post_all(client: &Client, size: Size) -> anyhow::Result<()> {
    let start = Instant::now();
    eprintln!("writing {size} Services and EndpointSlices once; they are kept");
    let ranges: Api<ServiceCIDR> = Api::all(client.clone());
    wait_for("the API server allots addresses", Duration::from_secs(60), async || {
        let all = ranges.list(&ListParams::default()).await?;
        let ready = |range: &ServiceCIDR| {
            let conditions = range.status.as_ref().and_then(|status| status.conditions.as_ref());
            conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        Ok(if all.items.iter().any(ready) { Ok(()) } else { Err("no ServiceCIDR is ready") })
    })
    .await?;
    create(&Api::<Namespace>::all(client.clone()), json!({ "metadata": { "name": NAMESPACE } })).await?;
    node(client).await?;
    each(size.services, async |service| {
        create(&Api::<Service>::namespaced(client.clone(), NAMESPACE), objects::service(service)).await?;
        let endpoints = objects::first_endpoints(service, size);
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE);
        create(&slices, objects::slice(service, &endpoints)).await
    })
    .await?;
    eprintln!("  written in {} s", start.elapsed().as_secs());
    check(client, size).await
}

/// Does something for each of `0..count`, several at a time.
pub async fn each(count: u32, f: impl AsyncFn(u32) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let next = AtomicU32::new(0);
    let worker = async || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= count {
            return anyhow::Ok(());
        }
        f(number).await?;
    };
    futures::future::try_join_all((0..CONNECTIONS).map(|_| worker())).await.map(drop)
}

async fn create<K>(api: &Api<K>, object: Value) -> anyhow::Result<()>
where
    K: Clone + Debug + DeserializeOwned + Serialize + Resource,
{
    api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
    Ok(())
}

async fn node(client: &Client) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    let spec = json!({ "podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24"] });
    let labels = json!({ "kubernetes.io/hostname": NODE, "topology.kubernetes.io/zone": "zone-0" });
    create(&nodes, json!({ "metadata": { "name": NODE, "labels": labels }, "spec": spec })).await?;
    let addresses =
        json!([{ "type": "InternalIP", "address": "10.9.0.1" }, { "type": "Hostname", "address": NODE }]);
    let conditions = json!([{ "type": "Ready", "status": "True" }]);
    let mut object = nodes.get(NODE).await?;
    object.status = serde_json::from_value(json!({ "addresses": addresses, "conditions": conditions }))?;
    nodes.replace_status(NODE, &PostParams::default(), &object).await?;
    Ok(())
}

/// Fails unless the API server has the whole of it.
pub async fn check(client: &Client, size: Size) -> anyhow::Result<()> {
    let one = ListParams::default().limit(1);
    let services = Api::<Service>::namespaced(client.clone(), NAMESPACE).list_metadata(&one).await?;
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE).list_metadata(&one).await?;
    for (what, metadata, found) in [
        ("Services", services.metadata, services.items.len()),
        ("EndpointSlices", slices.metadata, slices.items.len()),
    ] {
        let all = metadata.remaining_item_count.unwrap_or(0) + found as i64;
        ensure!(all == i64::from(size.services), "the API server has {all} {what} of {}", size.services);
    }
    Ok(())
}

/// Keeps etcd's folder under this name, whole or not at all.
pub fn keep(etcd: &Path, kept: &Path) -> anyhow::Result<()> {
    let partial = kept.with_extension("partial");
    let _ = std::fs::remove_dir_all(&partial);
    copy(etcd, &partial)?;
    std::fs::rename(&partial, kept).with_context(|| kept.display().to_string())
}

pub fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(to.parent().context("parent")?)?;
    let status = std::process::Command::new("cp").args(["-a", "--"]).arg(from).arg(to).status()?;
    ensure!(status.success(), "cp {} {}: {status}", from.display(), to.display());
    Ok(())
}
