//! The lab itself: real controllers place pods, give them EndpointSlices and scale them; pods answer; routers take routes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use portolan_lab::monitor::Monitor;
use portolan_lab::process::Daemon;
use portolan_lab::testing::in_lab;
use portolan_lab::topology::{NODE_ASN, ROUTER, ROUTER_ASN, node_address};
use portolan_lab::{Lab, Router, RouterKind, probe, wait_for};

const WITHIN: Duration = Duration::from_secs(30);

/// The ready addresses of a Service's EndpointSlices, both families.
async fn ready_addresses(lab: &Lab, service: &str) -> anyhow::Result<Vec<IpAddr>> {
    let slices: Api<EndpointSlice> = Api::default_namespaced(lab.client());
    let list =
        slices.list(&ListParams::default().labels(&format!("kubernetes.io/service-name={service}"))).await?;
    let endpoints = list.items.into_iter().flat_map(|slice| slice.endpoints);
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true));
    ready.flat_map(|endpoint| endpoint.addresses).map(|address| address.parse().context(address)).collect()
}

async fn wait_ready(lab: &Lab, service: &str, count: usize) -> anyhow::Result<Vec<IpAddr>> {
    wait_for(&format!("{service} has {count} ready addresses"), WITHIN, async || {
        let addresses = ready_addresses(lab, service).await?;
        Ok(if addresses.len() == count { Ok(addresses) } else { Err(format!("{addresses:?}")) })
    })
    .await
}

#[test]
fn a_deployment_becomes_pods_that_answer_on_both_families() {
    in_lab("a_deployment_becomes_pods_that_answer_on_both_families", async |lab| {
        lab.kubectl(&["create", "deployment", "smoke", "--image=lab", "--replicas=2"]).await?;
        let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"smoke"},"spec":{"selector":{"app":"smoke"},
            "ipFamilyPolicy":"RequireDualStack","ports":[{"port":80}]}}"#;
        std::fs::write(lab.dir().join("smoke.json"), service)?;
        lab.kubectl(&["apply", "-f", &lab.dir().join("smoke.json").display().to_string()]).await?;

        for address in wait_ready(lab, "smoke", 4).await? {
            let pod_node = answering_node(lab, address).await?;
            let node = lab.ns(&pod_node)?;
            let to = SocketAddr::new(address, 80);
            ensure!(probe::tcp(&node, to).await?.node == pod_node);
            ensure!(probe::udp(&node, to).await?.node == pod_node);
            let mut connection = probe::Connection::open(&node, to).await?;
            ensure!(connection.ask().await? == connection.ask().await?, "one connection, one pod");
        }

        lab.kubectl(&["annotate", "pods", "-l", "app=smoke", "lab.portolan.dev/ready=false"]).await?;
        wait_ready(lab, "smoke", 0).await?;
        lab.kubectl(&["delete", "deployment/smoke", "service/smoke", "--wait=false"]).await?;
        wait_for("the pods' namespaces are gone", WITHIN, async || {
            let left = portolan_lab::netns::list(&format!("{}-pod.default.smoke", lab.prefix()));
            Ok(if left.is_empty() { Ok(()) } else { Err(left.join(" ")) })
        })
        .await
    });
}

/// The node whose own pod has this address: without the product only that node reaches it.
async fn answering_node(lab: &Lab, address: IpAddr) -> anyhow::Result<String> {
    for node in lab.node_names() {
        let ns = lab.ns(&node)?;
        let to = SocketAddr::new(address, 80);
        if probe::tcp_within(&ns, to, Duration::from_millis(500)).await.is_ok() {
            return Ok(node);
        }
    }
    anyhow::bail!("no node reaches {address}")
}

#[test]
fn the_api_server_goes_and_comes_back() {
    in_lab("the_api_server_goes_and_comes_back", async |lab| {
        lab.stop_apiserver().await?;
        ensure!(lab.client().apiserver_version().await.is_err(), "it was stopped");
        lab.start_apiserver().await?;
        lab.client().apiserver_version().await?;
        Ok(())
    });
}

#[test]
fn either_router_takes_routes_of_both_families_from_a_node() {
    in_lab("either_router_takes_routes_of_both_families_from_a_node", async |lab| {
        for kind in [RouterKind::Frr, RouterKind::Bird] {
            lab.use_router(kind).await?;
            let router = lab.router().await;
            let routes = Monitor::routes(&router.ns).await?;
            let mut speakers = vec![speaker(lab, 1)?, speaker(lab, 2)?];

            let nodes = [node_address(1), node_address(2)];
            wait_for_routes(&router, "192.0.2.77/32", nodes.map(|node| node.v4.into()).into()).await?;
            wait_for_routes(&router, "2001:db8::77/128", nodes.map(|node| node.v6.into()).into()).await?;
            let sessions = router.established().await?;
            ensure!(sessions == nodes.map(|node| node.v4.into()).into(), "{kind:?}: sessions {sessions:?}");

            for speaker in &mut speakers {
                speaker.kill().await?;
            }
            let gone = |line: &str| line.starts_with("Deleted") && line.contains("192.0.2.77");
            routes.first("the removal of the route", WITHIN, gone).await?;
            wait_for_routes(&router, "192.0.2.77", Default::default()).await?;
        }
        Ok(())
    });
}

async fn wait_for_routes(router: &Router, prefix: &str, wanted: BTreeSet<IpAddr>) -> anyhow::Result<()> {
    wait_for(&format!("the router has {prefix} by {wanted:?}"), WITHIN, async || {
        let by = router.routes(prefix).await?;
        Ok(if by == wanted { Ok(()) } else { Err(format!("{by:?}")) })
    })
    .await
}

/// A BIRD on node `n<number>` that announces one address of each family: the agent's place, before there is one.
fn speaker(lab: &Lab, number: u8) -> anyhow::Result<Daemon> {
    let (node, dir) = (node_address(number), lab.dir());
    let config = dir.join(format!("speaker-{number}.conf"));
    let text = format!(
        "router id {v4}; protocol device {{}}
protocol static {{ ipv4; route 192.0.2.77/32 unreachable; }}
protocol static {{ ipv6; route 2001:db8::77/128 unreachable; }}
protocol bgp {{ local {v4} as {NODE_ASN}; neighbor {router} as {ROUTER_ASN}; connect delay time 1; connect retry time 1;
  ipv4 {{ import none; export where source = RTS_STATIC; next hop self; }};
  ipv6 {{ import none; export where source = RTS_STATIC; next hop address {v6}; }}; }}",
        v4 = node.v4,
        v6 = node.v6,
        router = ROUTER.v4,
    );
    std::fs::write(&config, text)?;
    let mut command = lab.ns(&format!("n{number}"))?.command("/usr/sbin/bird")?;
    command.arg("-f").arg("-c").arg(config).arg("-s").arg(dir.join(format!("speaker-{number}.ctl")));
    Daemon::start(command, &format!("speaker-{number}"), &lab.logs())
}
