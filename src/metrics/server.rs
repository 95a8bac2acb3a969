//! What the metrics address serves (S62): /metrics, /proxyMode, /healthz.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::sync::watch;

use super::Metrics;
use crate::health::{self, Reporter};
use crate::localhost;
use crate::speaker::SpeakerStatus;

const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the process ends; tries again where the address is taken.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    speaker: watch::Receiver<Arc<SpeakerStatus>>,
    reporter: Reporter,
) {
    let render = async move || {
        count_refused(&metrics);
        let status = speaker.borrow().clone();
        ([(CONTENT_TYPE, OPEN_METRICS)], metrics.render(status.sessions.values()))
    };
    let router = Router::new()
        .route("/metrics", get(render))
        .route("/proxyMode", get(|| async { "nftables" }))
        .route("/healthz", get(|| async { "ok" }));
    health::serve_always(address, router, "/metrics", "FailedToStartMetricServer", reporter).await;
}

/// The kernel counts (S22): it is asked when somebody wants to know.
fn count_refused(metrics: &Metrics) {
    match localhost::refused() {
        Ok(refused) => refused.into_iter().for_each(|(ip, protocol, packets)| {
            metrics.localhost_rejected(ip, protocol, packets);
        }),
        Err(error) => tracing::debug!(%error, "the kernel's count of refused packets"),
    }
}
