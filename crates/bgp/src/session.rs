//! One peer: the finite state machine of RFC 4271 section 8 for a host.
//!
//! ```text
//!            start            connected          OPEN             KEEPALIVE
//!   Idle ──────────> Connect ──────────> OpenSent ───> OpenConfirm ──────────> Established
//!    ^  └─ passive ─> Active <── dial failed    (an accepted connection enters at OpenSent)
//!    └──────────── any error: Idle, and again after 1, 2, 4 .. s (B1)
//! ```
//!
//! A session may have two connections for a moment, one dialed and one accepted; when both have an OPEN, one is
//! closed (6.8). The session's state is that of the connection that came furthest.

mod input;

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::{Connection, Phase};
use crate::negotiate;
use crate::speaker::Routes;
use crate::timers::{Jitter, Timer};
use crate::wire::{Message, Notification};
use crate::{Action, ConnId, Event, LastError, PeerConfig, PeerName, SessionError, SessionStatus, State};

/// How long a dial may take before another is worth a try: a host that has come back answers the next SYN at once.
const DIAL_TIME: Duration = Duration::from_secs(5);

/// The time until the first new attempt; it doubles with each one that fails (B1).
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The speaker's side of one call.
pub(crate) struct Turn<'a> {
    pub(crate) now: Instant,
    /// How often routes were set.
    pub(crate) sequence: u64,
    pub(crate) actions: &'a mut VecDeque<Action>,
    pub(crate) conns: &'a mut BTreeMap<ConnId, PeerName>,
    pub(crate) dials: &'a mut u64,
}

pub(crate) struct Session {
    config: PeerConfig,
    routes: Arc<Routes>,
    /// Not more than one of each kind.
    connections: Vec<Connection>,
    /// Without a connection: refuse those that come (Idle), or not (Active).
    idle: bool,
    /// Shut down: stays Idle.
    stopped: bool,
    /// ConnectRetryTimer, IdleHoldTimer, and the end of patience with a dial (RFC 4271 8.1.3, 8.2.2).
    retry: Option<Instant>,
    /// Attempts since the session was last Established.
    attempts: u32,
    jitter: Jitter,
    state: State,
    since: Instant,
    last_error: Option<LastError>,
}

impl Session {
    pub(crate) fn new(config: PeerConfig, routes: Arc<Routes>, now: Instant) -> Self {
        Session {
            jitter: Jitter::new(config.seed),
            config,
            routes,
            connections: Vec::new(),
            idle: true,
            stopped: false,
            retry: None,
            attempts: 0,
            state: State::Idle,
            since: now,
            last_error: None,
        }
    }

    pub(crate) fn address(&self) -> IpAddr {
        self.config.remote.ip().to_canonical()
    }

    /// Whether an incoming connection is welcome: not in Idle, nor beside an established session (RFC 4271 6.8, 8.2.2).
    pub(crate) fn accepts(&self) -> bool {
        !matches!(self.state(), State::Idle | State::Established)
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.connections.iter().filter_map(|connection| connection.timers.next()).chain(self.retry).min()
    }

    /// The newest set of routes written; None unless Established.
    pub(crate) fn written(&self) -> Option<u64> {
        self.connections.iter().find_map(Connection::exchange).map(|exchange| exchange.written())
    }

    pub(crate) fn status(&self) -> SessionStatus {
        SessionStatus {
            remote: self.config.remote,
            state: self.state,
            since: self.since,
            last_error: self.last_error.clone(),
            established: self
                .connections
                .iter()
                .find_map(Connection::exchange)
                .map(|exchange| exchange.status()),
        }
    }

    fn state(&self) -> State {
        let without = if self.idle { State::Idle } else { State::Active };
        self.connections.iter().map(Connection::state).max().unwrap_or(without)
    }

    /// ManualStart, AutomaticStart, and the end of IdleHoldTimer or ConnectRetryTimer (RFC 4271 8.2.2).
    pub(crate) fn start(&mut self, turn: &mut Turn) {
        self.idle = false;
        self.retry = None;
        if self.config.passive {
            return;
        }
        *turn.dials += 1;
        let conn = ConnId::Dialed(*turn.dials);
        turn.conns.insert(conn, self.config.name.clone());
        turn.actions.push_back(Action::Connect { conn, peer: self.config.name.clone() });
        self.connections.push(Connection::dialing(conn));
        self.retry = Some(turn.now + DIAL_TIME);
    }

