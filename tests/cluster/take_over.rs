//! The real kube-proxy and the agents replace each other under traffic, and somebody else changes our tables.

use anyhow::Context;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::ResourceExt;
use kube::api::{Api, ListParams};
use portolan_lab::kube_proxy::{KubeProxy, Mode};
use portolan_lab::netns::{Namespace, run};
use portolan_lab::probe::{self, Connection, Protocol, Requests};
use portolan_lab::product::binary;
use portolan_lab::topology::node_address;
use portolan_lab::wait_for;
use serde_json::json;

use crate::fixture::{Cluster, NODES, PATIENCE, at, cluster_ip, nth_node_port, test};
use crate::process::event_saying;

/// Beside the one that is asked.
const SERVICES: usize = 200;
/// Requests of each client in each state before the next change.
const BETWEEN: usize = 30;

#[test]
fn s74_kube_proxy_in_nftables_mode_and_agent_replace_each_other_and_lose_no_request() {
    there_and_back("s74-nftables", Mode::Nftables);
}

#[test]
fn s74_kube_proxy_in_iptables_mode_and_agent_replace_each_other_and_lose_no_request() {
    there_and_back("s74-iptables", Mode::Iptables);
}

fn there_and_back(name: &str, mode: Mode) {
    test(name, async |cluster| {
        cluster.deploy("web", 3, None).await?;
        let ports = json!([
            { "name": "tcp", "port": 80, "protocol": "TCP" },
            { "name": "udp", "port": 80, "protocol": "UDP" },
        ]);
        let service = cluster.expose("web", json!({ "ports": ports })).await?;
        cluster.endpoints("web", 3).await?;
        many_services(cluster).await?;
        let (n1, ip) = (cluster.ns("n1")?, at(cluster_ip(&service)?, 80));
        let mut open = Connection::open(&n1, ip).await?;
        open.ask().await?;
        let clients = Clients::start(cluster, &service).await?;
        clients.ask(BETWEEN).await?;

        let proxies = hand_back(cluster, mode).await.context("agents to kube-proxy")?;
        open.ask().await.context("a connection that was open, now under kube-proxy")?;
        let mut second = Connection::open(&n1, ip).await?;
        clients.ask(BETWEEN).await?;

        take_over(cluster, proxies).await.context("kube-proxy to agents")?;
        let table = match mode {
            Mode::Nftables => "table ip kube-proxy: the whole table",
            Mode::Iptables => "table ip nat: ",
        };
        for node in 1..=NODES {
            let told = event_saying(cluster, &format!("n{node}"), "TookOverFromKubeProxy", table).await?;
            assert_eq!(told.type_.as_deref(), Some("Normal"));
        }
        open.ask().await.context("a connection that was open, back under the agents")?;
        second.ask().await.context("a connection that kube-proxy balanced")?;
        clients.ask(BETWEEN).await?;
        clients.stop().await
    });
}

/// The documented way back: kube-proxy serves before anything of ours goes.
async fn hand_back(cluster: &Cluster, mode: Mode) -> anyhow::Result<Vec<KubeProxy>> {
    let mut proxies = Vec::new();
    for number in 1..=NODES {
        proxies.push(KubeProxy::start(cluster.lab, &format!("n{number}"), mode)?);
    }
    for number in 1..=NODES {
        let ns = cluster.ns(&format!("n{number}"))?;
        wait_for(&format!("kube-proxy of n{number} serves {SERVICES} Services"), PATIENCE, async || {
            proxies.iter_mut().try_for_each(KubeProxy::check)?;
            let count = served(&ns, mode).await;
            Ok(if count > SERVICES { Ok(()) } else { Err(format!("{count} so far")) })
        })
        .await?;
        let log = cluster.lab.product.lock().await.log(&format!("agent-n{number}"));
        wait_for("the agent says that a kube-proxy runs", PATIENCE, async || {
            let text = std::fs::read_to_string(&log)?;
            Ok(if text.contains("a kube-proxy runs on this node") { Ok(()) } else { Err("not yet") })
        })
        .await?;
    }
    for number in 1..=NODES {
        let ns = cluster.ns(&format!("n{number}"))?;
        cluster.afterwards("a CNI's routes", async move {
            ns.output(&["ip", "route", "flush", "proto", "static"]).await.map(drop)
        });
    }
    routes(cluster, "add").await?;
    for number in 1..=NODES {
        cluster.lab.product.lock().await.kill(&format!("agent-n{number}")).await?;
        let mut command = cluster.ns(&format!("n{number}"))?.command(binary()?)?;
        command.arg("cleanup");
        run(command).await?;
    }
    for (number, chains) in chains(cluster).await? {
        anyhow::ensure!(!chains.contains("portolan"), "n{number} after cleanup: {chains}");
    }
    Ok(proxies)
}

