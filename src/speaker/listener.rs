//! Connections that peers make.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::sleep;

/// A mesh that restarts at once connects at once (B25, B40).
const BACKLOG: i32 = 4096;

pub(super) struct Accepted {
    pub(super) stream: TcpStream,
    pub(super) local: SocketAddr,
    pub(super) remote: SocketAddr,
}

/// Each family has its own socket, so that listening on both is two addresses.
pub(super) fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

pub(super) async fn accept(listener: TcpListener, accepted: mpsc::Sender<Accepted>) {
    loop {
        match accept_one(&listener).await {
            Ok(connection) => {
                if accepted.send(connection).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "BGP: accepting a connection");
                // Out of file descriptors, most likely: the next try would fail at once, too.
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn accept_one(listener: &TcpListener) -> io::Result<Accepted> {
    let (stream, remote) = listener.accept().await?;
    let local = stream.local_addr()?;
    Ok(Accepted { stream, local, remote })
}
