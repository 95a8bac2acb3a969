//! One cluster for all tests, with the chart installed and every process of ours running, and workloads by name.
//!
//! - `whole`: what every test finds, made whole again before it. `afterwards`: what a test made goes with it, also where it
//!   fails. `workloads`, `services`: objects in the test's own Kubernetes namespace.

mod afterwards;
mod services;
mod whole;
mod workloads;

use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::time::Duration;

use futures::FutureExt;
use kube::Client;
use kube::api::Api;
use portolan_lab::netns::Namespace;
use portolan_lab::topology::{Families, node_address};
use portolan_lab::{Lab, Options, testing};
use serde_json::Value;

use self::afterwards::Afterwards;
pub use self::services::{cluster_ip, ingress, node_port, nth_node_port};
pub use self::whole::Configured;

pub const NODES: u8 = 3;
/// Long enough for a loaded machine: a condition that takes this long will not come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A cluster, whole: three agents with their sessions, two controllers.
pub struct Cluster {
    pub lab: &'static Lab,
    pub client: Client,
    /// Kubernetes namespace of this test's workloads.
    pub namespace: String,
    afterwards: Afterwards,
}

/// Runs a test alone on the whole shared cluster, in a Kubernetes namespace of its own that is deleted after it: for tests that
/// stop processes, change nodes, or say what must not happen.
pub fn test(name: &str, body: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>) {
    testing::in_lab(name, async |lab| alone_on_cluster(name, lab, body).await);
}

/// The same beside other tests: for those that touch their own Kubernetes namespace only.
pub fn beside(name: &str, body: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>) {
    testing::beside_others(name, async |lab| on_cluster(name, lab, body).await);
}

/// The same on a cluster of its own, of these families and with this many nodes.
pub fn on_own(
    name: &str,
    families: Families,
    nodes: u8,
    body: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>,
) {
    let options = Options::own();
    let prefix = format!("{}x{nodes}{families}", options.prefix);
    let options = Options { prefix, families, nodes, ..options };
    testing::in_lab_of(name, options, async |lab| on_cluster(name, lab, body).await);
}

/// The body of `test`, in a lab where it is alone. After a failure the agents start anew, whatever state the test left them in.
pub async fn alone_on_cluster(
    name: &str,
    lab: &'static Lab,
    body: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    on_cluster(name, lab, async |cluster| {
        let outcome = AssertUnwindSafe(body(cluster)).catch_unwind().await;
        if !matches!(outcome, Ok(Ok(()))) {
            cluster.stop_agents().await;
        }
        outcome.unwrap_or_else(|panic| resume_unwind(panic))
    })
    .await
}

async fn on_cluster(
    name: &str,
    lab: &'static Lab,
    body: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let namespace = name.replace('_', "-");
    let cluster = Cluster { lab, client: lab.client(), namespace, afterwards: Afterwards::default() };
    let whole_test = async {
        cluster.make_whole().await?;
        cluster.make_namespace().await?;
        body(&cluster).await?;
        cluster.all_run().await
    };
    let outcome = AssertUnwindSafe(whole_test).catch_unwind().await;
    let undone = cluster.afterwards.all().await;
    match outcome {
        Ok(Ok(())) => undone,
        Ok(Err(error)) => Err(afterwards::both(error, undone)),
        Err(panic) => {
            undone.unwrap_or_else(|error| eprintln!("{name}: {error:#}"));
            resume_unwind(panic)
        }
    }
}

impl Cluster {
    /// The same cluster, with workloads in another Kubernetes namespace, which are the caller's to delete.
    pub fn in_namespace(&self, namespace: &str) -> Cluster {
        let afterwards = Afterwards::default();
        Cluster { lab: self.lab, client: self.client.clone(), namespace: namespace.into(), afterwards }
    }

    pub fn ns(&self, name: &str) -> anyhow::Result<Namespace> {
        self.lab.ns(name)
    }

    /// The node's address of the cluster's first family.
    pub fn node_ip(&self, node: u8) -> IpAddr {
        self.lab.families.first(node_address(node))
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }
}

pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

/// JSON merge (RFC 7386) without deletions.
fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            from.into_iter().for_each(|(key, value)| merge(into.entry(key).or_insert(Value::Null), value));
        }
        (into, from) => *into = from,
    }
}
