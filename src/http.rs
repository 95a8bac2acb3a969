//! /healthz and /readyz: whether the process lives, and whether it does its work.

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::sync::watch;

/// Serves until the process ends. `ready` carries why the process is not ready yet, or None.
///
/// Fails when the address cannot be bound.
pub async fn serve(address: SocketAddr, ready: watch::Receiver<Option<&'static str>>) -> anyhow::Result<()> {
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot serve HTTP on {address}"))?;
    let answer = move || {
        let state = *ready.borrow();
        async move {
            match state {
                None => (StatusCode::OK, "ok\n".to_owned()),
                Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")),
            }
        }
    };
    let router = Router::new().route("/healthz", get(|| async { "ok\n" })).route("/readyz", get(answer));
    tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "the HTTP server ended");
        }
    });
    Ok(())
}
