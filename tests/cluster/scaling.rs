//! Requests without pause while endpoints come and go: none is lost.

use std::time::Duration;

use portolan_lab::probe::Requests;
use serde_json::json;

use crate::fixture::{at, test};

#[test]
fn s50_e2_e63_scaling_up_and_down_loses_no_request() {
    test("s50-scaling", async |cluster| {
        // Longer than a connection may take to come about, its SYN repeated once: what is lost then is ours.
        cluster.deploy_draining("web", 3, None, Duration::from_secs(5)).await?;
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        let requests = Requests::start(&cluster.ns("client")?, at(vip, 80), 100);
        for replicas in [8, 2, 6, 1, 4] {
            cluster.scale("web", replicas).await?;
            cluster.ready("web", replicas).await?;
            cluster.endpoints("web", replicas.into()).await?;
        }
        let tally = requests.stop().await?;
        assert!(
            tally.failures.is_empty(),
            "{} of {} lost: {:?}",
            tally.failures.len(),
            tally.asked(),
            tally.failures[0]
        );
        assert!(tally.asked() > 100, "only {} requests were made", tally.asked());
        assert!(tally.pods.len() > 8, "only {} pods answered", tally.pods.len());
        Ok(())
    });
}
