//! When transactions of nf_tables were committed, whoever made them.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, bail, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use portolan_lab::netns::Namespace;

// linux/netfilter/nfnetlink.h, nf_tables.h
const GROUP: u32 = 7;
const SUBSYSTEM: u16 = 10;
const NEWGEN: u16 = SUBSYSTEM << 8 | 15;
const GETGEN: u16 = SUBSYSTEM << 8 | 16;
const GEN_ID: u16 = 1;
const REQUEST: u16 = 1;
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;
const LENGTH: usize = 64 << 10;

fn open(ns: &Namespace) -> anyhow::Result<OwnedFd> {
    let made = ns.run(|| {
        let kind = (AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC);
        let made = socket(kind.0, kind.1, kind.2, SockProtocol::NetlinkNetFilter)?;
        bind(made.as_raw_fd(), &NetlinkAddr::new(0, 0))?;
        Ok::<_, nix::Error>(made)
    })?;
    made.context("nfnetlink socket")
}

/// The number of the ruleset: one higher with each transaction. Asking costs the kernel nearly nothing and takes no lock.
pub struct Generation {
    socket: OwnedFd,
}

impl Generation {
    pub fn open(ns: &Namespace) -> anyhow::Result<Generation> {
        Ok(Generation { socket: open(ns)? })
    }

    pub fn get(&self) -> anyhow::Result<u32> {
        let mut request = Vec::with_capacity(HEADER + FAMILY_HEADER);
        request.extend(((HEADER + FAMILY_HEADER) as u32).to_ne_bytes());
        request.extend(GETGEN.to_ne_bytes());
        request.extend(REQUEST.to_ne_bytes());
        request.extend([0; 8 + FAMILY_HEADER]);
        send(self.socket.as_raw_fd(), &request, MsgFlags::empty())?;
        let mut buffer = [0; 4096];
        let length = recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let message = messages(&buffer[..length]).next().context("no answer to GETGEN")?;
        ensure!(message.kind == NEWGEN, "answer {:#x} to GETGEN", message.kind);
        generation_id(message.body).context("GETGEN without a number")
    }
}

#[derive(Debug, Default)]
struct Heard {
    commits: Vec<Instant>,
    overrun: bool,
}

/// Hears every transaction from now on, in a thread of its own. While somebody listens the kernel makes a message of each
/// change, which whoever commits pays for: not for cold starts.
pub struct Listener {
    heard: Arc<Mutex<Heard>>,
    ended: Arc<AtomicBool>,
    socket: Arc<OwnedFd>,
}

impl Listener {
    pub fn start(ns: &Namespace) -> anyhow::Result<Listener> {
        let socket = Arc::new(open(ns)?);
        setsockopt(&*socket, sockopt::RcvBufForce, &(64 << 20))?;
        // The thread looks so often whether it is still wanted.
        setsockopt(&*socket, sockopt::ReceiveTimeout, &TimeVal::milliseconds(100))?;
        membership(&socket, libc::NETLINK_ADD_MEMBERSHIP).context("join the group of nf_tables")?;
        let (heard, ended) = (Arc::<Mutex<Heard>>::default(), Arc::<AtomicBool>::default());
        let (from, into, until) = (socket.clone(), heard.clone(), ended.clone());
        std::thread::spawn(move || hear(&from, &into, &until));
        Ok(Listener { heard, ended, socket })
    }

    /// All since the start or the last call. Fails if some were missed.
    pub fn take(&self) -> anyhow::Result<Vec<Instant>> {
        let mut heard = self.heard.lock().map_err(|_| anyhow::anyhow!("the listener died"))?;
        if heard.overrun {
            bail!("transactions were missed: the receive buffer was full");
        }
        Ok(std::mem::take(&mut heard.commits))
    }

    /// How many were committed since [`Listener::take`].
    pub fn count(&self) -> usize {
        self.heard.lock().map_or(0, |heard| heard.commits.len())
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = membership(&self.socket, libc::NETLINK_DROP_MEMBERSHIP);
        self.ended.store(true, Ordering::Relaxed);
    }
}

fn membership(socket: &OwnedFd, option: i32) -> io::Result<()> {
    let group = std::ptr::from_ref(&GROUP).cast();
    // SAFETY: the option's value is an integer that lives through the call.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_NETLINK, option, group, 4) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn hear(from: &OwnedFd, into: &Mutex<Heard>, until: &AtomicBool) {
    let mut buffer = vec![0; LENGTH];
    while !until.load(Ordering::Relaxed) {
        let received = recv(from.as_raw_fd(), &mut buffer, MsgFlags::empty());
        let at = Instant::now();
        let Ok(mut heard) = into.lock() else { return };
        match received {
            Ok(length) => {
                let commits = messages(&buffer[..length]).filter(|message| message.kind == NEWGEN);
                heard.commits.extend(commits.map(|_| at));
            }
            Err(nix::Error::ENOBUFS) => heard.overrun = true,
            // Nothing came for a while, or a signal.
            Err(_) => {}
        }
    }
}

struct Message<'a> {
    kind: u16,
    body: &'a [u8],
}

fn messages(mut bytes: &[u8]) -> impl Iterator<Item = Message<'_>> {
    std::iter::from_fn(move || {
        let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Message { kind, body })
    })
}

fn generation_id(body: &[u8]) -> Option<u32> {
    let mut attributes = body.get(FAMILY_HEADER..)?;
    loop {
        let length = u16::from_ne_bytes(attributes.get(..2)?.try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes(attributes.get(2..4)?.try_into().ok()?);
        let value = attributes.get(4..length)?;
        if kind == GEN_ID {
            return Some(u32::from_be_bytes(value.try_into().ok()?));
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_is_read() {
        let mut bytes = vec![28, 0, 0, 0];
        bytes.extend(NEWGEN.to_ne_bytes());
        bytes.extend([0; 10 + FAMILY_HEADER]);
        bytes.extend([8, 0, 1, 0, 0, 0, 1, 2]);
        let read: Vec<Option<u32>> = messages(&bytes).map(|message| generation_id(message.body)).collect();
        assert_eq!(read, [Some(258)]);
        assert_eq!(messages(&bytes[..20]).count(), 0);
    }
}
