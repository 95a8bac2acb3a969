//! What the metrics address serves (S62): what kube-proxy's does, without profiles.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS};
use axum::response::IntoResponse;
use axum::routing::get;
use jiff::Timestamp;
use serde_json::json;
use tokio::sync::watch;

use super::{Metrics, text};
use crate::config::Config;
use crate::health::{self, Bind};
use crate::localhost;
use crate::reporter::Reporter;
use crate::speaker::SpeakerStatus;

/// What the pages tell of.
pub struct Pages {
    pub metrics: Arc<Metrics>,
    pub speaker: watch::Receiver<Arc<SpeakerStatus>>,
    pub config: watch::Receiver<Config>,
}

/// Serves until the process ends; see [`health::serve_always`] for an address that is taken.
pub async fn serve(bind: Bind, pages: Pages, reporter: Reporter) -> anyhow::Result<()> {
    health::serve_always(bind, router(pages), "/metrics", "FailedToStartMetricServer", reporter).await
}

const PATHS: [&str; 7] =
    ["/configz", "/flagz", "/healthz", "/metrics", "/metrics/slis", "/proxyMode", "/statusz"];

fn router(pages: Pages) -> Router {
    let Pages { metrics, speaker, config } = pages;
    let started = Timestamp::now();
    let render = async move || {
        count_refused(&metrics);
        let status = speaker.borrow().clone();
        ([(CONTENT_TYPE, text::CONTENT_TYPE)], metrics.render(status.sessions.values()))
    };
    let slis = "# HELP kubernetes_healthcheck This metric records the result of a single healthcheck.\n\
                # TYPE kubernetes_healthcheck gauge\nkubernetes_healthcheck{name=\"ping\",type=\"healthz\"} 1\n";
    Router::new()
        .route("/metrics", get(render))
        .route("/metrics/slis", get(async move || ([(CONTENT_TYPE, text::CONTENT_TYPE)], slis)))
        .route("/proxyMode", get(|| async { plain("nftables".into()) }))
        .route("/healthz", get(|| async { plain("ok".into()) }))
        .route("/configz", get(async move || configz(&config.borrow())))
        .route("/statusz", get(async move || plain(statusz(started, Timestamp::now()))))
        .route("/flagz", get(async || plain(flagz(std::env::args()))))
}

fn plain(text: String) -> impl IntoResponse {
    ([(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")], text)
}

/// The configuration in force, with what was not given.
fn configz(config: &Config) -> impl IntoResponse + use<> {
    ([(CONTENT_TYPE, "application/json")], format!("{}\n", json!({ "portolan.dev": config })))
}

fn statusz(started: Timestamp, now: Timestamp) -> String {
    let up = now.duration_since(started).as_secs();
    let paths = PATHS.join(" ");
    format!(
        "portolan-agent statusz\nWarning: This endpoint is not meant to be machine parseable, has no formatting compatibility \
         guarantees and is for debugging purposes only.\n\nStarted: {started}\nUp: {up} s\nVersion: {}\nPaths: {paths}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The command line; there is nothing secret in it.
fn flagz(arguments: impl Iterator<Item = String>) -> String {
    let flags = arguments.filter_map(|argument| argument.strip_prefix("--").map(str::to_owned));
    let title = "portolan-agent flagz\nWarning: This endpoint is not meant to be machine parseable, has no formatting \
                 compatibility guarantees and is for debugging purposes only.\n\n";
    flags.fold(title.to_owned(), |text, flag| text + &flag + "\n")
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
