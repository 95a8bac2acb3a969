//! The agent's own Node goes, comes back, and comes back as another (S73): kube-proxy exits on each of these.

use anyhow::Context;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use portolan_lab::probe::Requests;
use portolan_lab::topology::Families;
use portolan_lab::wait_for;
use serde_json::{Value, json};

use crate::asking::{Answered, Refused, Silent, Tcp, ask, ended, ends};
use crate::fixture::{Cluster, PATIENCE, at, cluster_ip, node_port, on_own};
use crate::pods::Wanted;

#[test]
fn s73_the_own_node_is_deleted_and_made_again_with_another_address_and_other_pod_cidrs() {
    on_own("s73-own-node", Families::Ipv4, 2, async |cluster| {
        cluster.run([Wanted::default()]).await?;
        let service = cluster.expose("web", json!({ "type": "NodePort" })).await?;
        let (port, client, n2) = (node_port(&service)?, cluster.ns("client")?, cluster.ns("n2")?);
        let (old, new) = (cluster.node_ip(2), "10.9.0.77".parse()?);
        cluster.ip("n2", "addr add 10.9.0.77/24 dev eth0\n", "addr del 10.9.0.77/24 dev eth0\n").await?;
        ends(&client, at(old, port), Tcp, Answered).await?;
        ends(&client, at(new, port), Tcp, Refused).await?;
        let of_n2 = at(cluster_ip(&service)?, 80);
        ends(&n2, of_n2, Tcp, Answered).await?;
        let agent = cluster.lab.product.lock().await.pid("agent-n2");
        let requests = Requests::start(&n2, of_n2, 50);

        let nodes: Api<Node> = Api::all(cluster.client.clone());
        let node = serde_json::to_value(nodes.get("n2").await?)?;
        nodes.delete("n2", &DeleteParams::default()).await?;
        // No Node, no address of its own (S76).
        does_not_answer(&client, at(old, port)).await?;
        make_again(&nodes, &node, json!({})).await?;
        ends(&client, at(old, port), Tcp, Answered).await?;

        let other = json!([{ "type": "InternalIP", "address": new }]);
        let patch = Patch::Merge(json!({ "status": { "addresses": other } }));
        nodes.patch_status("n2", &PatchParams::default(), &patch).await?;
        ends(&client, at(new, port), Tcp, Answered).await?;
        ends(&client, at(old, port), Tcp, Refused).await?;

        // The API server never changes a Node's podCIDRs: it comes back with others.
        let _by_cidr = cluster.configure(2, json!({ "proxy": { "detectLocalMode": "NodeCIDR" } }))?;
        let own = node["spec"]["podCIDR"].as_str().context("podCIDR")?.to_owned();
        pods_are_told_by(cluster, &own).await?;
        nodes.delete("n2", &DeleteParams::default()).await?;
        let cidr = "10.244.77.0/24";
        make_again(&nodes, &node, json!({ "podCIDR": cidr, "podCIDRs": [cidr] })).await?;
        pods_are_told_by(cluster, cidr).await?;
        cluster.routed_by(cidr, &[2]).await?;

        let tally = requests.stop().await?;
        assert!(tally.failures.is_empty() && tally.answered > 20, "{tally:?}");
        assert_eq!(cluster.lab.product.lock().await.pid("agent-n2"), agent, "it is the same process");
        Ok(())
    });
}

/// Refused or dropped: either way nothing of the Service's is there.
async fn does_not_answer(
    from: &portolan_lab::netns::Namespace,
    to: std::net::SocketAddr,
) -> anyhow::Result<()> {
    wait_for(&format!("{to} does not answer"), PATIENCE, async || {
        let result = ask(from, to, Tcp).await;
        let is_so = matches!(ended(&result), Some(Refused | Silent));
        Ok(if is_so { Ok(()) } else { Err(format!("{result:?}")) })
    })
    .await
}

/// The Node as it was, with `spec` laid over its own.
async fn make_again(nodes: &Api<Node>, before: &Value, spec: Value) -> anyhow::Result<()> {
    let metadata = json!({ "name": before["metadata"]["name"], "labels": before["metadata"]["labels"] });
    let mut spec_of_it = before["spec"].clone();
    for (field, value) in spec.as_object().context("an object")? {
        spec_of_it[field] = value.clone();
    }
    let node = json!({ "metadata": metadata, "spec": spec_of_it, "status": before["status"] });
    nodes.create(&PostParams::default(), &serde_json::from_value(node)?).await?;
    Ok(())
}

/// Waits until n2's rules know pods by this range.
async fn pods_are_told_by(cluster: &Cluster, cidr: &str) -> anyhow::Result<()> {
    let n2 = cluster.ns("n2")?;
    wait_for(&format!("n2 knows its pods by {cidr}"), PATIENCE, async || {
        let table = n2.output(&["nft", "list", "table", "ip", "portolan"]).await?;
        let about: Vec<String> =
            table.lines().filter(|line| line.contains("10.244.")).map(str::to_owned).collect();
        Ok(if about.iter().any(|line| line.contains(cidr)) { Ok(()) } else { Err(about.join("\n")) })
    })
    .await
}
