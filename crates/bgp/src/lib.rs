//! BGP as values (RFC 4271): messages, session FSM, Adj-RIB-Out, and a sans-IO [`Speaker`].

use std::fmt;
use std::net::IpAddr;

pub use ipnet::IpNet as Prefix;

/// The neighbour's AS number, or how it relates to ours (`peerASN` in vips.md 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum PeerAsn {
    /// Exactly this one.
    Number(u32),
    /// Any but ours.
    External,
    /// The same as ours.
    Internal,
    Any,
}

/// RFC 1997 and RFC 8092.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Community {
    Standard(u32),
    Large(u32, u32, u32),
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
    /// How many times our AS is put in front once more.
    pub prepend: u8,
    /// Sorted, without duplicates.
    pub communities: Vec<Community>,
}

impl Default for Route {
    fn default() -> Self {
        Route { next_hop: NextHop::SelfAddress, med: None, local_pref: None, prepend: 0, communities: Vec::new() }
    }
}

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Community::Standard(c) => write!(f, "{}:{}", c >> 16, c & 0xffff),
            Community::Large(a, b, c) => write!(f, "large:{a}:{b}:{c}"),
        }
    }
}
