//! IPVS's virtual servers over generic netlink, and the sets and the interface that kube-proxy's IPVS mode has beside them.
//! Numbers are those of linux/ip_vs.h, linux/genetlink.h, linux/netfilter/ipset/ip_set.h and linux/rtnetlink.h.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use portolan_netlink::{Attributes, End, Message, Writer, flag, messages, nfnetlink};

/// `GENL_ID_CTRL`.
const CONTROLLER: u16 = 16;
/// `NFNL_SUBSYS_IPSET`.
const SETS: u16 = 6 << 8;
/// `IPSET_PROTOCOL_MIN`: every kernel since 2.6.39 speaks it.
const SETS_PROTOCOL: u8 = 6;
/// `RTM_DELLINK`.
const DELETE_LINK: u16 = 17;

/// `IPVS_CMD_*` and `IPSET_CMD_*`.
mod command {
    pub const NEW_SERVICE: u8 = 1;
    pub const DEL_SERVICE: u8 = 3;
    pub const GET_SERVICE: u8 = 4;
    pub const NEW_DEST: u8 = 5;
    pub const GET_DEST: u8 = 8;
    pub const DESTROY_SET: u16 = 3;
    pub const LIST_SETS: u16 = 7;
}

/// `IPVS_CMD_ATTR_*`.
const SERVICE: u16 = 1;
const DEST: u16 = 2;
/// `IPVS_SVC_ATTR_*`.
const AF: u16 = 1;
const PROTOCOL: u16 = 2;
const ADDRESS: u16 = 3;
const PORT: u16 = 4;
const MARK: u16 = 5;
/// `IPVS_DEST_ATTR_ACTIVE_CONNS` and `_INACT_CONNS`.
const CONNECTIONS: [u16; 2] = [7, 8];

const AF_INET: u16 = 2;
const AF_INET6: u16 = 10;

/// A virtual server, by what IPVS knows it by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Server {
    /// `protocol` is the IANA number.
    Address { protocol: u8, address: SocketAddr },
    /// Packets of a firewall mark, of one family.
    Mark { is_v6: bool, mark: u32 },
}

/// One message that the kernel sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Of the request that it answers.
    pub seq: u32,
    pub content: Content,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// IPVS's number in generic netlink.
    Family(u16),
    Server(Server),
    /// Through one destination: those that are open, and those that begin or end or are not TCP's.
    Connections(u64),
    Set(String),
    /// The end of a dump.
    Done,
    /// The request was done.
    Ack,
    /// It was not: a positive errno.
    Error(i32),
    /// Something that is not ours to read.
    Other,
}

/// Asks for IPVS's number; a kernel without IPVS answers ENOENT.
pub fn family(seq: u32) -> Vec<u8> {
    const GET_FAMILY: u8 = 3;
    const NAME: u16 = 2;
    request(CONTROLLER, GET_FAMILY, flag::ACK, seq, |w| w.bytes(NAME, b"IPVS\0"))
}

/// Asks for all virtual servers.
pub fn servers(family: u16, seq: u32) -> Vec<u8> {
    request(family, command::GET_SERVICE, flag::DUMP, seq, |_| {})
}

/// Asks for the destinations of a virtual server.
pub fn destinations(family: u16, server: &Server, seq: u32) -> Vec<u8> {
    request(family, command::GET_DEST, flag::DUMP, seq, |w| w.nest(SERVICE, |w| server.write(w)))
}

/// Deletes a virtual server, with its destinations; ESRCH where there is none.
pub fn delete(family: u16, server: &Server, seq: u32) -> Vec<u8> {
    request(family, command::DEL_SERVICE, flag::ACK, seq, |w| w.nest(SERVICE, |w| server.write(w)))
}

/// Asks for the names of all ipsets (nfnetlink).
pub fn sets(seq: u32) -> Vec<u8> {
    const FLAGS: u16 = 6;
    /// `IPSET_FLAG_LIST_SETNAME`.
    const NAMES_ONLY: u32 = 1 << 1;
    set_request(command::LIST_SETS, flag::DUMP, seq, |w| w.bytes(FLAGS, &NAMES_ONLY.to_be_bytes()))
}

/// Destroys an ipset (nfnetlink); [`SET_IN_USE`] while a rule asks it.
pub fn destroy_set(name: &str, seq: u32) -> Vec<u8> {
    let name = [name.as_bytes(), &[0]].concat();
    set_request(command::DESTROY_SET, flag::ACK, seq, |w| w.bytes(SET_NAME, &name))
}

/// `IPSET_ATTR_SETNAME`.
const SET_NAME: u16 = 2;
/// `IPSET_ERR_BUSY`, where others have an errno.
pub const SET_IN_USE: i32 = 4100;

