//! What an operator runs.

use anyhow::Context;
use portolan_lab::netns::run;
use portolan_lab::product::binary;
use portolan_lab::wait_for;
use serde_json::json;
use tokio::process::Command;

use crate::fixture::{Cluster, PATIENCE, test};

async fn portolan(arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(binary()?);
    command.args(arguments);
    run(command).await
}

#[test]
fn status_shows_nodes_sessions_pools_and_vips() {
    test("status", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        let kubeconfig = cluster.lab.kubeconfig().display().to_string();
        let row = format!("{vip} status/web default Bound n1,n2,n3");
        wait_for("portolan status shows the VIP by every node", PATIENCE, async || {
            let text = portolan(&["status", "--kubeconfig", &kubeconfig]).await?;
            let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
            let shown = text.lines().any(|line| words(line) == row);
            let sessions =
                text.lines().filter(|line| line.contains("tor") && line.contains("Established")).count();
            Ok(if shown && sessions == 3 { Ok(()) } else { Err(text) })
        })
        .await?;
        let text = portolan(&["status", "--kubeconfig", &kubeconfig, "-o", "json"]).await?;
        let report: serde_json::Value = serde_json::from_str(&text).context("status -o json")?;
        assert_eq!(report["nodes"].as_array().map(Vec::len), Some(3));
        Ok(())
    });
}

#[test]
fn status_says_why_an_address_is_withheld() {
    test("status-withheld", async |cluster| {
        cluster.expose("idle", json!({})).await?;
        let vip = cluster.external_ip("idle").await?;
        let kubeconfig = cluster.lab.kubeconfig().display().to_string();
        wait_for("portolan status says NoEndpoints", PATIENCE, async || {
            let text = portolan(&["status", "--kubeconfig", &kubeconfig]).await?;
            let is_row = |line: &str| line.contains(&vip.to_string()) && line.contains("NoEndpoints");
            Ok(if text.lines().any(is_row) { Ok(()) } else { Err(text) })
        })
        .await
    });
}

#[test]
fn crds_prints_what_the_api_server_has() {
    test("crds", async |cluster| {
        let text = portolan(&["crds"]).await?;
        let file = cluster.lab.dir().join("crds.yaml");
        std::fs::write(&file, &text)?;
        let file = file.display().to_string();
        let diff = cluster.lab.kubectl(&["diff", "--server-side", "--force-conflicts", "-f", &file]).await;
        assert!(diff.is_ok_and(|difference| difference.is_empty()), "the chart installed the same");
        Ok(())
    });
}

#[test]
fn plan_needs_no_cluster() {
    test("plan", async |_| {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/first-service/cluster.yaml");
        let text = portolan(&["plan", "-f", file, "--node", "n1"]).await?;
        assert!(text.contains("192.0.2.10/32") && text.contains("table ip portolan {"), "{text}");
        let error = portolan(&["plan", "-f", file, "--node", "n9"]).await.expect_err("no such node");
        assert!(
            format!("{error:#}").contains("there is no Node \"n9\": the file has n1, n2, n3"),
            "{error:#}"
        );
        Ok(())
    });
}

/// SIGTERM: the router is told, the kernel keeps its rules, and the agent that follows writes nothing.
#[test]
fn a60_an_agent_stops_in_order() {
    test("a60-sigterm", async |cluster| {
        let status = cluster.lab.product.lock().await.terminate("agent-n2").await?;
        assert!(status.success(), "{status}");
        cluster.sessions_of(&[1, 3]).await?;
        let n2 = cluster.ns("n2")?;
        assert!(n2.output(&["nft", "list", "tables"]).await?.contains("ip portolan"));
        Ok(())
    });
}

#[test]
fn s74_cleanup_leaves_nothing_of_ours_in_the_kernel() {
    test("cleanup", async |cluster| {
        cluster.lab.product.lock().await.kill("agent-n3").await?;
        assert!(ours(cluster).await?.contains("portolan"), "before");
        let mut command = cluster.ns("n3")?.command(binary()?)?;
        command.arg("cleanup");
        run(command).await?;
        let left = ours(cluster).await?;
        assert!(left.trim().is_empty(), "left over: {left}");
        Ok(())
    });
}

/// Our tables and routes on n3.
async fn ours(cluster: &Cluster) -> anyhow::Result<String> {
    let n3 = cluster.ns("n3")?;
    let tables = n3.output(&["nft", "list", "tables"]).await?;
    let routes = n3.output(&["ip", "route", "show", "proto", "180"]).await?;
    let routes6 = n3.output(&["ip", "-6", "route", "show", "proto", "180"]).await?;
    Ok(format!("{tables}{routes}{routes6}"))
}
