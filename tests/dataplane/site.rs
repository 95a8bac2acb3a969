//! A node, a client and pods in network namespaces, and plans for them.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use portolan::dataplane::kernel::Kernel;
use portolan_dataplane::{Dataplane, Settings};
use portolan_lab::netns::{self, Namespace};
use portolan_lab::pod_server::{Answer, PodServer, Port};
use portolan_lab::probe::{self, Tally};
use portolan_lab::testing;
use portolan_model::{
    Action, Address, Balance, Detector, Forwarding, Frontend, Masquerade, Protocol, Scheduler, ServiceId,
    ServicePlan,
};

pub const CLIENT: &str = "198.51.100.2";
pub const NODE: &str = "198.51.100.1";
pub const CLIENT6: &str = "2001:db8:1::2";
pub const PODS: [&str; 3] = ["10.244.1.2", "10.244.1.6", "10.244.1.10"];
pub const PODS6: [&str; 3] = ["fd00:10:244:1::2", "fd00:10:244:1::6", "fd00:10:244:1::10"];

/// ```text
///   client 198.51.100.2 ── .1 node ─┬─ pod0 10.244.1.2
///                                   ├─ pod1 10.244.1.6
///                                   └─ pod2 10.244.1.10
/// ```
pub struct Site {
    prefix: String,
    pub client: Namespace,
    pub node: Namespace,
    pub pods: Vec<Namespace>,
    _servers: Vec<PodServer>,
}

impl Site {
    async fn up() -> anyhow::Result<Site> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let prefix = format!("ptdp{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = |role: &str| format!("{prefix}-{role}");
        let pods: Vec<String> = (0..PODS.len()).map(|i| name(&format!("pod{i}"))).collect();
        let others = || pods.iter().chain([&name("client")]).cloned().collect::<Vec<_>>();
        let mut batch = format!("netns add {}\n", name("node"));
        for (i, other) in others().iter().enumerate() {
            batch += &format!("netns add {other}\n");
            batch +=
                &format!("link add eth0 netns {other} type veth peer name to{i} netns {}\n", name("node"));
        }
        netns::ip(&batch).await?;
        let open = |name: &String| Namespace::open(name);
        let mut site = Site {
            node: open(&name("node"))?,
            client: open(&name("client"))?,
            pods: pods.iter().map(open).collect::<anyhow::Result<_>>()?,
            _servers: Vec::new(),
            prefix,
        };
        site.address().await?;
        let ports = [Port::Tcp(8080), Port::Udp(8080)];
        let servers = site.pods.iter().enumerate();
        site._servers = servers
            .map(|(i, ns)| PodServer::start(ns, &format!("pod{i}"), "n1", &ports))
            .collect::<anyhow::Result<_>>()?;
        Ok(site)
    }

    async fn address(&self) -> anyhow::Result<()> {
        let forwarding = [("net/ipv4/ip_forward", "1"), ("net/ipv6/conf/all/forwarding", "1")];
        self.node.sysctl(&forwarding)?;
        self.node.ip("link set lo up\n").await?;
        for (i, ns) in self.pods.iter().enumerate() {
            let (gateway, gateway6) =
                (format!("10.244.1.{}", 4 * i + 1), format!("fd00:10:244:1::{:x}1", i + 1));
            self.link(ns, i, (PODS[i], &gateway, 30), (PODS6[i], &gateway6)).await?;
        }
        let at = self.pods.len();
        self.link(&self.client, at, (CLIENT, NODE, 24), (CLIENT6, "2001:db8:1::1")).await?;
        self.node.ip(&format!("route add default via {CLIENT}\nroute add default via {CLIENT6}\n")).await
    }

    /// One link of the node: IPv4 by subnet, IPv6 by host routes.
    async fn link(
        &self,
        ns: &Namespace,
        i: usize,
        v4: (&str, &str, u8),
        v6: (&str, &str),
    ) -> anyhow::Result<()> {
        let ((own, gateway, length), (own6, gateway6)) = (v4, v6);
        self.node
            .ip(&format!(
                "link set to{i} up\naddr add {gateway}/{length} dev to{i}\naddr add {gateway6}/128 dev to{i} nodad\n\
                 route add {own6}/128 dev to{i}\n"
            ))
            .await?;
        ns.ip(&format!(
            "link set lo up\nlink set eth0 up\naddr add {own}/{length} dev eth0\naddr add {own6}/128 dev eth0 nodad\n\
             route add default via {gateway}\nroute add {gateway6}/128 dev eth0\nroute add default via {gateway6}\n"
        ))
        .await
    }

