//! The same with FRR in BIRD's place.

use portolan_lab::{RouterKind, probe};
use serde_json::json;

use crate::fixture::{Cluster, at, test};

#[test]
fn the_whole_line_with_frr() {
    test("with-frr", async |cluster| {
        cluster.afterwards("BIRD again", cluster.lab.use_router(RouterKind::Bird));
        cluster.lab.use_router(RouterKind::Frr).await?;
        line(cluster).await?;
        cluster.lab.use_router(RouterKind::Bird).await?;
        cluster.sessions_of(&[1, 2, 3]).await
    });
}

async fn line(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.sessions_of(&[1, 2, 3]).await?;
    cluster.deploy("web", 4, None).await?;
    cluster.expose("web", json!({ "ipFamilyPolicy": "RequireDualStack" })).await?;
    // Four pods, each in a slice of either family.
    cluster.endpoints("web", 8).await?;
    for vip in cluster.external_ips("web").await? {
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        let tally = probe::many(&cluster.ns("client")?, at(vip, 80), 60).await;
        anyhow::ensure!((tally.answered, tally.pods.len()) == (60, 4), "{vip}: {tally:?}");
    }
    let vips = cluster.external_ips("web").await?;
    cluster.delete_service("web").await?;
    for vip in vips {
        cluster.routed_by(&vip.to_string(), &[]).await?;
    }
    Ok(())
}
