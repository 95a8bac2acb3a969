//! The demonstration: what a user does, on a real cluster, until a client behind a router has its answers.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::TryStreamExt;
use k8s_openapi::api::core::v1::{Node, Service};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;

use crate::held;
use crate::lab::Options;
use crate::netns::Namespace;
use crate::probe;
use crate::product::{NAMESPACE, Product, binary};
use crate::router::{Router, RouterKind};
use crate::site::Site;
use crate::topology::node_address;
use crate::wait::wait_for;

/// The demo's namespaces are `portolan-n1` and so on.
pub const PREFIX: &str = "portolan";
const VALUES: &str = include_str!("../demo-values.yaml");
const EXPOSE: [&str; 5] = ["expose", "deployment", "web", "--port=80", "--type=LoadBalancer"];
const CONTROLLERS: u8 = 2;
const PODS: usize = 4;
const REQUESTS: usize = 40;
const WITHIN: Duration = Duration::from_secs(60);
/// A SYN that was lost before the route was there is not worth its repetition.
const FIRST_ANSWER_PATIENCE: Duration = Duration::from_millis(50);

/// Runs the whole demo; a lab of an earlier run is removed first. The lab is left up, also after a failure.
pub async fn run(router: RouterKind) -> anyhow::Result<()> {
    let options = Options::with_prefix(PREFIX, router);
    let site = step("cluster of 3 nodes", held::up(&options)).await?;
    for part in &site.steps {
        println!("    {:<28}{:>6.1} s", part.name, part.took.as_secs_f64());
    }
    match on_cluster(&site, router).await {
        Ok(last_line) => {
            println!("\n{}\n\n{last_line}", what_next(&site)?);
            Ok(())
        }
        Err(error) => {
            eprintln!("\n{}\n{}", site.product_logs(15), site.how_to_look());
            Err(error.context("the demo failed; the lab is left up (make demo-down removes it)"))
        }
    }
}

async fn on_cluster(site: &Site, kind: RouterKind) -> anyhow::Result<String> {
    let client = site.connect().await?;
    let router = Router::new(kind, site.ns("router")?, site.dir());
    let mut product = Product::new(site.clone(), client.clone());

    let command = format!(
        "helm install portolan charts/portolan --namespace {NAMESPACE} --values tests/lab/demo-values.yaml"
    );
    step(&command, product.helm_install(VALUES)).await?;
    step(
        "agents and controllers (the lab has no images, and starts them itself)",
        product.start_all(CONTROLLERS),
    )
    .await?;
    step(
        "BGP: every node has a session, and the router has every podCIDR",
        routes_to_pods(site, &mut product, &client, &router),
    )
    .await?;

    let replicas = format!("--replicas={PODS}");
    let create = ["create", "deployment", "web", "--image=web", &replicas];
    kubectl(site, &create).await?;
    step("pods are ready", site.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])).await?;

    let (address, after_expose) = expose(site, &client).await?;
    println!("{}", site.kubectl(&["get", "service", "web"]).await?.trim_end());
    step("the router has the address by every node", routes_to_vip(site, &router, address)).await?;
    println!("    routes that {kind} put into the router's kernel:");
    println!("{}", show_routes(&router).await?);

    let to = SocketAddr::new(address, 80);
    let tally = step(&format!("{REQUESTS} requests from the client"), async {
        Ok(probe::many(&site.ns("client")?, to, REQUESTS).await)
    })
    .await?;
    for (pod, count) in &tally.pods {
        println!("    {pod:<28}{count:>4} answers");
    }
    product.check()?;
    for (name, rss) in product.names().iter().filter_map(|name| Some((name, product.rss_kib(name).ok()?))) {
        println!("    {name:<28}{:>6.1} MiB resident", rss as f64 / 1024.0);
    }
    let (answered, asked, pods) = (tally.answered, tally.asked(), tally.pods.len());
    ensure!(
        tally.failures.is_empty(),
        "{} of {asked} requests failed: {:?}",
        asked - answered,
        tally.failures[0]
    );
    ensure!(pods == PODS, "answers came from {pods} pods and not from {PODS}");
    let ms = after_expose.as_millis();
    Ok(format!(
        "demo ok: EXTERNAL-IP {address} answered {answered} of {asked} requests from {pods} pods, {ms} ms after expose"
    ))
}

/// `kubectl expose`, with a client that asks from the moment the address is known. The time counts from when the API
/// server had the Service to the first answer.
async fn expose(site: &Site, client: &Client) -> anyhow::Result<(IpAddr, Duration)> {
    let (seen, first_seen) = watch::channel(None);
    let services: Api<Service> = Api::default_namespaced(client.clone());
    let probe = first_answer(services, site.ns("client")?, seen);
    let commands = async {
        // The watch must be there first.
        let mut ready = first_seen.clone();
        ready.wait_for(Option::is_some).await.context("the watch of Services ended")?;
        site.kubectl(&EXPOSE).await
    };
    let both = async {
        let both = async { tokio::try_join!(probe, commands) };
        tokio::time::timeout(WITHIN, both).await.context("no answer from a new address")?
    };
    let (found, _) = step(&format!("kubectl {}, until a client is answered", EXPOSE.join(" ")), both).await?;
    Ok(found)
}

