//! The configuration file changes while the agent runs.

use anyhow::Context;
use kube::ResourceExt;
use portolan_lab::probe::{self, Requests};
use portolan_lab::wait_for;
use serde_json::json;

use crate::fixture::{PATIENCE, at, cluster_ip, test};

#[test]
fn s72_changed_settings_apply_in_place_and_a_broken_file_changes_nothing() {
    test("s72-reload", async |cluster| {
        cluster.deploy("web", 2, Some(1)).await?;
        cluster.deploy("client", 1, Some(1)).await?;
        let service = cluster.expose("web", json!({})).await?;
        let to = at(cluster_ip(&service)?, 80);
        cluster.endpoints("web", 2).await?;
        let client = cluster.pods("client").await?.remove(0);
        let own: std::net::IpAddr =
            client.status.as_ref().and_then(|status| status.pod_ip.as_deref()).context("podIP")?.parse()?;
        let pod = cluster.lab.pod_ns(&cluster.namespace, &client.name_any())?;
        let sees_client = async |wanted: bool| {
            wait_for(&format!("the server sees the pod's own address: {wanted}"), PATIENCE, async || {
                let seen = probe::tcp(&pod, to).await.map(|answer| answer.client.ip());
                let is_wanted = seen.as_ref().is_ok_and(|ip| (*ip == own) == wanted);
                Ok(if is_wanted { Ok(()) } else { Err(format!("{seen:?}")) })
            })
            .await
        };
        sees_client(true).await?;
        let file = cluster.lab.product_dir().join("agent-n1").join("config.yaml");
        let log = cluster.lab.product.lock().await.log("agent-n1");
        let says = async |what: &str| {
            wait_for(&format!("the agent says {what:?}"), PATIENCE, async || {
                let text = std::fs::read_to_string(&log)?;
                Ok(if text.contains(what) { Ok(()) } else { Err("not yet") })
            })
            .await
        };
        let before = std::fs::read_to_string(&file)?;
        let changed = before.replace("masqueradeAll: false", "masqueradeAll: true");
        assert_ne!(before, changed);
        let requests = Requests::start(&pod, to, 50);

        std::fs::write(&file, &changed)?;
        sees_client(false).await?;
        std::fs::write(&file, changed.replace("masqueradeAll", "masqueradeAl"))?;
        says("the changed configuration is not applied").await?;
        says("masqueradeAl`").await?;
        sees_client(false).await?;
        std::fs::write(&file, &before)?;
        sees_client(true).await?;
        let tally = requests.stop().await?;
        assert!(tally.failures.is_empty() && tally.answered > 20, "{tally:?}");
        Ok(())
    });
}
