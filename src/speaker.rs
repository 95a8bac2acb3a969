//! One task that owns a [`portolan_bgp::Speaker`], its sockets and its clock.
//!
//! ```text
//!   watch Intent ──> run ──> watch SpeakerStatus
//!                     │ ^
//!        bytes, close │ │ connected, input, sent, closed
//!                     v │
//!               one task per connection (connection.rs), one per listener (listener.rs)
//! ```

mod connection;
mod listener;
mod sockopt;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use portolan_bgp::{Action, ConnId, Event, PeerConfig, PeerName, Routes, SessionStatus, Speaker};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::sleep_until;

use connection::Handle;

/// Everything the speaker should be doing; a newer one replaces it as a whole.
#[derive(Clone, Debug, Default)]
pub struct Intent {
    /// The writer's own count, echoed in [`SpeakerStatus::generation`].
    pub generation: u64,
    pub peers: BTreeMap<PeerName, PeerConfig>,
    /// Routes per peer; peers that are told the same share one map.
    pub routes: BTreeMap<PeerName, Arc<Routes>>,
    /// Withdraw everything, tell the peers this text (RFC 9003) and end: [`run`] returns when it is done.
    pub shutdown: Option<String>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpeakerStatus {
    /// The newest [`Intent`] all of whose updates and withdraws were written to the sockets of the sessions that
    /// are Established.
    pub generation: u64,
    pub sessions: BTreeMap<PeerName, SessionStatus>,
}

/// Bytes from a connection may wait for the speaker in this many pieces, then TCP holds the peer back.
const EVENTS: usize = 64;

/// Speaks BGP as the newest intent says, until that has a `shutdown` (then within a few seconds). To stop without a
/// NOTIFICATION, so that peers that know graceful restart keep the routes, drop the future or the intent's sender.
///
/// # Errors
/// When an address of `listen` cannot be bound. What goes wrong with a peer is in the status.
pub async fn run(
    mut intent: watch::Receiver<Arc<Intent>>,
    listen: &[SocketAddr],
    status: watch::Sender<Arc<SpeakerStatus>>,
) -> anyhow::Result<()> {
    let (accepted_in, mut accepted) = mpsc::channel(EVENTS);
    let mut listeners = JoinSet::new();
    for address in listen {
        let listener = listener::bind(*address).with_context(|| format!("BGP: listening on {address}"))?;
        listeners.spawn(listener::accept(listener, accepted_in.clone()));
    }
    let (events_in, mut events) = mpsc::channel(EVENTS);
    let mut driver = Driver::new(events_in);
    intent.mark_changed();
    loop {
        driver.act();
        driver.publish(&status);
        let wake_up = driver.speaker.poll_timeout();
        tokio::select! {
            changed = intent.changed() => {
                if changed.is_err() {
                    return Ok(());
                }
                let intent = intent.borrow_and_update().clone();
                if let Some(text) = &intent.shutdown {
                    driver.shut_down(text, &mut events).await;
                    driver.publish(&status);
                    return Ok(());
                }
                driver.adopt(&intent);
            }
            Some((conn, event)) = events.recv() => driver.handle(conn, event),
            Some(stream) = accepted.recv() => driver.accept(stream),
            () = sleep_until(wake_up.unwrap_or_else(Instant::now).into()), if wake_up.is_some() => {
                driver.speaker.handle_timeout(Instant::now());
            }
            Some(_ended) = driver.tasks.join_next() => {}
        }
    }
}

struct Driver {
    speaker: Speaker,
    peers: BTreeMap<PeerName, PeerConfig>,
    connections: BTreeMap<ConnId, Handle>,
    /// Ends with the driver, and closes every socket then.
    tasks: JoinSet<()>,
    events: mpsc::Sender<(ConnId, connection::Event)>,
    accepted: u64,
    /// Sets of routes not yet written everywhere: the speaker's number, the intent's generation.
    unwritten: VecDeque<(u64, u64)>,
    generation: u64,
}

impl Driver {
    fn new(events: mpsc::Sender<(ConnId, connection::Event)>) -> Self {
        Driver {
            speaker: Speaker::new(),
            peers: BTreeMap::new(),
            connections: BTreeMap::new(),
            tasks: JoinSet::new(),
            events,
            accepted: 0,
            unwritten: VecDeque::new(),
            generation: 0,
        }
    }

