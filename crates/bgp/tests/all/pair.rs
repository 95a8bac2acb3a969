//! Two speakers, one clock, and TCP connections between them that deliver in order, or are cut.

use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_bgp::wire::{self, Format, Message, PathAttributes};
use portolan_bgp::{
    Action, ConnId, Event, Family, PeerAsn, PeerConfig, PeerName, Prefix, Route, Routes, SessionStatus,
    Speaker,
};

pub const A: usize = 0;
pub const B: usize = 1;

/// What an end has heard: the routes that stand, and whose set is complete.
#[derive(Debug, Default, PartialEq)]
pub struct Heard {
    pub routes: BTreeMap<Prefix, (IpAddr, PathAttributes)>,
    pub end_of_rib: Vec<Family>,
    /// Prefixes withdrawn so far, again and again if they are.
    pub withdrawn: Vec<Prefix>,
    pub updates: usize,
}

struct End {
    address: IpAddr,
    speaker: Speaker,
    config: PeerConfig,
    listening: bool,
    heard: Heard,
    events: Vec<Event>,
}

/// Something on its way.
enum Item {
    Connect { from: usize, conn: ConnId },
    Bytes { to: usize, conn: ConnId, bytes: Vec<u8> },
    Sent { at: usize, conn: ConnId },
    Fin { to: usize, conn: ConnId },
}

pub struct Pair {
    pub now: Instant,
    ends: [End; 2],
    queue: VecDeque<Item>,
    /// Both ends' names of each connection.
    links: BTreeMap<(usize, ConnId), ConnId>,
    accepted: u64,
    /// Nothing arrives, and nobody is told.
    pub cut: bool,
    /// Writes of this end do not finish (a peer with a zero window).
    pub stuck: [bool; 2],
}

/// AS 64512 at 10.0.0.1, fd00::1 (A) and AS 64513 at 10.0.0.2, fd00::2 (B), each with the other as its peer.
pub fn configs() -> [PeerConfig; 2] {
    let config = |local: u8, remote: u8| {
        let remote_address = SocketAddr::from(([10, 0, 0, remote], 179));
        let mut config = PeerConfig::new(
            "peer",
            remote_address,
            64511 + u32::from(local),
            PeerAsn::Number(64511 + u32::from(remote)),
            [10, 0, 0, local].into(),
        );
        config.local_v6 = Some(format!("fd00::{local}").parse().unwrap());
        config.seed = local.into();
        config
    };
    [config(1, 2), config(2, 1)]
}

impl Pair {
    pub fn new(configs: [PeerConfig; 2]) -> Self {
        let [a, b] = configs;
        let now = super::start_of_time();
        let address = |peer: &PeerConfig| peer.remote.ip();
        let end = |address: IpAddr, config: PeerConfig| End {
            address,
            speaker: Speaker::new(),
            config,
            listening: true,
            heard: Heard::default(),
            events: Vec::new(),
        };
        let ends = [end(address(&b), a.clone()), end(address(&a), b.clone())];
        let mut pair = Pair {
            now,
            ends,
            queue: VecDeque::new(),
            links: BTreeMap::new(),
            accepted: 0,
            cut: false,
            stuck: [false; 2],
        };
        pair.routes(A, Routes::new());
        pair.routes(B, Routes::new());
        pair.peer(A, Some(a));
        pair.peer(B, Some(b));
        pair
    }

    /// Two that have a session; with one dialing, so that there is no collision to be resolved.
    pub fn established(mut configs: [PeerConfig; 2]) -> Self {
        configs[B].passive = true;
        let mut pair = Pair::new(configs);
        pair.settle();
        assert_eq!(pair.status(A).state, portolan_bgp::State::Established);
        assert_eq!(pair.status(B).state, portolan_bgp::State::Established);
        pair
    }

    pub fn peer(&mut self, end: usize, config: Option<PeerConfig>) {
        if let Some(config) = &config {
            self.ends[end].config = config.clone();
        }
        let peers = config.map(|config| (config.name.clone(), config)).into_iter().collect();
        self.ends[end].speaker.set_peers(peers, self.now);
        self.collect(end);
    }

    pub fn config(&self, end: usize) -> PeerConfig {
        self.ends[end].config.clone()
    }

    pub fn routes(&mut self, end: usize, routes: Routes) -> u64 {
        let routes = BTreeMap::from([(PeerName::from("peer"), Arc::new(routes))]);
        let sequence = self.ends[end].speaker.set_routes(routes, self.now);
        self.collect(end);
        sequence
    }

    pub fn listening(&mut self, end: usize, listening: bool) {
        self.ends[end].listening = listening;
    }

    pub fn shutdown(&mut self, end: usize, text: &str) {
        self.ends[end].speaker.shutdown(text, self.now);
        self.collect(end);
    }

    pub fn speaker(&self, end: usize) -> &Speaker {
        &self.ends[end].speaker
    }

    pub fn status(&self, end: usize) -> SessionStatus {
        self.ends[end].speaker.sessions().remove("peer").unwrap()
    }

    pub fn heard(&self, end: usize) -> &Heard {
        &self.ends[end].heard
    }

    pub fn forget_heard(&mut self, end: usize) {
        self.ends[end].heard = Heard::default();
    }

    pub fn forget_counts(&mut self, end: usize) {
        let heard = &mut self.ends[end].heard;
        heard.updates = 0;
        heard.withdrawn.clear();
    }

    /// The kernel has room again.
    pub fn finish_writes(&mut self, end: usize) {
        let conn = self.links.keys().find(|(at, _)| *at == end).unwrap().1;
        self.queue.push_back(Item::Sent { at: end, conn });
    }

