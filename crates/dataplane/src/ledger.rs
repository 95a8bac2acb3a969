//! Where clients are remembered (S41): in IPv4 one map for all frontends, in IPv6 maps of each frontend's own.
//!
//! nft(8) before 1.1 keeps 16 bytes of registers for the key of a map that a rule writes to, and as much for the value, and
//! aborts on reading a rule with more. In IPv4 that is room for client, VIP, protocol and port, and for address and port of
//! the endpoint; in IPv6 for one address each. There the rest is in the map's name, and in rules that lead to it. Of maps
//! for everyone a cluster with 10,000 affine Services pays seconds at the start, so IPv4 keeps its one.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use portolan_model::{Backend, Family, Protocol};
use portolan_nft::{Element, Name, Value};

use crate::key::{self, Key};
use crate::layout;

/// The clients of one IPv6 frontend that went to endpoints at one port: a map from their addresses to the endpoints'.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ledger {
    pub key: Key,
    pub port: u16,
}

/// All ledgers of a frontend: what a chain looks through for a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Recall {
    pub key: Key,
    pub ports: Ports,
}

/// The ports of a frontend's endpoints, ascending, then zeros: they are one, unless pods give a port's name different
/// numbers. Endpoints at more ports than this are not remembered, nor those at port 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ports([u16; 8]);

const AFFINITY: &str = "affinity-";

impl Ports {
    pub fn of(ports: impl Iterator<Item = u16>) -> Ports {
        let all: BTreeSet<u16> = ports.filter(|port| *port > 0).collect();
        let mut ports = Ports::default();
        ports.0.iter_mut().zip(all).for_each(|(place, port)| *place = port);
        ports
    }

    pub fn iter(self) -> impl Iterator<Item = u16> {
        self.0.into_iter().take_while(|port| *port > 0)
    }

    pub fn contains(self, port: u16) -> bool {
        self.iter().any(|own| own == port)
    }

    pub fn is_empty(self) -> bool {
        self == Ports::default()
    }
}

impl Recall {
    pub fn ledgers(self) -> impl Iterator<Item = Ledger> {
        self.ports.iter().map(move |port| Ledger { key: self.key, port })
    }

    /// The inverse of [`Recall`]'s `Display`.
    pub fn parse(text: &str) -> Option<Recall> {
        let (key, numbers) = parse(text)?;
        let recall = Recall { key, ports: Ports::of(numbers.into_iter()) };
        (!recall.ports.is_empty() && recall.to_string() == text).then_some(recall)
    }
}

impl Ledger {
    /// Its map's name.
    pub fn name(self) -> Name {
        format!("{AFFINITY}{self}").into()
    }

    /// The inverse of [`Ledger::name`].
    pub fn from_name(name: &str) -> Option<Ledger> {
        Ledger::parse(name.strip_prefix(AFFINITY)?)
    }

    /// The inverse of [`Ledger`]'s `Display`.
    pub fn parse(text: &str) -> Option<Ledger> {
        let (key, numbers) = parse(text)?;
        let ledger = Ledger { key, port: *numbers.first()? };
        (ledger.to_string() == text).then_some(ledger)
    }
}

impl fmt::Display for Recall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_frontend(f, &self.key)?;
        self.ports.iter().try_for_each(|port| write!(f, "/{port}"))
    }
}

impl fmt::Display for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_frontend(f, &self.key)?;
        write!(f, "/{}", self.port)
    }
}

/// As `fd00-10-96--1/tcp/80`: nft has no names with colons.
fn write_frontend(f: &mut fmt::Formatter<'_>, key: &Key) -> fmt::Result {
    write!(f, "{}/{}/{}", key.address.to_string().replace(':', "-"), key.protocol, key.port)
}

/// The frontend and the numbers behind it.
fn parse(text: &str) -> Option<(Key, Vec<u16>)> {
    let mut parts = text.split('/');
    let address: Ipv6Addr = parts.next()?.replace('-', ":").parse().ok()?;
    let protocol = parts.next()?;
    let protocol =
        [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.to_string() == protocol)?;
    let port = parts.next()?.parse().ok()?;
    let numbers = parts.map(|number| number.parse().ok()).collect::<Option<_>>()?;
    Some((Key { address: IpAddr::V6(address), protocol, port }, numbers))
}

/// The map that remembers the frontend's clients for this endpoint.
pub fn map_of(key: &Key, backend: &Backend) -> Name {
    match Family::of(&key.address) {
        Family::Ipv4 => layout::AFFINITY.into(),
        Family::Ipv6 => Ledger { key: *key, port: backend.port() }.name(),
    }
}

/// An element of such a map: the frontend, and the endpoint that one of its clients is remembered for.
pub fn read(family: Family, map: &str, element: &Element) -> Option<(Key, Backend)> {
    let (_, frontend) = key::read_address(family, &element.key)?;
    let Value::Bytes(value) = &element.value else { return None };
    match family {
        Family::Ipv4 => {
            let (key, rest) = Key::read(family, frontend)?;
            rest.is_empty().then_some((key, key::read_backend(family, value)?))
        }
        Family::Ipv6 => {
            let Ledger { key, port } = Ledger::from_name(map)?;
            let (address, rest) = key::read_address(family, value)?;
            (frontend.is_empty() && rest.is_empty()).then_some((key, SocketAddr::new(address, port)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(address: &str) -> Key {
        Key { address: address.parse().unwrap(), protocol: Protocol::Tcp, port: 80 }
    }

    fn ports(ports: &[u16]) -> Ports {
        Ports::of(ports.iter().copied())
    }

    #[test]
    fn names_can_be_read_back() {
        for address in ["fd00:10:96::1", "2001:db8::", "::1", "::ffff:1.2.3.4", "1:2:3:4:5:6:7:8"] {
            let ledger = Ledger { key: key(address), port: 8080 };
            assert_eq!(Ledger::from_name(&ledger.name()), Some(ledger));
            let recall = Recall { key: key(address), ports: ports(&[9090, 8080, 8080]) };
            assert_eq!(Recall::parse(&recall.to_string()), Some(recall));
        }
        assert_eq!(
            &*Ledger { key: key("fd00:10:96::1"), port: 8080 }.name(),
            "affinity-fd00-10-96--1/tcp/80/8080"
        );
    }

    #[test]
    fn other_names_are_nobodys() {
        for text in [
            "fd00--1",
            "fd00--1/tcp/80",
            "fd00--01/tcp/80/8080",
            "10.96.0.1/tcp/80/8080",
            "fd00--1/icmp/80/8080",
        ] {
            assert_eq!((Ledger::parse(text), Recall::parse(text)), (None, None), "{text}");
        }
        assert_eq!(Recall::parse("fd00--1/tcp/80/9090/8080"), None, "not in order");
        assert_eq!(Recall::parse("fd00--1/tcp/80/1/2/3/4/5/6/7/8/9"), None, "too many");
    }

    #[test]
    fn only_so_many_ports_are_kept() {
        let many = ports(&[0, 9, 8, 7, 6, 5, 4, 3, 2, 1]);
        assert_eq!(many.iter().collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6, 7, 8]);
        assert!(many.contains(8) && !many.contains(9) && !many.contains(0));
    }
}
