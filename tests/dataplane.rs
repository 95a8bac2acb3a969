//! Plans in a real kernel, and real packets through it: a node, a client and pods in network namespaces of this test's own.

use portolan_dataplane::Settings;
use portolan_lab::netns::Namespace;
use portolan_lab::probe;
use portolan_model::{Action, Address, Detector, Family, Forwarding, Frontend, Masquerade, Protocol};

/// Clients go where they went before.
#[path = "dataplane/affinity.rs"]
mod affinity;
/// Other endpoints, other settings, another agent.
#[path = "dataplane/changes.rs"]
mod changes;
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
/// The namespaces of a test, and plans for them.
#[path = "dataplane/site.rs"]
mod site;
/// TCP connections to endpoints that are gone.
#[path = "dataplane/vanished.rs"]
mod vanished;

use site::{
    CLIENT, NODE, PODS, PODS6, Site, affine, answered_by, at, balance, ips, on_site, plan, refused, same,
    serve, settings, silent, vip,
};

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
