//! Agents, controllers and the API server die and return; traffic and addresses stay.

use std::collections::BTreeMap;

use anyhow::Context;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::Api;
use portolan_lab::monitor::{Line, Monitor};
use portolan_lab::probe::{Connection, Requests};
use portolan_lab::product::NAMESPACE;
use portolan_lab::{probe, wait_for};
use serde_json::json;

use crate::asking::{Answered, Silent, Tcp, ends};
use crate::fixture::{Cluster, PATIENCE, at, cluster_ip, node_port, test};

#[test]
fn s74_kill_9_of_an_agent_stops_no_connection_and_its_restart_writes_nothing() {
    test("s74-kill-9", async |cluster| {
        cluster.alone().await?;
        cluster.deploy("web", 3, None).await?;
        let service = cluster.expose("web", json!({})).await?;
        let (ip, vip) = (cluster_ip(&service)?, cluster.external_ip("web").await?);
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        cluster.endpoints("web", 3).await?;
        let n1 = cluster.ns("n1")?;
        let mut open = Connection::open(&n1, at(ip, 80)).await?;
        open.ask().await?;
        let from_node = Requests::start(&n1, at(ip, 80), 50);
        let pods = cluster.pods("web").await?;
        let on_n1 = |pod: &&Pod| pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some("n1");
        let pod = pods.iter().find(on_n1).context("a pod on n1")?.name_any();
        let from_pod = Requests::start(&cluster.lab.pod_ns(&cluster.namespace, &pod)?, at(ip, 80), 50);

        let rules = Monitor::nftables(&n1).await?;
        let routes = Monitor::routes(&n1).await?;
        cluster.lab.product.lock().await.kill("agent-n1").await?;
        // Clients outside go by the other nodes.
        cluster.routed_by(&vip.to_string(), &[2, 3]).await?;
        let outside = probe::many(&cluster.ns("client")?, at(vip, 80), 30).await;
        assert_eq!(outside.answered, 30, "{outside:?}");
        open.ask().await.context("a connection that was open")?;

        cluster.lab.product.lock().await.start_agent("n1").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        // It announces, so it has compared everything; it found nothing to write.
        let (rules, routes) = (rules.lines(), routes.lines());
        assert!(rules.is_empty() && routes.is_empty(), "the restart wrote {rules:?} {routes:?}");

        open.ask().await.context("a connection that was open")?;
        for (who, requests) in [("node", from_node), ("pod", from_pod)] {
            // The restart may take less time than twenty requests do.
            wait_for("twenty requests were made", PATIENCE, async || {
                let asked = requests.so_far().asked();
                Ok(if asked > 20 { Ok(()) } else { Err(asked) })
            })
            .await?;
            let tally = requests.stop().await?;
            assert!(tally.failures.is_empty(), "from the {who}: {tally:?}");
        }
        Ok(())
    });
}

#[test]
fn a06_the_leader_is_killed_and_the_other_controller_goes_on() {
    test("a06-leader-killed", async |cluster| {
        cluster.deploy("web", 1, None).await?;
        cluster.expose("web", json!({})).await?;
        let before = cluster.external_ip("web").await?;
        let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), NAMESPACE);
        let holder = async || -> anyhow::Result<String> {
            let lease = leases.get("portolan-controller").await?;
            Ok(lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default())
        };
        let leader = holder().await?;
        cluster.lab.product.lock().await.kill(&leader).await.with_context(|| format!("leader {leader:?}"))?;
        let patience = PATIENCE * 2;
        wait_for("another controller leads", patience, async || {
            let now = holder().await?;
            Ok(if now != leader && !now.is_empty() { Ok(()) } else { Err(now) })
        })
        .await?;
        let mut second = json!({ "metadata": { "name": "second" } });
        second["spec"] =
            json!({ "type": "LoadBalancer", "selector": { "app": "web" }, "ports": [{ "port": 80 }] });
        cluster.create_service(second).await?;
        let after = cluster.external_ip("second").await?;
        assert_ne!(before, after, "no address twice");
        assert_eq!(cluster.external_ip("web").await?, before, "a valid allocation never moves");
        Ok(())
    });
}

