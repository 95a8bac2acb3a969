//! A configured neighbour.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use crate::Family;

/// The name an administrator gave a peer; a key, and what reports say.
pub type PeerName = Arc<str>;

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

impl PeerAsn {
    /// Whether a neighbour that says it is `asn` is the one meant. AS 0 never is (RFC 7607).
    pub fn accepts(self, asn: u32, local_asn: u32) -> bool {
        asn != 0
            && match self {
                PeerAsn::Number(expected) => asn == expected,
                PeerAsn::External => asn != local_asn,
                PeerAsn::Internal => asn == local_asn,
                PeerAsn::Any => true,
            }
    }
}

impl fmt::Display for PeerAsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PeerAsn::Number(asn) => write!(f, "{asn}"),
            PeerAsn::External => f.write_str("external"),
            PeerAsn::Internal => f.write_str("internal"),
            PeerAsn::Any => f.write_str("any"),
        }
    }
}

/// Everything a session needs to know of a neighbour and of us towards it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerConfig {
    pub name: PeerName,
    /// Where to dial; an incoming connection is this peer's when it comes from the same address (any port).
    pub remote: SocketAddr,
    /// Never dial; wait for the peer to.
    pub passive: bool,
    pub local_asn: u32,
    pub peer_asn: PeerAsn,
    /// Our BGP Identifier: any number but zero, unique within the AS (RFC 6286).
    pub router_id: Ipv4Addr,
    /// Proposed; the smaller of the two ends' counts. Zero turns the timer off; 1 s and 2 s are not allowed by
    /// RFC 4271 4.2 and raised to 3 s.
    pub hold_time: Duration,
    /// Time between KEEPALIVEs; a third of the negotiated hold time where None, and never more than that.
    pub keepalive: Option<Duration>,
    /// The longest time between two attempts to connect (B1): 1 s, 2 s, 4 s ... up to this.
    pub connect_time: Duration,
    pub families: Vec<Family>,
    pub source: Option<IpAddr>,
    /// IP TTL (hop limit) of packets to the peer; the system's where None. 1 for an external peer on the link (B40).
    pub ttl: Option<u8>,
    /// This node's addresses, for the next hop of the family that the session does not run over (K13). A
    /// session's own family takes the connection's local address.
    pub local_v4: Option<Ipv4Addr>,
    pub local_v6: Option<Ipv6Addr>,
    /// Where the jitter of the timers starts from; give every node and peer another.
    pub seed: u64,
}

impl PeerConfig {
    /// With the defaults of a BGPPeer: hold time 90 s (K15), both families, retries at most 30 s apart.
    pub fn new(
        name: impl Into<PeerName>,
        remote: SocketAddr,
        local_asn: u32,
        peer_asn: PeerAsn,
        router_id: Ipv4Addr,
    ) -> Self {
        PeerConfig {
            name: name.into(),
            remote,
            passive: false,
            local_asn,
            peer_asn,
            router_id,
            hold_time: Duration::from_secs(90),
            keepalive: None,
            connect_time: Duration::from_secs(30),
            families: Family::ALL.to_vec(),
            source: None,
            ttl: None,
            local_v4: None,
            local_v6: None,
            seed: 0,
        }
    }
}
