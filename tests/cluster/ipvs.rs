//! An agent starts on a node that kube-proxy's IPVS mode left, in a guest kernel that has IPVS (S74).

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use portolan_lab::guest::{Guest, IPTABLES_EXTENSIONS, NETWORK_MODULES, UPLINK_MODULES};
use portolan_lab::product::binary;
use portolan_lab::testing::has_emulator;
use serde_json::json;

use crate::fixture::{Cluster, test};
use crate::process::event_saying;

/// Emulated on a busy machine; alone it takes half a minute.
const WITHIN: Duration = Duration::from_secs(240);
const PROGRAMS: [&str; 6] =
    ["ip", "nft", "ipvsadm", "ipset", "iptables-nft-restore", "ip6tables-nft-restore"];
const SERVED: &str = "10.96.200.10";

#[test]
fn s74_connections_through_ipvs_live_until_they_end_and_then_their_servers_go() {
    if !has_emulator("s74_connections_through_ipvs_live_until_they_end_and_then_their_servers_go") {
        return;
    }
    test("s74-ipvs", async |cluster| {
        let (pod, node): (IpAddr, IpAddr) = ("10.244.1.5".parse()?, "172.30.0.11".parse()?);
        // Nothing is scheduled to it.
        cluster
            .make::<Node>(json!({
                "metadata": { "name": "guest" }, "spec": { "unschedulable": true },
                "status": { "addresses": [{ "type": "InternalIP", "address": node }] },
            }))
            .await?;
        let spec = json!({ "type": "ClusterIP", "clusterIP": SERVED, "selector": null });
        cluster.expose("web", spec).await?;
        cluster.slice("web", "web", &[pod], &[("", 8081, "TCP")]).await?;
        let guest = Guest {
            modules: [NETWORK_MODULES, UPLINK_MODULES].concat(),
            programs: PROGRAMS.iter().map(Into::into).chain([binary()?]).collect(),
            folders: vec![IPTABLES_EXTENSIONS.into()],
            files: files(cluster).await?,
            uplink: Some(cluster.ns("cp")?),
        };
        let run = move || guest.run(include_str!("ipvs.sh"), WITHIN);
        let said = tokio::task::spawn_blocking(run).await??;
        assert_eq!(
            said,
            [
                "before: through 10.96.200.10:80 1, unused 10.96.0.99:80 0",
                "open: one",
                "taken over: through 10.96.200.10:80 1",
                "the open connection: two",
                "a new connection: three",
                "through IPVS: 1",
                "interface: kube-ipvs0",
                "afterwards: servers 0, interfaces 0",
                "a new connection: four",
            ]
        );
        let ended = "the last connection through kube-proxy's IPVS servers ended";
        event_saying(cluster, "guest", "TookOverFromKubeProxy", ended).await.map(drop)
    });
}

/// What the chart's pod would have, and the guest's scripts.
async fn files(cluster: &Cluster) -> anyhow::Result<Vec<(&'static str, String)>> {
    let dir = cluster.lab.product.lock().await.files("agent-guest", "portolan-agent").await?;
    let ca = cluster.lab.dir().join("ca.crt");
    let kubeconfig = std::fs::read_to_string(dir.join("kubeconfig"))?;
    Ok(vec![
        ("node.sh", include_str!("../kernel/guest/node.sh").into()),
        ("kube_proxy.sets", include_str!("../kernel/guest/kube_proxy.sets").into()),
        ("kube_proxy.rules", include_str!("../kernel/guest/kube_proxy.rules").into()),
        ("kube_proxy.rules6", include_str!("../kernel/guest/kube_proxy.rules6").into()),
        ("kubeconfig", kubeconfig.replace(&ca.display().to_string(), "/guest/ca.crt")),
        ("ca.crt", std::fs::read_to_string(&ca)?),
        ("config.yaml", std::fs::read_to_string(dir.join("config.yaml"))?),
    ])
}