/// Reports on `listening` once it watches; then returns the address that the Service gets and how long after the Service was
/// made it answered.
async fn first_answer(
    services: Api<Service>,
    from: Namespace,
    listening: watch::Sender<Option<()>>,
) -> anyhow::Result<(IpAddr, Duration)> {
    let mut events =
        pin!(watcher(services, watcher::Config::default().fields("metadata.name=web")).default_backoff());
    let mut made = None;
    while let Some(event) = events.try_next().await? {
        let service = match event {
            watcher::Event::InitDone => {
                listening.send_replace(Some(()));
                continue;
            }
            watcher::Event::Apply(service) | watcher::Event::InitApply(service) => service,
            _ => continue,
        };
        let made = *made.get_or_insert_with(Instant::now);
        if let Some(address) = external_ip(&service) {
            let to = SocketAddr::new(address, 80);
            while probe::tcp_within(&from, to, FIRST_ANSWER_PATIENCE).await.is_err() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            return Ok((address, made.elapsed()));
        }
    }
    bail!("the watch of Services ended")
}

fn external_ip(service: &Service) -> Option<IpAddr> {
    let ingress = service.status.as_ref()?.load_balancer.as_ref()?.ingress.as_ref()?;
    ingress.first()?.ip.as_ref()?.parse().ok()
}

/// Every node's session is up and each of its podCIDRs goes by that node and no other.
async fn routes_to_pods(
    site: &Site,
    product: &mut Product,
    client: &Client,
    router: &Router,
) -> anyhow::Result<()> {
    let nodes = Api::<Node>::all(client.clone()).list(&Default::default()).await?;
    let wanted = nodes.items.iter().zip(1..).flat_map(|(node, number)| {
        let cidrs = node.spec.clone().unwrap_or_default().pod_cidrs.unwrap_or_default();
        cidrs.into_iter().map(move |cidr| (node.name_any(), cidr, node_address(number)))
    });
    let wanted: Vec<_> = wanted.collect();
    ensure!(wanted.len() == 2 * usize::from(site.nodes), "nodes and podCIDRs: {wanted:?}");
    wait_for("the router has a session with every node, and its podCIDRs", WITHIN, async || {
        product.check()?;
        let (sessions, routes) = (router.established().await?, router.bgp_routes().await?);
        let missing = wanted.iter().find(|(_, cidr, node)| {
            let by = routes.get(cidr).cloned().unwrap_or_default();
            !node.both().iter().any(|address| sessions.contains(address))
                || !node.both().iter().any(|address| by == BTreeSet::from([*address]))
        });
        Ok(missing.map_or(Ok(()), |(node, cidr, _)| {
            Err(format!("{node}, {cidr}: sessions {sessions:?}, routes {routes:?}"))
        }))
    })
    .await
}

async fn routes_to_vip(site: &Site, router: &Router, address: IpAddr) -> anyhow::Result<()> {
    wait_for("the router has the address by every node", WITHIN, async || {
        let by = router.routes(&address.to_string()).await?;
        Ok(if by.len() == usize::from(site.nodes) { Ok(()) } else { Err(format!("next hops {by:?}")) })
    })
    .await
}

async fn show_routes(router: &Router) -> anyhow::Result<String> {
    let mut text = String::new();
    for (prefix, by) in router.bgp_routes().await? {
        let by: Vec<String> = by.iter().map(IpAddr::to_string).collect();
        writeln!(text, "      {prefix:<18} by {}", by.join(", "))?;
    }
    Ok(text.trim_end().into())
}

async fn kubectl(site: &Site, args: &[&str]) -> anyhow::Result<()> {
    step(&format!("kubectl {}", args.join(" ")), site.kubectl(args)).await.map(drop)
}

/// Runs one step, prints how long it took, and says now and then that it is alive.
async fn step<T>(name: &str, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    println!("\n==> {name}");
    let start = Instant::now();
    let mut work = pin!(work);
    let mut alive = tokio::time::interval(Duration::from_secs(10));
    alive.tick().await;
    let result = loop {
        tokio::select! {
            result = &mut work => break result,
            _ = alive.tick() => println!("    still at it, {} s", start.elapsed().as_secs()),
        }
    };
    if result.is_ok() {
        println!("    {:.2} s", start.elapsed().as_secs_f64());
    }
    result.with_context(|| name.to_string())
}

fn what_next(site: &Site) -> anyhow::Result<String> {
    let (lab, portolan) = (std::env::current_exe()?, binary()?);
    let (lab, portolan, kubectl) = (lab.display(), portolan.display(), site.kubectl_path().display());
    let n1 = site.find_ns("n1")?;
    Ok(format!(
        "The cluster stays up. What to try next:
  export KUBECONFIG={}
  {kubectl} get services,endpointslices,pods -o wide
  {portolan} status
  {lab} request client 192.0.2.10:80 --count 10      # a client's view
  {lab} exec router -- ip route                      # the router's view
  {kubectl} scale deployment web --replicas 8
  ip netns exec {n1} nft list ruleset                # a node's view
  {lab} kill agent-n1                                # kill -9; then ask again, and:  {lab} start agent-n1
  make demo-down                                     # removes every trace",
        site.kubeconfig().display(),
    ))
}
