//! Requests without pause while endpoints come and go: none is lost.

use portolan_lab::probe::Requests;
use serde_json::json;

use crate::fixture::{at, test};

#[test]
fn s50_e2_e63_scaling_up_and_down_loses_no_request() {
    test("s50-scaling", async |cluster| {
        cluster.deploy("web", 3, None).await?;
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        let client = cluster.ns("client")?;
        let repeated = client.repeated_syns()?;
        let requests = Requests::start(&client, at(vip, 80), 100);
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
        // A pod may be gone when a SYN that was lost on the way to it comes again.
        let repeated = client.repeated_syns()? - repeated;
        assert_eq!(repeated, 0, "SYNs were lost on their way; the slowest answer took {:?}", tally.slowest);
        assert!(tally.asked() > 100, "only {} requests were made", tally.asked());
        assert!(tally.pods.len() > 8, "only {} pods answered", tally.pods.len());
        Ok(())
    });
}
