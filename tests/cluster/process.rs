//! What an agent says of itself: Events on its Node (services.md 1I) and the pages beside its metrics (1J).

use std::process::Stdio;

use anyhow::Context;
use k8s_openapi::api::core::v1::Event;
use kube::api::{Api, ListParams};
use portolan_lab::product::binary;
use portolan_lab::wait_for;
use serde_json::Value;

use crate::fixture::{Cluster, PATIENCE, test};

/// Waits for an Event on a Node with this reason, and returns what it says.
pub async fn event(cluster: &Cluster, node: u8, reason: &str) -> anyhow::Result<Event> {
    event_saying(cluster, &format!("n{node}"), reason, "").await
}

/// The same, where earlier tests may have left Events of that reason that say something else.
pub async fn event_saying(cluster: &Cluster, node: &str, reason: &str, what: &str) -> anyhow::Result<Event> {
    let events: Api<Event> = Api::all(cluster.client.clone());
    let about = ListParams::default()
        .fields(&format!("reason={reason},involvedObject.kind=Node,involvedObject.name={node}"));
    wait_for(&format!("Event {reason} on {node} says {what:?}"), PATIENCE, async || {
        let mut found = events.list(&about).await?.items;
        found.retain(|event| event.message.as_deref().unwrap_or_default().contains(what));
        Ok(found.pop().ok_or("no such Event"))
    })
    .await
}

#[test]
fn s62_the_pages_beside_the_metrics() {
    test("s62-pages", async |cluster| {
        let config: Value = serde_json::from_str(&cluster.page(1, "/configz").await?)?;
        let config = &config["portolan.dev"];
        assert_eq!(config["nodeRoutes"], "api");
        assert_eq!(
            config["proxy"]["conntrack"]["tcpEstablishedTimeout"], "24h0m0s",
            "what was not given, too"
        );
        assert!(cluster.page(1, "/statusz").await?.contains(env!("CARGO_PKG_VERSION")));
        assert!(cluster.page(1, "/flagz").await?.contains("\nnode-name=n1\n"));
        assert!(cluster.page(1, "/metrics/slis").await?.contains("kubernetes_healthcheck{"));
        let metrics = cluster.page(1, "/metrics").await?;
        for series in
            ["rest_client_requests_total{code=\"200\",method=\"GET\",host=\"", "kubernetes_build_info{major="]
        {
            assert!(metrics.lines().any(|line| line.starts_with(series)), "{series}");
        }
        Ok(())
    });
}

/// The name is upstream's; kubectl finds it by the Node's UID.
#[test]
fn s62_e76_the_agent_says_that_it_runs_and_where_it_cannot_listen() {
    test("s62-events", async |cluster| {
        let started = event(cluster, 3, "Starting").await?;
        assert_eq!(
            (started.type_.as_deref(), started.action.as_deref()),
            (Some("Normal"), Some("StartKubeProxy"))
        );
        assert!(started.involved_object.uid.is_some_and(|uid| uid.len() == 36));

        cluster.lab.product.lock().await.kill("agent-n3").await?;
        let n3 = cluster.ns("n3")?;
        let taken = [n3.listen_tcp("127.0.0.1:10249".parse()?)?, n3.listen_tcp("[::]:10256".parse()?)?];
        cluster.lab.product.lock().await.start_agent("n3").await?;
        for reason in ["FailedToStartMetricServer", "FailedToStartProxierHealthcheck"] {
            let said = event(cluster, 3, reason).await?;
            assert_eq!(said.type_.as_deref(), Some("Warning"));
        }
        drop(taken);
        wait_for("n3 serves its metrics after all", PATIENCE, async || {
            Ok(cluster.page(3, "/metrics").await.map(drop).map_err(|error| format!("{error:#}")))
        })
        .await
    });
}

#[test]
fn s71_bind_address_hard_fail_is_the_end() {
    test("s71-hard-fail", async |cluster| {
        let (n3, dir) = (cluster.ns("n3")?, cluster.lab.product_dir().join("agent-n3"));
        let config = cluster.lab.dir().join("hard-fail.yaml");
        std::fs::write(&config, "proxy: { bindAddressHardFail: true, healthzBindAddress: '' }\n")?;
        // The agent of this node has the address.
        let mut command = n3.command(binary()?)?;
        command.args(["agent", "--node-name=n3", "--config"]).arg(&config);
        command.arg("--kubeconfig").arg(dir.join("kubeconfig")).stdin(Stdio::null());
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("it goes on")??;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains("bindAddressHardFail is set"), "{said}");
        Ok(())
    });
}

#[test]
fn s65_a_repair_is_an_event() {
    test("s65-event", async |cluster| {
        let n2 = cluster.ns("n2")?;
        n2.output(&["nft", "delete", "table", "ip", "portolan"]).await?;
        let said = event(cluster, 2, "TablesRepaired").await?;
        assert_eq!(said.type_.as_deref(), Some("Warning"));
        wait_for("the table is back", PATIENCE, async || {
            Ok(n2
                .output(&["nft", "list", "table", "ip", "portolan"])
                .await
                .map(drop)
                .map_err(|e| format!("{e:#}")))
        })
        .await
    });
}
