//! When the API server's bytes reached a node, by the kernel's clock at its interface: an event is there then, whoever reads
//! it, and however late.

use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

use anyhow::Context;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use portolan_lab::netns::Namespace;
use portolan_lab::topology::CONTROL_PLANE;
use socket2::{Domain, Protocol, Socket, Type};

const ETH_P_IP: u16 = 0x0800;
const IP_HEADER: usize = 20;
const TCP: u8 = 6;
/// Headers are enough.
const LENGTH: usize = 128;

pub struct Wire {
    socket: OwnedFd,
}

impl Wire {
    /// Listens in the node's namespace from now on.
    pub fn tap(node: &Namespace) -> anyhow::Result<Wire> {
        let protocol = Protocol::from(i32::from(ETH_P_IP.to_be()));
        let socket =
            node.run(move || Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(protocol)))?;
        let socket = OwnedFd::from(socket.context("packet socket")?);
        setsockopt(&socket, sockopt::RcvBufForce, &(16 << 20))?;
        setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
        Ok(Wire { socket })
    }

    /// When data came from the API server since the last call, in order.
    pub fn take(&self) -> anyhow::Result<Vec<Instant>> {
        let (mut arrivals, clock) = (Vec::new(), (Instant::now(), SystemTime::now()));
        loop {
            let mut bytes = [0; LENGTH];
            let mut control = nix::cmsg_space!(libc::timespec);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let flags = MsgFlags::MSG_TRUNC;
            let received =
                recvmsg::<SockaddrStorage>(self.socket.as_raw_fd(), &mut parts, Some(&mut control), flags);
            let message = match received {
                Ok(message) => message,
                Err(nix::Error::EAGAIN) => return Ok(arrivals),
                Err(nix::Error::EINTR) => continue,
                Err(error) => return Err(error).context("packet socket"),
            };
            let stamps = message.cmsgs()?.find_map(|message| match message {
                ControlMessageOwned::ScmTimestampns(at) => Some(at),
                _ => None,
            });
            let at = stamps.context("a packet without a time")?;
            let since_epoch = Duration::new(at.tv_sec() as u64, at.tv_nsec() as u32);
            if is_data(&bytes) {
                let age = clock.1.duration_since(SystemTime::UNIX_EPOCH + since_epoch).unwrap_or_default();
                arrivals.extend(clock.0.checked_sub(age));
            }
        }
    }
}

/// Whether a packet has bytes of the API server for a client.
fn is_data(packet: &[u8; LENGTH]) -> bool {
    let is_ours = packet[9] == TCP && packet[12..16] == CONTROL_PLANE.v4.octets();
    let header = usize::from(packet[0] & 0xf) * 4;
    let all = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
    let tcp_header = packet.get(header + 12).map_or(IP_HEADER, |offset| usize::from(offset >> 4) * 4);
    is_ours && all > header + tcp_header
}
