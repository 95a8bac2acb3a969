//! One TCP connection of a session: what came in, what goes out, and its timers.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::adj_rib_out::AdjRibOut;
use crate::export::Export;
use crate::negotiate::{BEFORE_OPEN, Negotiated};
use crate::speaker::Routes;
use crate::timers::{Jitter, Timer, Timers};
use crate::wire::{self, Format, Message, Update};
use crate::{Action, ConnId, Established, Family, PeerConfig, Received, State};

/// RFC 4271 8.2.2: how long a peer may take to send its OPEN.
const OPEN_HOLD_TIME: Duration = Duration::from_secs(240);

/// RFC 9687 6: this, or twice the hold time where that is more.
const SEND_HOLD_TIME: Duration = Duration::from_secs(8 * 60);

pub(crate) struct Connection {
    pub(crate) id: ConnId,
    pub(crate) phase: Phase,
    pub(crate) timers: Timers,
    /// Received, but not yet a whole message.
    pub(crate) inbox: Vec<u8>,
    /// Whole messages, to be handed out when the driver has written the ones before.
    outbox: Vec<u8>,
    in_flight: bool,
}

/// How far a connection came. The states of RFC 4271 8.2.2 that a peer can be in without one are the session's.
pub(crate) enum Phase {
    Connect,
    OpenSent { local: SocketAddr },
    OpenConfirm { local: SocketAddr, negotiated: Negotiated },
    Established(Box<Exchange>),
}

/// The routes that go over an established session.
pub(crate) struct Exchange {
    pub(crate) local: SocketAddr,
    pub(crate) negotiated: Negotiated,
    pub(crate) adj_rib_out: AdjRibOut,
    pub(crate) received: Received,
    pub(crate) end_of_rib: Vec<Family>,
    /// Families whose first complete set of routes is not yet out.
    owed_end_of_rib: Vec<Family>,
    /// The newest set of routes that the outbox, and what was before in it, covers.
    generated: u64,
    /// The newest set of routes that the driver has written.
    written: u64,
}

impl Connection {
    pub(crate) fn dialing(id: ConnId) -> Self {
        Connection {
            id,
            phase: Phase::Connect,
            timers: Timers::default(),
            inbox: Vec::new(),
            outbox: Vec::new(),
            in_flight: false,
        }
    }

    pub(crate) fn state(&self) -> State {
        match self.phase {
            Phase::Connect => State::Connect,
            Phase::OpenSent { .. } => State::OpenSent,
            Phase::OpenConfirm { .. } => State::OpenConfirm,
            Phase::Established(_) => State::Established,
        }
    }

    pub(crate) fn format(&self) -> Format {
        self.negotiated().map_or(BEFORE_OPEN, |negotiated| negotiated.format)
    }

    pub(crate) fn exchange(&self) -> Option<&Exchange> {
        match &self.phase {
            Phase::Established(exchange) => Some(exchange),
            Phase::Connect | Phase::OpenSent { .. } | Phase::OpenConfirm { .. } => None,
        }
    }

    pub(crate) fn exchange_mut(&mut self) -> Option<&mut Exchange> {
        match &mut self.phase {
            Phase::Established(exchange) => Some(exchange),
            Phase::Connect | Phase::OpenSent { .. } | Phase::OpenConfirm { .. } => None,
        }
    }

    fn negotiated(&self) -> Option<&Negotiated> {
        match &self.phase {
            Phase::Connect | Phase::OpenSent { .. } => None,
            Phase::OpenConfirm { negotiated, .. } => Some(negotiated),
            Phase::Established(exchange) => Some(&exchange.negotiated),
        }
    }

    pub(crate) fn enter_open_sent(&mut self, local: SocketAddr, open: &Message, now: Instant) {
        self.phase = Phase::OpenSent { local };
        self.timers.set(Timer::Hold, Some(now + OPEN_HOLD_TIME));
        self.push(open);
    }

    pub(crate) fn enter_open_confirm(
        &mut self,
        local: SocketAddr,
        negotiated: Negotiated,
        jitter: &mut Jitter,
        now: Instant,
    ) {
        self.phase = Phase::OpenConfirm { local, negotiated };
        self.restart_hold(now);
        self.send_keepalive(jitter, now);
    }

    pub(crate) fn enter_established(&mut self, exchange: Exchange, now: Instant) {
        self.phase = Phase::Established(Box::new(exchange));
        self.restart_hold(now);
    }

    /// The peer is alive. A hold time of zero means that nobody counts (RFC 4271 4.2).
    pub(crate) fn restart_hold(&mut self, now: Instant) {
        let hold_time =
            self.negotiated().map(|negotiated| negotiated.hold_time).filter(|time| !time.is_zero());
        self.timers.set(Timer::Hold, hold_time.map(|time| now + time));
    }

