//! All sessions of a node behind one set of functions, without a socket or a clock.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use crate::session::{Session, Turn};
use crate::{Event, PeerConfig, PeerName, Prefix, Route, SessionStatus};

/// What one peer is to be told, complete.
pub type Routes = BTreeMap<Prefix, Route>;

/// A TCP connection, numbered by who makes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConnId {
    /// Numbered by the speaker, in [`Action::Connect`].
    Dialed(u64),
    /// Numbered by the driver, in [`Speaker::handle_connected`]; never the same twice.
    Accepted(u64),
}

impl fmt::Display for ConnId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConnId::Dialed(n) => write!(f, "dialed-{n}"),
            ConnId::Accepted(n) => write!(f, "accepted-{n}"),
        }
    }
}

/// What the driver is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Dial this peer's [`PeerConfig::remote`]; tell the outcome with `handle_connected` or `handle_closed`.
    Connect {
        conn: ConnId,
        peer: PeerName,
    },
    /// Write all of it, then call [`Speaker::handle_sent`].
    Send {
        conn: ConnId,
        bytes: Vec<u8>,
    },
    /// Write what was handed out before (give up after a moment), then close. The speaker has forgotten the connection.
    Close {
        conn: ConnId,
    },
    Report(Event),
}

/// A BGP speaker: configuration, bytes and time go in, actions come out (sans-IO).
///
/// The driver owns sockets and clock, and calls, in any order:
///
/// - [`set_peers`](Speaker::set_peers) and [`set_routes`](Speaker::set_routes) with *everything* wanted, whenever that
///   changes; the speaker works out the difference. Peers get their End-of-RIB once `set_routes` was called.
/// - [`handle_connected`](Speaker::handle_connected) when a dial succeeded or a listener accepted,
///   [`handle_input`](Speaker::handle_input) with any bytes received, [`handle_sent`](Speaker::handle_sent) when the
///   bytes of an [`Action::Send`] are written, [`handle_closed`](Speaker::handle_closed) when a dial failed or a
///   connection ended.
/// - [`handle_timeout`](Speaker::handle_timeout) when the time of [`poll_timeout`](Speaker::poll_timeout) has come.
///
/// After each of these, and before waiting again: [`poll_action`](Speaker::poll_action) until it gives None, then
/// `poll_timeout`. `now` must not go backwards. Calls that name a connection the speaker has forgotten do nothing.
#[derive(Default)]
pub struct Speaker {
    sessions: BTreeMap<PeerName, Session>,
    conns: BTreeMap<ConnId, PeerName>,
    actions: VecDeque<Action>,
    dials: u64,
    /// Counts the calls of `set_routes`.
    sequence: u64,
    routes: BTreeMap<PeerName, Arc<Routes>>,
}

impl Speaker {
    pub fn new() -> Self {
        Speaker::default()
    }

    /// The peers to have sessions with, complete. A peer whose configuration changed in a way that the other end must
    /// be told of is reset (Cease, Other Configuration Change); one that is gone is told so (Cease, Peer De-configured).
    pub fn set_peers(&mut self, peers: BTreeMap<PeerName, PeerConfig>, now: Instant) {
        let gone: Vec<_> = self.sessions.keys().filter(|name| !peers.contains_key(*name)).cloned().collect();
        for name in gone {
            self.with_session(&name, now, |session, turn| session.deconfigure(turn));
            self.sessions.remove(&name);
        }
        for (name, config) in peers {
            if self.sessions.contains_key(&name) {
                self.with_session(&name, now, |session, turn| session.configure(config, turn));
            } else {
                let routes = self.routes.get(&name).cloned().unwrap_or_default();
                self.sessions.insert(name.clone(), Session::new(config, routes, now));
                self.with_session(&name, now, |session, turn| session.start(turn));
            }
        }
    }

    /// The routes each peer is to be told, complete: what is missing is withdrawn, what differs replaces (A47). A peer
    /// without an entry is told nothing. Returns the number of this set, for [`written`](Speaker::written).
    pub fn set_routes(&mut self, routes: BTreeMap<PeerName, Arc<Routes>>, now: Instant) -> u64 {
        self.sequence += 1;
        self.routes = routes;
        let names: Vec<_> = self.sessions.keys().cloned().collect();
        for name in names {
            let routes = self.routes.get(&name).cloned().unwrap_or_default();
            self.with_session(&name, now, |session, _turn| session.set_routes(routes));
        }
        self.sequence
    }

