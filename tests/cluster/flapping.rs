//! One endpoint comes and goes without pause while clients connect: nothing is lost or refused.

use std::time::{Duration, Instant};

use anyhow::Context;
use portolan_lab::probe::{Protocol, Requests, Tally};
use serde_json::{Value, json};

use crate::fixture::{Cluster, at, beside};

const FLAPPING: Duration = Duration::from_secs(60);
const PER_SECOND: u32 = 100;

/// How the endpoint goes. Its pod serves on: what is lost is lost by us.
#[derive(Clone, Copy, Debug)]
enum Going {
    /// As the endpoints of a pod that shuts down orderly do.
    Terminates,
    /// From one moment to the next, as those of a node that failed.
    Vanishes,
}

#[test]
fn s50_s66_one_endpoint_flaps_and_no_connection_is_lost() {
    beside("s50-flapping", async |cluster| {
        cluster.deploy("web", 2, None).await?;
        let mut ips = Vec::new();
        for pod in cluster.pods("web").await? {
            ips.push(pod.status.and_then(|status| status.pod_ip).context("podIP")?);
        }
        let tcp = |going| Flapping { protocol: Protocol::Tcp, going };
        let udp = |going| Flapping { protocol: Protocol::Udp, going };
        let all =
            [tcp(Going::Terminates), tcp(Going::Vanishes), udp(Going::Terminates), udp(Going::Vanishes)];
        let runs = all.iter().map(|flapping| flapping.run(cluster, &ips));
        for (flapping, (flaps, tally)) in all.iter().zip(futures::future::try_join_all(runs).await?) {
            let (asked, lost) = (tally.asked(), tally.failures.len());
            eprintln!("{flapping:?}: {flaps} flaps, {asked} asked, {lost} lost, slowest {:?}", tally.slowest);
            assert!(tally.failures.is_empty(), "{flapping:?}: {lost} of {asked} lost: {:?}", tally.failures);
            assert!(asked > 1000 && flaps > 50, "{flapping:?}: only {asked} asked, {flaps} flaps");
            assert_eq!(tally.pods.len(), 2, "{flapping:?}: both pods were asked: {:?}", tally.pods);
        }
        Ok(())
    });
}

#[derive(Debug)]
struct Flapping {
    protocol: Protocol,
    going: Going,
}

impl Flapping {
    async fn run(&self, cluster: &Cluster, ips: &[String]) -> anyhow::Result<(usize, Tally)> {
        let name = format!("{:?}-{:?}", self.protocol, self.going).to_lowercase();
        let protocol = format!("{:?}", self.protocol).to_uppercase();
        let service = json!({
            "metadata": { "name": name, "annotations": { "portolan.dev/ips": self.vip() } },
            "spec": { "type": "LoadBalancer", "ports": [{ "port": 80, "protocol": protocol }] },
        });
        cluster.create_service(service).await?;
        let set = async |there| cluster.set_endpoints(&name, &protocol, self.endpoints(ips, there)).await;
        set(true).await?;
        cluster.endpoints(&name, 2).await?;
        let vip = cluster.external_ip(&name).await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        let requests = Requests::start_by(self.protocol, &cluster.ns("client")?, at(vip, 80), PER_SECOND);
        let (end, mut flaps) = (Instant::now() + FLAPPING, 0);
        while Instant::now() < end {
            set(false).await?;
            set(true).await?;
            flaps += 1;
        }
        Ok((flaps, requests.stop().await?))
    }

    /// An address that no other test had: for two minutes nodes remember connections of the same client to a VIP whose pods went
    /// with them (E94 loses some), and a port that comes again is sent there, as with every proxy. Pools let addresses rest for
    /// that (A18), but not the lab's.
    fn vip(&self) -> String {
        format!("192.0.2.{}", 201 + 2 * self.protocol as u8 + self.going as u8)
    }

    /// One that stays and one that may be gone.
    fn endpoints(&self, ips: &[String], there: bool) -> Value {
        let mut all: Vec<Value> =
            ips.iter().map(|ip| json!({ "addresses": [ip], "conditions": { "ready": true } })).collect();
        match (there, self.going) {
            (true, _) => {}
            (false, Going::Vanishes) => drop(all.pop()),
            (false, Going::Terminates) => {
                all[1]["conditions"] = json!({ "ready": false, "serving": true, "terminating": true });
            }
        }
        all.into()
    }
}
