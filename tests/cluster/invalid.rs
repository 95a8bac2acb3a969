//! Packets that connection tracking cannot place, in the middle of a long transfer (kubernetes#74839): they must not come to the
//! client by the pod's own address, for it would answer with a reset that ends the pod's side.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};

use anyhow::{Context, ensure};
use portolan_lab::netns::Namespace;
use portolan_lab::wait_for;
use serde_json::json;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::fixture::{Cluster, PATIENCE, at, beside, cluster_ip, test};
use crate::pods::Wanted;

const PORT: u16 = 9_000;
const MARK: &[u8] = b"out of the window";
const CHUNK: usize = 64 * 1024;
const CHUNKS: usize = 64;

/// Upstream's test: packets of long ago.
#[test]
fn s54_e74_packets_out_of_the_window_do_not_reset_a_long_transfer() {
    beside("s54-e74-out-of-window", async |cluster| {
        strange_packets(cluster, |number| -100_000 - number).await
    });
}

/// Those of the future, which no kernel places by itself: what `tcpBeLiberal` is for.
#[test]
fn s54_packets_ahead_of_the_window_where_tracking_is_liberal() {
    test("s54-ahead-of-window", async |cluster| {
        for node in ["n1", "n2"] {
            let (ns, liberal) = (cluster.ns(node)?, "net/netfilter/nf_conntrack_tcp_be_liberal");
            ns.sysctl(&[(liberal, "1")])?;
            cluster.afterwards(liberal, async move { ns.sysctl(&[(liberal, "0")]) });
        }
        strange_packets(cluster, |number| 0x2000_0000 + number).await
    });
}

/// A transfer from n1 to n2 with packets in between whose sequence numbers are this far from those of the transfer.
async fn strange_packets(cluster: &Cluster, off: impl Fn(i32) -> i32) -> anyhow::Result<()> {
    let [server, client] = cluster
        .run([Wanted::default(), Wanted { name: "asks", app: "asks", node: 2, ..Wanted::default() }])
        .await?;
    let ports = json!([{ "port": 80, "targetPort": PORT }]);
    let service = cluster.expose("web", json!({ "type": "ClusterIP", "ports": ports })).await?;
    let vip = at(cluster_ip(&service)?, 80);
    let listener = server.ns.listen_tcp(format!("0.0.0.0:{PORT}").parse()?)?;
    let (from_server, at_client) = (raw(&server.ns)?, raw(&client.ns)?);

    let mut received = wait_for("the client is connected", PATIENCE, async || {
        Ok(client.ns.connect(vip).await.map_err(|error| error.to_string()))
    })
    .await?;
    let (mut sends, peer) = listener.accept().await?;
    let std::net::SocketAddr::V4(peer) = peer else { anyhow::bail!("{peer}") };
    received.write_all(b"send").await?;
    // A server that closes with its client's words unread resets the connection itself.
    sends.read_exact(&mut [0; 4]).await?;
    let asked = wait_for("the server's kernel has the client's request", PATIENCE, async || {
        Ok(packets(&from_server)?
            .into_iter()
            .rfind(|packet| packet.ports == (peer.port(), PORT))
            .ok_or("none"))
    })
    .await?;
    let transfer = tokio::spawn(bytes_until_the_end(received));
    let from = SocketAddrV4::new(server.ip().to_string().parse()?, PORT);
    for number in 0..CHUNKS {
        sends.write_all(&vec![0; CHUNK]).await.context("the server's side")?;
        // It acknowledges what the client said, so that a reset would fit.
        let sequence = asked.acknowledges.wrapping_add_signed(off(number as i32 * 1000));
        let packet = segment(from, peer, sequence, asked.sequence.wrapping_add(asked.payload.len() as u32));
        from_server.send_to(&packet, &SocketAddrV4::new(*peer.ip(), 0).into())?;
    }
    drop(sends);
    let total = transfer.await?.map_err(anyhow::Error::msg)?;
    ensure!(total == CHUNK * CHUNKS, "{total} bytes came");
    let strange = packets(&at_client)?.into_iter().filter(|packet| packet.payload == MARK);
    let sources: BTreeSet<Ipv4Addr> = strange.map(|packet| packet.source).collect();
    ensure!(!sources.contains(from.ip()), "came by the pod's own address: {sources:?}");
    Ok(())
}

async fn bytes_until_the_end(mut stream: TcpStream) -> Result<usize, String> {
    let mut total = 0;
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => return Ok(total),
            Ok(length) => total += length,
            Err(error) => return Err(format!("{error} after {total} bytes")),
        }
    }
}

/// Sends TCP segments as they are written, and has a copy of those that come in.
fn raw(ns: &Namespace) -> anyhow::Result<Socket> {
    let socket = ns.run(|| Socket::new(Domain::IPV4, Type::RAW.nonblocking(), Some(Protocol::TCP)))??;
    socket.set_recv_buffer_size(8 << 20)?;
    Ok(socket)
}

struct Packet {
    source: Ipv4Addr,
    /// Source and destination.
    ports: (u16, u16),
    sequence: u32,
    acknowledges: u32,
    payload: Vec<u8>,
}

/// Those that have come so far.
fn packets(socket: &Socket) -> anyhow::Result<Vec<Packet>> {
    let mut all = Vec::new();
    let mut buffer = [MaybeUninit::uninit(); 65_536];
    loop {
        match socket.recv(&mut buffer) {
            Ok(length) => {
                // SAFETY: the kernel has written the first `length` bytes.
                let bytes: Vec<u8> =
                    buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
                all.extend(parse(&bytes));
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(all),
            Err(error) => return Err(error.into()),
        }
    }
}

/// An IPv4 packet with a TCP segment.
fn parse(bytes: &[u8]) -> Option<Packet> {
    let header = usize::from(bytes.first()? & 0xf) * 4;
    let source = Ipv4Addr::from_octets(bytes.get(12..16)?.try_into().ok()?);
    let tcp = bytes.get(header..)?;
    let number = |range: std::ops::Range<usize>| {
        Some(tcp.get(range)?.iter().fold(0u32, |number, byte| number << 8 | u32::from(*byte)))
    };
    let ports = (number(0..2)? as u16, number(2..4)? as u16);
    let payload = tcp.get(usize::from(tcp.get(12)? >> 4) * 4..)?.to_vec();
    Some(Packet { source, ports, sequence: number(4..8)?, acknowledges: number(8..12)?, payload })
}

fn segment(from: SocketAddrV4, to: SocketAddrV4, sequence: u32, acknowledges: u32) -> Vec<u8> {
    const ACK_PSH: u16 = 5 << 12 | 0x18;
    const WINDOW: u16 = 512;
    let mut segment = [from.port().to_be_bytes(), to.port().to_be_bytes()].concat();
    segment.extend(sequence.to_be_bytes());
    segment.extend(acknowledges.to_be_bytes());
    for word in [ACK_PSH, WINDOW, 0, 0] {
        segment.extend(word.to_be_bytes());
    }
    segment.extend(MARK);
    let mut covered = [from.ip().octets(), to.ip().octets()].concat();
    covered.extend([0, 6]);
    covered.extend((segment.len() as u16).to_be_bytes());
    covered.extend(&segment);
    segment[16..18].copy_from_slice(&checksum(&covered).to_be_bytes());
    segment
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let words =
        bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}