    pub(crate) fn connected(&mut self, conn: ConnId, local: SocketAddr, turn: &mut Turn) {
        self.retry = None;
        let open = negotiate::our_open(&self.config);
        if let Some(connection) = self.connection(conn) {
            connection.enter_open_sent(local, &open, turn.now);
        }
    }

    /// A connection came in. The peer has given up an earlier one of the same kind, or would not make another.
    pub(crate) fn accept(&mut self, conn: ConnId, local: SocketAddr, turn: &mut Turn) {
        let earlier = self.connections.iter().find(|connection| matches!(connection.id, ConnId::Accepted(_)));
        if let Some(earlier) = earlier.map(|connection| connection.id) {
            self.close(earlier, None, turn);
        }
        turn.conns.insert(conn, self.config.name.clone());
        let mut connection = Connection::dialing(conn);
        connection.enter_open_sent(local, &negotiate::our_open(&self.config), turn.now);
        self.connections.push(connection);
    }

    pub(crate) fn sent(&mut self, conn: ConnId) {
        if let Some(connection) = self.connection(conn) {
            connection.sent();
        }
    }

    /// TcpConnectionFails (RFC 4271 8.1.4).
    pub(crate) fn closed(&mut self, conn: ConnId, reason: &str, turn: &mut Turn) {
        self.forget(conn, turn);
        self.ended(SessionError::Connection(reason.to_owned()), false, turn);
    }

    pub(crate) fn timeout(&mut self, turn: &mut Turn) {
        if self.retry.is_some_and(|at| at <= turn.now) {
            self.retry = None;
            self.retry_expired(turn);
        }
        let ids: Vec<_> = self.connections.iter().map(|connection| connection.id).collect();
        for conn in ids {
            while let Some(timer) =
                self.connection(conn).and_then(|connection| connection.timers.pop(turn.now))
            {
                self.connection_timeout(conn, timer, turn);
            }
        }
    }

    fn retry_expired(&mut self, turn: &mut Turn) {
        let dialing = self.connections.iter().find(|connection| matches!(connection.phase, Phase::Connect));
        match dialing.map(|connection| connection.id) {
            Some(conn) => {
                self.close(conn, None, turn);
                self.ended(SessionError::Connection("connecting: no answer".into()), false, turn);
            }
            None if self.connections.is_empty() && !self.stopped => self.start(turn),
            None => {}
        }
    }

