//! The pods of one node, from the moment they are bound to it until their object is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::sandbox::{Network, Sandbox};
use super::{DRAIN_ANNOTATION, READY_ANNOTATION, RETRY, status};
use crate::pod_server::{PodServer, Port};

const DRAIN: Duration = Duration::from_secs(2);
const DEFAULT_GRACE_SECS: i64 = 30;

type Uid = String;

/// Owner of this node's pods. Feed it the watch: `begin_list`, `apply` for each, `end_list`, then `apply` and `forget`.
pub struct Pods {
    client: Client,
    node_name: String,
    node: Vec<IpAddr>,
    network: Network,
    running: BTreeMap<Uid, Running>,
    listed: BTreeSet<Uid>,
    drained: mpsc::UnboundedSender<Uid>,
}

struct Running {
    namespace: String,
    name: String,
    /// None for a pod in the node's own namespace.
    sandbox: Option<Sandbox>,
    /// None for a pod of the product: the lab starts those processes itself.
    _server: Option<PodServer>,
    since: String,
    ready: bool,
    terminating: bool,
}

impl Pods {
    /// `drained` receives the uid of each pod whose time to serve is over; call `finish` with it.
    pub fn new(
        client: Client,
        node_name: String,
        node: Vec<IpAddr>,
        network: Network,
        drained: mpsc::UnboundedSender<Uid>,
    ) -> Pods {
        let (running, listed) = Default::default();
        Pods { client, node_name, node, network, running, listed, drained }
    }

    pub fn begin_list(&mut self) {
        self.listed.clear();
    }

    /// Pods that the list no longer has were removed while the API server could not tell us.
    pub async fn end_list(&mut self) {
        let gone: Vec<Uid> = self.running.keys().filter(|uid| !self.listed.contains(*uid)).cloned().collect();
        for uid in gone {
            self.forget(&uid).await;
        }
    }

    pub async fn apply(&mut self, pod: Pod) {
        let uid = pod.uid().unwrap_or_default();
        self.listed.insert(uid.clone());
        let result = if pod.metadata.deletion_timestamp.is_some() {
            self.terminate(&uid, &pod).await
        } else if self.running.contains_key(&uid) {
            self.refresh(&uid, &pod).await
        } else if matches!(phase(&pod), "Succeeded" | "Failed") {
            Ok(())
        } else {
            self.start(uid, &pod).await
        };
        if let Err(error) = result {
            warn!(node = self.node_name, pod = pod.name_any(), "{error:#}");
        }
    }

    async fn start(&mut self, uid: Uid, pod: &Pod) -> anyhow::Result<()> {
        let (namespace, name) = (pod.namespace().unwrap_or_default(), pod.name_any());
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let sandbox = match host_network {
            true => None,
            false => {
                let used: Vec<u8> =
                    self.running.values().filter_map(|r| Some(r.sandbox.as_ref()?.host())).collect();
                Some(self.network.add(&namespace, &name, &used).await?)
            }
        };
        let ns = sandbox.as_ref().map_or(&self.network.node, |sandbox| &sandbox.ns);
        let server = match is_product(pod) {
            true => None,
            false if host_network => {
                Some(PodServer::start_on(&self.node, ns, &name, &self.node_name, &ports(pod))?)
            }
            false => Some(PodServer::start(ns, &name, &self.node_name, &ports(pod))?),
        };
        let (since, ready) = (status::now(), wants_ready(pod));
        let running = Running { namespace, name, sandbox, _server: server, since, ready, terminating: false };
        self.report(pod, &running).await?;
        self.running.insert(uid, running);
        Ok(())
    }

    /// The readiness annotation may have changed.
    async fn refresh(&mut self, uid: &str, pod: &Pod) -> anyhow::Result<()> {
        let running = self.running.get_mut(uid).context("pod")?;
        if running.ready == wants_ready(pod) {
            return Ok(());
        }
        running.ready = !running.ready;
        let running = &self.running[uid];
        self.report(pod, running).await
    }

