//! Who reaches whom by which address, in either family and protocol: upstream's granular checks.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::Service;
use portolan_lab::netns::Namespace;
use portolan_lab::topology::node_address;
use serde_json::json;

use crate::asking::{Answered, Protocol, Refused, Silent, Tcp, Udp, answered_by, ask, ended, ends};
use crate::fixture::{Cluster, NODES, at, beside, cluster_ip, node_port, test};
use crate::pods::{Wanted, names};

const PROTOCOLS: [Protocol; 2] = [Tcp, Udp];

fn both_protocols() -> serde_json::Value {
    json!([{ "name": "t", "port": 80 }, { "name": "u", "port": 80, "protocol": "UDP" }])
}

/// Pods see the pods that ask them, and nodes' addresses where nodes ask.
#[test]
fn e57_e58_e59_e60_e68_pods_and_nodes_reach_pods_as_themselves() {
    beside("e57-e60-e68-pod-to-pod", async |cluster| {
        let pods = cluster.run_on_each_node("web", ["one", "two", "three"]).await?;
        for family in 0..2 {
            for protocol in PROTOCOLS {
                for to in &pods {
                    for from in &pods {
                        let seen =
                            answered_by(&from.ns, at(to.ips[family], 80), protocol, &[&to.name]).await?;
                        assert_eq!(seen, BTreeSet::from([from.ips[family]]), "{} -> {}", from.name, to.name);
                    }
                    for node in 1..=NODES {
                        let from = cluster.ns(&format!("n{node}"))?;
                        answered_by(&from, at(to.ips[family], 80), protocol, &[&to.name]).await?;
                    }
                }
            }
        }
        Ok(())
    });
}

/// E61 for the first family, E78 for the second.
#[test]
fn s6_s15_s19_e61_e78_pods_nodes_and_endpoints_reach_services() {
    beside("s6-e61-e78-services", async |cluster| {
        let pods = cluster.run_on_each_node("web", ["one", "two", "three"]).await?;
        let [asks] =
            cluster.run([Wanted { name: "asks", app: "asks", node: 2, ..Wanted::default() }]).await?;
        let spec =
            json!({ "type": "NodePort", "ipFamilyPolicy": "RequireDualStack", "ports": both_protocols() });
        let service = cluster.expose("web", spec).await?;
        let cluster_ips = service.spec.as_ref().and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
        assert_eq!(cluster_ips.len(), 2);
        let ports = [node_port_of(&service, 0), node_port_of(&service, 1)];
        for (family, cluster_ip) in cluster_ips.iter().enumerate() {
            let node = |number| node_address(number).both()[family];
            for from in [&asks.ns, &cluster.ns("n1")?, &pods[0].ns] {
                for (protocol, node_port) in PROTOCOLS.into_iter().zip(ports) {
                    for to in [at(cluster_ip.parse()?, 80), at(node(1), node_port), at(node(3), node_port)] {
                        answered_by(from, to, protocol, &names(&pods)).await?;
                    }
                }
            }
            // From outside by every node.
            for (protocol, node_port) in PROTOCOLS.into_iter().zip(ports) {
                for number in 1..=NODES {
                    answered_by(&cluster.ns("client")?, at(node(number), node_port), protocol, &names(&pods))
                        .await?;
                }
            }
        }
        Ok(())
    });
}

fn node_port_of(service: &Service, index: usize) -> u16 {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    ports.and_then(|ports| u16::try_from(ports[index].node_port?).ok()).unwrap_or_default()
}

/// Pods with their node's network serve, as E37 and E65 have it, and ask, as E36 has it. The ports of such pods are this test's.
#[test]
fn s11_s39_s46_e36_e37_e65_pods_with_the_nodes_network() {
    beside("s11-e36-e37-e65-host-network", async |cluster| {
        let ports = &[("t", 18_036, "TCP"), ("u", 18_036, "UDP")];
        let host = Wanted { name: "host", app: "host", ports, host_network: true, ..Wanted::default() };
        let asks = |name, node| Wanted { name, app: "asks", node, ..Wanted::default() };
        let [host, web, here, elsewhere] =
            cluster.run([host, Wanted::default(), asks("here", 1), asks("elsewhere", 2)]).await?;
        assert_eq!(host.ip(), cluster.node_ip(1));
        let service = async |name: &str, app: &str, policy: &str| {
            let target = if app == "host" { 18_036 } else { 80 };
            let ports = json!([
                { "name": "t", "port": 80, "targetPort": target },
                { "name": "u", "port": 80, "targetPort": target, "protocol": "UDP" },
            ]);
            let spec = json!({
                "type": "ClusterIP", "selector": { "app": app }, "ports": ports, "internalTrafficPolicy": policy,
            });
            anyhow::Ok(at(cluster_ip(&cluster.expose(name, spec).await?)?, 80))
        };
        let (n1, n2) = (cluster.ns("n1")?, cluster.ns("n2")?);
        let to_all = service("host-cluster", "host", "Cluster").await?;
        let to_local = service("host-local", "host", "Local").await?;
        let to_pod = service("pod-local", "web", "Local").await?;
        for protocol in PROTOCOLS {
            // E65; from n1 the server reaches itself (S46).
            for from in [&here.ns, &elsewhere.ns, &n1, &n2] {
                answered_by(from, to_all, protocol, &["host"]).await?;
            }
            // E37
            for from in [&here.ns, &n1] {
                answered_by(from, to_local, protocol, &["host"]).await?;
            }
            // E36
            answered_by(&n1, to_pod, protocol, &[&web.name]).await?;
        }
        never(&[&elsewhere.ns, &n2], &[to_local, to_pod]).await
    });
}

