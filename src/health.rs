//! The servers that load balancers ask: the node's /healthz and /livez with kube-proxy's meanings (S58, S59), and one small
//! server for each healthCheckNodePort (S60, S61). What they answer is decided in `plan::health`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use jiff::Timestamp;
use portolan_model::{Name, ObjectId};
use portolan_plan::health::{Node, Port, Ports};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::events::{self, Events};
use crate::http;
use crate::metrics::Metrics;
use crate::reporter::{Reporter, START};

/// Between two attempts to bind.
const RETRY: Duration = Duration::from_secs(5);
const WEIGHT: HeaderName = HeaderName::from_static("x-load-balancing-endpoint-weight");

/// What the node's line says of itself; the latest counts.
#[derive(Clone, Debug)]
pub struct Health {
    /// Since when a change waits that the kernel does not have.
    waiting_since: Option<Instant>,
    /// When the kernel had everything last.
    applied_at: Timestamp,
    pub eligible: bool,
    pub node_uid: Option<Name>,
    pub ports: Ports,
    /// Where those are served (S60).
    pub addresses: BTreeSet<IpAddr>,
}

/// Before the first change all is well (S58).
impl Default for Health {
    fn default() -> Self {
        Health {
            waiting_since: None,
            applied_at: Timestamp::now(),
            eligible: true,
            node_uid: None,
            ports: Ports::default(),
            addresses: BTreeSet::new(),
        }
    }
}

impl Health {
    /// There is a change to apply; an older one that waits still counts.
    pub fn waits_since(&mut self, now: Instant) {
        self.waiting_since.get_or_insert(now);
    }

    /// The kernel has everything.
    pub fn applied(&mut self) {
        (self.waiting_since, self.applied_at) = (None, Timestamp::now());
    }

    fn node(&self, now: Instant) -> Node {
        let waiting = self.waiting_since.map(|since| now.saturating_duration_since(since));
        Node { waiting, eligible: self.eligible }
    }
}

/// Serves /healthz and /livez until the process ends.
pub async fn serve_node(
    bind: Bind,
    health: watch::Receiver<Health>,
    metrics: Arc<Metrics>,
    reporter: Reporter,
) -> anyhow::Result<()> {
    let router = node_router(health, metrics);
    serve_always(bind, router, "/healthz", "FailedToStartProxierHealthcheck", reporter).await
}

/// Where a server of the node's listens.
#[derive(Clone, Copy, Debug)]
pub struct Bind {
    pub address: SocketAddr,
    /// Not being able to is the end, as with kube-proxy's bindAddressHardFail.
    pub hard_fail: bool,
}