    /// The newest set of routes that the driver has written to every Established session.
    pub fn written(&self) -> u64 {
        self.sessions.values().filter_map(Session::written).min().unwrap_or(self.sequence)
    }

    /// A TCP connection stands: one of ours that was dialed, or one that came in. `local` and `remote` are its ends.
    pub fn handle_connected(&mut self, conn: ConnId, local: SocketAddr, remote: SocketAddr, now: Instant) {
        match conn {
            ConnId::Dialed(_) => {
                self.with_conn(conn, now, |session, turn| session.connected(conn, local, turn))
            }
            ConnId::Accepted(_) => match self.peer_at(remote.ip().to_canonical()) {
                Some(name) => {
                    self.with_session(&name, now, |session, turn| session.accept(conn, local, turn))
                }
                None => {
                    self.actions.push_back(Action::Close { conn });
                    self.actions.push_back(Action::Report(Event::Refused { from: remote }));
                }
            },
        }
    }

    /// Any bytes, in the order the connection gave them.
    pub fn handle_input(&mut self, conn: ConnId, bytes: &[u8], now: Instant) {
        self.with_conn(conn, now, |session, turn| session.input(conn, bytes, turn));
    }

    /// The bytes of the connection's last [`Action::Send`] are with the kernel.
    pub fn handle_sent(&mut self, conn: ConnId, now: Instant) {
        self.with_conn(conn, now, |session, _turn| session.sent(conn));
    }

    /// A dial failed, or the connection ended; `reason` is shown to people.
    pub fn handle_closed(&mut self, conn: ConnId, reason: &str, now: Instant) {
        self.with_conn(conn, now, |session, turn| session.closed(conn, reason, turn));
    }

    pub fn handle_timeout(&mut self, now: Instant) {
        let due =
            self.sessions.iter().filter(|(_, session)| session.poll_timeout().is_some_and(|at| at <= now));
        let due: Vec<_> = due.map(|(name, _)| name.clone()).collect();
        for name in due {
            self.with_session(&name, now, |session, turn| session.timeout(turn));
        }
    }

    /// Ends every session: withdraws its routes, says why (Cease, Administrative Shutdown, RFC 9003), and dials no
    /// more. When all actions are done the speaker can be dropped. To stop without the peers noticing before they
    /// must, drop the speaker and its connections instead.
    pub fn shutdown(&mut self, text: &str, now: Instant) {
        let names: Vec<_> = self.sessions.keys().cloned().collect();
        for name in names {
            self.with_session(&name, now, |session, turn| session.shutdown(text, turn));
        }
    }

    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    pub fn poll_timeout(&self) -> Option<Instant> {
        self.sessions.values().filter_map(Session::poll_timeout).min()
    }

    pub fn sessions(&self) -> BTreeMap<PeerName, SessionStatus> {
        self.sessions.iter().map(|(name, session)| (name.clone(), session.status())).collect()
    }

    /// Two peers may share an address (behind other ports): the one that has no session gets the connection.
    fn peer_at(&self, address: IpAddr) -> Option<PeerName> {
        let mut here = self.sessions.iter().filter(|(_, session)| session.address() == address);
        here.find(|(_, session)| session.accepts()).map(|(name, _)| name.clone())
    }

    fn with_conn(&mut self, conn: ConnId, now: Instant, act: impl FnOnce(&mut Session, &mut Turn)) {
        if let Some(name) = self.conns.get(&conn).cloned() {
            self.with_session(&name, now, act);
        }
    }

    fn with_session(&mut self, name: &PeerName, now: Instant, act: impl FnOnce(&mut Session, &mut Turn)) {
        let Some(session) = self.sessions.get_mut(name) else { return };
        let mut turn = Turn {
            now,
            sequence: self.sequence,
            actions: &mut self.actions,
            conns: &mut self.conns,
            dials: &mut self.dials,
        };
        act(session, &mut turn);
        session.settle(&mut turn);
    }
}
