//! One speaker and a hand-made peer: every state with every message (RFC 4271 8.2.2, RFC 6608), and bad OPENs.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use portolan_bgp::wire::{self, Capability, Format, Message, Notification, Open, Update};
use portolan_bgp::{Action, ConnId, Event, Family, PeerConfig, SessionError, Speaker, State};

use super::pair::configs;

const FORMAT: Format = Format { four_octet_as: true, internal: false };
const CONN: ConnId = ConnId::Accepted(1);
const SECOND: Duration = Duration::from_secs(1);

/// A speaker whose only peer is this test.
struct Bench {
    now: Instant,
    speaker: Speaker,
    events: Vec<Event>,
    /// Whether writes finish.
    stuck: bool,
}

impl Bench {
    /// Passive, and with the test's connection open.
    fn new() -> Self {
        let now = super::start_of_time();
        let mut bench = Bench { now, speaker: Speaker::new(), events: Vec::new(), stuck: false };
        let mut config = ours();
        config.passive = true;
        bench.speaker.set_peers(BTreeMap::from([(config.name.clone(), config.clone())]), now);
        bench.speaker.set_routes(BTreeMap::new(), now);
        bench.speaker.handle_connected(CONN, ([10, 0, 0, 1], 179).into(), config.remote, now);
        bench
    }

    fn in_state(state: State) -> Self {
        let mut bench = Bench::new();
        bench.out();
        let steps: &[Message] = match state {
            State::OpenSent => &[],
            State::OpenConfirm => &[Message::Open(their_open())],
            State::Established => &[Message::Open(their_open()), Message::Keepalive],
            State::Idle | State::Connect | State::Active => panic!("no connection in {state}"),
        };
        for message in steps {
            bench.send(message);
        }
        assert_eq!(bench.state(), state);
        bench
    }

    /// Sends a message, and returns what comes back.
    fn send(&mut self, message: &Message) -> Vec<Message> {
        self.send_bytes(&message.encode(FORMAT))
    }

    fn send_bytes(&mut self, bytes: &[u8]) -> Vec<Message> {
        self.speaker.handle_input(CONN, bytes, self.now);
        self.out()
    }

    fn advance(&mut self, time: Duration) -> Vec<Message> {
        let until = self.now + time;
        let mut out = Vec::new();
        while let Some(at) = self.speaker.poll_timeout().filter(|at| *at <= until) {
            self.now = at;
            self.speaker.handle_timeout(at);
            out.extend(self.out());
        }
        self.now = until;
        out
    }

    fn out(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(action) = self.speaker.poll_action() {
            match action {
                Action::Send { conn, bytes } => {
                    messages.extend(decode_all(&bytes));
                    if !self.stuck {
                        self.speaker.handle_sent(conn, self.now);
                        self.speaker.handle_timeout(self.now);
                    }
                }
                Action::Report(event) => self.events.push(event),
                Action::Close { .. } | Action::Connect { .. } => {}
            }
        }
        messages
    }

    fn state(&self) -> State {
        self.speaker.sessions()["peer"].state
    }
}

fn ours() -> PeerConfig {
    configs()[0].clone()
}

fn their_open() -> Open {
    Open::new(64513, 90, [10, 0, 0, 2].into(), &Family::ALL)
}

fn decode_all(mut bytes: &[u8]) -> Vec<Message> {
    let mut messages = Vec::new();
    while let Some(length) = wire::frame(bytes).unwrap() {
        messages.push(Message::decode(&bytes[..length], FORMAT).unwrap());
        bytes = &bytes[length..];
    }
    messages
}

#[test]
fn every_state_with_every_message() {
    use State::{Established, Idle, OpenConfirm, OpenSent};
    let open = Message::Open(their_open());
    let update = Message::Update(Update::end_of_rib(Family::Ipv4Unicast));
    let refresh = Message::RouteRefresh(Some(Family::Ipv4Unicast));
    let cease = Message::Notification(Notification::new(6, 2));
    let refused = |subcode| Some(Notification::new(5, subcode));
    let check = |state, message: &Message, then, notification: Option<Notification>| {
        let mut bench = Bench::in_state(state);
        let answers = bench.send(message);
        let sent = answers.into_iter().find_map(|answer| match answer {
            Message::Notification(notification) => Some(notification),
            _ => None,
        });
        assert_eq!((bench.state(), sent), (then, notification), "{state} with {message:?}");
    };
    check(OpenSent, &open, OpenConfirm, None);
    check(OpenSent, &Message::Keepalive, Idle, refused(1));
    check(OpenSent, &update, Idle, refused(1));
    check(OpenSent, &refresh, Idle, refused(1));
    check(OpenSent, &cease, Idle, None);
    check(OpenConfirm, &open, Idle, refused(2));
    check(OpenConfirm, &Message::Keepalive, Established, None);
    check(OpenConfirm, &update, Idle, refused(2));
    check(OpenConfirm, &refresh, Idle, refused(2));
    check(OpenConfirm, &cease, Idle, None);
    check(Established, &open, Idle, refused(3));
    check(Established, &Message::Keepalive, Established, None);
    check(Established, &update, Established, None);
    check(Established, &refresh, Established, None);
    check(Established, &cease, Idle, None);
}

