//! What the agent may do, and what it says of what it may not (S55, S75).

use std::process::Stdio;

use anyhow::{Context, ensure};
use portolan_lab::product::{binary, chart};
use serde_json::{Value, json};

use crate::asking::{Answered, Tcp, ends};
use crate::fixture::{Cluster, PATIENCE, at, cluster_ip, node_port, test};
use crate::pods::Wanted;
use crate::process::event;

/// The chart's settings of connection tracking here. A network namespace of its own has no number of entries and no hash table:
/// 0 leaves them.
const CONNTRACK: [(&str, &str); 3] = [("maxPerCore", "0"), ("min", "0"), ("udpStreamTimeout", "77s")];
const FILE: &str = "net/netfilter/nf_conntrack_udp_timeout_stream";
/// What the file says afterwards.
const SECONDS: &str = "77";

#[test]
fn s75_after_the_charts_init_container_net_admin_is_all_that_the_agent_needs() {
    test("s75-privileges", async |cluster| {
        let n3 = cluster.ns("n3")?;
        let value = async || n3.output(&["cat", &format!("/proc/sys/{FILE}")]).await;
        put_back_afterwards(cluster).await?;
        cluster.lab.product.lock().await.kill("agent-n3").await?;
        let (args, config) = init_container(cluster).await?;
        let _configured = cluster.configure(3, serde_saphyr::from_str(&config)?)?;
        // Privileged, as its container is.
        let mut command = n3.command(binary()?)?;
        command.args(&args).stdin(Stdio::null());
        let output = tokio::time::timeout(PATIENCE, command.output()).await.context("it goes on")??;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success() && said.contains("the node is prepared"), "{args:?}: {said}");
        assert_eq!(value().await?.trim(), SECONDS);

        let log = cluster.lab.product.lock().await.log("agent-n3");
        let before = std::fs::read_to_string(&log)?.len();
        cluster.lab.product.lock().await.start_confined_agent("n3").await?;
        serves(cluster).await?;
        cluster.sessions_of(&[1, 2, 3]).await?;
        let pid = cluster.lab.product.lock().await.pid("agent-n3").context("it runs")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        for set in ["CapEff", "CapPrm", "CapBnd"] {
            ensure!(status.contains(&format!("{set}:\t{:016x}\n", 1 << 12)), "NET_ADMIN alone: {status}");
        }
        let said = std::fs::read_to_string(&log)?.split_off(before);
        let complaints: Vec<&str> =
            said.lines().filter(|line| line.contains("ERROR") || line.contains("stays as it is")).collect();
        ensure!(complaints.is_empty(), "{complaints:#?}");
        Ok(())
    });
}

/// Without the init container.
#[test]
fn s55_s75_settings_that_are_read_only_are_an_event_and_no_more() {
    test("s55-read-only", async |cluster| {
        cluster.lab.product.lock().await.kill("agent-n2").await?;
        let conntrack = json!({ "maxPerCore": 0, "min": 0, "udpStreamTimeout": "78s" });
        let _configured = cluster.configure(2, json!({ "proxy": { "conntrack": conntrack } }))?;
        cluster.lab.product.lock().await.start_confined_agent("n2").await?;
        let said = event(cluster, 2, "readOnlySysFS").await?;
        assert_eq!(said.type_.as_deref(), Some("Warning"));
        let message = said.message.unwrap_or_default();
        assert!(message.contains(FILE) && message.contains("--init-only"), "{message}");
        let value = cluster.ns("n2")?.output(&["cat", &format!("/proc/sys/{FILE}")]).await?;
        assert_ne!(value.trim(), "78");
        serves(cluster).await
    });
}

/// The init container's arguments and the configuration, from the chart. The ConfigMap is mounted where the agent of n3 has it.
async fn init_container(cluster: &Cluster) -> anyhow::Result<(Vec<String>, String)> {
    let settings = CONNTRACK.map(|(field, value)| format!("proxy.conntrack.{field}={value}"));
    let values =
        ["agent.prepareNode=true".to_owned()].into_iter().chain(settings).collect::<Vec<_>>().join(",");
    let (chart, file) =
        (chart().display().to_string(), cluster.lab.dir().join("values.yaml").display().to_string());
    let render = async |template: &str| -> anyhow::Result<Value> {
        let template = format!("templates/{template}");
        let args =
            ["template", "portolan", &chart, "--values", &file, "--set", &values, "--show-only", &template];
        Ok(serde_saphyr::from_str(&cluster.lab.helm(&args).await?)?)
    };
    let (agent, map) = (render("agent.yaml").await?, render("configmap.yaml").await?);
    let container = &agent["spec"]["template"]["spec"]["initContainers"][0];
    ensure!(container["securityContext"]["privileged"] == true, "{container}");
    let dir = cluster.lab.product_dir().join("agent-n3");
    let args = container["args"].as_array().context("args")?.iter().filter_map(Value::as_str);
    let args = args.map(|arg| arg.replace("/etc/portolan", &dir.display().to_string())).collect();
    Ok((args, map["data"]["config.yaml"].as_str().context("config.yaml")?.to_owned()))
}

async fn put_back_afterwards(cluster: &Cluster) -> anyhow::Result<()> {
    let n3 = cluster.ns("n3")?;
    let before = n3.output(&["cat", &format!("/proc/sys/{FILE}")]).await?;
    cluster.afterwards(FILE, async move { n3.sysctl(&[(FILE, before.trim())]) });
    Ok(())
}

/// A Service answers at n2 and n3: by its ClusterIP to the nodes, by its node port to the client.
async fn serves(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.run([Wanted::default()]).await?;
    let service = cluster.expose("web", json!({})).await?;
    for node in [2, 3] {
        ends(&cluster.ns(&format!("n{node}"))?, at(cluster_ip(&service)?, 80), Tcp, Answered).await?;
        ends(&cluster.ns("client")?, at(cluster.node_ip(node), node_port(&service)?), Tcp, Answered).await?;
    }
    let vip = cluster.external_ip("web").await?;
    cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
    ends(&cluster.ns("client")?, at(vip, 80), Tcp, Answered).await
}