    fn connection_timeout(&mut self, conn: ConnId, timer: Timer, turn: &mut Turn) {
        match timer {
            Timer::Hold => self.fail(conn, Notification::HOLD_TIMER_EXPIRED, turn),
            Timer::Keepalive => {
                if let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == conn)
                {
                    connection.send_keepalive(&mut self.jitter, turn.now);
                }
            }
            // RFC 9687 4: the NOTIFICATION will hardly get through, but costs nothing.
            Timer::SendHold => {
                self.close(conn, Some(Notification::SEND_HOLD_TIMER_EXPIRED), turn);
                self.ended(SessionError::SendHoldTimerExpired, true, turn);
            }
        }
    }

    pub(crate) fn set_routes(&mut self, routes: Arc<Routes>) {
        if !Arc::ptr_eq(&self.routes, &routes) {
            let old = std::mem::replace(&mut self.routes, routes);
            let established = self.connections.iter_mut().find_map(Connection::exchange_mut);
            if let Some(exchange) = established {
                exchange.adj_rib_out.routes_changed(&old, &self.routes);
            }
        }
    }

    /// A new configuration; the session ends only where the peer has a part in what changed.
    pub(crate) fn configure(&mut self, config: PeerConfig, turn: &mut Turn) {
        if config == self.config {
            return;
        }
        let reset = needs_reset(&self.config, &config);
        self.config = config;
        match reset {
            true => self.reset(turn),
            // The next hops may be others.
            false => {
                if let Some(exchange) = self.connections.iter_mut().find_map(Connection::exchange_mut) {
                    exchange.adj_rib_out.reconsider(&self.routes);
                    exchange.touch();
                }
            }
        }
    }

    fn reset(&mut self, turn: &mut Turn) {
        self.close_all(&Notification::OTHER_CONFIGURATION_CHANGE, turn);
        self.attempts = 0;
        // An earlier refusal says nothing of the new configuration; but a peer that was told Cease needs a moment.
        match self.state {
            _ if self.stopped => {}
            State::Idle | State::Connect | State::Active => self.start(turn),
            State::OpenSent | State::OpenConfirm | State::Established => self.wait(false, turn),
        }
    }

    pub(crate) fn deconfigure(&mut self, turn: &mut Turn) {
        self.close_all(&Notification::PEER_DECONFIGURED, turn);
        self.idle = true;
    }

    /// ManualStop (RFC 4271 8.1.2), with a text for the other end (B14).
    pub(crate) fn shutdown(&mut self, text: &str, turn: &mut Turn) {
        self.stopped = true;
        self.idle = true;
        self.retry = None;
        self.connections.iter_mut().for_each(Connection::push_withdraws);
        self.close_all(&Notification::administrative_shutdown(text), turn);
    }

    fn close_all(&mut self, notification: &Notification, turn: &mut Turn) {
        let ids: Vec<_> = self.connections.iter().map(|connection| connection.id).collect();
        for conn in ids {
            self.close(conn, Some(notification.clone()), turn);
        }
    }

    /// An error that is the peer's: tell it, and leave it alone for a while.
    fn fail(&mut self, conn: ConnId, notification: Notification, turn: &mut Turn) {
        self.close(conn, Some(notification.clone()), turn);
        self.ended(SessionError::Sent(notification), true, turn);
    }

    /// Writes what is left and the NOTIFICATION, and closes. Before an OPEN there is nobody to notify.
    fn close(&mut self, conn: ConnId, notification: Option<Notification>, turn: &mut Turn) {
        let Some(mut connection) = self.forget(conn, turn) else { return };
        if !matches!(connection.phase, Phase::Connect) {
            if let Some(notification) = notification {
                connection.push(&Message::Notification(notification));
            }
            turn.actions.extend(connection.drain());
        }
        turn.actions.push_back(Action::Close { conn });
    }

    fn forget(&mut self, conn: ConnId, turn: &mut Turn) -> Option<Connection> {
        turn.conns.remove(&conn);
        let at = self.connections.iter().position(|connection| connection.id == conn)?;
        Some(self.connections.remove(at))
    }

    /// A connection is gone. If another is left, it decides how things go on.
    fn ended(&mut self, error: SessionError, idle: bool, turn: &mut Turn) {
        if self.connections.is_empty() {
            turn.actions.push_back(Action::Report(Event::Error {
                peer: self.config.name.clone(),
                error: error.clone(),
            }));
            self.last_error = Some(LastError { at: turn.now, error });
            self.wait(idle, turn);
        }
    }

    /// Until the next attempt. In Active the peer's own attempt is welcome meanwhile; a peer that made an error waits
    /// (Idle), so that two ends that disagree do not spin.
    fn wait(&mut self, idle: bool, turn: &mut Turn) {
        let time =
            (FIRST_RETRY * 2u32.pow(self.attempts.min(10))).min(self.config.connect_time.max(FIRST_RETRY));
        self.attempts = self.attempts.saturating_add(1);
        self.idle = idle;
        self.retry = Some(turn.now + self.jitter.of(time));
    }

    fn connection(&mut self, conn: ConnId) -> Option<&mut Connection> {
        self.connections.iter_mut().find(|connection| connection.id == conn)
    }

    /// After every call: hands out what is to be sent, and reports a change of state.
    pub(crate) fn settle(&mut self, turn: &mut Turn) {
        for connection in &mut self.connections {
            turn.actions.extend(connection.poll_send(&self.routes, &self.config, turn.sequence, turn.now));
        }
        let (from, to) = (self.state, self.state());
        if from != to {
            (self.state, self.since) = (to, turn.now);
            turn.actions.push_back(Action::Report(Event::State { peer: self.config.name.clone(), from, to }));
        }
    }
}

/// Whether the peer has a part in what changed. What is left out here counts from the next UPDATE or session on.
fn needs_reset(old: &PeerConfig, new: &PeerConfig) -> bool {
    let alike = PeerConfig {
        keepalive: new.keepalive,
        connect_time: new.connect_time,
        local_v4: new.local_v4,
        local_v6: new.local_v6,
        seed: new.seed,
        ..old.clone()
    };
    alike != *new
}
