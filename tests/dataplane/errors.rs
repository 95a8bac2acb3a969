//! ICMP errors about what we translated: they come back to the client in its own words (S57).

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_lab::netns::Namespace;
use portolan_lab::pod_server::Answer;
use portolan_model::{Action, Address, Balance, Forwarding, Frontend, Masquerade, Protocol};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::site::{PODS, PODS6, at, balance, on_site, plan, same, serve, vip};

/// The smallest that IPv6 allows is 1280.
const SMALL_MTU: &str = "1300";
const TRANSFER: usize = 256 << 10;
const PATIENCE: Duration = Duration::from_secs(10);

/// A link behind the node takes smaller packets than either end knows of. Only the node's error can tell the client, and only
/// when it speaks of the address that the client asked for.
#[test]
fn s57_a_transfer_goes_on_through_a_smaller_link_behind_the_node() {
    on_site("s57_a_transfer_goes_on_through_a_smaller_link_behind_the_node", async |site| {
        let vips = [
            ("10.96.0.1", Masquerade::NonPods, PODS[0]),
            ("192.0.2.10", Masquerade::Never, PODS[0]),
            ("fd00:10:96::1", Masquerade::NonPods, PODS6[0]),
            ("2001:db8:2::10", Masquerade::Never, PODS6[0]),
        ];
        let frontends = vips.map(|(ip, masquerade, pod)| (vip(ip), same(balance(masquerade, &[pod]))));
        let _served = serve(site, plan(frontends));
        site.node.ip(&format!("link set to0 mtu {SMALL_MTU}\n")).await?;
        for (ip, ..) in vips {
            let route = async || site.client.output(&["ip", "route", "get", ip]).await;
            ensure!(!route().await?.contains(" mtu "), "{ip}: {}", route().await?);
            let answer = timeout(PATIENCE, transfer(&site.client, at(ip, 80))).await;
            let answer = answer.with_context(|| format!("the transfer to {ip} stands still"))??;
            assert_eq!(answer.pod, "pod0");
            let learnt = route().await?;
            ensure!(learnt.contains(&format!(" mtu {SMALL_MTU}")), "the client was told: {learnt}");
        }
        Ok(())
    });
}

/// A request with a head of `TRANSFER` bytes, and the answer to it.
async fn transfer(ns: &Namespace, to: SocketAddr) -> anyhow::Result<Answer> {
    let mut stream = ns.connect(to).await?;
    let head = format!("GET / HTTP/1.1\r\nConnection: close\r\nX-Fill: {}\r\n\r\n", "x".repeat(TRANSFER));
    stream.write_all(head.as_bytes()).await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    text.split_once("\r\n\r\n").context("an HTTP answer")?.1.parse()
}

/// The pod says that nobody listens there.
#[test]
fn s57_a_pods_refusal_of_udp_reaches_the_client() {
    on_site("s57_a_pods_refusal_of_udp_reaches_the_client", async |site| {
        let vips = [
            ("10.96.0.1", Masquerade::NonPods, PODS[0]),
            ("192.0.2.10", Masquerade::Never, PODS[0]),
            ("fd00:10:96::1", Masquerade::NonPods, PODS6[0]),
            ("2001:db8:2::10", Masquerade::Never, PODS6[0]),
        ];
        let _served = serve(site, plan(vips.map(|(ip, masquerade, pod)| unheard(ip, masquerade, pod))));
        // Else a pod says it to one client once a second.
        site.pods[0].sysctl(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv6/icmp/ratelimit", "0")])?;
        for (ip, ..) in vips {
            let socket = site.client.udp(at(ip, 80)).await?;
            socket.send(b"who").await?;
            let refusal = timeout(PATIENCE, socket.recv(&mut [0; 64])).await;
            let refusal = refusal.with_context(|| format!("{ip} says nothing"))?;
            assert_eq!(refusal.unwrap_err().kind(), ErrorKind::ConnectionRefused, "{ip}");
        }
        Ok(())
    });
}

/// The node's own client hears of it with its first SYN: it is not left to ask again a second later.
#[test]
fn s38_the_nodes_own_connection_is_refused_at_its_first_packet() {
    on_site("s38_the_nodes_own_connection_is_refused_at_its_first_packet", async |site| {
        let vips = ["10.96.0.1", "192.0.2.10", "fd00:10:96::1", "2001:db8:2::10"];
        let _served = serve(site, plan(vips.map(|ip| (vip(ip), same(Action::Reject)))));
        for ip in vips {
            for port in [80, 81] {
                let refusal = timeout(PATIENCE, site.node.connect(at(ip, port))).await;
                let refusal = refusal.with_context(|| format!("{ip} says nothing"))?;
                let refusal = format!("{:#}", refusal.expect_err("nobody serves it"));
                ensure!(refusal.contains("refused"), "{ip}:{port}: {refusal}");
            }
        }
        assert_eq!(site.node.repeated_syns()?, 0);
        Ok(())
    });
}

/// UDP port 80, led to a port of the pod at which nobody listens.
fn unheard(ip: &str, masquerade: Masquerade, pod: &str) -> (Frontend, Forwarding) {
    let Action::Balance(balance) = balance(masquerade, &[pod]) else { unreachable!("it balances") };
    let action = Action::Balance(Balance { backends: [at(pod, 9)].into_iter().collect(), ..balance });
    (Frontend { address: Address::Vip(at(ip, 0).ip()), protocol: Protocol::Udp, port: 80 }, same(action))
}
