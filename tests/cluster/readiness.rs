//! Pods that are not ready, that end, that were evicted: who is asked all the same, and who never.

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointConditions;
use kube::api::{Patch, PatchParams};
use portolan_lab::netns::Namespace;
use serde_json::{Value, json};

use crate::asking::{Answered, End, Refused, Silent, Tcp, Udp, answered_by, ends};
use crate::fixture::{Cluster, at, beside, cluster_ip, node_port};
use crate::pods::{FOREVER, Wanted};

/// ClusterIP Services of the pods `web`, one that publishes those that are not ready, one that does not.
async fn two_services(cluster: &Cluster) -> anyhow::Result<[Service; 2]> {
    let service = async |name: &str, publish: bool| {
        let ports = json!([{ "name": "t", "port": 80 }, { "name": "u", "port": 80, "protocol": "UDP" }]);
        let spec = json!({
            "type": "ClusterIP", "selector": { "app": "web" }, "ports": ports, "publishNotReadyAddresses": publish,
        });
        cluster.expose(name, spec).await
    };
    Ok([service("publishes", true).await?, service("waits", false).await?])
}

#[test]
fn s9_e22_e23_pods_that_are_not_ready() {
    beside("s9-e22-e23-not-ready", async |cluster| {
        let unready = Wanted { ready: false, drain: FOREVER, ..Wanted::default() };
        let [_, asks] = cluster
            .run([unready, Wanted { name: "asks", app: "asks", node: 2, ..Wanted::default() }])
            .await?;
        let [publishes, waits] = two_services(cluster).await?;
        let (publishes, waits) = (at(cluster_ip(&publishes)?, 80), at(cluster_ip(&waits)?, 80));
        let n1 = cluster.ns("n1")?;
        let check = async || {
            for from in [&asks.ns, &n1] {
                for protocol in [Tcp, Udp] {
                    ends(from, publishes, protocol, Answered).await?;
                    ends(from, waits, protocol, Refused).await?;
                }
            }
            anyhow::Ok(())
        };
        check().await?;
        // Not ready, and now it ends as well.
        cluster.end("web").await?;
        for service in ["publishes", "waits"] {
            cluster
                .endpoints_that(service, "terminating", 1, |e| is(&e.conditions, |c| c.terminating))
                .await?;
        }
        check().await?;
        cluster.vanish("web").await
    });
}

fn is(conditions: &Option<EndpointConditions>, which: impl Fn(&EndpointConditions) -> Option<bool>) -> bool {
    conditions.as_ref().and_then(which) == Some(true)
}

#[test]
fn s38_e34_evicted_pods_are_refused_even_if_published() {
    beside("s38-e34-evicted", async |cluster| {
        let [_, asks] = cluster
            .run([Wanted::default(), Wanted { name: "asks", app: "asks", node: 2, ..Wanted::default() }])
            .await?;
        let services = two_services(cluster).await?;
        for service in &services {
            ends(&asks.ns, at(cluster_ip(service)?, 80), Tcp, Answered).await?;
        }
        // As the kubelet has it after an eviction; here the server goes on, so that an answer would come.
        let conditions = json!([{ "type": "Ready", "status": "False" }]);
        let status =
            json!({ "status": { "phase": "Failed", "reason": "Evicted", "conditions": conditions } });
        let pods = cluster.api::<Pod>();
        pods.patch_status("web", &PatchParams::default(), &Patch::Merge(status)).await?;
        for service in &services {
            for from in [&asks.ns, &cluster.ns("n1")?] {
                for protocol in [Tcp, Udp] {
                    ends(from, at(cluster_ip(service)?, 80), protocol, Refused).await?;
                }
            }
        }
        Ok(())
    });
}

#[test]
fn s30_s31_e39_e40_e41_e42_fallback_to_pods_that_terminate() {
    beside("s30-e39-e42-terminating", async |cluster| {
        let asks = |name, node| Wanted { name, app: "asks", node, ..Wanted::default() };
        let web = Wanted { drain: FOREVER, ..Wanted::default() };
        let [_, here, elsewhere] = cluster.run([web, asks("here", 1), asks("elsewhere", 2)]).await?;
        let make = async |name: &str, spec: Value| {
            let mut spec = spec;
            spec["selector"] = json!({ "app": "web" });
            cluster.expose(name, spec).await
        };
        let internal_cluster = make("internal-cluster", json!({ "type": "ClusterIP" })).await?;
        let policy = json!({ "type": "ClusterIP", "internalTrafficPolicy": "Local" });
        let internal_local = make("internal-local", policy).await?;
        let external_cluster = make("external-cluster", json!({ "type": "NodePort" })).await?;
        let policy = json!({ "type": "NodePort", "externalTrafficPolicy": "Local" });
        let external_local = make("external-local", policy).await?;
        let to_internal = at(cluster_ip(&internal_cluster)?, 80);
        let to_internal_local = at(cluster_ip(&internal_local)?, 80);
        let on = |node, service: &Service| anyhow::Ok(at(cluster.node_ip(node), node_port(service)?));
        let client = cluster.ns("client")?;
        let cases: Vec<(&Namespace, _, End)> = vec![
            // E39
            (&here.ns, to_internal, Answered),
            (&elsewhere.ns, to_internal, Answered),
            // E40
            (&here.ns, to_internal_local, Answered),
            (&elsewhere.ns, to_internal_local, Silent),
            // E41
            (&here.ns, on(1, &external_cluster)?, Answered),
            (&elsewhere.ns, on(2, &external_cluster)?, Answered),
            (&client, on(2, &external_cluster)?, Answered),
            // E42: from inside the cluster policy Local is no matter (S45).
            (&client, on(1, &external_local)?, Answered),
            (&client, on(2, &external_local)?, Silent),
            (&here.ns, on(1, &external_local)?, Answered),
            (&elsewhere.ns, on(2, &external_local)?, Answered),
        ];
        let check = async || {
            for (from, to, end) in &cases {
                ends(from, *to, Tcp, *end).await?;
            }
            anyhow::Ok(())
        };
        check().await?;
        cluster.end("web").await?;
        let names = ["internal-cluster", "internal-local", "external-cluster", "external-local"];
        for name in names {
            let fallback = |e: &EndpointConditions| {
                Some(e.ready == Some(false) && e.serving == Some(true) && e.terminating == Some(true))
            };
            cluster.endpoints_that(name, "as fallback", 1, |e| is(&e.conditions, fallback)).await?;
        }
        check().await?;
        // A ready pod elsewhere takes over where policy is Cluster, and only there.
        cluster.run([Wanted { name: "new", node: 3, ..Wanted::default() }]).await?;
        answered_by(&here.ns, to_internal, Tcp, &["new"]).await?;
        answered_by(&here.ns, to_internal_local, Tcp, &["web"]).await?;
        answered_by(&client, on(1, &external_local)?, Tcp, &["web"]).await?;
        cluster.vanish("web").await?;
        ends(&here.ns, to_internal_local, Tcp, Silent).await
    });
}
