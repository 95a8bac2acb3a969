//! BGP as values (RFC 4271): messages, session FSM, Adj-RIB-Out, and a sans-IO `Speaker`.

mod peer;
mod route;
mod status;
mod wire;

pub use peer::{PeerAsn, PeerConfig, PeerName};
pub use route::{Community, Family, NextHop, Prefix, Route};
pub use status::{Established, Event, LastError, Received, SessionError, SessionStatus, State, Withheld};
pub use wire::Notification;
