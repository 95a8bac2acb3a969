//! Tracked connections that lead nowhere any more, deleted over ctnetlink (S51–S53); and the settings of connection tracking
//! (S55).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use anyhow::Context;
use netlink_sys::{Socket, SocketAddr};
use nix::sys::socket::{setsockopt, sockopt};
use portolan_conntrack::sysctl::{self, Setting, Tuning};
use portolan_conntrack::{Answer, Content, Flow, answers};
use portolan_model::{Family, Protocol};
use portolan_plan::flows::Stale;

/// `NETLINK_NETFILTER`.
const NETFILTER: isize = 12;
const RECEIVE_BUFFER: usize = 8 << 20;
/// The kernel sends at most 32 KiB at once.
const RECEIVE_LEN: usize = 64 << 10;
/// Deletions in one message to the kernel: their errors must fit the receive buffer.
const DELETIONS: usize = 1024;

/// Calls are synchronous and block: the kernel does each request inside `sendto`.
pub struct Conntrack {
    socket: Socket,
    buffer: Vec<u8>,
    seq: u32,
}

/// What one cleaning did in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub deleted: usize,
    pub took: Duration,
}

impl Conntrack {
    /// In the network namespace of the calling thread.
    pub fn open() -> anyhow::Result<Conntrack> {
        let mut socket = Socket::new(NETFILTER).context("conntrack socket")?;
        socket.bind(&SocketAddr::new(0, 0)).context("conntrack socket")?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).context("conntrack socket")?;
        Ok(Conntrack { socket, buffer: Vec::with_capacity(RECEIVE_LEN), seq: 0 })
    }

    /// Deletes the entries that `stale` condemns, one dump for each family and protocol in it; says how many of each family
    /// went, and how long it took.
    pub fn clean(
        &mut self,
        stale: &Stale,
        node_ports: &BTreeSet<IpAddr>,
    ) -> anyhow::Result<BTreeMap<Family, Cleaned>> {
        let mut cleaned: BTreeMap<Family, Cleaned> = BTreeMap::new();
        for (family, protocol) in stale.tables() {
            let start = Instant::now();
            let mut condemned = self.flows(family, protocol)?;
            condemned.retain(|flow| stale.condemns(protocol, flow.original.dst, flow.reply.src, node_ports));
            let cleaned = cleaned.entry(family).or_default();
            cleaned.deleted += self.delete(&condemned)?;
            cleaned.took += start.elapsed();
        }
        Ok(cleaned)
    }

    /// All entries of one family and protocol.
    pub fn flows(&mut self, family: Family, protocol: Protocol) -> anyhow::Result<Vec<Flow>> {
        let any = match family {
            Family::Ipv4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Family::Ipv6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        self.seq = self.seq.wrapping_add(1);
        let seq = self.seq;
        let mut flows = Vec::new();
        self.send(&portolan_conntrack::dump(any, protocol.number(), seq))?;
        self.read(|answer| match answer.content {
            _ if answer.seq != seq => Ok(false),
            Content::Flow(flow) => {
                // An old kernel gives every protocol.
                flows.extend((flow.protocol == protocol.number()).then_some(flow));
                Ok(false)
            }
            Content::Error(errno) => Err(io::Error::from_raw_os_error(errno)),
            Content::Done => Ok(true),
            Content::Ack | Content::Other => Ok(false),
        })
        .with_context(|| format!("reading the tracked {family} connections of {protocol}"))?;
        Ok(flows)
    }

    /// Returns how many went; those that have gone by themselves are no error.
    pub fn delete(&mut self, flows: &[Flow]) -> anyhow::Result<usize> {
        let mut deleted = 0;
        for flows in flows.chunks(DELETIONS) {
            let first = self.seq.wrapping_add(1);
            self.seq = self.seq.wrapping_add(flows.len() as u32);
            let last = self.seq;
            let mut missing = 0;
            self.send(&portolan_conntrack::delete(flows, first))?;
            self.read(|answer| match answer.content {
                Content::Error(libc::ENOENT) => {
                    missing += 1;
                    Ok(answer.seq == last)
                }
                Content::Error(errno) => Err(io::Error::from_raw_os_error(errno)),
                Content::Ack => Ok(answer.seq == last),
                Content::Flow(_) | Content::Done | Content::Other => Ok(false),
            })
            .context("deleting tracked connections")?;
            deleted += flows.len() - missing;
        }
        Ok(deleted)
    }

    fn send(&self, bytes: &[u8]) -> anyhow::Result<()> {
        self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0).map(drop).context("conntrack socket")
    }

    /// Until `f` says that it has the last answer.
    fn read(&mut self, mut f: impl FnMut(Answer) -> io::Result<bool>) -> io::Result<()> {
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map(drop)?,
            }
            for answer in answers(&self.buffer) {
                if f(answer)? {
                    return Ok(());
                }
            }
        }
    }
}

/// Writes the settings that differ. What cannot be read or written is said once and left as it is: a container's /proc and
/// /sys are often read-only, and a network namespace has no number of entries of its own (S55). Returns those, with why.
pub fn tune(tuning: &Tuning) -> Vec<(&'static str, io::Error)> {
    let mut failed = Vec::new();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    for setting in sysctl::wanted(tuning, cores) {
        if let Err(error) = set(&setting) {
            let (file, value) = (setting.file, setting.value);
            tracing::warn!(file, value, %error, "a setting of connection tracking stays as it is");
            failed.push((file, error));
        }
    }
    failed
}

fn set(setting: &Setting) -> io::Result<()> {
    let text = fs::read_to_string(setting.file)?;
    let present: u64 = text.trim().parse().map_err(io::Error::other)?;
    if present == setting.value || (setting.at_least && present > setting.value) {
        return Ok(());
    }
    fs::write(setting.file, setting.value.to_string())?;
    tracing::info!(file = setting.file, from = present, to = setting.value, "connection tracking is set");
    Ok(())
}