#[test]
fn open_says_what_we_can() {
    let mut bench = Bench::new();
    let expected = Open {
        my_as: 64512,
        hold_time_secs: 90,
        router_id: [10, 0, 0, 1].into(),
        capabilities: vec![
            Capability::Multiprotocol(Family::Ipv4Unicast),
            Capability::Multiprotocol(Family::Ipv6Unicast),
            Capability::RouteRefresh,
            Capability::FourOctetAs(64512),
        ],
    };
    assert_eq!(bench.out(), [Message::Open(expected)]);
}

#[test]
fn an_open_that_cannot_be_agreed_to() {
    let check = |change: &dyn Fn(&mut Open), expected: Notification| {
        let mut open = their_open();
        change(&mut open);
        let mut bench = Bench::in_state(State::OpenSent);
        assert_eq!(bench.send(&Message::Open(open)), [Message::Notification(expected)]);
        assert_eq!(bench.state(), State::Idle);
    };
    check(&|open| open.capabilities = vec![Capability::FourOctetAs(1)], Notification::BAD_PEER_AS);
    check(&|open| (open.my_as, open.capabilities) = (0, vec![]), Notification::BAD_PEER_AS);
    check(&|open| open.router_id = [0; 4].into(), Notification::BAD_BGP_IDENTIFIER);
    check(&|open| open.hold_time_secs = 1, Notification::UNACCEPTABLE_HOLD_TIME);
    check(&|open| open.hold_time_secs = 2, Notification::UNACCEPTABLE_HOLD_TIME);
    // A peer with other families only (here L2VPN EVPN) is told which ones we meant.
    let evpn = Capability::Unknown { code: 1, value: vec![0, 25, 0, 70] };
    check(
        &|open| open.capabilities = vec![evpn.clone(), Capability::FourOctetAs(64513)],
        Notification::unsupported_capability(vec![1, 4, 0, 1, 0, 1, 1, 4, 0, 2, 0, 1]),
    );
}

#[test]
fn an_old_speaker_gets_ipv4_and_two_octet_numbers_rfc6793() {
    let mut bench = Bench::in_state(State::OpenSent);
    bench.send(&Message::Open(Open { capabilities: vec![], ..their_open() }));
    bench.send(&Message::Keepalive);
    let established = bench.speaker.sessions()["peer"].established.clone().unwrap();
    assert_eq!(established.families, [Family::Ipv4Unicast]);
    assert!(!established.route_refresh);
}

#[test]
fn bad_headers_rfc4271_6_1() {
    let header = |length: u16, kind: u8| {
        let mut bytes = vec![0xff; 16];
        bytes.extend(length.to_be_bytes());
        bytes.push(kind);
        bytes
    };
    let check = |bytes: &[u8], expected: Notification| {
        let mut bench = Bench::in_state(State::Established);
        assert_eq!(bench.send_bytes(bytes), [Message::Notification(expected)]);
    };
    let mut marker = header(19, 4);
    marker[7] = 0;
    check(&marker, Notification::CONNECTION_NOT_SYNCHRONIZED);
    check(&header(18, 4), Notification::bad_message_length(18));
    check(&header(20, 4), Notification::bad_message_length(20));
    check(&header(4097, 2), Notification::bad_message_length(4097));
    check(&header(22, 2), Notification::bad_message_length(22));
    check(&header(28, 1), Notification::bad_message_length(28));
    check(&header(20, 3), Notification::bad_message_length(20));
    check(&header(19, 6), Notification::bad_message_type(6));
}

#[test]
fn messages_byte_by_byte_and_all_at_once() {
    let bytes = [Message::Open(their_open()), Message::Keepalive, Message::Keepalive]
        .map(|message| message.encode(FORMAT));
    let mut bench = Bench::in_state(State::OpenSent);
    bench.send_bytes(&bytes.concat());
    assert_eq!(bench.state(), State::Established);
    let mut bench = Bench::in_state(State::OpenSent);
    for byte in bytes.concat() {
        bench.send_bytes(&[byte]);
    }
    assert_eq!(bench.state(), State::Established);
}

