//! One cluster for all tests, with the chart installed and every process of ours running, and workloads by name.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Client, ResourceExt};
use portolan_lab::kubelet::DRAIN_ANNOTATION;
use portolan_lab::netns::Namespace;
use portolan_lab::topology::{
    CONTROL_PLANE, Families, NODE_ASN, POD_CIDRS, ROUTER, ROUTER_ASN, node_address,
};
use portolan_lab::{Lab, Options, Router, testing, wait_for};
use serde_json::{Value, json};

pub const NODES: u8 = 3;
/// Long enough for a loaded machine: a condition that takes this long will not come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The chart's values for a cluster of these families.
fn values(families: Families) -> String {
    json!({
        "apiServer": { "host": families.first(CONTROL_PLANE), "port": 6443 },
        "nodeRoutes": "api",
        "proxy": { "clusterCIDRs": families.cidrs(POD_CIDRS).split(',').collect::<Vec<_>>() },
        "pools": { "default": { "addresses": ["192.0.2.10-192.0.2.250", "2001:db8:1::/112"], "reuseDelay": "1s" } },
        "bgp": {
            "asn": NODE_ASN,
            "peers": { "tor": { "address": families.first(ROUTER), "asn": ROUTER_ASN, "connectTime": "1s" } },
        },
        "advertise": { "sources": ["LoadBalancerIP", "PodCIDR"] },
    })
    .to_string()
}

/// A cluster, whole: three agents with their sessions, two controllers.
pub struct Cluster {
    pub lab: &'static Lab,
    pub client: Client,
    /// Kubernetes namespace of this test's workloads.
    pub namespace: String,
}

