//! The quarters of the endpoints: what reading a map back costs the kernel grows with the square of it.

use std::fmt;
use std::net::IpAddr;

/// Which of the maps of endpoints has those of an address: its last bits say.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shard(u8);

impl Shard {
    pub const COUNT: usize = 4;
    pub const ALL: [Shard; Shard::COUNT] = [Shard(0), Shard(1), Shard(2), Shard(3)];
    /// Those bits of an address' last byte.
    pub const MASK: u8 = Shard::COUNT as u8 - 1;

    pub fn of(address: &IpAddr) -> Shard {
        let last = match address {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        Shard(last & Shard::MASK)
    }

    pub fn number(self) -> u8 {
        self.0
    }

    pub fn map(self) -> &'static str {
        ["endpoints-0", "endpoints-1", "endpoints-2", "endpoints-3"][usize::from(self.0)]
    }

    /// The inverse of [`Shard`]'s `Display`.
    pub fn parse(text: &str) -> Option<Shard> {
        Shard::ALL.into_iter().find(|shard| shard.to_string() == text)
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
