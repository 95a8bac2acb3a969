//! SCTP packets made by hand, for a kernel that tracks SCTP but does not speak it (S56).

use std::mem::MaybeUninit;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan_lab::netns::Namespace;
use portolan_model::{Address, Family, Forwarding, Frontend, Masquerade, Protocol};
use socket2::{Domain, Socket, Type};

use super::site::{CLIENT, NODE, PODS, balance, on_site, plan, same, serve};

const PATIENCE: Duration = Duration::from_secs(5);
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const TAG: u32 = 0x1234_5678;

/// A packet with one chunk, INIT or INIT ACK (RFC 9260, 3.3.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    from: u16,
    to: u16,
    verification: u32,
    kind: u8,
}

impl Packet {
    fn bytes(self) -> Vec<u8> {
        let mut bytes = [self.from.to_be_bytes(), self.to.to_be_bytes()].concat();
        bytes.extend(self.verification.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.kind, 0, 0, 20]);
        bytes.extend(TAG.to_be_bytes());
        // The window, one stream each way, the first TSN.
        bytes.extend([0, 1, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1]);
        let sum = crc32c(&bytes).to_le_bytes();
        bytes[8..12].copy_from_slice(&sum);
        bytes
    }

    /// None when the checksum is wrong or it is no such packet.
    fn read(bytes: &[u8]) -> Option<Packet> {
        let short = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let verification = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
        let packet = Packet { from: short(0)?, to: short(2)?, verification, kind: *bytes.get(12)? };
        (packet.bytes() == bytes).then_some(packet)
    }
}

/// RFC 9260, appendix A, one bit at a time.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0x82f6_3b78 * (crc & 1)))
    })
}

/// A raw socket for SCTP over IPv4.
struct Raw(Socket);

impl Raw {
    fn open(ns: &Namespace) -> anyhow::Result<Raw> {
        let protocol = socket2::Protocol::from(i32::from(Protocol::Sctp.number()));
        let socket = ns.run(move || Socket::new(Domain::IPV4, Type::RAW, Some(protocol)))??;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Raw(socket))
    }

    fn send(&self, to: Ipv4Addr, packet: Packet) -> anyhow::Result<()> {
        self.0.send_to(&packet.bytes(), &SocketAddrV4::new(to, 0).into()).map(drop).context("send")
    }

    /// The next packet and its sender.
    fn receive(&self) -> anyhow::Result<(Ipv4Addr, Packet)> {
        let mut buffer = [MaybeUninit::<u8>::uninit(); 512];
        let length = self.0.recv(&mut buffer).context("no packet came")?;
        // SAFETY: the kernel wrote so many bytes.
        let bytes: Vec<u8> = buffer[..length].iter().map(|byte| unsafe { byte.assume_init() }).collect();
        let source: [u8; 4] = bytes.get(12..16).context("an IP header")?.try_into()?;
        let header = usize::from(bytes[0] & 0xf) * 4;
        let packet = bytes.get(header..).and_then(Packet::read);
        Ok((source.into(), packet.with_context(|| format!("not as it was sent: {bytes:x?}"))?))
    }
}

#[test]
fn s56_sctp_is_translated_there_and_back() {
    on_site("s56_sctp_is_translated_there_and_back", async |site| {
        let frontend = |address, port| Frontend { address, protocol: Protocol::Sctp, port };
        let to = |masquerade| -> Forwarding { same(balance(masquerade, &PODS[..1])) };
        let _served = serve(
            site,
            plan([
                (frontend(Address::Vip("10.96.0.1".parse()?), 80), to(Masquerade::NonPods)),
                (frontend(Address::Vip("192.0.2.10".parse()?), 80), to(Masquerade::Never)),
                (frontend(Address::NodePort(Family::Ipv4), 30080), to(Masquerade::Always)),
            ]),
        );
        let (client, pod) = (Raw::open(&site.client)?, Raw::open(&site.pods[0])?);
        let cases =
            [("10.96.0.1", 80, "10.244.1.1"), ("192.0.2.10", 80, CLIENT), (NODE, 30080, "10.244.1.1")];
        for (number, (ip, port, seen)) in (5001..).zip(cases) {
            let ip: Ipv4Addr = ip.parse()?;
            client.send(ip, Packet { from: number, to: port, verification: 0, kind: INIT })?;
            let (source, init) = pod.receive().with_context(|| format!("{ip}:{port}"))?;
            assert_eq!((source, init.to, init.kind), (seen.parse()?, 8080, INIT), "{ip}:{port}");
            let answer = Packet { from: 8080, to: init.from, verification: TAG, kind: INIT_ACK };
            pod.send(source, answer)?;
            let (source, answer) = client.receive().with_context(|| format!("the answer of {ip}:{port}"))?;
            ensure!(
                source == ip && answer == Packet { from: port, to: number, ..answer },
                "{source} {answer:?}"
            );
        }
        Ok(())
    });
}
