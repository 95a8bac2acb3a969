//! The kubelet's part, and no more: a Node and its lease, pods of this node as namespaces, their addresses and readiness.
//!
//! Scheduling, EndpointSlices, podCIDRs and all the rest come from the real controllers.

mod pods;
mod sandbox;
mod status;

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use futures::TryStreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Client, ResourceExt};
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{info, warn};

use crate::control_plane::impatient_client;
use crate::lab::Options;
use crate::netns::Namespace;
use crate::topology::node_address;
use crate::wait::wait_for;
use pods::Pods;
use sandbox::{Network, PodRange};

const LEASE_PERIOD: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(100);
/// The bridge's own patience and more.
const OVERDUE: Duration = Duration::from_secs(45);

/// Annotation: `"false"` makes the pod not ready.
pub const READY_ANNOTATION: &str = "lab.portolan.dev/ready";
/// Annotation: for how many milliseconds a deleted pod still serves (2000 where absent; at most its grace period).
pub const DRAIN_ANNOTATION: &str = "lab.portolan.dev/drain-ms";

/// Registers node `n<number>`, waits for its podCIDRs, and serves its pods until the runtime ends.
pub async fn start(kubeconfig: &Path, options: &Options, number: u8) -> anyhow::Result<()> {
    let client = impatient_client(kubeconfig).await?;
    let (prefix, addresses) = (&options.prefix, options.families.of(node_address(number)));
    let name = format!("n{number}");
    let ns = Namespace::open(&format!("{prefix}-{name}"))?;
    register(&client, &name, number, &addresses).await?;
    tokio::spawn(renew_lease(client.clone(), name.clone()));
    let range = pod_range(&client, &name).await?;
    let network = Network::new(prefix, ns, range);
    network.make_bridge().await?;
    tokio::spawn(run(client, name, addresses, network));
    Ok(())
}

async fn register(client: &Client, name: &str, number: u8, addresses: &[IpAddr]) -> anyhow::Result<()> {
    let nodes: Api<Node> = Api::all(client.clone());
    match nodes.create(&PostParams::default(), &status::node(name, number, addresses)).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        result => result.map(drop).with_context(|| format!("register node {name}")),
    }
}

async fn pod_range(client: &Client, name: &str) -> anyhow::Result<PodRange> {
    let nodes: Api<Node> = Api::all(client.clone());
    wait_for(&format!("node {name} has podCIDRs"), Duration::from_secs(60), async || {
        let node = nodes.get(name).await?;
        let cidrs = node.spec.and_then(|spec| spec.pod_cidrs).unwrap_or_default();
        Ok(PodRange::parse(&cidrs).map_err(|error| format!("podCIDRs {cidrs:?}: {error}")))
    })
    .await
}

async fn renew_lease(client: Client, name: String) {
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    loop {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": status::micro_time()},
        });
        let renewed =
            leases.patch(&name, &PatchParams::apply("lab-kubelet").force(), &Patch::Apply(lease)).await;
        // The namespace of leases is made by the API server some time after it is ready.
        tokio::time::sleep(if renewed.is_ok() { LEASE_PERIOD } else { RETRY }).await;
    }
}

async fn run(client: Client, name: String, addresses: Vec<IpAddr>, network: Network) {
    let api: Api<Pod> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("spec.nodeName={name}"));
    let mut events = std::pin::pin!(watcher(api, config));
    let (drained, mut drains) = mpsc::unbounded_channel();
    let mut pods = Pods::new(client, name.clone(), addresses, network, drained);
    loop {
        tokio::select! {
            event = events.try_next() => match event {
                Ok(Some(event)) => overdue_is_said(&name, &said(&event), handle(&mut pods, event)).await,
                Ok(None) => return,
                // The API server is away: the watcher starts over when asked again.
                Err(error) => {
                    info!(node = name, "watching again: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            },
            Some(uid) = drains.recv() => overdue_is_said(&name, "end", pods.finish(&uid)).await,
        }
    }
}

fn said(event: &watcher::Event<Pod>) -> String {
    let of =
        |what: &str, pod: &Pod| format!("{what} {}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
    match event {
        watcher::Event::Init => "list".into(),
        watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => of("apply", pod),
        watcher::Event::InitDone => "listed".into(),
        watcher::Event::Delete(pod) => of("delete", pod),
    }
}

/// All pods of the node wait for one that takes long: that must not go unseen.
async fn overdue_is_said(node: &str, what: &str, work: impl Future<Output = ()>) {
    let mut work = std::pin::pin!(work);
    while tokio::time::timeout(OVERDUE, &mut work).await.is_err() {
        warn!(node, "still at it after {OVERDUE:?}: {what}");
    }
}

async fn handle(pods: &mut Pods, event: watcher::Event<Pod>) {
    match event {
        watcher::Event::Init => pods.begin_list(),
        watcher::Event::InitApply(pod) | watcher::Event::Apply(pod) => pods.apply(pod).await,
        watcher::Event::InitDone => pods.end_list().await,
        watcher::Event::Delete(pod) => pods.forget(&pod.uid().unwrap_or_default()).await,
    }
}