/// Five requests each, side by side, none of which is answered.
async fn never(from: &[&Namespace], to: &[SocketAddr]) -> anyhow::Result<()> {
    let pairs = from.iter().flat_map(|from| to.iter().map(move |to| (from, to)));
    let cases = pairs.flat_map(|pair| std::iter::repeat_n(pair, 5));
    let asked = cases.map(|(from, to)| async move { (from, to, ask(from, *to, Tcp).await) });
    for (from, to, result) in futures::future::join_all(asked).await {
        anyhow::ensure!(ended(&result) == Some(Silent), "{} -> {to}: {result:?}", from.name());
    }
    Ok(())
}

/// What a CNI's portmap does, by rules of its own: one number on two addresses and for two protocols, beside a NodePort and
/// a Service whose ports are the same number.
#[test]
fn s80_e67_host_ports_of_one_number() {
    test("s80-e67-host-ports", async |cluster| {
        let number: u16 = 30_467;
        let [tcp, udp, other] = cluster.run_on_each_node("hostport", ["tcp", "udp", "other"]).await?;
        let n1 = cluster.ns("n1")?;
        let second: IpAddr = "10.9.0.67".parse()?;
        let address = format!("addr add {second}/32 dev eth0\n");
        cluster.ip("n1", &address, &address.replace(" add ", " del ")).await?;
        let cni = format!(
            "table ip cni_hostport {{
             chain pre {{ type nat hook prerouting priority dstnat; policy accept;
               ip daddr {node} tcp dport {number} dnat to {tcp}:80
               ip daddr {node} udp dport {number} dnat to {udp}:80
               ip daddr {second} tcp dport {number} dnat to {other}:80
             }}
             chain post {{ type nat hook postrouting priority srcnat; policy accept;
               ct status dnat ip daddr {{ {tcp}, {udp}, {other} }} masquerade
             }}
             }}",
            node = cluster.node_ip(1),
            tcp = tcp.ip(),
            udp = udp.ip(),
            other = other.ip(),
        );
        n1.output(&["nft", &cni]).await?;
        let ns = n1.clone();
        cluster.afterwards("delete cni_hostport", async move {
            ns.output(&["nft", "delete table ip cni_hostport"]).await.map(drop)
        });
        let (node, client) = (cluster.node_ip(1), cluster.ns("client")?);
        let check = async || {
            answered_by(&client, at(node, number), Tcp, &["tcp"]).await?;
            answered_by(&client, at(node, number), Udp, &["udp"]).await?;
            let n2 = cluster.ns("n2")?;
            n2.ip(&format!("route replace {second}/32 via {node}\n")).await?;
            answered_by(&n2, at(second, number), Tcp, &["other"]).await
        };
        check().await?;
        // A Service's port of the same number, and a NodePort beside it.
        cluster.run([Wanted::default()]).await?;
        let ports = json!([{ "port": number, "targetPort": 80 }]);
        let service = cluster.expose("web", json!({ "type": "NodePort", "ports": ports })).await?;
        answered_by(&client, at(node, node_port(&service)?), Tcp, &["web"]).await?;
        answered_by(&n1, at(cluster_ip(&service)?, number), Tcp, &["web"]).await?;
        check().await?;
        cluster.delete_service("web").await?;
        ends(&client, at(node, node_port(&service)?), Tcp, Refused).await?;
        check().await?;
        ends(&client, at(node, number), Tcp, Answered).await
    });
}

/// A Service of both protocols, in each of its families, from a pod, a node and outside: for clusters of any families.
pub async fn all_ways(cluster: &Cluster, pods: &[&str], service: &Service) -> anyhow::Result<()> {
    let ips = service.spec.as_ref().and_then(|spec| spec.cluster_ips.clone()).unwrap_or_default();
    for ip in ips {
        let ip: IpAddr = ip.parse()?;
        let node = |number| node_address(number).both()[usize::from(ip.is_ipv6())];
        let pod = cluster.lab.pod_ns(&cluster.namespace, pods[0])?;
        for (protocol, index) in PROTOCOLS.into_iter().zip([0, 1]) {
            let port = node_port_of(service, index);
            for from in [&pod, &cluster.ns("n2")?] {
                for to in [at(ip, 80), at(node(1), port), at(node(3), port)] {
                    answered_by(from, to, protocol, pods).await?;
                }
            }
            answered_by(&cluster.ns("client")?, at(node(2), port), protocol, pods).await?;
        }
    }
    Ok(())
}