/// Tries again where the address is taken, and says so once; fails only where that is asked for.
pub async fn serve_always(
    bind: Bind,
    router: Router,
    what: &str,
    reason: &str,
    reporter: Reporter,
) -> anyhow::Result<()> {
    let Bind { address, hard_fail } = bind;
    let mut said = false;
    loop {
        if let Err(error) = serve(address, router.clone()).await {
            let note = format!("cannot serve {what} on {address}: {error}");
            if !std::mem::replace(&mut said, true) {
                let next = if hard_fail { "" } else { "; trying again" };
                reporter.warn(reason, START, &format!("{note}{next}"));
            }
            anyhow::ensure!(!hard_fail, "{note}, and bindAddressHardFail is set");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn serve(address: SocketAddr, router: Router) -> io::Result<()> {
    let listener = http::bind(address).await?;
    axum::serve(listener, router).await
}

fn node_router(health: watch::Receiver<Health>, metrics: Arc<Metrics>) -> Router {
    let (live, counted) = (health.clone(), metrics.clone());
    let healthz = async move || {
        let response = healthz(&health.borrow(), Instant::now(), Timestamp::now());
        metrics.healthz_answered(response.status().is_success());
        response
    };
    let livez = async move || {
        let response = livez(&live.borrow(), Instant::now(), Timestamp::now());
        counted.livez_answered(response.status().is_success());
        response
    };
    Router::new().route("/healthz", get(healthz)).route("/livez", get(livez))
}

fn healthz(health: &Health, now: Instant, clock: Timestamp) -> Response {
    let node = health.node(now);
    let mut body = times(health, node, clock);
    body["nodeEligible"] = node.eligible.into();
    answer(node.is_healthy(), &body)
}

fn livez(health: &Health, now: Instant, clock: Timestamp) -> Response {
    let node = health.node(now);
    answer(node.is_live(), &times(health, node, clock))
}

fn times(health: &Health, node: Node, clock: Timestamp) -> Value {
    let updated = if node.is_live() { clock } else { health.applied_at };
    json!({ "lastUpdated": updated.to_string(), "currentTime": clock.to_string() })
}

fn answer(is_well: bool, body: &Value) -> Response {
    let status = if is_well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let headers = [
        (header::CONTENT_TYPE, "application/json"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A kept connection would outlive its listener.
        (header::CONNECTION, "close"),
    ];
    (status, headers, format!("{body}\n")).into_response()
}

/// Serves every healthCheckNodePort there is until `health` ends. What cannot be bound is tried again, and its Service told once.
pub async fn serve_ports(mut health: watch::Receiver<Health>, events: Events) {
    let mut servers: BTreeMap<SocketAddr, Server> = BTreeMap::new();
    loop {
        let (ports, addresses) = {
            let now = health.borrow_and_update();
            (now.ports.clone(), now.addresses.clone())
        };
        let is_gone =
            |at: &SocketAddr, _: &mut Server| !addresses.contains(&at.ip()) || ports.get(at.port()).is_none();
        for (_, server) in servers.extract_if(.., is_gone) {
            server.close().await;
        }
        for (number, port) in ports.iter() {
            for at in addresses.iter().map(|ip| SocketAddr::new(*ip, number)) {
                let server = servers.entry(at).or_default();
                if server.task.is_none() {
                    server.start(at, port, &health, &events).await;
                }
            }
        }
        let failed = servers.values().any(|server| server.task.is_none());
        tokio::select! {
            changed = health.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// One listener, closed when dropped.
#[derive(Default)]
struct Server {
    task: Option<JoinHandle<io::Result<()>>>,
    said: bool,
}

impl Server {
    async fn start(
        &mut self,
        at: SocketAddr,
        port: &Port,
        health: &watch::Receiver<Health>,
        events: &Events,
    ) {
        match http::bind(at).await {
            Ok(listener) => {
                let (health, number) = (health.clone(), at.port());
                let answer = async move || port_answer(number, &health.borrow(), Instant::now());
                let server = axum::serve(listener, Router::new().fallback(answer)).into_future();
                self.task = Some(tokio::spawn(server));
            }
            Err(error) if !self.said => {
                self.said = true;
                let note = format!("cannot serve the healthCheckNodePort at {at}: {error}; trying again");
                tracing::warn!(service = %port.service, "{note}");
                let about = events::about(&ObjectId::service(&port.service), &port.uid);
                events.warning(about, "FailedToStartServiceHealthcheck", &note);
            }
            Err(_) => {}
        }
    }
}

impl Server {
    /// Returns when the address is free: every address is in the way of one, and one of every.
    async fn close(mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
            drop(task.await);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn port_answer(number: u16, health: &Health, now: Instant) -> Response {
    let Some(port) = health.ports.get(number) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response(); // it closes this moment
    };
    let node = health.node(now);
    let body = json!({
        "service": { "namespace": &*port.service.namespace, "name": &*port.service.name },
        "localEndpoints": port.local_endpoints,
        "serviceProxyHealthy": node.is_live(),
    });
    let mut response = answer(port.is_healthy(node), &body);
    response.headers_mut().insert(WEIGHT, port.local_endpoints.into());
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn text(response: Response) -> String {
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, 4096).await.unwrap();
        let json = parts.headers.get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json")
            && parts.headers.get(header::X_CONTENT_TYPE_OPTIONS).is_some_and(|value| value == "nosniff");
        assert!(json, "{parts:?}");
        format!("{} {}", parts.status.as_u16(), String::from_utf8_lossy(&body).trim_end())
    }

    #[tokio::test]
    async fn s58_s59_answers() {
        let clock: Timestamp = "2026-01-02T03:04:05Z".parse().unwrap();
        let start = Instant::now();
        let mut health = Health { applied_at: "2026-01-01T00:00:00Z".parse().unwrap(), ..Health::default() };
        let well = r#""currentTime":"2026-01-02T03:04:05Z","lastUpdated":"2026-01-02T03:04:05Z""#;
        assert_eq!(
            text(healthz(&health, start, clock)).await,
            format!("200 {{{well},\"nodeEligible\":true}}")
        );
        health.eligible = false;
        assert_eq!(
            text(healthz(&health, start, clock)).await,
            format!("503 {{{well},\"nodeEligible\":false}}")
        );
        assert_eq!(text(livez(&health, start, clock)).await, format!("200 {{{well}}}"));
        health.waits_since(start);
        health.waits_since(start + Duration::from_secs(50));
        let later = start + Duration::from_secs(61);
        let ill = r#"{"currentTime":"2026-01-02T03:04:05Z","lastUpdated":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(text(livez(&health, later, clock)).await, format!("503 {ill}"));
        health.applied();
        assert_eq!(text(livez(&health, later, clock)).await, format!("200 {{{well}}}"));
    }
}
