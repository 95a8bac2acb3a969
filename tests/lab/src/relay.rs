//! The host's way to the API server: a port on the host's loopback, relayed into the control plane's namespace.

use std::net::SocketAddr;

use tokio::net::TcpListener;

use crate::netns::Namespace;

/// Listens on `127.0.0.1`, any port, and relays each connection to `to` as seen from inside `ns`.
pub async fn start(ns: Namespace, to: SocketAddr) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let at = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let ns = ns.clone();
            tokio::spawn(async move {
                // A server that is away closes the client's connection, as a direct one would be.
                if let Ok(mut server) = ns.connect(to).await {
                    let _ = client.set_nodelay(true);
                    let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
                }
            });
        }
    });
    Ok(at)
}
