//! Removes what kube-proxy's IPVS mode left beside its chains (S74): virtual servers first, for their addresses on the interface say
//! whose they are; the interface; and the sets, once no rule asks them.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use netlink_sys::{Socket, SocketAddr};
use nix::net::if_::if_nametoindex;
use portolan_conntrack::ipvs::{self, Content, SET_IN_USE, Server, answers};
use portolan_dataplane::take_over::ipvs::{DEVICE, NodeAddresses, is_kube_proxys_set};

/// `NETLINK_ROUTE`, `NETLINK_NETFILTER` and `NETLINK_GENERIC`.
const ROUTE: isize = 0;
const NETFILTER: isize = 12;
const GENERIC: isize = 16;
/// The kernel sends at most 32 KiB at once.
const RECEIVE_LEN: usize = 64 << 10;
/// There with IPVS and with ipset. Asking netlink for what is not there would load its modules.
const IPVS: &str = "/proc/thread-self/net/ip_vs";
const IPSET: &str = "/sys/module/ip_set";
/// The kernel frees a deleted rule, and the sets that it asked, some time after the transaction.
const LOOKS_AT_USED: usize = 25;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);
/// So many servers of others are named.
const NAMED: usize = 10;

/// What becomes of connections that run through a virtual server: the kernel drops their packets when it is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connections {
    /// Servers stay until they have none.
    Drain,
    End,
}

/// What was found and done.
#[derive(Debug, Default)]
pub struct Pass {
    /// A sentence.
    pub removed: Option<String>,
    /// Those of kube-proxy's that connections run through.
    pub draining: BTreeSet<Server>,
    /// Through them.
    pub connections: u64,
    /// Servers of others, in a sentence.
    pub foreign: Option<String>,
    /// kube-proxy has written servers again; nothing was removed.
    pub returned: bool,
}

/// Removes kube-proxy's virtual servers, and its interface once none is left. After the first pass, `known` is what it left
/// draining: one more server means that a kube-proxy runs.
pub fn remove(connections: Connections, known: Option<&BTreeSet<Server>>) -> anyhow::Result<Pass> {
    let addresses = node_addresses().context("addresses of this node")?;
    let mut ipvs = Ipvs::open().context("IPVS")?;
    let servers = ipvs.as_mut().map(Ipvs::servers).transpose().context("reading IPVS's virtual servers")?;
    let (theirs, foreign): (BTreeSet<Server>, BTreeSet<Server>) = servers
        .unwrap_or_default()
        .into_iter()
        .partition(|server| addresses.is_kube_proxys(server.address()));
    let mut pass = Pass { foreign: named(&foreign), ..Pass::default() };
    if known.is_some_and(|known| !theirs.is_subset(known)) {
        pass.returned = true;
        return Ok(pass);
    }
    let (mut removed, mut ended) = (0, 0);
    for server in theirs {
        let Some(ipvs) = &mut ipvs else { break };
        let through =
            ipvs.connections(&server).with_context(|| format!("destinations of virtual server {server}"))?;
        if through > 0 && connections == Connections::Drain {
            pass.connections += through;
            pass.draining.insert(server);
            continue;
        }
        ipvs.delete(&server).with_context(|| format!("delete virtual server {server}"))?;
        (removed, ended) = (removed + 1, ended + through);
    }
    let device = pass.draining.is_empty() && remove_device()?;
    pass.removed = said(removed, ended, device);
    Ok(pass)
}

/// Destroys kube-proxy's sets; one that a rule asks is named in the error, and does not keep the others.
pub fn remove_sets() -> anyhow::Result<Option<String>> {
    if !Path::new(IPSET).exists() {
        return Ok(None);
    }
    let mut netlink = Netlink::open(NETFILTER).context("ipset socket")?;
    let found = match netlink.exchange(ipvs::sets) {
        // A kernel without ipset does not know the subsystem.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Vec::new(),
        found => found.context("reading ipsets")?,
    };
    let theirs = found.into_iter().filter_map(|content| match content {
        Content::Set(name) if is_kube_proxys_set(&name) => Some(name),
        _ => None,
    });
    let mut left: BTreeSet<String> = theirs.collect();
    let found = left.len();
    let mut failed = destroy(&mut netlink, &mut left);
    for _ in 0..LOOKS_AT_USED {
        if left.is_empty() {
            break;
        }
        std::thread::sleep(BETWEEN_LOOKS);
        failed = destroy(&mut netlink, &mut left);
    }
    anyhow::ensure!(left.is_empty(), "ipsets: {}", failed.join(", "));
    Ok((found > 0).then(|| format!("{found} ipsets")))
}