    pub fn kernel(&self) -> Kernel {
        self.node.run(Kernel::open).unwrap().unwrap()
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        for name in netns::list(&self.prefix) {
            let deleted = std::process::Command::new("ip").args(["netns", "del", &name]).status();
            assert!(deleted.is_ok_and(|status| status.success()), "namespace {name} stays behind");
        }
    }
}

pub fn on_site(name: &str, body: impl AsyncFnOnce(&Site) -> anyhow::Result<()>) {
    if !testing::has_root(name) {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let site = Site::up().await.unwrap();
        body(&site).await.unwrap();
    });
}

pub fn settings() -> Settings {
    Settings {
        pods: Detector::Ranges(vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()]),
        node_port_addresses: [NODE.parse().unwrap()].into(),
        ..Settings::default()
    }
}

pub fn balance(masquerade: Masquerade, pods: &[&str]) -> Action {
    let backends: BTreeSet<SocketAddr> = pods.iter().map(|pod| at(pod, 8080)).collect();
    let backends = backends.into_iter().collect();
    Action::Balance(Balance { backends, affinity: None, masquerade, scheduler: Scheduler::Random })
}

pub fn same(action: Action) -> Forwarding {
    Forwarding { from_cluster: action.clone(), from_outside: action, allowed_sources: None }
}

pub fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

pub fn vip(address: &str) -> Frontend {
    Frontend { address: Address::Vip(address.parse().unwrap()), protocol: Protocol::Tcp, port: 80 }
}

pub fn plan(frontends: impl IntoIterator<Item = (Frontend, Forwarding)>) -> ServicePlan {
    let frontends: std::collections::BTreeMap<_, _> = frontends.into_iter().collect();
    let vip = |frontend: &Frontend| match frontend.address {
        Address::Vip(ip) => Some(ip),
        Address::NodePort(_) => None,
    };
    let vips = frontends.keys().filter_map(vip).collect();
    let hairpin = PODS.iter().chain(&PODS6).map(|pod| pod.parse().unwrap()).collect();
    ServicePlan { frontends: frontends.into(), vips, hairpin }
}

/// A kernel that serves the plan.
pub fn serve(site: &Site, plan: ServicePlan) -> (Kernel, Dataplane) {
    let (mut kernel, mut dataplane) = (site.kernel(), Dataplane::new(settings()));
    dataplane.set_service(&id(), 0, Some(Arc::new(plan)));
    dataplane.observed(&kernel.observe().unwrap());
    kernel.write(&mut dataplane).unwrap();
    (kernel, dataplane)
}

pub fn id() -> ServiceId {
    ServiceId::new("default", "web")
}

pub async fn answered_by(ns: &Namespace, to: SocketAddr) -> anyhow::Result<(Vec<String>, Vec<IpAddr>)> {
    let Tally { pods, clients, failures, .. } = probe::many(ns, to, 60).await;
    anyhow::ensure!(failures.is_empty(), "{} -> {to}: {failures:?}", ns.name());
    Ok((pods.into_keys().collect(), clients.into_keys().collect()))
}

#[track_caller]
pub fn refused(answer: anyhow::Result<Answer>) {
    let error = format!("{:#}", answer.expect_err("an answer"));
    assert!(error.contains("refused"), "{error}");
}

pub fn silent(answer: anyhow::Result<Answer>) {
    let error = format!("{:#}", answer.expect_err("an answer"));
    assert!(error.contains("no answer"), "{error}");
}

pub fn ips(texts: &[&str]) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
    ips.sort();
    ips
}

pub fn affine(action: Action, seconds: u64) -> Forwarding {
    match action {
        Action::Balance(balance) => {
            same(Action::Balance(Balance { affinity: Some(Duration::from_secs(seconds)), ..balance }))
        }
        other => same(other),
    }
}