    /// A deleted pod serves on for a while, ready as before, as a server that shuts down orderly does.
    async fn terminate(&mut self, uid: &str, pod: &Pod) -> anyhow::Result<()> {
        let Some(running) = self.running.get_mut(uid) else {
            return self.delete_object(&pod.namespace().unwrap_or_default(), &pod.name_any(), uid).await;
        };
        if !running.terminating {
            running.terminating = true;
            let (drained, uid, drain) = (self.drained.clone(), uid.to_string(), drain_time(pod));
            tokio::spawn(async move {
                tokio::time::sleep(drain).await;
                let _ = drained.send(uid);
            });
        }
        Ok(())
    }

    /// Ends a drained pod and deletes its object.
    pub async fn finish(&mut self, uid: &str) {
        let Some(running) = self.running.get(uid) else { return };
        let (namespace, name) = (running.namespace.clone(), running.name.clone());
        self.forget(uid).await;
        if let Err(error) = self.delete_object(&namespace, &name, uid).await {
            warn!(node = self.node_name, pod = name, "{error:#}");
        }
    }

    /// Removes what runs for a pod whose object is gone.
    pub async fn forget(&mut self, uid: &str) {
        let Some(Running { sandbox, _server, name, .. }) = self.running.remove(uid) else { return };
        drop(_server);
        if let Some(sandbox) = sandbox
            && let Err(error) = self.network.remove(sandbox).await
        {
            warn!(node = self.node_name, pod = name, "{error:#}");
        }
    }

    async fn report(&self, pod: &Pod, running: &Running) -> anyhow::Result<()> {
        let addresses = running.sandbox.as_ref().map_or(&self.node, |sandbox| &sandbox.addresses);
        let status = status::running(pod, &self.node, addresses, running.ready, &running.since);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &running.namespace);
        let (params, patch) = (PatchParams::default(), Patch::Merge(status));
        until_answered(|| api.patch_status(&running.name, &params, &patch)).await
    }

    async fn delete_object(&self, namespace: &str, name: &str, uid: &str) -> anyhow::Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), namespace);
        let preconditions = Some(Preconditions { uid: Some(uid.into()), resource_version: None });
        let params = DeleteParams { grace_period_seconds: Some(0), preconditions, ..Default::default() };
        until_answered(|| api.delete(name, &params)).await
    }
}

/// Repeats a request while the API server is away. An object that is gone, or another by now, is no error.
async fn until_answered<T, F>(mut ask: impl FnMut() -> F) -> anyhow::Result<()>
where
    F: Future<Output = kube::Result<T>>,
{
    loop {
        match ask().await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => return Ok(()),
            Err(kube::Error::Api(status)) if status.code < 500 => return Err(kube::Error::Api(status).into()),
            Err(error) => {
                info!("asking again: {error}");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
}

fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

fn wants_ready(pod: &Pod) -> bool {
    pod.annotations().get(READY_ANNOTATION).is_none_or(|value| value != "false")
}

fn is_product(pod: &Pod) -> bool {
    pod.labels().get("app.kubernetes.io/name").is_some_and(|name| name == "portolan")
}

fn drain_time(pod: &Pod) -> Duration {
    let asked = pod.annotations().get(DRAIN_ANNOTATION).and_then(|value| value.parse().ok());
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(DEFAULT_GRACE_SECS);
    asked.map_or(DRAIN, Duration::from_millis).min(Duration::from_secs(grace.max(0) as u64))
}

/// The container ports; where there are none, what `kubectl create deployment` leaves to the image.
fn ports(pod: &Pod) -> Vec<Port> {
    let containers = pod.spec.as_ref().map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let declared = containers.iter().flat_map(|container| container.ports.iter().flatten());
    let ports: Vec<Port> = declared
        .filter_map(|port| {
            let number = u16::try_from(port.container_port).ok()?;
            match port.protocol.as_deref().unwrap_or("TCP") {
                "TCP" => Some(Port::Tcp(number)),
                "UDP" => Some(Port::Udp(number)),
                _ => None,
            }
        })
        .collect();
    if ports.is_empty() { vec![Port::Tcp(80), Port::Tcp(8080), Port::Udp(80)] } else { ports }
}
