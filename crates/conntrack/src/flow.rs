//! One entry, and the requests that read and delete entries. Numbers in calls are attribute types of
//! linux/netfilter/nfnetlink_conntrack.h.

use std::net::{IpAddr, SocketAddr};

use portolan_netlink::{Attributes, Writer, flag, nfnetlink};

use crate::answer::{SUBSYSTEM, msg};

const TUPLE_ORIG: u16 = 1;
const TUPLE_REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const FILTER: u16 = 25;

/// `CTA_FILTER_F_CTA_PROTO_NUM`: the dump is of one protocol (kernel 5.8 and newer; older ones ignore it).
const BY_PROTOCOL: u32 = 1 << 3;

/// An entry of a protocol with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flow {
    /// The IANA number.
    pub protocol: u8,
    /// As the client sent it.
    pub original: Tuple,
    /// As the answers come: its source is whom the client really talks to.
    pub reply: Tuple,
    pub zone: u16,
    /// Another entry of the same tuple has another; in the kernel's byte order.
    pub id: [u8; 4],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    pub src: SocketAddr,
    pub dst: SocketAddr,
}

/// Asks for all entries of a protocol in the family of `any` address.
pub fn dump(any: IpAddr, protocol: u8, seq: u32) -> Vec<u8> {
    let mut w = Writer::default();
    w.message(SUBSYSTEM | msg::GET, flag::DUMP, seq, &nfnetlink(nfproto(any), 0), |w| {
        w.nest(TUPLE_ORIG, |w| w.nest(2, |w| w.bytes(1, &[protocol])));
        w.nest(FILTER, |w| w.bytes(1, &BY_PROTOCOL.to_ne_bytes()));
    });
    w.0
}

/// Deletes these entries, and no newer ones of the same tuples. The kernel answers errors with the sequence numbers from
/// `first_seq` on, one an entry, and acknowledges the last.
pub fn delete(flows: &[Flow], first_seq: u32) -> Vec<u8> {
    let mut w = Writer::default();
    for (at, flow) in flows.iter().enumerate() {
        let flags = if at + 1 == flows.len() { flag::ACK } else { 0 };
        let seq = first_seq.wrapping_add(at as u32);
        let header = nfnetlink(nfproto(flow.original.dst.ip()), 0);
        w.message(SUBSYSTEM | msg::DELETE, flags, seq, &header, |w| {
            w.nest(TUPLE_ORIG, |w| flow.original.write(w, flow.protocol));
            w.bytes(ID, &flow.id);
            if flow.zone != 0 {
                w.bytes(ZONE, &flow.zone.to_be_bytes());
            }
        });
    }
    w.0
}

fn nfproto(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(_) => 2,
        IpAddr::V6(_) => 10,
    }
}

impl Flow {
    pub(crate) fn read(attributes: Attributes) -> Option<Flow> {
        let (protocol, original) = Tuple::read(attributes.nest(TUPLE_ORIG)?)?;
        let (_, reply) = Tuple::read(attributes.nest(TUPLE_REPLY)?)?;
        let zone = attributes.array(ZONE).map_or(0, u16::from_be_bytes);
        Some(Flow { protocol, original, reply, zone, id: attributes.array(ID)? })
    }
}

impl Tuple {
    fn read(tuple: Attributes) -> Option<(u8, Tuple)> {
        let (ip, proto) = (tuple.nest(1)?, tuple.nest(2)?);
        let address = |v4, v6| {
            let old = ip.array::<4>(v4).map(IpAddr::from);
            old.or_else(|| ip.array::<16>(v6).map(IpAddr::from))
        };
        let port = |kind| proto.array(kind).map(u16::from_be_bytes);
        let [protocol] = proto.array(1)?;
        let src = SocketAddr::new(address(1, 3)?, port(2)?);
        let dst = SocketAddr::new(address(2, 4)?, port(3)?);
        Some((protocol, Tuple { src, dst }))
    }

    fn write(&self, w: &mut Writer, protocol: u8) {
        w.nest(1, |w| {
            for (ip, v4, v6) in [(self.src.ip(), 1, 3), (self.dst.ip(), 2, 4)] {
                match ip {
                    IpAddr::V4(ip) => w.bytes(v4, &ip.octets()),
                    IpAddr::V6(ip) => w.bytes(v6, &ip.octets()),
                }
            }
        });
        w.nest(2, |w| {
            w.bytes(1, &[protocol]);
            w.bytes(2, &self.src.port().to_be_bytes());
            w.bytes(3, &self.dst.port().to_be_bytes());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Answer, Content, answers};

    fn tuple(src: &str, dst: &str) -> Tuple {
        Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() }
    }

    fn flows() -> [Flow; 2] {
        let flow = |original, reply, zone| Flow { protocol: 17, original, reply, zone, id: [1, 2, 3, 4] };
        [
            flow(tuple("10.1.1.2:4000", "10.96.0.10:53"), tuple("10.1.2.2:5353", "10.1.1.2:4000"), 0),
            flow(tuple("[fd01::2]:4000", "[fd96::a]:53"), tuple("[fd01::9]:5353", "[fd01::2]:4000"), 7),
        ]
    }

    /// A message as the kernel writes it into a dump.
    fn entry(flow: &Flow, seq: u32) -> Vec<u8> {
        let mut w = Writer::default();
        w.message(SUBSYSTEM | msg::NEW, 0, seq, &nfnetlink(2, 0), |w| {
            w.nest(TUPLE_ORIG, |w| flow.original.write(w, flow.protocol));
            w.nest(TUPLE_REPLY, |w| flow.reply.write(w, flow.protocol));
            w.bytes(3, &[0, 0, 1, 0x8e]);
            w.bytes(ID, &flow.id);
            w.bytes(ZONE, &flow.zone.to_be_bytes());
        });
        w.0
    }

    #[test]
    fn s51_entries_are_read_as_they_are_written() {
        for flow in flows() {
            let bytes = [entry(&flow, 3), entry(&flow, 4)].concat();
            let expected = [3, 4].map(|seq| Answer { seq, content: Content::Flow(flow) });
            assert_eq!(answers(&bytes).collect::<Vec<_>>(), expected);
        }
    }

    /// Without a tuple the kernel would delete every entry.
    #[test]
    fn s51_a_deletion_names_its_entry() {
        let bytes = delete(&flows(), 9);
        let first_len = u32::from_ne_bytes(bytes[..4].try_into().unwrap()) as usize;
        for (message, flow) in [&bytes[..first_len], &bytes[first_len..]].into_iter().zip(flows()) {
            let attributes = Attributes(&message[20..]);
            let (protocol, original) = Tuple::read(attributes.nest(TUPLE_ORIG).unwrap()).unwrap();
            assert_eq!((protocol, original), (flow.protocol, flow.original));
            assert_eq!(attributes.array(ID), Some(flow.id));
            assert_eq!(attributes.array(ZONE).map_or(0, u16::from_be_bytes), flow.zone);
        }
        assert_eq!(delete(&[], 9), []);
    }

    #[test]
    fn any_bytes_end_somewhere() {
        let whole = entry(&flows()[1], 1);
        for len in 0..whole.len() {
            assert_eq!(answers(&whole[..len]).count(), 0);
            let mut cut = whole[..len].to_vec();
            if len >= 4 {
                cut[..4].copy_from_slice(&(len as u32).to_ne_bytes());
            }
            assert!(answers(&cut).count() <= 1);
        }
        for at in 0..whole.len() {
            let mut wrong = whole.clone();
            wrong[at] ^= 0xff;
            answers(&wrong).for_each(drop);
        }
    }
}
