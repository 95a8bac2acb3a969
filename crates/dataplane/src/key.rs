//! What a packet is looked up by, and its bytes in the kernel.

use std::cmp::Ordering;
use std::net::{IpAddr, SocketAddr};

use portolan_model::{Backend, Family, Protocol};
use portolan_nft::{Atom, Bytes};

/// One frontend at one address: a node port is one key for every address that serves node ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub address: IpAddr,
    pub protocol: Protocol,
    pub port: u16,
}

/// By address, IPv4 first, then protocol, then port: as if derived, but in numbers, for every map here is searched by it.
impl Ord for Key {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        let rest = |key: &Key| (key.protocol as u64) << 16 | u64::from(key.port);
        match (self.address, other.address) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let number = |ip, key| u64::from(u32::from(ip)) << 32 | rest(key);
                number(a, self).cmp(&number(b, other))
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => (u128::from(a), rest(self)).cmp(&(u128::from(b), rest(other))),
            (IpAddr::V4(_), IpAddr::V6(_)) => Ordering::Less,
            (IpAddr::V6(_), IpAddr::V4(_)) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Key {
    #[inline]
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Key {
    /// `addr . proto . port`: a key of `services`.
    pub fn bytes(&self) -> Bytes {
        Bytes::concat(&self.atoms())
    }

    /// `addr . proto . port . index`: a key of a map of endpoints.
    pub fn slot(&self, index: u32) -> Bytes {
        let [address, protocol, port] = self.atoms();
        Bytes::concat(&[address, protocol, port, Atom::Priority(index)])
    }

    /// `addr . proto . port . addr . port`: a key of `affine`.
    pub fn pair(&self, backend: &Backend) -> Bytes {
        let [address, protocol, port] = self.atoms();
        let (ip, number) = (Atom::Address(backend.ip()), Atom::Port(backend.port()));
        Bytes::concat(&[address, protocol, port, ip, number])
    }

    /// `addr . proto . port . saddr`: one end of a range of `fw-allow`.
    pub fn source(&self, source: IpAddr) -> Bytes {
        let [address, protocol, port] = self.atoms();
        Bytes::concat(&[address, protocol, port, Atom::Address(source)])
    }

    fn atoms(&self) -> [Atom; 3] {
        [Atom::Address(self.address), Atom::Protocol(self.protocol.number()), Atom::Port(self.port)]
    }

    /// The inverse of [`Key::bytes`]; what follows the key is returned with it.
    pub fn read(family: Family, bytes: &[u8]) -> Option<(Key, &[u8])> {
        let (address, rest) = read_address(family, bytes)?;
        let (protocol, rest) = rest.split_first_chunk::<4>()?;
        let (port, rest) = rest.split_first_chunk::<4>()?;
        let protocol =
            [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().find(|p| p.number() == protocol[0])?;
        Some((Key { address, protocol, port: u16::from_be_bytes([port[0], port[1]]) }, rest))
    }
}

/// `addr . port`: a value of a map of endpoints.
pub fn backend_bytes(backend: &Backend) -> Bytes {
    Bytes::concat(&[Atom::Address(backend.ip()), Atom::Port(backend.port())])
}

pub fn read_backend(family: Family, bytes: &[u8]) -> Option<Backend> {
    let (address, rest) = read_address(family, bytes)?;
    let port: [u8; 4] = rest.try_into().ok()?;
    Some(SocketAddr::new(address, u16::from_be_bytes([port[0], port[1]])))
}

pub fn address_bytes(address: IpAddr) -> Bytes {
    Bytes::concat(&[Atom::Address(address)])
}

/// `addr . addr` of a pod that may reach itself.
pub fn hairpin_bytes(address: IpAddr) -> Bytes {
    Bytes::concat(&[Atom::Address(address), Atom::Address(address)])
}

pub fn read_address(family: Family, bytes: &[u8]) -> Option<(IpAddr, &[u8])> {
    Some(match family {
        Family::Ipv4 => bytes.split_first_chunk::<4>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
        Family::Ipv6 => bytes.split_first_chunk::<16>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_is_that_of_the_fields() {
        let addresses =
            ["0.0.0.0", "10.0.0.9", "10.0.1.0", "255.255.255.255", "::", "::ffff:10.0.0.9", "fd00::1"];
        let keys: Vec<Key> = addresses
            .iter()
            .flat_map(|address| {
                let of = |protocol| [1, 80, u16::MAX].map(|port| (protocol, port));
                [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].into_iter().flat_map(of).map(
                    move |(protocol, port)| Key {
                        address: address.parse().expect("an address"),
                        protocol,
                        port,
                    },
                )
            })
            .collect();
        for (a, b) in keys.iter().flat_map(|a| keys.iter().map(move |b| (a, b))) {
            let fields = |key: &Key| (key.address, key.protocol, key.port);
            assert_eq!(a.cmp(b), fields(a).cmp(&fields(b)), "{a:?} {b:?}");
        }
    }
}
