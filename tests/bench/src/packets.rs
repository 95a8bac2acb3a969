//! What a packet costs on its way through the node: frames are put on the client's wire one after the other from one core, and
//! the kernel carries each through the node, inside the sender's own time, to the server's wire, where it ends. Less the same
//! by plain routing, that is what the rules cost.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io, mem, ptr};

use anyhow::{Context, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use portolan_lab::netns::Namespace;
use socket2::{Domain, Protocol, Socket, Type};

use crate::objects::{self, TARGET_PORT};
use crate::pace::{self, Patience, Quickest};
use crate::stats::median;
use crate::usage::thread_cpu;
use crate::world::Wires;

/// In one go: quickly enough that the machine does not change its speed meanwhile.
const COUNT: u32 = 5_000;
/// So many rounds of each node on a core of our own are enough.
const ENOUGH: usize = 10;
/// For each size.
const PATIENCE: Duration = Duration::from_secs(150);
/// Before the first figure, to know how quick plain routing is on a core of our own.
const CALIBRATION: Duration = Duration::from_secs(15);
/// The kernel frees what it tracked a little later.
const FREEING: Duration = Duration::from_millis(20);
/// Frames handed to the kernel at once.
const BATCH: usize = 64;
/// Beside the wires' own addresses, and within the pods' range.
const CLIENTS: u32 = u32::from_be_bytes([10, 200, 64, 0]);
/// Nobody's: frames for it end where they arrive.
const NOBODY: &str = "02:00:00:00:00:01";

/// What a packet costs more than by plain routing, in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// The first of a connection.
    pub new: f64,
    /// One of a connection that is tracked already.
    pub established: f64,
}

/// Of one node.
#[derive(Clone, Debug)]
pub struct Measured {
    /// On a core of our own, as far as that was to be had.
    pub cost: Cost,
    /// The first of a connection in each turn, whatever the machine did meanwhile: to be compared with other nodes' in the same turn.
    pub turns: Vec<f64>,
}

/// One round: all costs within some hundredths of a second.
#[derive(Clone, Copy, Debug)]
struct Round {
    /// By plain routing, before and after.
    routed: [f64; 2],
    new: f64,
    established: f64,
}

impl Cost {
    fn of(rounds: &[Round]) -> Cost {
        let of = |f: fn(&Round) -> f64| {
            median(&rounds.iter().map(|round| round.over_routing(f(round))).collect::<Vec<_>>())
        };
        Cost { new: of(|round| round.new), established: of(|round| round.established) }
    }
}

impl Round {
    async fn run(routed: &Way<'_>, served: &Way<'_>) -> anyhow::Result<Round> {
        let before = routed.cost(COUNT, false).await?;
        let new = served.cost(COUNT, false).await?;
        let established = served.cost(COUNT, true).await?;
        let after = routed.cost(COUNT, false).await?;
        forget(served.wires).await?;
        Ok(Round { routed: [before, after], new, established })
    }

    fn quicker_routing(&self) -> f64 {
        self.routed[0].min(self.routed[1])
    }

    fn slower_routing(&self) -> f64 {
        self.routed[0].max(self.routed[1])
    }

    fn over_routing(&self, cost: f64) -> f64 {
        cost - (self.routed[0] + self.routed[1]) / 2.0
    }
}

/// How quick plain routing is on a core of our own.
pub async fn calibrate(plain: &Wires, quick: bool) -> anyhow::Result<Quickest> {
    let (routed, patience) = (Way::new(plain, &[endpoint()]).await?, Patience::of(CALIBRATION, quick));
    let mut quickest = Quickest::default();
    while !patience.is_over() {
        quickest.note(routed.cost(COUNT, false).await?);
    }
    Ok(quickest)
}

/// What packets cost on each of the nodes, which take turns, so that whatever slows the machine down slows all of them. Packets are for
/// each of a node's addresses by turns, and it must send them on to the server: where the kernel has put one of the Services can make a tenth
/// of the cost, and changes with every load. `plain` are the same wires with neither rules nor connection tracking, by which packets
/// for an endpoint go in between. A node's cost is the median of its rounds in which plain routing is as quick as it was ever.
pub async fn measure(
    plain: &Wires,
    quickest: &mut Quickest,
    nodes: &[(&Wires, Vec<SocketAddr>)],
    quick: bool,
) -> anyhow::Result<Vec<Measured>> {
    let routed = Way::new(plain, &[endpoint()]).await?;
    let mut turns = Vec::new();
    for (wires, to) in nodes {
        turns.push((Way::new(wires, to).await?, Vec::new()));
    }
    let patience = Patience::of(PATIENCE, quick);
    let many = turns.len();
    let counted: Vec<Vec<Round>> = loop {
        // Another one begins each time, so that none always follows the same one.
        let first = turns.first().map_or(0, |(_, rounds)| rounds.len());
        for at in first..first + many {
            let (served, rounds) = &mut turns[at % many];
            let round = Round::run(&routed, served).await?;
            quickest.note(round.quicker_routing());
            rounds.push((round.slower_routing(), round));
        }
        let alone = |rounds: &Vec<_>| pace::alone(rounds, *quickest, ENOUGH);
        if let Some(counted) = turns.iter().map(|(_, rounds)| alone(rounds)).collect() {
            break counted;
        }
        if patience.is_over() {
            pace::was_never_alone();
            let best = |rounds| alone(rounds).unwrap_or_else(|| pace::quickest(rounds, ENOUGH));
            break turns.iter().map(|(_, rounds)| best(rounds)).collect();
        }
    };
    for wires in nodes.iter().map(|(wires, _)| *wires).chain([plain]) {
        wires.node.ip("neigh del 10.200.2.2 dev server\n").await?;
    }
    let new = |(_, round): &(f64, Round)| round.over_routing(round.new);
    let all = turns.iter().map(|(_, rounds)| rounds.iter().map(new).collect());
    Ok(counted.iter().zip(all).map(|(rounds, turns)| Measured { cost: Cost::of(rounds), turns }).collect())
}