#[test]
fn a56_s69_e10_the_api_server_stops_and_starts_and_traffic_and_sessions_stay() {
    test("a56-api-outage", async |cluster| {
        cluster.alone().await?;
        cluster.deploy("web", 2, None).await?;
        cluster.expose("web", json!({})).await?;
        let vip = cluster.external_ip("web").await?;
        cluster.routed_by(&vip.to_string(), &[1, 2, 3]).await?;
        let routes = Monitor::routes(&cluster.ns("router")?).await?;
        let rules = Monitor::nftables(&cluster.ns("n1")?).await?;
        let requests = Requests::start(&cluster.ns("client")?, at(vip, 80), 50);
        cluster.stop_apiserver().await?;
        let during = probe::many(&cluster.ns("client")?, at(vip, 80), 50).await;
        assert_eq!(during.answered, 50, "{during:?}");
        assert!(rules.lines().is_empty(), "the outage changed the rules: {:?}", rules.lines());
        let sessions = async || anyhow::Ok(established(&cluster.router().await.ask("show protocols").await?));
        let before = sessions().await?;
        cluster.lab.start_apiserver().await?;
        // The agents follow the cluster again.
        cluster.scale("web", 3).await?;
        cluster.ready("web", 3).await?;
        let client = cluster.ns("client")?;
        wait_for("the third pod answers", PATIENCE, async || {
            let tally = probe::many(&client, at(vip, 80), 20).await;
            Ok(if tally.pods.len() == 3 { Ok(()) } else { Err(format!("{:?}", tally.pods)) })
        })
        .await?;
        // E10: a Service made after the restart answers as the one from before does.
        let spec = json!({ "type": "ClusterIP", "selector": { "app": "web" } });
        let after = cluster.expose("after", spec).await?;
        answered(cluster, at(cluster_ip(&after)?, 80)).await?;
        let now = sessions().await?;
        assert_eq!(before.len(), 3, "{before:?}");
        assert_eq!(now.keys().collect::<Vec<_>>(), before.keys().collect::<Vec<_>>());
        // BIRD works the time out from two clocks, which drift apart by milliseconds.
        let same = now.iter().all(|(name, since)| (since - before[name]).abs() < 1.0);
        assert!(same, "the sessions are the same, up since the same time: {before:?}, now {now:?}");
        let tally = requests.stop().await?;
        assert!(tally.failures.is_empty() && tally.answered > 50, "{tally:?}");
        let text = vip.to_string();
        let lost: Vec<_> = routes.lines().into_iter().filter(|line| line.text.contains(&text)).collect();
        assert!(lost.is_empty(), "the route changed: {lost:?}");
        // Another number of endpoints replaces the VIP's verdict; nothing else may touch it.
        let of_vip = |line: &Line| line.text.contains(" services ") && line.text.contains(&text);
        let changes: Vec<Line> = rules.lines().into_iter().filter(of_vip).collect();
        assert!(
            changes.last().is_none_or(|line| line.text.starts_with("create")),
            "the rules went: {changes:?}"
        );
        Ok(())
    });
}

/// E9: Services from before the restart, of the time in between, and from after it.
#[test]
fn s74_e9_services_of_every_time_answer_after_an_agents_restart() {
    test("s74-e9-restart", async |cluster| {
        cluster.run([crate::pods::Wanted::default()]).await?;
        let service = async |name: &str| {
            let spec = json!({ "type": "NodePort", "selector": { "app": "web" } });
            let service = cluster.expose(name, spec).await?;
            anyhow::Ok([at(cluster_ip(&service)?, 80), at(cluster.node_ip(1), node_port(&service)?)])
        };
        let before = service("before").await?;
        answered(cluster, before[0]).await?;
        let removed = service("removed").await?;
        answered(cluster, removed[0]).await?;
        cluster.lab.product.lock().await.kill("agent-n1").await?;
        answered(cluster, before[0]).await?;
        let between = service("between").await?;
        cluster.delete_service("removed").await?;
        cluster.lab.product.lock().await.start_agent("n1").await?;
        let after = service("after").await?;
        for to in [before, between, after].concat() {
            answered(cluster, to).await?;
        }
        ends(&cluster.ns("n1")?, removed[0], Tcp, Silent).await?; // S18, S63: what went meanwhile is gone
        cluster.sessions_of(&[1, 2, 3]).await
    });
}

/// Waits for an answer to n1 or, where n1 itself is asked, to the client.
async fn answered(cluster: &Cluster, to: std::net::SocketAddr) -> anyhow::Result<()> {
    let from = if to.ip() == cluster.node_ip(1) { "client" } else { "n1" };
    ends(&cluster.ns(from)?, to, Tcp, Answered).await
}

/// BIRD's established sessions, and since which second of the day each is up.
fn established(protocols: &str) -> BTreeMap<String, f64> {
    let session = |line: &str| {
        let [name, "BGP", _, "up", since, "Established"] = line.split_whitespace().collect::<Vec<_>>()[..]
        else {
            return None;
        };
        let seconds =
            since.split(':').try_fold(0.0, |sum, part| Some(sum * 60.0 + part.parse::<f64>().ok()?))?;
        Some((name.to_owned(), seconds))
    };
    protocols.lines().filter_map(session).collect()
}
