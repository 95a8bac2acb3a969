//! BGP as values (RFC 4271): messages, session FSM, Adj-RIB-Out, and a sans-IO [`Speaker`].
//!
//! ```text
//!   set_peers, set_routes ──> Speaker ──> Action: Connect, Send, Close, Report
//!   bytes, closes, time ────>    │
//!                                └─ Session, one per peer: FSM, collisions, retries       session.rs
//!                                     └─ Connection: buffers, timers                      connection.rs
//!                                          └─ AdjRibOut: what the peer was told           adj_rib_out.rs
//!                                               └─ Export: a Route as this peer reads it  export.rs
//!                                                    └─ wire: messages <-> bytes          wire/
//! ```
//!
//! It never opens a socket, reads a clock or draws a random number; whatever a peer sends gives a message, a
//! NOTIFICATION or a wait, never a panic (invariant 10). It is a host's speaker: it imports nothing (B35) and passes on
//! nothing.

mod adj_rib_out;
mod connection;
mod export;
mod negotiate;
mod peer;
mod route;
mod session;
mod speaker;
mod status;
mod timers;
pub mod wire;

pub use peer::{PeerAsn, PeerConfig, PeerName};
pub use route::{Community, Family, NextHop, Prefix, Route};
pub use speaker::{Action, ConnId, Routes, Speaker};
pub use status::{Established, Event, LastError, Received, SessionError, SessionStatus, State, Withheld};
pub use wire::Notification;