#[test]
fn bytes_behind_a_fatal_message_are_not_read() {
    let mut bench = Bench::in_state(State::OpenSent);
    let bytes =
        [Message::Keepalive, Message::Open(their_open()), Message::Keepalive].map(|m| m.encode(FORMAT));
    assert_eq!(bench.send_bytes(&bytes.concat()), [Message::Notification(Notification::new(5, 1))]);
    assert_eq!(bench.send(&Message::Keepalive), []);
    assert_eq!(bench.state(), State::Idle);
}

#[test]
fn a_peer_that_never_says_open_is_left_after_four_minutes() {
    let mut bench = Bench::in_state(State::OpenSent);
    assert_eq!(bench.advance(239 * SECOND), []);
    assert_eq!(bench.advance(SECOND), [Message::Notification(Notification::HOLD_TIMER_EXPIRED)]);
}

#[test]
fn keepalives_go_out_at_a_third_of_the_hold_time() {
    let mut bench = Bench::in_state(State::Established);
    let mut sent = 0;
    for _ in 0..900 {
        sent += bench.advance(SECOND).len();
        bench.send(&Message::Keepalive);
    }
    // Every 30 s, less up to a quarter (RFC 4271 10).
    assert!((30..=40).contains(&sent), "{sent} in 900 s");
    assert_eq!(bench.state(), State::Established);
}

#[test]
fn a_peer_that_takes_nothing_is_dropped_rfc9687() {
    let mut bench = Bench::in_state(State::Established);
    bench.stuck = true;
    for _ in 0..600 {
        bench.advance(SECOND);
        bench.send(&Message::Keepalive);
    }
    let errors: Vec<_> = bench.events.iter().filter(|event| matches!(event, Event::Error { .. })).collect();
    let expected = Event::Error { peer: "peer".into(), error: SessionError::SendHoldTimerExpired };
    assert_eq!(errors, [&expected]);
}

#[test]
fn connections_of_strangers_and_in_idle_are_refused() {
    let mut bench = Bench::in_state(State::OpenSent);
    let stranger = ([10, 0, 0, 77], 5000).into();
    bench.speaker.handle_connected(ConnId::Accepted(2), ([10, 0, 0, 1], 179).into(), stranger, bench.now);
    assert_eq!(bench.speaker.poll_action(), Some(Action::Close { conn: ConnId::Accepted(2) }));
    bench.out();
    assert_eq!(bench.events.last(), Some(&Event::Refused { from: stranger }));

    bench.send(&Message::Keepalive);
    assert_eq!(bench.state(), State::Idle);
    let peer = ([10, 0, 0, 2], 5001).into();
    bench.speaker.handle_connected(ConnId::Accepted(3), ([10, 0, 0, 1], 179).into(), peer, bench.now);
    assert_eq!(bench.speaker.poll_action(), Some(Action::Close { conn: ConnId::Accepted(3) }));
    bench.out();
    bench.advance(2 * SECOND);
    assert_eq!(bench.state(), State::Active);
    bench.speaker.handle_connected(ConnId::Accepted(4), ([10, 0, 0, 1], 179).into(), peer, bench.now);
    bench.out();
    assert_eq!(bench.state(), State::OpenSent);
}

#[test]
fn a_peer_that_connects_again_replaces_its_first_connection() {
    let mut bench = Bench::in_state(State::OpenSent);
    let peer = ([10, 0, 0, 2], 5001).into();
    bench.speaker.handle_connected(ConnId::Accepted(2), ([10, 0, 0, 1], 179).into(), peer, bench.now);
    assert_eq!(bench.speaker.poll_action(), Some(Action::Close { conn: CONN }));
    assert_eq!(bench.out().len(), 1);
    assert_eq!(bench.state(), State::OpenSent);
}

#[test]
fn a_malformed_update_is_reported_and_survived_rfc7606() {
    let mut bench = Bench::in_state(State::Established);
    // ORIGIN of 9, and an announcement of 10.0.0.0/8.
    let update = hex("ffffffffffffffffffffffffffffffff002d02 0000 0014
        40010109 40020602010000fc01 400304 0a000002 080a");
    assert_eq!(bench.send_bytes(&update), []);
    assert_eq!(bench.state(), State::Established);
    let expected = Event::MalformedUpdate { peer: "peer".into(), attribute: 1, reason: "is no origin" };
    assert_eq!(bench.events.last(), Some(&expected));
    let received = bench.speaker.sessions()["peer"].established.clone().unwrap().received;
    assert_eq!((received.announced, received.withdrawn, received.malformed), (0, 1, 1));
}

pub fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let pairs =
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap());
    pairs.collect()
}