    pub(crate) fn send_keepalive(&mut self, jitter: &mut Jitter, now: Instant) {
        self.push(&Message::Keepalive);
        let interval =
            self.negotiated().map(|negotiated| negotiated.keepalive).filter(|time| !time.is_zero());
        self.timers.set(Timer::Keepalive, interval.map(|time| now + jitter.of(time)));
    }

    pub(crate) fn push(&mut self, message: &Message) {
        self.outbox.extend(message.encode(self.format()));
    }

    /// Withdraws every route, ahead of a NOTIFICATION.
    pub(crate) fn push_withdraws(&mut self) {
        if let Phase::Established(exchange) = &mut self.phase {
            for prefixes in exchange.adj_rib_out.withdraw_all().values() {
                wire::withdraw(prefixes, &mut self.outbox);
            }
        }
    }

    /// Everything still to be sent, when the connection is about to be closed.
    pub(crate) fn drain(&mut self) -> Option<Action> {
        let bytes = std::mem::take(&mut self.outbox);
        (!bytes.is_empty()).then_some(Action::Send { conn: self.id, bytes })
    }

    /// The driver has written what it was handed.
    pub(crate) fn sent(&mut self) {
        self.in_flight = false;
        self.timers.set(Timer::SendHold, None);
    }

    /// What is to be written next. One piece at a time, so that a slow peer is told the newest routes when it is ready
    /// for them, and not all those in between. `sequence` counts the sets of routes; zero is none yet.
    pub(crate) fn poll_send(
        &mut self,
        routes: &Routes,
        config: &PeerConfig,
        sequence: u64,
        now: Instant,
    ) -> Option<Action> {
        if self.in_flight {
            return None;
        }
        if let Phase::Established(exchange) = &mut self.phase {
            // A batch may come to nothing, where routes changed there and back.
            while self.outbox.is_empty() && exchange.generated != sequence {
                exchange.generate(routes, config, sequence, &mut self.outbox);
            }
            if self.outbox.is_empty() {
                exchange.written = exchange.generated;
            }
        }
        let action = self.drain()?;
        self.in_flight = true;
        let hold_time = self.negotiated().map_or(OPEN_HOLD_TIME, |negotiated| negotiated.hold_time);
        self.timers.set(Timer::SendHold, Some(now + SEND_HOLD_TIME.max(hold_time * 2)));
        Some(action)
    }
}

impl Exchange {
    pub(crate) fn new(local: SocketAddr, negotiated: Negotiated, routes: &Routes) -> Self {
        let mut adj_rib_out = AdjRibOut::default();
        adj_rib_out.reconsider(routes);
        Exchange {
            local,
            owed_end_of_rib: negotiated.families.clone(),
            negotiated,
            adj_rib_out,
            received: Received::default(),
            end_of_rib: Vec::new(),
            generated: 0,
            written: 0,
        }
    }

    /// Whether the set of routes number `sequence` has been written.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    /// The Adj-RIB-Out has something due that no new set of routes asked for.
    pub(crate) fn touch(&mut self) {
        self.generated = 0;
    }

    fn generate(&mut self, routes: &Routes, config: &PeerConfig, sequence: u64, out: &mut Vec<u8>) {
        let format = self.negotiated.format;
        let export = Export { config, negotiated: &self.negotiated, local: canonical(self.local) };
        let batch = self.adj_rib_out.next_batch(routes, &export);
        for prefixes in batch.withdrawn.values() {
            wire::withdraw(prefixes, out);
        }
        for (outgoing, prefixes) in &batch.announced {
            wire::announce(prefixes, &outgoing.attributes, outgoing.next_hop, format, out);
        }
        if self.adj_rib_out.is_up_to_date() {
            self.generated = sequence;
            // RFC 4724 2: after the first complete set.
            for family in self.owed_end_of_rib.drain(..) {
                out.extend(Message::Update(Update::end_of_rib(family)).encode(format));
            }
        }
    }

    pub(crate) fn status(&self) -> Established {
        let advertised = self
            .negotiated
            .families
            .iter()
            .map(|family| (*family, self.adj_rib_out.advertised.get(family).copied().unwrap_or(0)));
        Established {
            local: self.local,
            peer_asn: self.negotiated.peer_asn,
            peer_router_id: self.negotiated.peer_router_id,
            hold_time: self.negotiated.hold_time,
            keepalive: self.negotiated.keepalive,
            families: self.negotiated.families.clone(),
            route_refresh: self.negotiated.route_refresh,
            advertised: advertised.collect(),
            withheld: self.adj_rib_out.withheld.clone(),
            received: self.received,
            end_of_rib: self.end_of_rib.clone(),
        }
    }
}

/// A dual-stack socket shows IPv4 peers as ::ffff:a.b.c.d.
fn canonical(address: SocketAddr) -> IpAddr {
    address.ip().to_canonical()
}
