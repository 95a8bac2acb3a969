//! Pods without a Deployment: each on a node of the test's choice, so that no scheduler is waited for.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use portolan_lab::kubelet::{DRAIN_ANNOTATION, READY_ANNOTATION};
use portolan_lab::netns::Namespace;
use portolan_lab::wait_for;
use serde_json::{Value, json};

use crate::fixture::{Cluster, PATIENCE};

/// What a pod is to be. Without ports it listens on 80/TCP, 8080/TCP and 80/UDP.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    pub name: &'a str,
    /// The label `app`, by which Services select it.
    pub app: &'a str,
    pub node: u8,
    /// Name, number, protocol.
    pub ports: &'a [(&'a str, u16, &'a str)],
    pub host_network: bool,
    pub ready: bool,
    /// How long it serves after its deletion.
    pub drain: Duration,
}

impl Default for Wanted<'_> {
    fn default() -> Self {
        let drain = Duration::from_millis(200);
        Wanted { name: "web", app: "web", node: 1, ports: &[], host_network: false, ready: true, drain }
    }
}

/// Longer than a test needs it; `vanish` ends it earlier.
pub const FOREVER: Duration = Duration::from_secs(60);

/// A running pod.
pub struct Running {
    pub name: String,
    /// In the order of the cluster's families.
    pub ips: Vec<IpAddr>,
    /// The node's for a pod with its network.
    pub ns: Namespace,
}

impl Running {
    pub fn ip(&self) -> IpAddr {
        self.ips[0]
    }
}

impl Cluster {
    /// Makes the pods and waits until each runs, ready where it is to be.
    pub async fn run<const N: usize>(&self, wanted: [Wanted<'_>; N]) -> anyhow::Result<[Running; N]> {
        let api = self.api::<Pod>();
        for pod in &wanted {
            api.create(&PostParams::default(), &object(pod)?).await.with_context(|| pod.name.to_string())?;
        }
        let mut running = Vec::new();
        for pod in &wanted {
            running.push(self.running(&api, pod).await?);
        }
        running.try_into().ok().context("as many as were wanted")
    }

    /// One pod of each name on the node of its place: the first on n1, and so on.
    pub async fn run_on_each_node<'a, const N: usize>(
        &self,
        app: &'a str,
        names: [&'a str; N],
    ) -> anyhow::Result<[Running; N]> {
        let mut node = 0;
        self.run(names.map(|name| {
            node += 1;
            Wanted { name, app, node, ..Wanted::default() }
        }))
        .await
    }

    async fn running(&self, api: &Api<Pod>, wanted: &Wanted<'_>) -> anyhow::Result<Running> {
        let name = wanted.name.to_string();
        let ips = wait_for(&format!("pod {name} runs"), PATIENCE, async || {
            let status = api.get(&name).await?.status.unwrap_or_default();
            let is_ready =
                status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
            let ips = status.pod_ips.iter().flatten().map(|ip| ip.ip.parse());
            let ips = ips.collect::<Result<Vec<IpAddr>, _>>()?;
            let is_so = !ips.is_empty() && is_ready == wanted.ready;
            Ok(if is_so { Ok(ips) } else { Err(format!("{:?}", status.phase)) })
        })
        .await?;
        let ns = match wanted.host_network {
            true => self.ns(&format!("n{}", wanted.node))?,
            false => self.lab.pod_ns(&self.namespace, &name)?,
        };
        Ok(Running { name, ips, ns })
    }

    /// Deletes a pod, which serves on for its time.
    pub async fn end(&self, pod: &str) -> anyhow::Result<()> {
        self.api::<Pod>().delete(pod, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Deletes a pod at once, as if its machine had gone, and waits until it is no more.
    pub async fn vanish(&self, pod: &str) -> anyhow::Result<()> {
        let api = self.api::<Pod>();
        let params = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
        api.delete(pod, &params).await?;
        wait_for(&format!("pod {pod} is gone"), PATIENCE, async || {
            Ok(if api.get_opt(pod).await?.is_none() { Ok(()) } else { Err("it is there") })
        })
        .await
    }

    pub async fn set_ready(&self, pod: &str, ready: bool) -> anyhow::Result<()> {
        let patch = json!({ "metadata": { "annotations": { READY_ANNOTATION: ready.to_string() } } });
        self.api::<Pod>().patch(pod, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    pub async fn patch_service(&self, name: &str, patch: Value) -> anyhow::Result<()> {
        let services = self.api::<k8s_openapi::api::core::v1::Service>();
        services.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// An EndpointSlice `name` of the Service `service`, for ready endpoints on `ports` (name, number, protocol).
    pub async fn slice(
        &self,
        name: &str,
        service: &str,
        addresses: &[IpAddr],
        ports: &[(&str, u16, &str)],
    ) -> anyhow::Result<()> {
        let family = if addresses[0].is_ipv4() { "IPv4" } else { "IPv6" };
        let endpoints: Vec<Value> = addresses
            .iter()
            .map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } }))
            .collect();
        let ports: Vec<Value> = ports
            .iter()
            .map(|(name, port, kind)| json!({ "name": name, "port": port, "protocol": kind }))
            .collect();
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": name, "labels": { "kubernetes.io/service-name": service } },
            "addressType": family, "ports": ports, "endpoints": endpoints,
        });
        let params = PatchParams::apply("test").force();
        let slices = self.api::<k8s_openapi::api::discovery::v1::EndpointSlice>();
        slices.patch(name, &params, &Patch::Apply(&slice)).await?;
        Ok(())
    }

    /// Waits until this many endpoints of the Service are as `is_so` says, in any of its slices.
    pub async fn endpoints_that(
        &self,
        service: &str,
        what: &str,
        count: usize,
        is_so: impl Fn(&k8s_openapi::api::discovery::v1::Endpoint) -> bool,
    ) -> anyhow::Result<()> {
        let slices = self.api::<k8s_openapi::api::discovery::v1::EndpointSlice>();
        let labelled = ListParams::default().labels(&format!("kubernetes.io/service-name={service}"));
        wait_for(&format!("{service} has {count} endpoints {what}"), PATIENCE, async || {
            let all = slices.list(&labelled).await?.items;
            let found = all.iter().flat_map(|slice| &slice.endpoints).filter(|e| is_so(e)).count();
            Ok(if found == count { Ok(()) } else { Err(found) })
        })
        .await
    }
}

fn object(wanted: &Wanted<'_>) -> anyhow::Result<Pod> {
    let ports: Vec<Value> = wanted
        .ports
        .iter()
        .map(
            |(name, number, protocol)| json!({ "name": name, "containerPort": number, "protocol": protocol }),
        )
        .collect();
    Ok(serde_json::from_value(json!({
        "metadata": {
            "name": wanted.name,
            "labels": { "app": wanted.app },
            "annotations": {
                DRAIN_ANNOTATION: wanted.drain.as_millis().to_string(),
                READY_ANNOTATION: wanted.ready.to_string(),
            },
        },
        "spec": {
            "nodeName": format!("n{}", wanted.node),
            "hostNetwork": wanted.host_network,
            "terminationGracePeriodSeconds": 600,
            "containers": [{ "name": "server", "image": "server", "ports": ports }],
        },
    }))?)
}

/// The names of pods, for assertions.
pub fn names(pods: &[Running]) -> Vec<&str> {
    pods.iter().map(|pod| pod.name.as_str()).collect()
}
