//! Plans in a real kernel, and real packets through it: a node, a client and pods in network namespaces of this test's own.

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
use portolan_lab::wait::wait_for;
use portolan_model::{
    Action, Address, Balance, Detector, Family, Forwarding, Frontend, Masquerade, Protocol, Scheduler,
    ServiceId, ServicePlan,
};

/// ICMP errors find their way back.
#[path = "dataplane/errors.rs"]
mod errors;
/// nft(8) lists our tables and loads what it lists.
#[path = "dataplane/listing.rs"]
mod listing;
/// Random clusters and packets: the evaluator against the kernel.
#[path = "dataplane/random.rs"]
mod random;
/// SCTP, packet by packet.
#[path = "dataplane/sctp.rs"]
mod sctp;
/// TCP connections to endpoints that are gone.
#[path = "dataplane/vanished.rs"]
mod vanished;

const CLIENT: &str = "198.51.100.2";
const NODE: &str = "198.51.100.1";
const CLIENT6: &str = "2001:db8:1::2";
const PODS: [&str; 3] = ["10.244.1.2", "10.244.1.6", "10.244.1.10"];
const PODS6: [&str; 3] = ["fd00:10:244:1::2", "fd00:10:244:1::6", "fd00:10:244:1::10"];

/// ```text
///   client 198.51.100.2 ── .1 node ─┬─ pod0 10.244.1.2
///                                   ├─ pod1 10.244.1.6
///                                   └─ pod2 10.244.1.10
/// ```
struct Site {
    prefix: String,
    client: Namespace,
    node: Namespace,
    pods: Vec<Namespace>,
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

    fn kernel(&self) -> Kernel {
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

fn on_site(name: &str, body: impl AsyncFnOnce(&Site) -> anyhow::Result<()>) {
    if !testing::has_root(name) {
        return;
    }
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let site = Site::up().await.unwrap();
        body(&site).await.unwrap();
    });
}

fn settings() -> Settings {
    Settings {
        pods: Detector::Ranges(vec!["10.244.0.0/16".parse().unwrap(), "fd00:10:244::/56".parse().unwrap()]),
        node_port_addresses: [NODE.parse().unwrap()].into(),
        ..Settings::default()
    }
}

fn balance(masquerade: Masquerade, pods: &[&str]) -> Action {
    let backends: BTreeSet<SocketAddr> = pods.iter().map(|pod| at(pod, 8080)).collect();
    let backends = backends.into_iter().collect();
    Action::Balance(Balance { backends, affinity: None, masquerade, scheduler: Scheduler::Random })
}

fn same(action: Action) -> Forwarding {
    Forwarding { from_cluster: action.clone(), from_outside: action, allowed_sources: None }
}

fn at(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse().unwrap(), port)
}

fn vip(address: &str) -> Frontend {
    Frontend { address: Address::Vip(address.parse().unwrap()), protocol: Protocol::Tcp, port: 80 }
}

