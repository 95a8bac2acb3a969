//! Keys and values of elements: packed as the kernel wants them, kept inline.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

use crate::{Name, TableFamily};

/// Longest string kept inline: an IPv6 `endpoints` key has 28 bytes.
const INLINE: usize = 30;

/// A short byte string of 32 bytes, so that 300,000 elements stay small. Ordered and compared as its bytes.
#[derive(Clone)]
pub struct Bytes(Repr);

#[derive(Clone)]
enum Repr {
    Inline(u8, [u8; INLINE]),
    Heap(Box<[u8]>),
}

/// One field of an element's key or value.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Atom {
    Address(IpAddr),
    /// `inet_proto`: an IANA protocol number.
    Protocol(u8),
    /// `inet_service`: a port.
    Port(u16),
    /// What `numgen` gives: an unsigned number in host order.
    Index(u32),
    Mark(u32),
    /// `classid`: the type of `meta priority`.
    Priority(u32),
    /// At most 15 bytes.
    Interface(Name),
}

/// The type of one field of a set's key or of a map's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyType {
    /// `ipv4_addr` or `ipv6_addr`, by the table's family.
    Address,
    Protocol,
    Port,
    /// A number drawn by `numgen`; maps with it are declared with `typeof`, and it may only stand last in a key.
    Index,
    Mark,
    Priority,
    Interface,
    /// Read from a dump, never written: nft's type number.
    Other(u8),
}

impl Bytes {
    pub fn new(bytes: &[u8]) -> Self {
        if bytes.len() > INLINE {
            return Bytes(Repr::Heap(bytes.into()));
        }
        let mut inline = [0; INLINE];
        inline[..bytes.len()].copy_from_slice(bytes);
        Bytes(Repr::Inline(bytes.len() as u8, inline))
    }

    /// Packs the fields of a key or value. Every field of a concatenation is padded to four bytes; a field that
    /// stands alone is not.
    pub fn concat(atoms: &[Atom]) -> Self {
        let mut packed = Packed { bytes: [0; 64], len: 0 };
        for atom in atoms {
            match atom {
                Atom::Address(IpAddr::V4(ip)) => packed.push(&ip.octets()),
                Atom::Address(IpAddr::V6(ip)) => packed.push(&ip.octets()),
                Atom::Protocol(number) => packed.push(&[*number]),
                Atom::Port(port) => packed.push(&port.to_be_bytes()),
                Atom::Index(n) | Atom::Mark(n) | Atom::Priority(n) => packed.push(&n.to_ne_bytes()),
                Atom::Interface(name) => packed.push(&interface(name)),
            }
            if atoms.len() > 1 {
                packed.pad();
            }
        }
        Bytes::new(&packed.bytes[..packed.len])
    }

    /// The inverse of [`Bytes::concat`]; None when the bytes are not of these types.
    pub fn atoms(&self, family: TableFamily, types: &[KeyType]) -> Option<Vec<Atom>> {
        let mut rest: &[u8] = self;
        let atoms = types
            .iter()
            .map(|kind| {
                let (field, tail) = rest.split_at_checked(kind.len(family))?;
                let padding = if types.len() > 1 { field.len().next_multiple_of(4) - field.len() } else { 0 };
                rest = tail.get(padding..)?;
                kind.atom(field)
            })
            .collect::<Option<Vec<_>>>()?;
        rest.is_empty().then_some(atoms)
    }
}

/// The kernel's limit for a key or value is 64 bytes; what exceeds it is cut, and the kernel then refuses it.
struct Packed {
    bytes: [u8; 64],
    len: usize,
}

impl Packed {
    fn push(&mut self, field: &[u8]) {
        let end = (self.len + field.len()).min(64);
        self.bytes[self.len..end].copy_from_slice(&field[..end - self.len]);
        self.len = end;
    }

    fn pad(&mut self) {
        self.len = self.len.next_multiple_of(4);
    }
}

/// IFNAMSIZ: sixteen bytes, padded with zeroes.
pub(crate) fn interface(name: &str) -> [u8; 16] {
    let mut padded = [0; 16];
    let len = name.len().min(15);
    padded[..len].copy_from_slice(&name.as_bytes()[..len]);
    padded
}

impl KeyType {
    /// Length in bytes, without padding.
    pub fn len(self, family: TableFamily) -> usize {
        match self {
            KeyType::Address => family.address_len(),
            KeyType::Protocol => 1,
            KeyType::Port => 2,
            KeyType::Index | KeyType::Mark | KeyType::Priority | KeyType::Other(_) => 4,
            KeyType::Interface => 16,
        }
    }

    fn atom(self, field: &[u8]) -> Option<Atom> {
        Some(match self {
            KeyType::Address if field.len() == 4 => {
                Atom::Address(Ipv4Addr::from(<[u8; 4]>::try_from(field).ok()?).into())
            }
            KeyType::Address => Atom::Address(Ipv6Addr::from(<[u8; 16]>::try_from(field).ok()?).into()),
            KeyType::Protocol => Atom::Protocol(*field.first()?),
            KeyType::Port => Atom::Port(u16::from_be_bytes(field.try_into().ok()?)),
            KeyType::Index => Atom::Index(u32::from_ne_bytes(field.try_into().ok()?)),
            KeyType::Mark => Atom::Mark(u32::from_ne_bytes(field.try_into().ok()?)),
            KeyType::Priority => Atom::Priority(u32::from_ne_bytes(field.try_into().ok()?)),
            KeyType::Interface => {
                let name = field.split(|b| *b == 0).next()?;
                Atom::Interface(std::str::from_utf8(name).ok()?.into())
            }
            KeyType::Other(_) => return None,
        })
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Repr::Inline(len, bytes) => &bytes[..*len as usize],
            Repr::Heap(bytes) => bytes,
        }
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Bytes {}

impl PartialOrd for Bytes {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Bytes {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (**self).cmp(&**other)
    }
}

impl std::hash::Hash for Bytes {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (**self).hash(state);
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0x")?;
        self.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}
