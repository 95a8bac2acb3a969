//! Others' changes to nf_tables as they happen: to our own tables (S65), and a kube-proxy that comes back (S74).

use std::io;

use netlink_sys::{Socket, SocketAddr};
use portolan_dataplane::take_over::{KUBE_PROXY, is_kube_proxys};
use portolan_nft::{Content, Subject, messages};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
/// `NFNLGRP_NFTABLES`.
const GROUP: u32 = 7;
const RECEIVE_LEN: usize = 64 << 10;
const OURS: &str = "portolan";

/// What others have done since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// One of our tables may not be as we wrote it.
    pub ours: bool,
    /// Something of a kube-proxy was written.
    pub kube_proxy: bool,
}

/// Our own writes happen with the ears shut: an element each of a large load would be made into a message, only to be thrown
/// away. What others do meanwhile shows in the ruleset's generation, which counts transactions.
pub struct Watchtower {
    socket: AsyncFd<Socket>,
    buffer: Vec<u8>,
}

impl Watchtower {
    /// In the network namespace of the calling thread, within a tokio runtime.
    pub fn open() -> io::Result<Watchtower> {
        let mut socket = Socket::new(NETFILTER)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        socket.add_membership(GROUP)?;
        // SAFETY: the socket owns its descriptor, which is the same and open until the AsyncFd drops the socket.
        let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE)? };
        Ok(Watchtower { socket, buffer: Vec::with_capacity(RECEIVE_LEN) })
    }

    /// Hears nothing until [`Watchtower::listen`].
    pub fn shut(&self) -> io::Result<()> {
        self.socket.get_ref().drop_membership(GROUP)
    }

    pub fn listen(&self) -> io::Result<()> {
        self.socket.get_ref().add_membership(GROUP)
    }

    /// Waits until somebody else changed something that matters. Loses nothing when it is dropped.
    pub async fn changed(&mut self) -> io::Result<Seen> {
        loop {
            // Cleared first: what arrives while we read makes it ready again.
            self.socket.readable().await?.clear_ready();
            let seen = self.drain()?;
            if seen != Seen::default() {
                return Ok(seen);
            }
        }
    }

    /// What is queued; nothing is waited for.
    pub fn drain(&mut self) -> io::Result<Seen> {
        let mut seen = Seen::default();
        loop {
            self.buffer.clear();
            match self.socket.get_ref().recv(&mut self.buffer, 0) {
                Ok(_) => messages(&self.buffer).for_each(|message| seen.add(message.content)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(seen),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // some messages were lost: anything may have changed
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => seen.ours = true,
                Err(error) => return Err(error),
            }
        }
    }
}

impl Seen {
    fn add(&mut self, content: Content) {
        let Content::Object { kind, attributes, .. } = content else { return };
        let Some(subject) = Subject::read(kind, attributes) else { return };
        self.ours |= subject.table == OURS;
        self.kube_proxy |=
            subject.added && (subject.table == KUBE_PROXY || subject.chain.is_some_and(is_kube_proxys));
    }
}
