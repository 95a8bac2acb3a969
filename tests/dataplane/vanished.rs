//! TCP connections to endpoints that went without notice (S53).

use std::sync::Arc;
use std::time::Instant;

use anyhow::ensure;
use portolan::dataplane::conntrack::Conntrack;
use portolan::dataplane::kernel::Kernel;
use portolan_dataplane::Dataplane;
use portolan_lab::probe::Connection;
use portolan_model::{Masquerade, ServicePlan};
use portolan_plan::flows::Flows;

use super::site::{PODS, Site, at, balance, id, on_site, plan, same, serve, vip};

/// What an agent does with one Service, by hand.
struct Agent {
    kernel: Kernel,
    dataplane: Dataplane,
    conntrack: Conntrack,
    flows: Flows,
}

impl Agent {
    fn start(site: &Site, cuts: bool, plan: ServicePlan) -> anyhow::Result<Agent> {
        let (kernel, dataplane) = serve(site, plan.clone());
        let conntrack = site.node.run(Conntrack::open)??;
        let mut agent = Agent { kernel, dataplane, conntrack, flows: Flows::new(cuts) };
        agent.serve(plan)?;
        Ok(agent)
    }

    /// How many connections were cut.
    fn serve(&mut self, plan: ServicePlan) -> anyhow::Result<usize> {
        let now = Instant::now();
        self.dataplane.set_service(&id(), 0, Some(Arc::new(plan.clone())));
        self.kernel.write(&mut self.dataplane)?;
        self.flows.set(&id(), Some(&plan), None, now);
        let cleaned = self.conntrack.clean(&self.flows.stale(now), &[].into())?;
        self.flows.cleaned();
        Ok(cleaned.values().map(|cleaned| cleaned.deleted).sum())
    }
}

/// One connection to each of two pods.
async fn connections(site: &Site) -> anyhow::Result<[Connection; 2]> {
    let mut found = [None, None];
    for _ in 0..100 {
        let mut connection = Connection::open(&site.client, at("10.96.0.1", 80)).await?;
        let pod = connection.ask().await?.pod;
        found[usize::from(pod == "pod1")] = Some(connection);
        if let [Some(_), Some(_)] = found {
            return Ok(found.map(|connection| connection.expect("both")));
        }
    }
    anyhow::bail!("one pod has all connections")
}

#[test]
fn s53_a_connection_to_an_endpoint_that_vanished_is_cut_where_that_is_asked_for() {
    on_site("s53_a_connection_to_an_endpoint_that_vanished", async |site| {
        let of = |pods: &[&str]| plan([(vip("10.96.0.1"), same(balance(Masquerade::NonPods, pods)))]);
        for cuts in [false, true] {
            let mut agent = Agent::start(site, cuts, of(&PODS[..2]))?;
            let [mut vanished, mut stays] = connections(site).await?;
            assert_eq!(agent.serve(of(&PODS[1..2]))? > 0, cuts);
            let asked = vanished.ask().await.map_err(|error| format!("{error:#}"));
            match asked {
                // The pod of this test lives on: only its endpoint went.
                Ok(_) => ensure!(!cuts, "the connection stands"),
                // At once, where it would have hung until a timeout if the pod were gone.
                Err(error) => ensure!(cuts && error.contains("reset"), "{error}"),
            }
            assert_eq!(stays.ask().await?.pod, "pod1");
        }
        Ok(())
    });
}