/// For how many IPv4 Services kube-proxy has rules; none while it has not begun.
async fn served(ns: &Namespace, mode: Mode) -> usize {
    let (table, name) = match mode {
        Mode::Nftables => (&["nft", "list", "map", "ip", "kube-proxy", "service-ips"][..], " goto "),
        Mode::Iptables => (&["nft", "list", "chain", "ip", "nat", "KUBE-SERVICES"][..], " jump KUBE-SVC-"),
    };
    ns.output(table).await.unwrap_or_default().matches(name).count()
}

async fn take_over(cluster: &Cluster, proxies: Vec<KubeProxy>) -> anyhow::Result<()> {
    for proxy in proxies {
        proxy.kill().await?;
    }
    for number in 1..=NODES {
        cluster.lab.product.lock().await.start_agent(&format!("n{number}")).await?;
    }
    wait_for("kube-proxy's tables and chains are gone and ours are there", PATIENCE, async || {
        let all = chains(cluster).await?;
        let is_ours = |text: &str| {
            text.contains("ip portolan") && !text.contains("kube-proxy") && !text.contains("KUBE-S")
        };
        Ok(if all.iter().all(|(_, text)| is_ours(text)) { Ok(()) } else { Err(format!("{all:?}")) })
    })
    .await?;
    cluster.sessions_of(&[1, 2, 3]).await?;
    routes(cluster, "del").await?;
    let log = std::fs::read_to_string(cluster.lab.product.lock().await.log("agent-n1"))?;
    anyhow::ensure!(log.contains("took over from kube-proxy: removed"), "the agent says what it removed");
    Ok(())
}

/// The names of all chains, by table.
async fn chains(cluster: &Cluster) -> anyhow::Result<Vec<(u8, String)>> {
    let mut all = Vec::new();
    for number in 1..=NODES {
        let ns = cluster.ns(&format!("n{number}"))?;
        all.push((number, ns.output(&["nft", "list", "chains"]).await?));
    }
    Ok(all)
}

/// A CNI's part: `cleanup` removes the routes that our agents made to other nodes' pods.
async fn routes(cluster: &Cluster, verb: &str) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(cluster.client.clone()).list(&ListParams::default()).await?;
    for number in 1..=NODES {
        let mut batch = String::new();
        for other in (1..=NODES).filter(|other| *other != number) {
            let node = nodes.items.iter().find(|node| node.name_any() == format!("n{other}"));
            let spec = node.and_then(|node| node.spec.as_ref()).context("node")?;
            let cidrs = spec.pod_cidrs.iter().flatten().filter(|cidr| !cidr.contains(':'));
            let hop = node_address(other).v4;
            cidrs.for_each(|cidr| batch += &format!("route {verb} {cidr} via {hop} proto static\n"));
        }
        cluster.ns(&format!("n{number}"))?.ip(&batch).await?;
    }
    Ok(())
}