fn endpoint() -> SocketAddr {
    SocketAddr::new(objects::endpoint(0, 0).into(), TARGET_PORT)
}

/// What was tracked is gone, and its memory is free again.
async fn forget(node: &Wires) -> anyhow::Result<()> {
    node.node.output(&["conntrack", "-F"]).await?;
    tokio::time::sleep(FREEING).await;
    Ok(())
}

/// The frames that go one way.
struct Way<'a> {
    wires: &'a Wires,
    frames: Arc<Vec<[u8; FRAME]>>,
}

impl<'a> Way<'a> {
    async fn new(wires: &'a Wires, to: &[SocketAddr]) -> anyhow::Result<Way<'a>> {
        // The server's kernel shall not work on them.
        let neighbor = format!("neigh replace 10.200.2.2 lladdr {NOBODY} dev server nud permanent\n");
        wires.node.ip(&neighbor).await?;
        let frames = Arc::new(frames(wires, to, CLIENTS, COUNT).await?);
        Ok(Way { wires, frames })
    }

    /// Of one packet, when so many are sent: as many connections, or always the same one.
    async fn cost(&self, count: u32, same: bool) -> anyhow::Result<f64> {
        let before = sent(self.wires).await?;
        let (client, frames) = (self.wires.client.clone(), self.frames.clone());
        let send = move || Sender::new(&client)?.send(if same { &frames[..1] } else { &frames }, count);
        let took = std::thread::scope(|scope| {
            scope.spawn(send).join().map_err(|_| anyhow::anyhow!("the sender died"))
        })??;
        let arrived = sent(self.wires).await? - before;
        // A few more may be of others: neighbours asking each other.
        let complete = (u64::from(count)..u64::from(count) + 20).contains(&arrived);
        ensure!(complete, "of {count} packets the node sent on {arrived}");
        Ok(took.as_nanos() as f64 / f64::from(count))
    }
}

/// Packets that the node has put on the server's wire.
async fn sent(wires: &Wires) -> anyhow::Result<u64> {
    let text = wires.node.output(&["ip", "-j", "-s", "link", "show", "dev", "server"]).await?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    json[0]["stats64"]["tx"]["packets"].as_u64().context("tx.packets")
}

async fn mac(ns: &Namespace, device: &str) -> anyhow::Result<[u8; 6]> {
    let text = ns.output(&["ip", "-j", "link", "show", "dev", device]).await?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let text = json[0]["address"].as_str().context("address")?;
    let bytes: Result<Vec<u8>, _> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect();
    bytes?.try_into().ok().context("address")
}

/// SYNs of so many connections, each to the next of `to`.
async fn frames(node: &Wires, to: &[SocketAddr], from: u32, count: u32) -> anyhow::Result<Vec<[u8; FRAME]>> {
    let macs = (mac(&node.node, "client").await?, mac(&node.client, "eth0").await?);
    let each = |(number, to): (u32, &SocketAddr)| match to.ip() {
        IpAddr::V4(ip) => Ok(syn(macs, (from.into(), 1024 + number as u16), (ip, to.port()))),
        IpAddr::V6(_) => anyhow::bail!("{to} is not IPv4"),
    };
    ensure!(count <= 60_000, "more connections than ports");
    (0..count).zip(to.iter().cycle()).map(each).collect()
}

const ETHERNET: usize = 14;
const FRAME: usize = ETHERNET + 20 + 20;

fn syn((to_mac, from_mac): ([u8; 6], [u8; 6]), from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&to_mac);
    frame[6..12].copy_from_slice(&from_mac);
    frame[12..14].copy_from_slice(&[8, 0]);
    let (ip, tcp) = frame[ETHERNET..].split_at_mut(20);
    ip[0] = 0x45;
    ip[3] = 40;
    // TTL, TCP
    ip[8..10].copy_from_slice(&[64, 6]);
    ip[12..16].copy_from_slice(&from.0.octets());
    ip[16..20].copy_from_slice(&to.0.octets());
    let sum = checksum(ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    tcp[0..2].copy_from_slice(&from.1.to_be_bytes());
    tcp[2..4].copy_from_slice(&to.1.to_be_bytes());
    // header length, SYN, window
    tcp[12..16].copy_from_slice(&[0x50, 2, 0xff, 0xff]);
    // the pseudo-header: addresses, protocol, length
    let pseudo = words(&ip[12..20]) + 6 + 20;
    let sum = checksum(tcp, pseudo);
    tcp[16..18].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn words(bytes: &[u8]) -> u32 {
    bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum()
}

fn checksum(bytes: &[u8], more: u32) -> u16 {
    let mut sum = words(bytes) + more;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

/// Sends from the first core.
struct Sender {
    socket: OwnedFd,
}

impl Sender {
    fn new(client: &Namespace) -> anyhow::Result<Sender> {
        let mut core = CpuSet::new();
        core.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &core)?;
        let socket = client.run(open)?.context("packet socket")?;
        Ok(Sender { socket })
    }

    /// `frames` over and over until it is `count`; the CPU time that took.
    fn send(&self, frames: &[[u8; FRAME]], count: u32) -> anyhow::Result<Duration> {
        let mut parts: Vec<libc::iovec> = frames
            .iter()
            .cycle()
            .take(count as usize)
            .map(|frame| libc::iovec { iov_base: frame.as_ptr().cast_mut().cast(), iov_len: FRAME })
            .collect();
        let message = |part: &mut libc::iovec| libc::mmsghdr {
            msg_hdr: libc::msghdr {
                msg_iov: ptr::from_mut(part),
                msg_iovlen: 1,
                // SAFETY: all-zero is a message without name and control data.
                ..unsafe { mem::zeroed() }
            },
            msg_len: 0,
        };
        let mut messages: Vec<libc::mmsghdr> = parts.iter_mut().map(message).collect();
        let start = busy()?;
        for batch in messages.chunks_mut(BATCH) {
            let mut done = 0;
            while done < batch.len() {
                let rest = &mut batch[done..];
                // SAFETY: the messages point at `parts` and those at `frames`, which both outlive the call.
                let sent = unsafe {
                    libc::sendmmsg(self.socket.as_raw_fd(), rest.as_mut_ptr(), rest.len() as u32, 0)
                };
                if sent < 0 {
                    return Err(io::Error::last_os_error()).context("sendmmsg");
                }
                done += sent as usize;
            }
        }
        Ok(busy()? - start)
    }
}

/// In the namespace of the calling thread, on its eth0, without a queue.
fn open() -> anyhow::Result<OwnedFd> {
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    let index = nix::net::if_::if_nametoindex("eth0")?;
    // SAFETY: all-zero is a valid address; it lives through the call.
    let bound = unsafe {
        let mut address: libc::sockaddr_ll = mem::zeroed();
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = index as i32;
        let length = mem::size_of_val(&address) as u32;
        libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), length)
    };
    ensure!(bound == 0, "bind to eth0: {}", io::Error::last_os_error());
    let on = 1i32;
    // SAFETY: the value lives through the call.
    let set = unsafe {
        let (value, length) = (ptr::from_ref(&on).cast(), mem::size_of_val(&on) as u32);
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, value, length)
    };
    ensure!(set == 0, "PACKET_QDISC_BYPASS: {}", io::Error::last_os_error());
    Ok(socket.into())
}

