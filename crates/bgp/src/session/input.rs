//! What received messages do (RFC 4271 8.2.2, 6.8).

use std::net::SocketAddr;

use super::{Session, Turn};
use crate::Action;
use crate::connection::{Connection, Exchange, Phase};
use crate::negotiate::{Negotiated, negotiate};
use crate::wire::{self, Message, Notification, Open, Update};
use crate::{ConnId, Event, Family, Received, SessionError, State};

impl Session {
    pub(crate) fn input(&mut self, conn: ConnId, bytes: &[u8], turn: &mut Turn) {
        let Some(connection) = self.connection(conn) else { return };
        let mut inbox = std::mem::take(&mut connection.inbox);
        inbox.extend_from_slice(bytes);
        let mut read = 0;
        // A message may end the connection, and what came behind it.
        while let Some(connection) = self.connection(conn) {
            let rest = &inbox[read..];
            let message = match wire::frame(rest) {
                Ok(None) => {
                    connection.inbox = rest.to_vec();
                    return;
                }
                Ok(Some(length)) => {
                    read += length;
                    Message::decode(&rest[..length], connection.format())
                }
                Err(notification) => Err(notification),
            };
            match message {
                Ok(message) => self.message(conn, message, turn),
                Err(notification) => self.fail(conn, notification, turn),
            }
        }
    }

    /// Every state with every message; a message out of place is answered as RFC 6608 says.
    fn message(&mut self, conn: ConnId, message: Message, turn: &mut Turn) {
        let Some(connection) = self.connection(conn) else { return };
        let state = connection.state();
        match (state, message) {
            // No connection, no bytes; a driver that thinks otherwise is not the peer's fault.
            (State::Idle | State::Connect | State::Active, _) => {}
            (
                State::OpenSent | State::OpenConfirm | State::Established,
                Message::Notification(notification),
            ) => {
                self.close(conn, None, turn);
                self.ended(SessionError::Received(notification), true, turn);
            }
            (State::OpenSent, Message::Open(open)) => self.opened(conn, &open, turn),
            (State::OpenSent, Message::Keepalive | Message::Update(_) | Message::RouteRefresh(_)) => {
                self.fail(conn, Notification::new(5, 1), turn);
            }
            (State::OpenConfirm, Message::Keepalive) => self.confirmed(conn, turn),
            (State::OpenConfirm, Message::Open(_) | Message::Update(_) | Message::RouteRefresh(_)) => {
                self.fail(conn, Notification::new(5, 2), turn);
            }
            (State::Established, Message::Keepalive) => connection.restart_hold(turn.now),
            (State::Established, Message::Update(update)) => {
                connection.restart_hold(turn.now);
                self.updated(conn, &update, turn);
            }
            (State::Established, Message::RouteRefresh(family)) => self.refresh(family),
            (State::Established, Message::Open(_)) => self.fail(conn, Notification::new(5, 3), turn),
        }
    }

    fn opened(&mut self, conn: ConnId, open: &Open, turn: &mut Turn) {
        let negotiated = match negotiate(&self.config, open) {
            Ok(negotiated) => negotiated,
            Err(notification) => return self.fail(conn, notification, turn),
        };
        if let Some(loser) = self.collision(conn, &negotiated) {
            self.close(loser, Some(Notification::CONNECTION_COLLISION), turn);
        }
        let Some(connection) = self.connections.iter_mut().find(|connection| connection.id == conn) else {
            return;
        };
        if let Some(local) = local(connection) {
            connection.enter_open_confirm(local, negotiated, &mut self.jitter, turn.now);
        }
    }

    /// RFC 4271 6.8, RFC 6286 2.3: of two connections that both have an OPEN, the one stays that the end with the larger
    /// identifier, or for equal ones the larger AS number, has dialed.
    fn collision(&self, conn: ConnId, negotiated: &Negotiated) -> Option<ConnId> {
        let other = self.connections.iter().find(|connection| connection.id != conn)?;
        match other.state() {
            State::Idle | State::Connect | State::Active | State::OpenSent => None,
            State::OpenConfirm => {
                let us = (self.config.router_id, self.config.local_asn);
                let peer = (negotiated.peer_router_id, negotiated.peer_asn);
                let is_dialed = matches!(conn, ConnId::Dialed(_));
                Some(if is_dialed == (us > peer) { other.id } else { conn })
            }
            State::Established => Some(conn),
        }
    }

    fn confirmed(&mut self, conn: ConnId, turn: &mut Turn) {
        let others: Vec<_> =
            self.connections.iter().map(|other| other.id).filter(|other| *other != conn).collect();
        for other in others {
            self.close(other, Some(Notification::CONNECTION_COLLISION), turn);
        }
        (self.attempts, self.retry) = (0, None);
        let routes = self.routes.clone();
        let Some(connection) = self.connection(conn) else { return };
        let phase = std::mem::replace(&mut connection.phase, Phase::Connect);
        if let Phase::OpenConfirm { local, negotiated } = phase {
            connection.enter_established(Exchange::new(local, negotiated, &routes), turn.now);
        }
    }

    /// B35: nothing is imported; it is counted, and shown.
    fn updated(&mut self, conn: ConnId, update: &Update, turn: &mut Turn) {
        for error in &update.errors {
            let (attribute, reason) = (error.attribute, error.reason);
            let event = Event::MalformedUpdate { peer: self.config.name.clone(), attribute, reason };
            turn.actions.push_back(Action::Report(event));
        }
        let Some(exchange) = self.connection(conn).and_then(Connection::exchange_mut) else { return };
        count(&mut exchange.received, update);
        if let Some(family) = update.end_of_rib.filter(|family| !exchange.end_of_rib.contains(family)) {
            exchange.end_of_rib.push(family);
        }
    }

    /// RFC 2918 4: the Adj-RIB-Out of the family, once more.
    fn refresh(&mut self, family: Option<Family>) {
        let established = self.connections.iter_mut().find_map(Connection::exchange_mut);
        if let (Some(exchange), Some(family)) = (established, family) {
            exchange.adj_rib_out.resend(family, &self.routes);
            exchange.touch();
        }
    }
}

fn local(connection: &Connection) -> Option<SocketAddr> {
    match &connection.phase {
        Phase::Connect => None,
        Phase::OpenSent { local } | Phase::OpenConfirm { local, .. } => Some(*local),
        Phase::Established(exchange) => Some(exchange.local),
    }
}

fn count(received: &mut Received, update: &Update) {
    received.updates += 1;
    received.announced +=
        update.announced.iter().map(|announcement| announcement.prefixes.len() as u64).sum::<u64>();
    received.withdrawn += update.withdrawn.len() as u64;
    received.malformed += u64::from(!update.errors.is_empty());
}