    pub fn events(&mut self, end: usize) -> Vec<Event> {
        std::mem::take(&mut self.ends[end].events)
    }

    pub fn last_error(&self, end: usize) -> String {
        self.status(end).last_error.map_or_else(String::new, |last| last.error.to_string())
    }

    /// Both ends lose every connection, as when a cable is pulled for long.
    pub fn break_connections(&mut self, reason: &str) {
        for (end, conn) in std::mem::take(&mut self.links).into_keys() {
            self.ends[end].speaker.handle_closed(conn, reason, self.now);
            self.collect(end);
        }
    }

    /// Hands bytes to an end as if its peer had sent them on the connection that stands.
    pub fn inject(&mut self, to: usize, bytes: &[u8]) {
        let conn = self.links.keys().find(|(end, _)| *end == to).unwrap().1;
        self.ends[to].speaker.handle_input(conn, bytes, self.now);
        self.collect(to);
    }

    /// Delivers everything, without time passing.
    pub fn settle(&mut self) {
        while let Some(item) = self.queue.pop_front() {
            self.deliver(item);
        }
    }

    pub fn advance(&mut self, time: Duration) {
        let until = self.now + time;
        self.settle();
        while let Some(at) = self.next_timeout().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            for end in [A, B] {
                self.ends[end].speaker.handle_timeout(self.now);
                self.collect(end);
            }
            self.settle();
        }
        self.now = until;
    }

    fn next_timeout(&self) -> Option<Instant> {
        self.ends.iter().filter_map(|end| end.speaker.poll_timeout()).min()
    }

    fn collect(&mut self, end: usize) {
        while let Some(action) = self.ends[end].speaker.poll_action() {
            let other = 1 - end;
            match action {
                Action::Connect { conn, .. } => self.queue.push_back(Item::Connect { from: end, conn }),
                Action::Send { conn, bytes } => {
                    assert_whole_messages(&bytes);
                    if let Some(to) = self.links.get(&(end, conn)).copied() {
                        self.queue.push_back(Item::Bytes { to: other, conn: to, bytes });
                    }
                    if !self.stuck[end] {
                        self.queue.push_back(Item::Sent { at: end, conn });
                    }
                }
                Action::Close { conn } => {
                    if let Some(to) = self.links.remove(&(end, conn)) {
                        self.queue.push_back(Item::Fin { to: other, conn: to });
                    }
                }
                Action::Report(event) => self.ends[end].events.push(event),
            }
        }
    }

    fn deliver(&mut self, item: Item) {
        match item {
            Item::Connect { from, conn } => self.connect(from, conn),
            Item::Sent { at, conn } => {
                self.ends[at].speaker.handle_sent(conn, self.now);
                self.collect(at);
            }
            Item::Bytes { .. } | Item::Fin { .. } if self.cut => {}
            Item::Bytes { to, conn, bytes } => {
                self.ends[to].listen(&bytes);
                // In pieces, as TCP may deliver them.
                for piece in bytes.chunks(1000) {
                    self.ends[to].speaker.handle_input(conn, piece, self.now);
                }
                self.collect(to);
            }
            Item::Fin { to, conn } => {
                self.links.remove(&(to, conn));
                self.ends[to].speaker.handle_closed(conn, "the peer closed the connection", self.now);
                self.collect(to);
            }
        }
    }

    fn connect(&mut self, from: usize, conn: ConnId) {
        let to = 1 - from;
        if self.cut {
            return;
        }
        if !self.ends[to].listening {
            self.ends[from].speaker.handle_closed(conn, "connection refused", self.now);
            return self.collect(from);
        }
        self.accepted += 1;
        let accepted = ConnId::Accepted(self.accepted);
        self.links.insert((from, conn), accepted);
        self.links.insert((to, accepted), conn);
        let client = SocketAddr::new(self.ends[from].address, 40000 + self.accepted as u16);
        let server = SocketAddr::new(self.ends[to].address, 179);
        self.ends[from].speaker.handle_connected(conn, client, server, self.now);
        self.collect(from);
        self.ends[to].speaker.handle_connected(accepted, server, client, self.now);
        self.collect(to);
    }
}

impl End {
    /// Understands UPDATEs as a router would.
    fn listen(&mut self, mut bytes: &[u8]) {
        let peer_asn = self.speaker.sessions().remove("peer").and_then(|s| s.established).map(|e| e.peer_asn);
        let format = Format { four_octet_as: true, internal: peer_asn == Some(self.config.local_asn) };
        while let Ok(Some(length)) = wire::frame(bytes) {
            let message = Message::decode(&bytes[..length], format).unwrap();
            bytes = &bytes[length..];
            let Message::Update(update) = message else { continue };
            assert_eq!(update.errors, []);
            self.heard.updates += 1;
            self.heard.end_of_rib.extend(update.end_of_rib);
            for prefix in &update.withdrawn {
                assert!(
                    self.heard.routes.remove(prefix).is_some(),
                    "{prefix} withdrawn, but never announced"
                );
            }
            self.heard.withdrawn.extend(update.withdrawn);
            for announcement in update.announced {
                for prefix in announcement.prefixes {
                    let attributes = update.attributes.clone().unwrap();
                    self.heard.routes.insert(prefix, (announcement.next_hop, attributes));
                }
            }
        }
    }
}

fn assert_whole_messages(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let length = wire::frame(bytes).unwrap().expect("a whole message");
        assert!(length <= wire::MAX_LEN);
        bytes = &bytes[length..];
    }
}

pub fn routes<'a>(prefixes: impl IntoIterator<Item = &'a str>) -> Routes {
    prefixes.into_iter().map(|text| (super::prefix(text), Route::default())).collect()
}