/// Deletes an interface (rtnetlink).
pub fn delete_link(index: u32, seq: u32) -> Vec<u8> {
    // struct ifinfomsg: family, type, index, flags, change
    let mut header = [0; 16];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    let mut w = Writer::default();
    w.message(DELETE_LINK, flag::ACK, seq, &header, |_| {});
    w.0
}

fn request(kind: u16, command: u8, flags: u16, seq: u32, f: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::default();
    // struct genlmsghdr: command, version (both controller's and IPVS's are 1)
    w.message(kind, flags, seq, &[command, 1, 0, 0], f);
    w.0
}

fn set_request(command: u16, flags: u16, seq: u32, f: impl FnOnce(&mut Writer)) -> Vec<u8> {
    const PROTOCOL: u16 = 1;
    let mut w = Writer::default();
    w.message(SETS | command, flags, seq, &nfnetlink(AF_INET as u8, 0), |w| {
        w.bytes(PROTOCOL, &[SETS_PROTOCOL]);
        f(w);
    });
    w.0
}

/// Reads what one `recv` gave: answers to any of the requests above. Ends at the first byte that makes no sense.
pub fn answers(buffer: &[u8]) -> impl Iterator<Item = Answer> {
    messages(buffer).map(|message| Answer { seq: message.seq, content: content(&message) })
}

fn content(message: &Message) -> Content {
    match message.end() {
        Some(End::Ack) => Content::Ack,
        Some(End::Done) => Content::Done,
        Some(End::Error { errno, .. }) => Content::Error(errno),
        None => object(message).unwrap_or(Content::Other),
    }
}

fn object(message: &Message) -> Option<Content> {
    const LISTED: u16 = SETS | command::LIST_SETS;
    let attributes = message.attributes();
    match (message.kind, *message.body.first()?) {
        (CONTROLLER, _) => attributes.array(1).map(|number| Content::Family(u16::from_ne_bytes(number))),
        (LISTED, _) => {
            let name = attributes.get(SET_NAME)?;
            let name = name.split(|byte| *byte == 0).next()?;
            Some(Content::Set(String::from_utf8(name.to_vec()).ok()?))
        }
        (_, command::NEW_SERVICE) => Server::read(attributes.nest(SERVICE)?).map(Content::Server),
        (_, command::NEW_DEST) => {
            let destination = attributes.nest(DEST)?;
            let count =
                |kind| destination.array(kind).map_or(0, |count| u64::from(u32::from_ne_bytes(count)));
            Some(Content::Connections(CONNECTIONS.map(count).iter().sum()))
        }
        _ => None,
    }
}

impl Server {
    fn read(attributes: Attributes) -> Option<Server> {
        let is_v6 = match u16::from_ne_bytes(attributes.array(AF)?) {
            AF_INET => false,
            AF_INET6 => true,
            _ => return None,
        };
        if let Some(mark) = attributes.array(MARK) {
            return Some(Server::Mark { is_v6, mark: u32::from_ne_bytes(mark) });
        }
        let protocol = u16::from_ne_bytes(attributes.array(PROTOCOL)?).try_into().ok()?;
        // A union: an IPv4 address is in its first bytes.
        let bytes = attributes.get(ADDRESS)?;
        let ip = match is_v6 {
            false => IpAddr::from(*bytes.first_chunk::<4>()?),
            true => IpAddr::from(*bytes.first_chunk::<16>()?),
        };
        let port = u16::from_be_bytes(attributes.array(PORT)?);
        Some(Server::Address { protocol, address: SocketAddr::new(ip, port) })
    }

    fn write(&self, w: &mut Writer) {
        let family = |is_v6| if is_v6 { AF_INET6 } else { AF_INET };
        match *self {
            Server::Mark { is_v6, mark } => {
                w.bytes(AF, &family(is_v6).to_ne_bytes());
                w.bytes(MARK, &mark.to_ne_bytes());
            }
            Server::Address { protocol, address } => {
                w.bytes(AF, &family(address.is_ipv6()).to_ne_bytes());
                w.bytes(PROTOCOL, &u16::from(protocol).to_ne_bytes());
                let mut union = [0; 16];
                match address.ip() {
                    IpAddr::V4(ip) => union[..4].copy_from_slice(&ip.octets()),
                    IpAddr::V6(ip) => union = ip.octets(),
                }
                w.bytes(ADDRESS, &union);
                w.bytes(PORT, &address.port().to_be_bytes());
            }
        }
    }

    /// None for a server of a mark.
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Server::Address { address, .. } => Some(*address),
            Server::Mark { .. } => None,
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Server::Mark { mark, .. } => write!(f, "mark {mark}"),
            Server::Address { protocol: 6, address } => write!(f, "TCP {address}"),
            Server::Address { protocol: 17, address } => write!(f, "UDP {address}"),
            Server::Address { protocol: 132, address } => write!(f, "SCTP {address}"),
            Server::Address { protocol, address } => write!(f, "protocol {protocol} {address}"),
        }
    }
}

#[cfg(test)]
mod tests;