/// `SERVICES` more of them, with the same endpoints.
async fn many_services(cluster: &Cluster) -> anyhow::Result<()> {
    let service = |number: usize| {
        json!({
            "metadata": { "name": format!("other-{number}") },
            "spec": { "selector": { "app": "web" }, "ports": [{ "port": 80 }] },
        })
    };
    for number in 0..SERVICES {
        cluster.create_service(service(number)).await?;
    }
    let n1 = cluster.ns("n1")?;
    wait_for("the agent serves all Services", PATIENCE, async || {
        let listed = n1.output(&["nft", "list", "map", "ip", "portolan", "services"]).await?;
        let count = listed.matches(":3").count();
        Ok(if count > SERVICES { Ok(()) } else { Err(format!("{count} so far")) })
    })
    .await
}

/// Requests without pause from several places, over TCP and UDP.
struct Clients(Vec<Requests>);

impl Clients {
    async fn start(cluster: &Cluster, service: &Service) -> anyhow::Result<Clients> {
        let pod = cluster.pods("web").await?.remove(0).name_any();
        let pod = cluster.lab.pod_ns(&cluster.namespace, &pod)?;
        let cluster_ip = at(cluster_ip(service)?, 80);
        let mut requests = Vec::new();
        for (i, protocol) in [Protocol::Tcp, Protocol::Udp].into_iter().enumerate() {
            let number = nth_node_port(service, i)?;
            let node_port = |node| at(node_address(node).v4.into(), number);
            let routes = [
                (cluster.ns("n1")?, cluster_ip),
                (pod.clone(), cluster_ip),
                (cluster.ns("client")?, node_port(2)),
                (cluster.ns("n3")?, node_port(3)),
            ];
            requests.extend(routes.map(|(ns, to)| Requests::start_by(protocol, &ns, to, 20)));
        }
        Ok(Clients(requests))
    }

    /// Waits until each has had so many more answers.
    async fn ask(&self, count: usize) -> anyhow::Result<()> {
        for requests in &self.0 {
            let wanted = requests.so_far().asked() + count;
            wait_for("more requests", PATIENCE, async || {
                let asked = requests.so_far().asked();
                Ok(if asked >= wanted { Ok(()) } else { Err(format!("{asked} of {wanted}")) })
            })
            .await?;
        }
        Ok(())
    }

    async fn stop(self) -> anyhow::Result<()> {
        let mut asked = 0;
        for requests in self.0 {
            let tally = requests.stop().await?;
            anyhow::ensure!(tally.failures.is_empty(), "{tally:?}");
            asked += tally.asked();
        }
        eprintln!("{asked} requests, 0 lost");
        Ok(())
    }
}

#[test]
fn s65_e66_what_others_change_in_our_tables_is_repaired_at_once() {
    test("s65-foreign", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let service = cluster.expose("web", json!({})).await?;
        let to = at(cluster_ip(&service)?, 80);
        let n1 = cluster.ns("n1")?;
        cluster.endpoints("web", 2).await?;
        let answers = async |what: &str| {
            wait_for(what, PATIENCE, async || {
                Ok(probe::tcp(&n1, to).await.map_err(|error| format!("{error:#}")))
            })
            .await
        };
        answers("the Service answers").await?;
        for damage in [
            &["delete", "table", "ip", "portolan"][..],
            &["flush", "map", "ip", "portolan", "services"],
            &["flush", "chain", "ip", "portolan", "nat-output"],
        ] {
            n1.output(&[&["nft"], damage].concat()).await?;
            answers(&format!("the Service answers after nft {}", damage.join(" "))).await?;
        }
        // A foreign table is nobody's business here, and a repair is not answered by another.
        let log = cluster.lab.product.lock().await.log("agent-n1");
        let repairs = || anyhow::Ok(std::fs::read_to_string(&log)?.matches("they are repaired").count());
        let before = repairs()?;
        n1.output(&["nft", "add", "table", "ip", "somebody"]).await?;
        probe::many(&n1, to, 50).await;
        n1.output(&["nft", "delete", "table", "ip", "somebody"]).await?;
        assert_eq!(repairs()?, before);
        assert!((1..=3).contains(&before), "{before} repairs");
        Ok(())
    });
}
