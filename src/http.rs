//! /healthz and /readyz: whether the process lives, and whether it does its work.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Serves until the process ends. `ready` carries why the process is not ready yet, or None.
///
/// Fails when the address cannot be bound.
pub async fn serve(address: SocketAddr, ready: watch::Receiver<Option<&'static str>>) -> anyhow::Result<()> {
    let listener = bind(address).await.with_context(|| format!("cannot serve HTTP on {address}"))?;
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

/// `[::]` is every address of both families, and of IPv4 where the kernel has no IPv6.
pub async fn bind(address: SocketAddr) -> std::io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) && address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}