/// CPU time of this thread, and of the kernel's thread that takes over packet work on this core when it gets much.
fn busy() -> anyhow::Result<Duration> {
    Ok(thread_cpu() + ksoftirqd()?)
}

fn ksoftirqd() -> anyhow::Result<Duration> {
    static PID: std::sync::OnceLock<Option<u32>> = std::sync::OnceLock::new();
    let find = || {
        let pids = fs::read_dir("/proc")
            .ok()?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.into_iter().find(|pid: &u32| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "ksoftirqd/0")
        })
    };
    let pid = PID.get_or_init(find).context("ksoftirqd/0")?;
    let stat = fs::read_to_string(format!("/proc/{pid}/schedstat"))?;
    Ok(Duration::from_nanos(stat.split(' ').next().context("schedstat")?.parse()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_compared_with_the_routing_around_it() {
        let round = Round { routed: [1_000.0, 1_010.0], new: 2_705.0, established: 1_305.0 };
        assert_eq!((round.slower_routing(), round.over_routing(round.new)), (1_010.0, 1_700.0));
    }

    #[test]
    fn checksums_of_a_frame_are_right() {
        let from = (Ipv4Addr::new(10, 200, 64, 0), 1024);
        let frame = syn(([1; 6], [2; 6]), from, (Ipv4Addr::new(10, 96, 1, 0), 80));
        let (ip, tcp) = frame[ETHERNET..].split_at(20);
        // With its checksum in it, a sum is all ones.
        assert_eq!(checksum(ip, 0), 0);
        assert_eq!(checksum(tcp, words(&ip[12..20]) + 6 + 20), 0);
    }
}
