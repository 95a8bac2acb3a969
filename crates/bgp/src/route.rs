//! What we say of a prefix.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

pub use ipnet::IpNet as Prefix;

/// An address family and subsequent family (RFC 4760); unicast is all a host speaker carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ipv4Unicast,
    Ipv6Unicast,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::Ipv4Unicast, Family::Ipv6Unicast];

    pub fn of(prefix: &Prefix) -> Family {
        match prefix {
            IpNet::V4(_) => Family::Ipv4Unicast,
            IpNet::V6(_) => Family::Ipv6Unicast,
        }
    }

    pub fn of_address(address: &IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ipv4Unicast,
            IpAddr::V6(_) => Family::Ipv6Unicast,
        }
    }

    /// (AFI, SAFI) as registered with IANA.
    pub fn code(self) -> (u16, u8) {
        match self {
            Family::Ipv4Unicast => (1, 1),
            Family::Ipv6Unicast => (2, 1),
        }
    }

    pub fn from_code(afi: u16, safi: u8) -> Option<Family> {
        Family::ALL.into_iter().find(|family| family.code() == (afi, safi))
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4Unicast => "IPv4 unicast",
            Family::Ipv6Unicast => "IPv6 unicast",
        })
    }
}

/// RFC 1997 and RFC 8092.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    Standard(u32),
    Large(u32, u32, u32),
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Community::Standard(c) => write!(f, "{}:{}", c >> 16, c & 0xffff),
            Community::Large(a, b, c) => write!(f, "large:{a}:{b}:{c}"),
        }
    }
}

/// The next hop put into an UPDATE.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum NextHop {
    /// The address of this node on the session's connection, per family (K13).
    SelfAddress,
    Address(IpAddr),
}

/// What we say of a prefix, apart from what the session adds (our AS, the next hop's address).
/// ORIGIN is always IGP (B39).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    pub next_hop: NextHop,
    pub med: Option<u32>,
    /// Sent to internal peers only (RFC 4271 5.1.5); 100 where None.
    pub local_pref: Option<u32>,
    /// How many times our AS is put in front once more. Internal peers see an empty AS_PATH and no prepends.
    pub prepend: u8,
    /// Sorted, without duplicates.
    pub communities: Vec<Community>,
}

impl Default for Route {
    fn default() -> Self {
        Route {
            next_hop: NextHop::SelfAddress,
            med: None,
            local_pref: None,
            prepend: 0,
            communities: Vec::new(),
        }
    }
}