/// Runs a test alone on the whole shared cluster, in a Kubernetes namespace of its own that is deleted after it: for tests that
/// stop processes, change nodes, or say what must not happen.
pub fn test(name: &str, body: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>) {
    testing::in_lab(name, async |lab| on_cluster(name, lab, body).await);
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

async fn on_cluster(
    name: &str,
    lab: &'static Lab,
    body: impl AsyncFnOnce(&Cluster) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let cluster = Cluster { lab, client: lab.client(), namespace: name.replace('_', "-") };
    cluster.make_whole().await?;
    cluster.make_namespace().await?;
    body(&cluster).await?;
    cluster.delete_namespace().await
}

/// A changed configuration, put back when this is dropped.
pub struct Configured {
    path: PathBuf,
    before: String,
}

impl Drop for Configured {
    fn drop(&mut self) {
        std::fs::write(&self.path, &self.before).expect("the configuration is put back");
    }
}

impl Cluster {
    /// The same cluster, with workloads in another Kubernetes namespace.
    pub fn in_namespace(&self, namespace: &str) -> Cluster {
        Cluster { lab: self.lab, client: self.client.clone(), namespace: namespace.into() }
    }

    /// Whatever an earlier test stopped runs again.
    async fn make_whole(&self) -> anyhow::Result<()> {
        let mut product = self.lab.product.lock().await;
        if !self.is_installed().await? {
            product.helm_install(&values(self.lab.families)).await?;
        }
        let agents = self.lab.node_names().into_iter().map(|node| format!("agent-{node}"));
        for name in agents.chain(["controller-1", "controller-2"].map(String::from)) {
            if product.pid(&name).is_none() {
                product.start_named(&name).await?;
            }
        }
        product.check()?;
        drop(product);
        self.sessions_of(&(1..=self.lab.nodes).collect::<Vec<_>>()).await
    }

    async fn is_installed(&self) -> anyhow::Result<bool> {
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> =
            Api::namespaced(self.client.clone(), portolan_lab::product::NAMESPACE);
        Ok(accounts.get_opt("portolan-agent").await?.is_some())
    }

    /// Waits until exactly these nodes have sessions with the router.
    pub async fn sessions_of(&self, nodes: &[u8]) -> anyhow::Result<()> {
        let wanted: BTreeSet<IpAddr> = nodes.iter().map(|node| self.node_ip(*node)).collect();
        wait_for(&format!("the router has sessions with nodes {nodes:?}"), PATIENCE, async || {
            // A router that was just started does not answer yet.
            let established = self.router().await.established().await.map_err(|error| format!("{error:#}"));
            Ok(established.and_then(|now| if now == wanted { Ok(()) } else { Err(format!("{now:?}")) }))
        })
        .await
    }

    /// Lays `change` over the configuration of a node's agent, which applies it in place (S72).
    pub fn configure(&self, node: u8, change: Value) -> anyhow::Result<Configured> {
        let path = self.lab.product_dir().join(format!("agent-n{node}")).join("config.yaml");
        let before = std::fs::read_to_string(&path)?;
        let mut config: Value = serde_saphyr::from_str(&before)?;
        merge(&mut config, change);
        std::fs::write(&path, config.to_string())?;
        Ok(Configured { path, before })
    }

    pub async fn router(&self) -> Router {
        self.lab.router().await
    }

    /// Waits until the router's kernel has `prefix` by exactly these nodes; none = no such route.
    pub async fn routed_by(&self, prefix: &str, nodes: &[u8]) -> anyhow::Result<()> {
        let wanted: BTreeSet<IpAddr> = nodes.iter().map(|node| next_hop(prefix, *node)).collect();
        wait_for(&format!("the router has {prefix} by nodes {nodes:?}"), PATIENCE, async || {
            let routes = self.router().await.routes(prefix).await?;
            Ok(if routes == wanted { Ok(()) } else { Err(format!("next hops {routes:?}")) })
        })
        .await
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

    async fn make_namespace(&self) -> anyhow::Result<()> {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        let object = serde_json::from_value(json!({ "metadata": { "name": self.namespace } }))?;
        namespaces.create(&PostParams::default(), &object).await.context("the test's namespace")?;
        let accounts: Api<k8s_openapi::api::core::v1::ServiceAccount> = self.api();
        wait_for("the namespace has its service account", PATIENCE, async || {
            Ok(accounts.get_opt("default").await?.ok_or("none"))
        })
        .await?;
        Ok(())
    }

    async fn delete_namespace(&self) -> anyhow::Result<()> {
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(self.client.clone());
        namespaces.delete(&self.namespace, &DeleteParams::default()).await.context("the test's namespace")?;
        Ok(())
    }

    /// Waits until the pods of earlier tests are gone: for tests that say what must not be written.
    pub async fn alone(&self) -> anyhow::Result<()> {
        let pods: Api<Pod> = Api::all(self.client.clone());
        wait_for("the pods of earlier tests are gone", PATIENCE, async || {
            let all = pods.list(&ListParams::default()).await?.items.into_iter();
            let ours = [self.namespace.as_str(), portolan_lab::product::NAMESPACE];
            let others =
                all.filter(|pod| !ours.contains(&pod.metadata.namespace.as_deref().unwrap_or_default()));
            let left = others.count();
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} are left")) })
        })
        .await
    }

    /// A Deployment `name` of `replicas` pods, on one node where `node` names it; returns when all are ready.
    pub async fn deploy(&self, name: &str, replicas: u8, node: Option<u8>) -> anyhow::Result<()> {
        self.deploy_draining(name, replicas, node, Duration::from_secs(2)).await
    }

    /// The same, of pods that serve for this long after their deletion.
    pub async fn deploy_draining(
        &self,
        name: &str,
        replicas: u8,
        node: Option<u8>,
        drain: Duration,
    ) -> anyhow::Result<()> {
        let selector = node.map(|node| json!({ "kubernetes.io/hostname": format!("n{node}") }));
        // One pod to a node as far as it goes, so that every node has its share.
        let spread = json!([{
            "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway",
            "labelSelector": { "matchLabels": { "app": name } },
        }]);
        let deployment: Deployment = serde_json::from_value(json!({
            "metadata": { "name": name },
            "spec": {
                "replicas": replicas,
                "selector": { "matchLabels": { "app": name } },
                "template": {
                    "metadata": {
                        "labels": { "app": name },
                        "annotations": { DRAIN_ANNOTATION: drain.as_millis().to_string() },
                    },
                    "spec": {
                        "nodeSelector": selector,
                        "topologySpreadConstraints": spread,
                        "containers": [{ "name": "server", "image": "server" }],
                    },
                },
            },
        }))?;
        self.api::<Deployment>()
            .create(&PostParams::default(), &deployment)
            .await
            .context("the Deployment")?;
        self.ready(name, replicas).await
    }

    /// Waits until the Deployment has exactly this many pods, all of them ready.
    pub async fn ready(&self, name: &str, replicas: u8) -> anyhow::Result<()> {
        let deployments = self.api::<Deployment>();
        wait_for(&format!("Deployment {name} has {replicas} ready pods"), PATIENCE, async || {
            let status = deployments.get_status(name).await?.status.unwrap_or_default();
            let counts = (status.ready_replicas.unwrap_or_default(), status.replicas.unwrap_or_default());
            let wanted = i32::from(replicas);
            Ok(if counts == (wanted, wanted) { Ok(()) } else { Err(format!("(ready, all) = {counts:?}")) })
        })
        .await
    }

    pub async fn scale(&self, name: &str, replicas: u8) -> anyhow::Result<()> {
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        self.api::<Deployment>().patch(name, &PatchParams::default(), &patch).await?;
        Ok(())
    }

    /// Names of the Deployment's pods, in order.
    pub async fn pods(&self, name: &str) -> anyhow::Result<Vec<Pod>> {
        let list = self.api::<Pod>().list(&ListParams::default().labels(&format!("app={name}"))).await?;
        let mut pods = list.items;
        pods.sort_by_key(|pod| pod.name_any());
        Ok(pods)
    }

    /// A Service `name` for the Deployment of that name; `spec` is laid over port 80/TCP of type LoadBalancer.
    pub async fn expose(&self, name: &str, spec: Value) -> anyhow::Result<Service> {
        let mut object = json!({
            "metadata": { "name": name },
            "spec": { "type": "LoadBalancer", "selector": { "app": name }, "ports": [{ "port": 80 }] },
        });
        merge(&mut object, json!({ "spec": spec }));
        self.create_service(object).await
    }

    pub async fn create_service(&self, object: Value) -> anyhow::Result<Service> {
        let service: Service = serde_json::from_value(object)?;
        Ok(self.api::<Service>().create(&PostParams::default(), &service).await?)
    }

    /// An EndpointSlice of our own for a Service without selector: one endpoint, on UDP port 80.
    pub async fn set_endpoint(&self, service: &str, address: &str, ready: bool) -> anyhow::Result<()> {
        let conditions = json!({ "ready": ready, "serving": ready });
        self.set_endpoints(service, "UDP", json!([{ "addresses": [address], "conditions": conditions }]))
            .await
    }

    /// The same with any endpoints, on port 80 of `protocol`.
    pub async fn set_endpoints(&self, service: &str, protocol: &str, endpoints: Value) -> anyhow::Result<()> {
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": service, "labels": { "kubernetes.io/service-name": service } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 80, "protocol": protocol }],
            "endpoints": endpoints,
        });
        let params = PatchParams::apply("test").force();
        self.api::<EndpointSlice>().patch(service, &params, &Patch::Apply(&slice)).await?;
        Ok(())
    }

    pub async fn delete_service(&self, name: &str) -> anyhow::Result<()> {
        self.api::<Service>().delete(name, &DeleteParams::default()).await?;
        Ok(())
    }

    /// Waits for the load-balancer IPs, in the order of the Service's families.
    pub async fn external_ips(&self, name: &str) -> anyhow::Result<Vec<IpAddr>> {
        let services = self.api::<Service>();
        wait_for(&format!("Service {name} has its addresses"), PATIENCE, async || {
            let service = services.get(name).await?;
            let ips = ingress(&service);
            let families = service.spec.and_then(|spec| spec.ip_families).unwrap_or_default();
            let conditions = service.status.and_then(|status| status.conditions);
            let is_whole = !ips.is_empty() && ips.len() == families.len();
            Ok(if is_whole { Ok(ips) } else { Err(format!("{ips:?}, conditions {conditions:?}")) })
        })
        .await
    }

    pub async fn external_ip(&self, name: &str) -> anyhow::Result<IpAddr> {
        Ok(self.external_ips(name).await?[0])
    }

    /// Waits until the Service has exactly this many ready endpoints, and every node's kernel knows as many of its first port.
    pub async fn endpoints(&self, name: &str, count: usize) -> anyhow::Result<()> {
        let slices = self.api::<EndpointSlice>();
        let labelled = ListParams::default().labels(&format!("kubernetes.io/service-name={name}"));
        wait_for(&format!("Service {name} has {count} ready endpoints"), PATIENCE, async || {
            let all = slices.list(&labelled).await?;
            let is_ready = |endpoint: &&k8s_openapi::api::discovery::v1::Endpoint| {
                endpoint.conditions.as_ref().and_then(|conditions| conditions.ready) == Some(true)
            };
            let ready = all.items.iter().map(|s| s.endpoints.iter().filter(is_ready).count()).sum::<usize>();
            Ok(if ready == count { Ok(()) } else { Err(format!("{ready} are ready")) })
        })
        .await?;
        self.programmed(name, count).await
    }

    /// Waits until every node's kernel balances the ClusterIP's first port over its family's share of `count` endpoints.
    async fn programmed(&self, name: &str, count: usize) -> anyhow::Result<()> {
        let service = self.api::<Service>().get(name).await?;
        let spec = service.spec.as_ref().context("spec")?;
        let port = &spec.ports.as_ref().context("spec.ports")?[0];
        let protocol = port.protocol.as_deref().unwrap_or("TCP").to_lowercase();
        let count = count / spec.ip_families.as_ref().map_or(1, Vec::len);
        let ip = cluster_ip(&service)?;
        let key = format!("{ip} . {protocol} . {} . ", port.port);
        let family = if ip.is_ipv4() { "ip" } else { "ip6" };
        for node in 1..=NODES {
            let ns = self.ns(&format!("n{node}"))?;
            wait_for(&format!("n{node} has {count} endpoints of {name}"), PATIENCE, async || {
                let map = ns.output(&["nft", "list", "map", family, "portolan", "endpoints"]).await?;
                let found = map.matches(&key).count();
                Ok(if found == count { Ok(()) } else { Err(format!("{found}")) })
            })
            .await?;
        }
        Ok(())
    }
}

/// The addresses that the Service's status shows.
pub fn ingress(service: &Service) -> Vec<IpAddr> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    ingress.filter_map(|entry| entry.ip.as_ref()?.parse().ok()).collect()
}

pub fn cluster_ip(service: &Service) -> anyhow::Result<IpAddr> {
    let spec = service.spec.as_ref().context("spec")?;
    Ok(spec.cluster_ip.as_ref().context("clusterIP")?.parse()?)
}

pub fn node_port(service: &Service) -> anyhow::Result<u16> {
    nth_node_port(service, 0)
}

pub fn nth_node_port(service: &Service, index: usize) -> anyhow::Result<u16> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).context("spec.ports")?;
    let port = ports.get(index).context("not so many ports")?;
    Ok(u16::try_from(port.node_port.context("nodePort")?)?)
}

pub fn at(ip: IpAddr, port: u16) -> SocketAddr {
    SocketAddr::new(ip, port)
}

fn next_hop(prefix: &str, node: u8) -> IpAddr {
    let address = node_address(node);
    if prefix.contains(':') { address.v6.into() } else { address.v4.into() }
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
