//! What the metrics address serves (S62): /metrics, /proxyMode, /healthz.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::routing::get;
use tokio::sync::watch;

use super::Metrics;
use crate::health::{self, Reporter};
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
        let status = speaker.borrow().clone();
        ([(CONTENT_TYPE, OPEN_METRICS)], metrics.render(status.sessions.values()))
    };
    let router = Router::new()
        .route("/metrics", get(render))
        .route("/proxyMode", get(|| async { "nftables" }))
        .route("/healthz", get(|| async { "ok" }));
    health::serve_always(address, router, "/metrics", "FailedToStartMetricServer", reporter).await;
}
