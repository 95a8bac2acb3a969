//! How BGP's sockets differ from others (B40).

use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;

use portolan_bgp::PeerConfig;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::net::TcpSocket;

/// Network control: CS6 in the DSCP field (RFC 4594 3.2).
const CS6: u32 = 48 << 2;

/// A socket to dial this peer from.
pub(super) fn socket(peer: &PeerConfig) -> io::Result<TcpSocket> {
    let socket = Socket::new(Domain::for_address(peer.remote), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_nonblocking(true)?;
    apply(&socket, peer)?;
    if let Some(source) = peer.source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    Ok(TcpSocket::from_std_stream(socket.into()))
}

pub(super) fn apply(socket: &impl AsFd, peer: &PeerConfig) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    // A peer that acknowledges nothing for a hold time is gone, whatever TCP would still try.
    socket.set_tcp_user_timeout(Some(peer.hold_time).filter(|time| !time.is_zero()))?;
    match peer.remote {
        SocketAddr::V4(_) => {
            socket.set_tos_v4(CS6)?;
            peer.ttl.map_or(Ok(()), |ttl| socket.set_ttl_v4(ttl.into()))
        }
        SocketAddr::V6(_) => {
            socket.set_tclass_v6(CS6)?;
            peer.ttl.map_or(Ok(()), |ttl| socket.set_unicast_hops_v6(ttl.into()))
        }
    }
}