/// Takes those that are gone out of `left`, and says what keeps the others.
fn destroy(netlink: &mut Netlink, left: &mut BTreeSet<String>) -> Vec<String> {
    let mut failed = Vec::new();
    left.retain(|name| {
        let error = match netlink.exchange(|seq| ipvs::destroy_set(name, seq)) {
            Ok(_) => return false,
            Err(error) => error,
        };
        match error.raw_os_error() {
            Some(libc::ENOENT) => return false,
            Some(SET_IN_USE) => failed.push(format!("{name} is in use")),
            _ => failed.push(format!("{name}: {error}")),
        }
        true
    });
    failed
}

fn named(foreign: &BTreeSet<Server>) -> Option<String> {
    let names: Vec<String> = foreign.iter().take(NAMED).map(ToString::to_string).collect();
    let more = if foreign.len() > NAMED { ", ..." } else { "" };
    (!names.is_empty()).then(|| format!("{}: {}{more}", foreign.len(), names.join(", ")))
}

fn said(servers: usize, ended: u64, device: bool) -> Option<String> {
    let ended = if ended > 0 { format!(" ({ended} connections ended)") } else { String::new() };
    let servers = (servers > 0).then(|| format!("{servers} virtual servers{ended}"));
    let device = device.then(|| format!("interface {DEVICE}"));
    let said: Vec<String> = [servers, device].into_iter().flatten().collect();
    (!said.is_empty()).then(|| said.join(", "))
}

fn node_addresses() -> io::Result<NodeAddresses> {
    let mut addresses = NodeAddresses::default();
    if if_nametoindex(DEVICE).is_ok() {
        addresses.device = Some(BTreeSet::new());
    }
    for found in nix::ifaddrs::getifaddrs()? {
        let Some(address) = found.address else { continue };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let Some(ip) = v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
        else {
            continue;
        };
        match &mut addresses.device {
            Some(device) if found.interface_name == DEVICE => device.insert(ip),
            _ => addresses.own.insert(ip),
        };
    }
    Ok(addresses)
}

fn remove_device() -> anyhow::Result<bool> {
    let Ok(index) = if_nametoindex(DEVICE) else { return Ok(false) };
    let removed = Netlink::open(ROUTE).and_then(|mut netlink| {
        match netlink.exchange(|seq| ipvs::delete_link(index, seq)) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(false),
            other => other.map(|_| true),
        }
    });
    removed.with_context(|| format!("delete interface {DEVICE}"))
}

struct Ipvs {
    netlink: Netlink,
    family: u16,
}

impl Ipvs {
    /// None for a kernel without IPVS.
    fn open() -> io::Result<Option<Ipvs>> {
        if !Path::new(IPVS).exists() {
            return Ok(None);
        }
        let mut netlink = Netlink::open(GENERIC)?;
        let found = match netlink.exchange(ipvs::family) {
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            found => found?,
        };
        let family = found.into_iter().find_map(|content| match content {
            Content::Family(family) => Some(family),
            _ => None,
        });
        Ok(family.map(|family| Ipvs { netlink, family }))
    }

    fn servers(&mut self) -> io::Result<BTreeSet<Server>> {
        let found = self.netlink.exchange(|seq| ipvs::servers(self.family, seq))?;
        let server = |content| match content {
            Content::Server(server) => Some(server),
            _ => None,
        };
        Ok(found.into_iter().filter_map(server).collect())
    }

    fn connections(&mut self, server: &Server) -> io::Result<u64> {
        let found = self.netlink.exchange(|seq| ipvs::destinations(self.family, server, seq))?;
        let count = |content: &Content| match content {
            Content::Connections(count) => *count,
            _ => 0,
        };
        Ok(found.iter().map(count).sum())
    }

    fn delete(&mut self, server: &Server) -> io::Result<()> {
        match self.netlink.exchange(|seq| ipvs::delete(self.family, server, seq)) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.map(drop),
        }
    }
}

/// Calls are synchronous: the kernel does each request inside `sendto`.
struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    seq: u32,
}

impl Netlink {
    /// In the network namespace of the calling thread.
    fn open(protocol: isize) -> io::Result<Netlink> {
        let mut socket = Socket::new(protocol)?;
        socket.bind(&SocketAddr::new(0, 0))?;
        Ok(Netlink { socket, buffer: Vec::with_capacity(RECEIVE_LEN), seq: 0 })
    }

    /// Everything that the kernel answers to one request.
    fn exchange(&mut self, request: impl FnOnce(u32) -> Vec<u8>) -> io::Result<Vec<Content>> {
        self.seq = self.seq.wrapping_add(1);
        self.socket.send_to(&request(self.seq), &SocketAddr::new(0, 0), 0)?;
        let mut found = Vec::new();
        loop {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map(drop)?,
            }
            for answer in answers(&self.buffer).filter(|answer| answer.seq == self.seq) {
                match answer.content {
                    Content::Done | Content::Ack => return Ok(found),
                    Content::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
                    other => found.push(other),
                }
            }
        }
    }
}
