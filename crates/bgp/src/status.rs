//! What a speaker tells of its sessions.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use crate::{Family, Notification, PeerName};

/// RFC 4271 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Connections are refused: after an error, until the next attempt.
    Idle,
    /// A connection to the peer is being made.
    Connect,
    /// Waiting for the peer to connect, or for the time to dial again.
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

/// Why a session, or an attempt at one, ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SessionError {
    /// We ended it, and told the peer so.
    Sent(Notification),
    /// The peer ended it, and told us so.
    Received(Notification),
    /// The connection failed or was closed without a NOTIFICATION; the text is the driver's.
    Connection(String),
    /// The peer took nothing from us for too long (RFC 9687).
    SendHoldTimerExpired,
}

impl fmt::Display for SessionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SessionError::Sent(notification) => write!(f, "sent NOTIFICATION {notification}"),
            SessionError::Received(notification) => write!(f, "received NOTIFICATION {notification}"),
            SessionError::Connection(why) => f.write_str(why),
            SessionError::SendHoldTimerExpired => {
                f.write_str("the peer takes no data (send hold timer expired)")
            }
        }
    }
}

/// Why a route is not sent to a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Withheld {
    /// The peer, or its configuration, does not have the route's family.
    FamilyNotNegotiated,
    /// The session runs over the other family, and this node's address in the route's is not configured.
    NoNextHop,
    /// The given next hop is of the other family than the route.
    NextHopOfOtherFamily,
    /// The attributes leave no room for a prefix in a message (RFC 4271 4.1).
    TooLarge,
}

impl fmt::Display for Withheld {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Withheld::FamilyNotNegotiated => "family not negotiated",
            Withheld::NoNextHop => "no next hop of the route's family",
            Withheld::NextHopOfOtherFamily => "next hop of the other family",
            Withheld::TooLarge => "attributes too large for a message",
        })
    }
}

/// Counted since the session was established; nothing is imported (B35).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    pub updates: u64,
    /// Prefixes announced, again and again if they are.
    pub announced: u64,
    pub withdrawn: u64,
    /// UPDATEs with attributes that RFC 7606 tells to discard or to treat as a withdraw.
    pub malformed: u64,
}

/// One peer's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionStatus {
    pub remote: SocketAddr,
    pub state: State,
    /// When the state was entered.
    pub since: Instant,
    pub last_error: Option<LastError>,
    /// While Established.
    pub established: Option<Established>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastError {
    pub at: Instant,
    pub error: SessionError,
}

/// What the two ends agreed on, and what went over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Established {
    pub local: SocketAddr,
    pub peer_asn: u32,
    pub peer_router_id: Ipv4Addr,
    /// Zero: no hold timer, no KEEPALIVEs.
    pub hold_time: Duration,
    pub keepalive: Duration,
    pub families: Vec<Family>,
    pub route_refresh: bool,
    /// Prefixes the peer has been told, per negotiated family.
    pub advertised: BTreeMap<Family, usize>,
    /// Prefixes kept back, by reason.
    pub withheld: BTreeMap<Withheld, usize>,
    pub received: Received,
    /// Families whose End-of-RIB (RFC 4724) came from the peer.
    pub end_of_rib: Vec<Family>,
}

/// Something worth a log line or a Kubernetes Event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    State {
        peer: PeerName,
        from: State,
        to: State,
    },
    Error {
        peer: PeerName,
        error: SessionError,
    },
    /// An UPDATE that RFC 7606 lets the session survive.
    MalformedUpdate {
        peer: PeerName,
        attribute: u8,
        reason: &'static str,
    },
    /// A connection from an address that no peer has, or of a peer that is not to be connected now.
    Refused {
        from: SocketAddr,
    },
}