    fn adopt(&mut self, intent: &Intent) {
        let now = Instant::now();
        if self.peers != intent.peers {
            self.peers = intent.peers.clone();
            self.speaker.set_peers(intent.peers.clone(), now);
        }
        let sequence = self.speaker.set_routes(intent.routes.clone(), now);
        self.unwritten.push_back((sequence, intent.generation));
    }

    fn handle(&mut self, conn: ConnId, event: connection::Event) {
        let now = Instant::now();
        match event {
            connection::Event::Connected { local, remote } => {
                self.speaker.handle_connected(conn, local, remote, now)
            }
            connection::Event::Input(bytes) => self.speaker.handle_input(conn, &bytes, now),
            connection::Event::Sent => self.speaker.handle_sent(conn, now),
            connection::Event::Closed(reason) => {
                self.connections.remove(&conn);
                self.speaker.handle_closed(conn, &reason, now);
            }
        }
    }

    fn accept(&mut self, stream: listener::Accepted) {
        self.accepted += 1;
        let conn = ConnId::Accepted(self.accepted);
        let config = self.peers.values().find(|peer| peer.remote.ip() == stream.remote.ip().to_canonical());
        if let Some(Err(error)) = config.map(|config| sockopt::apply(&stream.stream, config)) {
            tracing::warn!(remote = %stream.remote, %error, "BGP: socket options");
        }
        let (handle, io) = connection::pair(conn, self.events.clone());
        self.connections.insert(conn, handle);
        self.tasks.spawn(io.run(stream.stream));
        self.speaker.handle_connected(conn, stream.local, stream.remote, Instant::now());
    }

    fn act(&mut self) {
        while let Some(action) = self.speaker.poll_action() {
            match action {
                Action::Connect { conn, peer } => self.dial(conn, &peer),
                // A connection that just ended: its Closed is on the way.
                Action::Send { conn, bytes } => {
                    if let Some(handle) = self.connections.get(&conn) {
                        handle.send(bytes);
                    }
                }
                // Without its handle a connection writes what it has, and ends.
                Action::Close { conn } => drop(self.connections.remove(&conn)),
                Action::Report(event) => log(&event),
            }
        }
    }

    fn dial(&mut self, conn: ConnId, peer: &PeerName) {
        let Some(config) = self.peers.get(peer) else { return };
        let (handle, io) = connection::pair(conn, self.events.clone());
        self.connections.insert(conn, handle);
        self.tasks.spawn(io.dial(config.clone()));
    }

    fn publish(&mut self, status: &watch::Sender<Arc<SpeakerStatus>>) {
        let written = self.speaker.written();
        while let Some((_, generation)) = self.unwritten.pop_front_if(|(sequence, _)| *sequence <= written) {
            self.generation = generation;
        }
        let new = SpeakerStatus { generation: self.generation, sessions: self.speaker.sessions() };
        status.send_if_modified(|old| {
            let changed = **old != new;
            if changed {
                *old = Arc::new(new);
            }
            changed
        });
    }

    /// Every connection ends by itself, because the speaker closes it; what they still tell changes nothing.
    async fn shut_down(&mut self, text: &str, events: &mut mpsc::Receiver<(ConnId, connection::Event)>) {
        self.speaker.shutdown(text, Instant::now());
        self.act();
        loop {
            tokio::select! {
                ended = self.tasks.join_next() => if ended.is_none() { return },
                Some(_too_late) = events.recv() => {}
            }
        }
    }
}

fn log(event: &Event) {
    match event {
        Event::State { peer, from, to } => tracing::info!(%peer, %from, %to, "BGP session"),
        Event::Error { peer, error } => tracing::warn!(%peer, %error, "BGP session ended"),
        Event::MalformedUpdate { peer, attribute, reason } => {
            tracing::warn!(%peer, attribute, reason, "BGP: malformed UPDATE, handled as RFC 7606 says");
        }
        Event::Refused { from } => tracing::debug!(%from, "BGP: connection refused"),
    }
}
