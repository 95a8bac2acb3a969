//! What changes while no agent or no API server is there, and what changes of the agent's own Node.

use kube::api::{Api, Patch, PatchParams};
use portolan_lab::probe::{self, Requests};
use portolan_lab::topology::node_address;
use portolan_lab::{nft, wait_for};
use serde_json::{Value, json};

use crate::fixture::{PATIENCE, at, cluster_ip, node_port, test};
use crate::udp::Flow;

/// The agent that comes next knows of it by its own table alone.
#[test]
fn s51_a_service_removed_while_no_agent_ran_answers_no_more() {
    test("s51-unattended", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        let ports = json!([{ "port": 80, "protocol": "UDP" }]);
        let service = cluster.expose("web", json!({ "type": "NodePort", "ports": ports })).await?;
        cluster.endpoints("web", 1).await?;
        let flows = [
            Flow::open(cluster, "n1", at(cluster_ip(&service)?, 80)).await?,
            Flow::open(cluster, "client", at(node_address(1).v4.into(), node_port(&service)?)).await?,
        ];
        for flow in &flows {
            flow.answered_by(|_| true).await?;
        }
        cluster.lab.product.lock().await.kill("agent-n1").await?;
        cluster.delete_service("web").await?;
        for flow in &flows {
            flow.answered_by(|_| true).await?;
        }
        cluster.lab.product.lock().await.start_agent("n1").await?;
        for flow in &flows {
            flow.not_answered().await?;
        }
        Ok(())
    });
}

/// S69: the rules of the agent before serve until the API server can be asked.
#[test]
fn s69_an_agent_starts_while_the_api_server_is_away() {
    test("s69-start", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let service = cluster.expose("web", json!({ "type": "ClusterIP" })).await?;
        cluster.endpoints("web", 2).await?;
        let (n1, ip) = (cluster.ns("n1")?, cluster_ip(&service)?);
        let requests = Requests::start(&n1, at(ip, 80), 50);
        let table = async || n1.output(&["nft", "list", "map", "ip", "portolan", "services"]).await;
        let before = table().await?;
        cluster.lab.product.lock().await.terminate("agent-n1").await?;
        cluster.stop_apiserver().await?;
        cluster.lab.product.lock().await.start_known_agent("n1").await?;
        let log = cluster.lab.product.lock().await.log("agent-n1");
        wait_for("the agent waits for the API server", PATIENCE, async || {
            let text = std::fs::read_to_string(&log)?;
            let waits =
                text.rsplit("the agent runs").next().is_some_and(|rest| rest.contains("trying again"));
            Ok(if waits { Ok(()) } else { Err("not yet") })
        })
        .await?;
        anyhow::ensure!(table().await? == before, "the rules changed");
        let tally = probe::many(&n1, at(ip, 80), 20).await;
        anyhow::ensure!(tally.answered == 20, "{tally:?}");
        cluster.lab.start_apiserver().await?;
        cluster.scale("web", 3).await?;
        cluster.ready("web", 3).await?;
        cluster.endpoints("web", 3).await?;
        let tally = requests.stop().await?;
        assert!(tally.failures.is_empty() && tally.answered > 20, "{tally:?}");
        Ok(())
    });
}

/// S36: hints speak of zones; which of them is here follows the label.
#[test]
fn s36_s73_the_zone_of_a_node_that_lives_changes() {
    test("s36-zone", async |cluster| {
        let service = cluster
            .create_service(json!({
                "metadata": { "name": "web" }, "spec": { "ports": [{ "port": 80, "protocol": "UDP" }] },
            }))
            .await?;
        let endpoint = |address: &str, zone: &str| json!({ "addresses": [address], "conditions": { "ready": true }, "hints": { "forZones": [{ "name": zone }] } });
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": "web", "labels": { "kubernetes.io/service-name": "web" } },
            "addressType": "IPv4", "ports": [{ "name": "", "port": 80, "protocol": "UDP" }],
            "endpoints": [endpoint("10.244.250.1", "a"), endpoint("10.244.250.2", "b")],
        });
        let slices: Api<k8s_openapi::api::discovery::v1::EndpointSlice> = cluster.api();
        slices.patch("web", &PatchParams::apply("test").force(), &Patch::Apply(&slice)).await?;
        let (n1, key) = (cluster.ns("n1")?, format!("{} . udp . 80 . ", cluster_ip(&service)?));
        let goes_to = async |wanted: &[&str]| {
            wait_for(&format!("n1 balances over {wanted:?}"), PATIENCE, async || {
                let map = nft::endpoints(&n1, "ip").await?;
                let found: Vec<&str> = ["10.244.250.1", "10.244.250.2"]
                    .into_iter()
                    .filter(|ip| map.contains(&format!(": {ip} . 80")))
                    .collect();
                let is_wanted = found == wanted && map.matches(&key).count() == wanted.len();
                Ok(if is_wanted { Ok(()) } else { Err(format!("{found:?}")) })
            })
            .await
        };
        let zone = |zone: Value| json!({ "metadata": { "labels": { "topology.kubernetes.io/zone": zone } } });
        goes_to(&["10.244.250.1", "10.244.250.2"]).await?;
        cluster.patch_node("n1", zone(json!("a"))).await?;
        goes_to(&["10.244.250.1"]).await?;
        cluster.patch_node("n1", zone(json!("b"))).await?;
        goes_to(&["10.244.250.2"]).await?;
        cluster.patch_node("n1", zone(json!(null))).await?;
        goes_to(&["10.244.250.1", "10.244.250.2"]).await
    });
}
