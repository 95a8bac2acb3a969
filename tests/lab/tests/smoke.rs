//! The lab itself: real controllers place pods, give them EndpointSlices and scale them; pods answer; routers take routes.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::api::ListParams;
use portolan_lab::testing::in_lab;
use portolan_lab::{Lab, RouterKind, probe, wait_for};

const WITHIN: Duration = Duration::from_secs(30);

/// The ready addresses of a Service's EndpointSlices, both families.
async fn ready_addresses(lab: &Lab, service: &str) -> anyhow::Result<Vec<std::net::IpAddr>> {
    let slices: Api<EndpointSlice> = Api::default_namespaced(lab.client());
    let list =
        slices.list(&ListParams::default().labels(&format!("kubernetes.io/service-name={service}"))).await?;
    let endpoints = list.items.into_iter().flat_map(|slice| slice.endpoints);
    let ready = endpoints.filter(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true));
    ready.flat_map(|endpoint| endpoint.addresses).map(|address| address.parse().context(address)).collect()
}

async fn wait_ready(lab: &Lab, service: &str, count: usize) -> anyhow::Result<Vec<std::net::IpAddr>> {
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
            Ok(lab.find_ns("smoke").map_or(Ok(()), Err).and_then(|()| {
                let left = portolan_lab::netns::list(&format!("{}-pod.default.smoke", lab.prefix()));
                if left.is_empty() { Ok(()) } else { Err(left.join(" ")) }
            }))
        })
        .await
    });
}

/// The node whose own pod has this address: without the product only that node reaches it.
async fn answering_node(lab: &Lab, address: std::net::IpAddr) -> anyhow::Result<String> {
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
fn both_routers_run_and_have_no_sessions_yet() {
    in_lab("both_routers_run_and_have_no_sessions_yet", async |lab| {
        for kind in [RouterKind::Frr, RouterKind::Bird] {
            lab.use_router(kind).await?;
            let router = lab.router().await;
            let sessions = wait_for(&format!("{kind:?} answers"), WITHIN, async || {
                Ok(router.established().await.map_err(|error| format!("{error:#}")))
            })
            .await?;
            ensure!(sessions.is_empty() && router.bgp_routes().await?.is_empty());
        }
        Ok(())
    });
}