fn plan(frontends: impl IntoIterator<Item = (Frontend, Forwarding)>) -> ServicePlan {
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
fn serve(site: &Site, plan: ServicePlan) -> (Kernel, Dataplane) {
    let (mut kernel, mut dataplane) = (site.kernel(), Dataplane::new(settings()));
    dataplane.set_service(&id(), 0, Some(Arc::new(plan)));
    dataplane.observed(&kernel.observe().unwrap());
    kernel.write(&mut dataplane).unwrap();
    (kernel, dataplane)
}

fn id() -> ServiceId {
    ServiceId::new("default", "web")
}

async fn answered_by(ns: &Namespace, to: SocketAddr) -> anyhow::Result<(Vec<String>, Vec<IpAddr>)> {
    let Tally { pods, clients, failures, .. } = probe::many(ns, to, 60).await;
    anyhow::ensure!(failures.is_empty(), "{} -> {to}: {failures:?}", ns.name());
    Ok((pods.into_keys().collect(), clients.into_keys().collect()))
}

#[track_caller]
fn refused(answer: anyhow::Result<Answer>) {
    let error = format!("{:#}", answer.expect_err("an answer"));
    assert!(error.contains("refused"), "{error}");
}

fn silent(answer: anyhow::Result<Answer>) {
    let error = format!("{:#}", answer.expect_err("an answer"));
    assert!(error.contains("no answer"), "{error}");
}

fn ips(texts: &[&str]) -> Vec<IpAddr> {
    let mut ips: Vec<IpAddr> = texts.iter().map(|text| text.parse().unwrap()).collect();
    ips.sort();
    ips
}

#[test]
fn s15_s16_s17_s46_cluster_ip_from_a_client_a_pod_and_the_node() {
    on_site("s15_s16_s17_s46_cluster_ip_from_a_client_a_pod_and_the_node", async |site| {
        let udp = Frontend { protocol: Protocol::Udp, ..vip("10.96.0.1") };
        let action = same(balance(Masquerade::NonPods, &PODS));
        let _served = serve(site, plan([(vip("10.96.0.1"), action.clone()), (udp, action)]));
        let to = at("10.96.0.1", 80);
        let all: Vec<String> = ["pod0", "pod1", "pod2"].map(String::from).into();
        let (pods, clients) = answered_by(&site.client, to).await?;
        assert_eq!(pods, all);
        assert_eq!(clients, ips(&["10.244.1.1", "10.244.1.5", "10.244.1.9"]), "S16: masqueraded");
        assert_eq!(answered_by(&site.node, to).await?.0, all);
        let (pods, clients) = answered_by(&site.pods[0], to).await?;
        assert_eq!(pods, all);
        assert_eq!(clients, ips(&[PODS[0], "10.244.1.1"]), "S15, S46: its own address, except by itself");
        probe::udp(&site.client, to).await?;
        probe::udp(&site.node, to).await?;
        refused(probe::tcp(&site.client, at("10.96.0.1", 81)).await); // S17
        refused(probe::tcp(&site.node, at("10.96.0.1", 81)).await);
        Ok(())
    });
}

#[test]
fn s16_s48_pods_are_told_by_the_interface_that_they_come_in_by() {
    on_site("s16_s48_pods_are_told_by_the_interface_that_they_come_in_by", async |site| {
        let (mut kernel, mut dataplane) =
            serve(site, plan([(vip("10.96.0.1"), same(balance(Masquerade::NonPods, &PODS[2..])))]));
        let to = at("10.96.0.1", 80);
        let seen = async |ns: &Namespace| anyhow::Ok(probe::tcp(ns, to).await?.client.ip().to_string());
        let masqueraded = "10.244.1.9";
        let mut tell = |pods: Detector| {
            dataplane.set_settings(Settings { pods, ..settings() });
            kernel.write(&mut dataplane).unwrap();
        };
        tell(Detector::Interface("to0".into()));
        assert_eq!(seen(&site.pods[0]).await?, PODS[0]);
        assert_eq!(seen(&site.pods[1]).await?, masqueraded);
        assert_eq!(seen(&site.client).await?, masqueraded);
        tell(Detector::InterfacePrefix("to".into()));
        assert_eq!(seen(&site.pods[1]).await?, PODS[1]);
        assert_eq!(seen(&site.client).await?, CLIENT, "its link is called to3");
        tell(Detector::InterfacePrefix("to1".into()));
        assert_eq!(seen(&site.pods[0]).await?, masqueraded);
        assert_eq!(seen(&site.pods[1]).await?, PODS[1]);
        assert_eq!(seen(&site.node).await?, masqueraded, "what comes in by nothing is no pod's");
        Ok(())
    });
}

/// What others write into the mark stays, and ours is gone when the packet leaves, whichever bit it is.
#[test]
fn s47_the_mark_is_one_bit_and_leaves_no_trace() {
    on_site("s47_the_mark_is_one_bit_and_leaves_no_trace", async |site| {
        for line in [
            "add table ip other",
            "add chain ip other before { type filter hook prerouting priority -150 ; }",
            "add rule ip other before tcp dport 80 meta mark set 0x00ff0081",
            "add chain ip other after { type filter hook postrouting priority 200 ; }",
            "add rule ip other after ip daddr 10.244.1.0/24 meta mark 0x00ff0081 counter",
            "add rule ip other after ip daddr 10.244.1.0/24 meta mark & 0x80004000 != 0 counter drop",
        ] {
            site.node.output(&["nft", line]).await?;
        }
        let action = same(balance(Masquerade::Always, &PODS[..1]));
        let (mut kernel, mut dataplane) = serve(site, plan([(vip("10.96.0.1"), action)]));
        for mark in [0x4000, 0x8000_0000] {
            dataplane.set_settings(Settings { mark, ..settings() });
            kernel.write(&mut dataplane)?;
            let answer = probe::tcp(&site.client, at("10.96.0.1", 80)).await?;
            assert_eq!(answer.client.ip().to_string(), "10.244.1.1", "masqueraded by {mark:#x}");
        }
        let listed = site.node.output(&["nft", "list", "chain", "ip", "other", "after"]).await?;
        let seen = listed.lines().filter(|line| line.contains("packets 0 bytes 0")).count();
        assert_eq!(seen, 1, "the foreign bits are seen, ours never: {listed}");
        Ok(())
    });
}

/// Numbers of targets are in the packet's priority while they are looked up, and no longer.
#[test]
fn priorities_are_none_again_when_a_packet_leaves() {
    on_site("priorities_are_none_again_when_a_packet_leaves", async |site| {
        for line in [
            "add table inet other",
            "add chain inet other after { type filter hook postrouting priority 300 ; }",
            "add rule inet other after meta l4proto tcp meta priority none counter",
            "add rule inet other after meta l4proto tcp meta priority != none counter",
        ] {
            site.node.output(&["nft", line]).await?;
        }
        let (v4, v6) = (balance(Masquerade::NonPods, &PODS), balance(Masquerade::Always, &PODS6));
        let local = Forwarding { from_cluster: v4.clone(), ..same(balance(Masquerade::Never, &PODS[..1])) };
        let frontends = [
            (vip("10.96.0.1"), same(v4.clone())),
            (vip("10.96.0.2"), affine(v4, 60)),
            (vip("192.0.2.10"), local),
            (vip("fd00:10:96::1"), same(v6.clone())),
            (vip("fd00:10:96::2"), affine(v6, 60)),
        ];
        let asked = ["10.96.0.1", "10.96.0.2", "192.0.2.10", "fd00:10:96::1", "fd00:10:96::2"];
        let _served = serve(site, plan(frontends));
        for from in [&site.client, &site.node, &site.pods[0]] {
            for to in asked {
                answered_by(from, at(to, 80)).await?;
            }
        }
        let listed = site.node.output(&["nft", "list", "chain", "inet", "other", "after"]).await?;
        let counted: Vec<_> = listed.lines().filter(|line| line.contains("counter")).collect();
        assert!(!counted[0].contains("packets 0 ") && counted[1].contains("packets 0 "), "{listed}");
        Ok(())
    });
}

#[test]
fn s38_s39_refused_and_silent() {
    on_site("s38_s39_refused_and_silent", async |site| {
        let none_here =
            Forwarding { from_outside: Action::Drop, ..same(balance(Masquerade::NonPods, &PODS)) };
        let _served =
            serve(site, plan([(vip("10.96.0.1"), same(Action::Reject)), (vip("192.0.2.10"), none_here)]));
        refused(probe::tcp(&site.client, at("10.96.0.1", 80)).await);
        refused(probe::tcp(&site.node, at("10.96.0.1", 80)).await);
        silent(probe::tcp(&site.client, at("192.0.2.10", 80)).await);
        answered_by(&site.pods[0], at("192.0.2.10", 80)).await?; // S45
        answered_by(&site.node, at("192.0.2.10", 80)).await?;
        Ok(())
    });
}

#[test]
fn s43_s44_node_ports_masquerade_and_local_policy_does_not() {
    on_site("s43_s44_node_ports_masquerade_and_local_policy_does_not", async |site| {
        let node_port =
            Frontend { address: Address::NodePort(Family::Ipv4), protocol: Protocol::Tcp, port: 30080 };
        let local = Forwarding {
            from_outside: balance(Masquerade::Never, &PODS[..1]),
            ..same(balance(Masquerade::NonPods, &PODS))
        };
        let frontends =
            [(node_port, same(balance(Masquerade::Always, &PODS[..1]))), (vip("192.0.2.10"), local)];
        let _served = serve(site, plan(frontends));
        let (_, clients) = answered_by(&site.client, at(NODE, 30080)).await?;
        assert_eq!(clients, ips(&["10.244.1.1"]));
        answered_by(&site.node, at(NODE, 30080)).await?;
        let (pods, clients) = answered_by(&site.client, at("192.0.2.10", 80)).await?;
        assert_eq!((pods, clients), (vec!["pod0".into()], ips(&[CLIENT])));
        assert_eq!(answered_by(&site.pods[1], at("192.0.2.10", 80)).await?.0.len(), 3);
        Ok(())
    });
}

#[test]
fn s27_source_ranges() {
    on_site("s27_source_ranges", async |site| {
        let mut forwarding = same(balance(Masquerade::Always, &PODS));
        forwarding.allowed_sources = Some(["10.244.1.2/32".parse()?, "10.244.1.8/29".parse()?].into());
        let _served = serve(site, plan([(vip("192.0.2.10"), forwarding)]));
        answered_by(&site.pods[0], at("192.0.2.10", 80)).await?;
        answered_by(&site.pods[2], at("192.0.2.10", 80)).await?;
        silent(probe::tcp(&site.pods[1], at("192.0.2.10", 80)).await);
        silent(probe::tcp(&site.client, at("192.0.2.10", 80)).await);
        Ok(())
    });
}

/// 300 draws of three: 100 each, give or take five standard deviations.
#[test]
fn s40_connections_spread_evenly() {
    on_site("s40_connections_spread_evenly", async |site| {
        let _served = serve(site, plan([(vip("10.96.0.1"), same(balance(Masquerade::NonPods, &PODS)))]));
        let tally = probe::many(&site.client, at("10.96.0.1", 80), 300).await;
        let even = |count: &usize| (59..=141).contains(count);
        assert!(tally.pods.len() == 3 && tally.pods.values().all(even), "{:?}", tally.pods);
        Ok(())
    });
}

/// What others hook in is neither read nor touched: a hostPort as CNIs make it works beside a NodePort.
#[test]
fn s80_foreign_tables_and_their_host_ports_stay() {
    on_site("s80_foreign_tables_and_their_host_ports_stay", async |site| {
        for line in [
            "add table ip hostports",
            "add chain ip hostports ports { type nat hook prerouting priority -100 ; }",
            "add rule ip hostports ports tcp dport 8443 dnat to 10.244.1.6:8080",
        ] {
            site.node.output(&["nft", line]).await?;
        }
        let listed = || site.node.output(&["nft", "list", "table", "ip", "hostports"]);
        let before = listed().await?;
        let node_port =
            Frontend { address: Address::NodePort(Family::Ipv4), protocol: Protocol::Tcp, port: 30080 };
        let (mut kernel, _) = serve(site, plan([(node_port, same(balance(Masquerade::Always, &PODS[..1])))]));
        assert_eq!(answered_by(&site.client, at(NODE, 8443)).await?.0, ["pod1"]);
        assert_eq!(answered_by(&site.client, at(NODE, 30080)).await?.0, ["pod0"]);
        kernel.cleanup()?;
        assert_eq!(listed().await?, before);
        assert_eq!(answered_by(&site.client, at(NODE, 8443)).await?.0, ["pod1"]);
        Ok(())
    });
}

/// `portolan trace` in the node's namespace.
async fn trace(site: &Site, from: &str, to: &str) -> anyhow::Result<String> {
    let binary = env!("CARGO_BIN_EXE_portolan");
    site.node.output(&[binary, "trace", "--from", from, "--to", to]).await
}

/// The kernel's rules are asked, with what others put among them, and not what they should be.
#[test]
fn trace_says_what_the_kernel_does() {
    on_site("trace_says_what_the_kernel_does", async |site| {
        let _served = serve(
            site,
            plan([
                (vip("10.96.0.1"), same(balance(Masquerade::NonPods, &PODS))),
                (vip("10.96.0.2"), same(Action::Reject)),
            ]),
        );
        let said = trace(site, CLIENT, "10.96.0.1:80/tcp").await?;
        let (pods, clients) = answered_by(&site.client, at("10.96.0.1", 80)).await?;
        assert_eq!((pods.len(), clients.contains(&CLIENT.parse()?)), (3, false));
        for pod in PODS {
            assert!(said.contains(&format!("  {pod}:8080  masqueraded")), "{said}");
        }
        let said = trace(site, PODS[1], "10.96.0.1:80").await?;
        assert!(said.contains(&format!("  {}:8080  it sees the client's address", PODS[0])), "{said}");
        assert!(said.contains(&format!("  {}:8080  masqueraded", PODS[1])), "{said}");
        assert!(trace(site, NODE, "10.96.0.1:80").await?.contains("(the node itself)"));
        assert!(trace(site, CLIENT, "10.96.0.2:80").await?.contains(": refused"));
        refused(probe::tcp(&site.client, at("10.96.0.2", 80)).await);
        // someone else's rules among ours: one that trace can follow and one that it cannot
        site.node
            .output(&["nft", "insert rule ip portolan nat-prerouting ip saddr 198.51.100.0/24 drop"])
            .await?;
        let said = trace(site, CLIENT, "10.96.0.1:80").await?;
        assert!(said.contains(": dropped"), "{said}");
        silent(probe::tcp(&site.client, at("10.96.0.1", 80)).await);
        site.node.output(&["nft", "insert rule ip portolan services ip ttl 1 drop"]).await?;
        let said = trace(site, PODS[0], "10.96.0.1:80").await?;
        assert!(said.contains("of chain services is not Portolan's and was left out"), "{said}");
        site.kernel().cleanup()?;
        let error = format!("{:#}", trace(site, CLIENT, "10.96.0.1:80").await.unwrap_err());
        assert!(error.contains("there is no table ip portolan here"), "{error}");
        Ok(())
    });
}

#[test]
fn s6_ipv6() {
    on_site("s6_ipv6", async |site| {
        let frontends = [
            (vip("fd00:10:96::1"), same(balance(Masquerade::NonPods, &PODS6))),
            (vip("fd00:10:96::2"), same(Action::Reject)),
        ];
        let _served = serve(site, plan(frontends));
        let to = at("fd00:10:96::1", 80);
        assert_eq!(answered_by(&site.client, to).await?.0.len(), 3);
        assert_eq!(answered_by(&site.node, to).await?.0.len(), 3);
        assert_eq!(answered_by(&site.pods[0], to).await?.0.len(), 3, "itself among them");
        refused(probe::tcp(&site.client, at("fd00:10:96::1", 81)).await);
        refused(probe::tcp(&site.client, at("fd00:10:96::2", 80)).await);
        Ok(())
    });
}

fn affine(action: Action, seconds: u64) -> Forwarding {
    match action {
        Action::Balance(balance) => {
            same(Action::Balance(Balance { affinity: Some(Duration::from_secs(seconds)), ..balance }))
        }
        other => same(other),
    }
}

/// The client's source address from now on.
async fn client_is(site: &Site, i: usize) -> anyhow::Result<()> {
    let ip = format!("198.51.100.{}", 10 + i);
    let ip6 = format!("2001:db8:1::{:x}", 0x10 + i);
    site.client
        .ip(&format!(
            "addr replace {ip}/24 dev eth0\nroute replace default via {NODE} src {ip}\n\
             addr replace {ip6}/128 dev eth0 nodad\nroute replace default via 2001:db8:1::1 src {ip6}\n"
        ))
        .await
}

#[test]
fn s41_s42_session_affinity() {
    on_site("s41_s42_session_affinity", async |site| {
        let of = |pods: &[&str], pods6: &[&str]| {
            let action = affine(balance(Masquerade::NonPods, pods), 10800);
            let action6 = affine(balance(Masquerade::NonPods, pods6), 10800);
            plan([(vip("10.96.0.1"), action), (vip("fd00:10:96::1"), action6)])
        };
        let (mut kernel, _) = serve(site, of(&PODS, &PODS6));
        for to in [at("10.96.0.1", 80), at("fd00:10:96::1", 80)] {
            let mut home = std::collections::BTreeMap::new();
            let mut chosen = BTreeSet::new();
            while chosen.len() < PODS.len() {
                let client = home.len();
                assert!(client < 100, "{home:?}");
                client_is(site, client).await?;
                let (pods, _) = answered_by(&site.client, to).await?;
                assert_eq!(pods.len(), 1, "24 connections of one client");
                chosen.extend(pods.clone());
                home.insert(client, pods);
            }
            // nothing is written by a restart, and nobody is forgotten
            let generation = kernel.generation()?;
            let mut dataplane;
            (kernel, dataplane) = serve(site, of(&PODS, &PODS6));
            assert_eq!(kernel.generation()?, generation, "{:#?}", kernel.observe()?);
            for (client, pods) in &home {
                client_is(site, *client).await?;
                assert_eq!(&answered_by(&site.client, to).await?.0, pods, "after a restart");
            }
            // pod0 goes: its clients move, once, and the others stay, as they do when it comes back
            for plan in [of(&PODS[1..], &PODS6[1..]), of(&PODS, &PODS6)] {
                dataplane.set_service(&id(), 0, Some(Arc::new(plan)));
                kernel.write(&mut dataplane)?;
                for (client, pods) in &mut home {
                    client_is(site, *client).await?;
                    let (now, _) = answered_by(&site.client, to).await?;
                    assert_ne!(now, ["pod0"]);
                    assert!(now == *pods || *pods == ["pod0"], "{now:?} after {pods:?}");
                    *pods = now;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn s41_affinity_ends_after_its_time() {
    on_site("s41_affinity_ends_after_its_time", async |site| {
        let forwarding = affine(balance(Masquerade::NonPods, &PODS), 1);
        let (mut kernel, _) = serve(site, plan([(vip("10.96.0.1"), forwarding)]));
        let mut remembered = move || {
            let table = kernel.observe().unwrap().ipv4.unwrap();
            table.elements.get("affinity").is_some_and(|elements| !elements.is_empty())
        };
        let first = probe::tcp(&site.client, at("10.96.0.1", 80)).await?;
        assert!(remembered());
        // whoever comes again too late chooses again, and some time chooses something else
        for _ in 0..40 {
            let forgotten = async || Ok(if remembered() { Err("it is there") } else { Ok(()) });
            wait_for("the client is forgotten", Duration::from_secs(10), forgotten).await?;
            if probe::tcp(&site.client, at("10.96.0.1", 80)).await?.pod != first.pod {
                return Ok(());
            }
        }
        anyhow::bail!("the same endpoint forty times")
    });
}

/// S42 under load: a client's connections go on while endpoints come and go, and none finds one that is gone for good.
#[test]
fn s42_affinity_while_endpoints_flap() {
    on_site("s42_affinity_while_endpoints_flap", async |site| {
        let of = |pods: &[&str]| {
            Arc::new(plan([(vip("10.96.0.1"), affine(balance(Masquerade::NonPods, pods), 10800))]))
        };
        let (mut kernel, mut dataplane) =
            serve(site, plan([(vip("10.96.0.1"), affine(balance(Masquerade::NonPods, &PODS), 10800))]));
        let requests = probe::Requests::start(&site.client, at("10.96.0.1", 80), 200);
        for round in 0..150 {
            let gone = round % PODS.len();
            let left: Vec<&str> = PODS.iter().copied().filter(|pod| *pod != PODS[gone]).collect();
            dataplane.set_service(&id(), 0, Some(of(&left)));
            kernel.write(&mut dataplane)?;
            let table = kernel.observe()?.ipv4.unwrap();
            let backend = portolan_nft::Bytes::concat(&[
                portolan_nft::Atom::Address(PODS[gone].parse()?),
                portolan_nft::Atom::Port(8080),
            ]);
            for element in table.elements.get("affinity").into_iter().flatten() {
                assert_ne!(element.value, portolan_nft::Value::Bytes(backend.clone()), "round {round}");
            }
        }
        let tally = requests.stop().await?;
        assert_eq!(tally.failures, []);
        assert!(tally.answered > 0);
        Ok(())
    });
}

/// Every kind of element and chain, so that each is read back as it was written.
#[test]
fn a_restart_writes_nothing_and_cleanup_leaves_nothing() {
    on_site("a_restart_writes_nothing_and_cleanup_leaves_nothing", async |site| {
        let mut local = Forwarding {
            from_outside: balance(Masquerade::Always, &PODS[..1]),
            ..same(balance(Masquerade::NonPods, &PODS))
        };
        local.allowed_sources = Some(["198.51.100.0/24".parse()?, "10.244.1.2/32".parse()?].into());
        let node_port =
            Frontend { address: Address::NodePort(Family::Ipv4), protocol: Protocol::Sctp, port: 30080 };
        let plan = plan([
            (vip("10.96.0.1"), local),
            (vip("10.96.0.2"), same(Action::Reject)),
            (vip("10.96.0.3"), same(Action::Drop)),
            (node_port, same(balance(Masquerade::Never, &PODS))),
            (vip("fd00:10:96::1"), same(balance(Masquerade::NonPods, &PODS6))),
        ]);
        let (mut kernel, _) = serve(site, plan.clone());
        let generation = kernel.generation()?;
        let (mut again, mut dataplane) = serve(site, plan);
        assert_eq!(again.generation()?, generation, "{:#?}", kernel.observe()?);
        assert_eq!(again.write(&mut dataplane)?, 0);
        // a changed rule and a foreign element are put right
        site.node.output(&["nft", "add rule ip portolan services accept"]).await?;
        site.node.output(&["nft", "add element ip portolan vips { 10.96.0.77 }"]).await?;
        dataplane.observed(&again.observe()?);
        assert_eq!(again.write(&mut dataplane)?, 1);
        dataplane.observed(&again.observe()?);
        assert_eq!(again.write(&mut dataplane)?, 0);
        kernel.cleanup()?;
        kernel.cleanup()?;
        assert_eq!(site.node.output(&["nft", "list", "ruleset"]).await?, "");
        Ok(())
    });
}

#[test]
fn s18_s20_s21_addresses_follow_the_settings() {
    on_site("s18_s20_s21_addresses_follow_the_settings", async |site| {
        let node_port =
            Frontend { address: Address::NodePort(Family::Ipv4), protocol: Protocol::Tcp, port: 30080 };
        let balance = balance(Masquerade::Always, &PODS[..1]);
        let (mut kernel, mut dataplane) =
            serve(site, plan([(vip("10.96.0.1"), same(balance.clone())), (node_port, same(balance))]));
        answered_by(&site.client, at(NODE, 30080)).await?;
        refused(probe::tcp(&site.client, at("10.244.1.5", 30080)).await);
        let mut other = settings();
        other.service_cidrs = vec!["10.96.0.0/16".parse()?];
        other.node_port_addresses = ["10.244.1.5".parse()?].into();
        dataplane.set_settings(other);
        kernel.write(&mut dataplane)?;
        answered_by(&site.client, at("10.96.0.1", 80)).await?;
        refused(probe::tcp(&site.client, at("10.96.0.1", 81)).await); // S17
        silent(probe::tcp(&site.client, at("10.96.0.2", 80)).await);
        silent(probe::tcp(&site.node, at("10.96.0.2", 80)).await);
        refused(probe::tcp(&site.client, at(NODE, 30080)).await);
        answered_by(&site.client, at("10.244.1.5", 30080)).await?;
        Ok(())
    });
}

/// nftables.md, bars: connections lost or refused while one service changes its endpoints without pause: 0.
#[test]
fn s50_flapping_endpoints_lose_no_connection() {
    const CONNECTIONS: usize = 2_000;
    on_site("s50_flapping_endpoints_lose_no_connection", async |site| {
        let of =
            |pods: &[&str]| Arc::new(plan([(vip("10.96.0.1"), same(balance(Masquerade::NonPods, pods)))]));
        let sets = [of(&PODS), of(&PODS[1..]), of(&PODS[..1]), of(&PODS[..2])];
        let (mut kernel, mut dataplane) =
            serve(site, plan([(vip("10.96.0.1"), same(balance(Masquerade::NonPods, &PODS)))]));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let flapping = std::thread::spawn(move || {
            let mut transactions = 0;
            for plan in sets.iter().cycle() {
                dataplane.set_service(&id(), 0, Some(plan.clone()));
                transactions += kernel.write(&mut dataplane).unwrap();
                if stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty) {
                    return transactions;
                }
            }
            unreachable!("the sets never end")
        });
        let repeated = site.client.repeated_syns()?;
        let tally = probe::many(&site.client, at("10.96.0.1", 80), CONNECTIONS).await;
        assert_eq!(site.client.repeated_syns()?, repeated, "no SYN was lost");
        drop(stop);
        let transactions = flapping.join().unwrap();
        println!(
            "{} connections over {transactions} transactions, slowest {:?}",
            tally.asked(),
            tally.slowest
        );
        assert!(transactions > 100, "{transactions}");
        assert_eq!(tally.failures, []);
        assert_eq!(tally.answered, CONNECTIONS);
        Ok(())
    });
}
