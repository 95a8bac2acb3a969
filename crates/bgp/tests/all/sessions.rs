//! Two real speakers: how sessions come up, go down, and carry routes.

use std::time::Duration;

use portolan_bgp::{
    Community, Event, Family, NextHop, PeerAsn, Route, Routes, State, Withheld, wire::Message,
};

use super::pair::{A, B, Pair, configs, routes};
use super::prefix;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn established_with_both_families_and_the_smaller_hold_time() {
    let [mut a, b] = configs();
    a.hold_time = 30 * SECOND;
    let pair = Pair::established([a, b]);
    for end in [A, B] {
        let established = pair.status(end).established.unwrap();
        assert_eq!((established.hold_time, established.keepalive), (30 * SECOND, 10 * SECOND));
        assert_eq!(established.families, Family::ALL);
        assert_eq!(established.end_of_rib, Family::ALL);
        assert!(established.route_refresh);
    }
    assert_eq!(pair.status(A).established.unwrap().peer_asn, 64513);
}

#[test]
fn states_are_reported_in_order() {
    let [mut a, b] = configs();
    a.passive = false;
    let mut pair = Pair::established([a, b]);
    let states: Vec<_> = pair
        .events(A)
        .into_iter()
        .map(|event| match event {
            Event::State { to, .. } => to,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(states, [State::Connect, State::OpenSent, State::OpenConfirm, State::Established]);
}

#[test]
fn four_octet_as_rfc6793() {
    let [mut a, mut b] = configs();
    (a.local_asn, b.peer_asn) = (4_200_000_001, PeerAsn::Number(4_200_000_001));
    let pair = Pair::established([a, b]);
    assert_eq!(pair.status(B).established.unwrap().peer_asn, 4_200_000_001);
}

#[test]
fn one_of_two_connections_stays_when_both_dial_b16() {
    let mut pair = Pair::new(configs());
    pair.settle();
    for end in [A, B] {
        assert_eq!(pair.status(end).state, State::Established);
        assert_eq!(pair.status(end).last_error, None, "a collision is no error");
    }
    // B has the larger identifier: the connection that it dialed stays (RFC 4271 6.8).
    assert_eq!(pair.status(B).established.unwrap().local.port(), 40002);
    let before = pair.events(A).len();
    pair.advance(600 * SECOND);
    assert_eq!((before > 0, pair.events(A).len()), (true, 0));
}

#[test]
fn equal_identifiers_across_as_are_fine_rfc6286() {
    let [mut a, b] = configs();
    a.router_id = b.router_id;
    let mut pair = Pair::new([a, b]);
    pair.settle();
    assert_eq!([pair.status(A).state, pair.status(B).state], [State::Established; 2]);
}

#[test]
fn hold_timer_ends_a_silent_session_and_it_comes_back() {
    let mut pair = Pair::established(configs());
    pair.cut = true;
    pair.advance(89 * SECOND);
    assert_eq!(pair.status(A).state, State::Established);
    pair.advance(2 * SECOND);
    assert_eq!(pair.last_error(A), "sent NOTIFICATION 4/0 Hold Timer Expired");
    assert_eq!(pair.last_error(B), "sent NOTIFICATION 4/0 Hold Timer Expired");
    pair.cut = false;
    pair.advance(40 * SECOND);
    assert_eq!([pair.status(A).state, pair.status(B).state], [State::Established; 2]);
}

#[test]
fn keepalives_keep_a_quiet_session() {
    let [mut a, b] = configs();
    a.hold_time = 3 * SECOND;
    let mut pair = Pair::established([a, b]);
    pair.events(A);
    pair.advance(3600 * SECOND);
    assert_eq!(pair.events(A), []);
}

#[test]
fn hold_time_zero_needs_no_keepalives() {
    let [mut a, b] = configs();
    a.hold_time = Duration::ZERO;
    let mut pair = Pair::established([a, b]);
    pair.cut = true;
    assert_eq!(pair.speaker(A).poll_timeout(), None);
    pair.advance(3600 * SECOND);
    assert_eq!(pair.status(B).state, State::Established);
}

#[test]
fn wrong_as_is_told_to_the_peer_and_tried_again_later() {
    let [mut a, mut b] = configs();
    a.peer_asn = PeerAsn::Number(65000);
    b.passive = true;
    let mut pair = Pair::new([a, b]);
    pair.settle();
    assert_eq!(pair.last_error(A), "sent NOTIFICATION 2/2 OPEN Message Error, Bad Peer AS");
    assert_eq!(pair.last_error(B), "received NOTIFICATION 2/2 OPEN Message Error, Bad Peer AS");
    assert_eq!([pair.status(A).state, pair.status(B).state], [State::Idle; 2]);
    pair.events(A);
    pair.advance(600 * SECOND);
    let attempts = pair.events(A).iter().filter(|event| matches!(event, Event::Error { .. })).count();
    assert!(
        (20..40).contains(&attempts),
        "{attempts} attempts in ten minutes, not more than 30 s apart (B1)"
    );

    let fixed = configs()[A].clone();
    pair.peer(A, Some(fixed));
    pair.advance(31 * SECOND);
    assert_eq!(pair.status(A).state, State::Established);
}

#[test]
fn peer_asn_by_relation() {
    let check = |a_expects: PeerAsn, b_asn: u32, ok: bool| {
        let [mut a, mut b] = configs();
        (a.peer_asn, b.local_asn, b.passive) = (a_expects, b_asn, true);
        let mut pair = Pair::new([a, b]);
        pair.settle();
        assert_eq!(pair.status(A).state == State::Established, ok, "{a_expects} and {b_asn}");
    };
    check(PeerAsn::External, 64513, true);
    check(PeerAsn::External, 64512, false);
    check(PeerAsn::Internal, 64512, true);
    check(PeerAsn::Internal, 64513, false);
    check(PeerAsn::Any, 64512, true);
    check(PeerAsn::Any, 64513, true);
    check(PeerAsn::Any, 0, false);
}

#[test]
fn nobody_listens_then_somebody_does_b1() {
    let [a, mut b] = configs();
    b.passive = true;
    let mut pair = Pair::new([a, b]);
    pair.listening(B, false);
    pair.advance(2 * SECOND);
    assert_eq!(pair.status(A).state, State::Active);
    assert_eq!(pair.last_error(A), "connection refused");
    pair.listening(B, true);
    pair.advance(4 * SECOND);
    assert_eq!(pair.status(A).state, State::Established);
}

#[test]
fn a_dial_into_the_void_is_given_up_and_repeated() {
    let [a, mut b] = configs();
    b.passive = true;
    let mut pair = Pair::new([a, b]);
    pair.cut = true;
    pair.advance(5 * SECOND);
    assert_eq!(pair.last_error(A), "connecting: no answer");
    pair.cut = false;
    pair.advance(2 * SECOND);
    assert_eq!(pair.status(A).state, State::Established);
}

#[test]
fn two_passive_ends_wait() {
    let [mut a, mut b] = configs();
    (a.passive, b.passive) = (true, true);
    let mut pair = Pair::new([a, b]);
    pair.advance(3600 * SECOND);
    assert_eq!([pair.status(A).state, pair.status(B).state], [State::Active; 2]);
    assert_eq!(pair.speaker(A).poll_timeout(), None);
}

#[test]
fn a_lost_connection_is_back_within_two_seconds() {
    let mut pair = Pair::established(configs());
    pair.break_connections("connection reset");
    assert_eq!(pair.last_error(A), "connection reset");
    pair.advance(2 * SECOND);
    assert_eq!([pair.status(A).state, pair.status(B).state], [State::Established; 2]);
}

#[test]
fn a_removed_peer_is_told() {
    let mut pair = Pair::established(configs());
    pair.peer(A, None);
    pair.settle();
    assert!(pair.speaker(A).sessions().is_empty());
    assert_eq!(pair.speaker(A).poll_timeout(), None);
    assert_eq!(pair.last_error(B), "received NOTIFICATION 6/3 Cease, Peer De-configured");
}

#[test]
fn a_changed_hold_time_resets_and_a_changed_retry_does_not() {
    let mut pair = Pair::established(configs());
    let mut config = pair.config(A);
    config.connect_time = 7 * SECOND;
    pair.peer(A, Some(config.clone()));
    pair.settle();
    assert_eq!(pair.status(A).state, State::Established);

    config.hold_time = 12 * SECOND;
    pair.peer(A, Some(config));
    pair.settle();
    assert_eq!(pair.last_error(B), "received NOTIFICATION 6/6 Cease, Other Configuration Change");
    pair.advance(3 * SECOND);
    assert_eq!(pair.status(B).established.unwrap().hold_time, 12 * SECOND);
}

#[test]
fn routes_of_both_families_go_over_one_session_b4_b42() {
    let mut pair = Pair::established(configs());
    let sequence = pair.routes(A, routes(["192.0.2.10/32", "10.244.1.0/24", "2001:db8::10/128"]));
    assert!(pair.speaker(A).written() < sequence);
    pair.settle();
    assert_eq!(pair.speaker(A).written(), sequence);

    let (next_hop, attributes) = &pair.heard(B).routes[&prefix("192.0.2.10/32")];
    assert_eq!(next_hop.to_string(), "10.0.0.1");
    assert_eq!(
        (attributes.as_path.as_slice(), attributes.med, attributes.local_pref),
        (&[64512][..], None, None)
    );
    let (next_hop, _) = &pair.heard(B).routes[&prefix("2001:db8::10/128")];
    assert_eq!(next_hop.to_string(), "fd00::1");
    let advertised = pair.status(A).established.unwrap().advertised;
    assert_eq!((advertised[&Family::Ipv4Unicast], advertised[&Family::Ipv6Unicast]), (2, 1));
    assert_eq!(pair.status(B).established.unwrap().received.announced, 3);
}

#[test]
fn only_differences_are_sent_and_a_change_replaces_a47() {
    let mut pair = Pair::established(configs());
    let mut wanted = routes(["192.0.2.10/32", "192.0.2.11/32", "2001:db8::10/128"]);
    pair.routes(A, wanted.clone());
    pair.settle();
    pair.forget_counts(B);
    pair.routes(A, wanted.clone());
    pair.settle();
    assert_eq!(pair.heard(B).updates, 0);

    wanted.insert(
        prefix("192.0.2.10/32"),
        Route { communities: vec![Community::Standard(7)], ..Route::default() },
    );
    pair.routes(A, wanted.clone());
    pair.settle();
    assert_eq!((pair.heard(B).updates, pair.heard(B).withdrawn.len()), (1, 0));
    let (_, attributes) = &pair.heard(B).routes[&prefix("192.0.2.10/32")];
    assert_eq!(attributes.communities, [Community::Standard(7)]);

    wanted.remove(&prefix("192.0.2.11/32"));
    wanted.remove(&prefix("2001:db8::10/128"));
    pair.routes(A, wanted.clone());
    pair.settle();
    assert_eq!(pair.heard(B).withdrawn, [prefix("192.0.2.11/32"), prefix("2001:db8::10/128")]);
    assert_eq!(pair.heard(B).routes.len(), 1);
}

#[test]
fn prepend_med_and_local_pref_by_kind_of_peer() {
    let route = Route { prepend: 2, med: Some(5), local_pref: Some(300), ..Route::default() };
    let wanted = Routes::from([(prefix("192.0.2.10/32"), route)]);

    let mut pair = Pair::established(configs());
    pair.routes(A, wanted.clone());
    pair.settle();
    let (_, external) = pair.heard(B).routes[&prefix("192.0.2.10/32")].clone();
    assert_eq!((external.as_path, external.med, external.local_pref), (vec![64512; 3], Some(5), None));

    let [a, mut b] = configs();
    b.local_asn = a.local_asn;
    let (mut a, mut b) = (a, b);
    (a.peer_asn, b.peer_asn) = (PeerAsn::Internal, PeerAsn::Internal);
    let mut pair = Pair::established([a, b]);
    pair.routes(A, wanted);
    pair.settle();
    let (_, internal) = pair.heard(B).routes[&prefix("192.0.2.10/32")].clone();
    assert_eq!((internal.as_path, internal.med, internal.local_pref), (vec![], Some(5), Some(300)));
}

#[test]
fn what_cannot_be_sent_is_withheld_with_its_reason() {
    let [mut a, mut b] = configs();
    (a.local_v6, b.local_v6) = (None, None);
    let mut pair = Pair::established([a, b]);
    let many = (0..1100).map(Community::Standard).collect();
    let wanted = Routes::from([
        (prefix("192.0.2.10/32"), Route::default()),
        (prefix("2001:db8::10/128"), Route::default()),
        (prefix("192.0.2.11/32"), Route { communities: many, ..Route::default() }),
        (
            prefix("192.0.2.12/32"),
            Route { next_hop: NextHop::Address("fd00::9".parse().unwrap()), ..Route::default() },
        ),
    ]);
    pair.routes(A, wanted);
    pair.settle();
    let established = pair.status(A).established.unwrap();
    assert_eq!(pair.heard(B).routes.len(), 1);
    assert_eq!(
        established.withheld,
        [(Withheld::NoNextHop, 1), (Withheld::NextHopOfOtherFamily, 1), (Withheld::TooLarge, 1)].into()
    );

    // The address becomes known: no reset, and the route goes out.
    let mut config = pair.config(A);
    config.local_v6 = Some("fd00::1".parse().unwrap());
    pair.peer(A, Some(config));
    pair.settle();
    assert_eq!(pair.heard(B).routes.len(), 2);
    assert_eq!(pair.status(A).last_error, None);
}

#[test]
fn a_family_the_peer_does_not_have_is_withheld() {
    let [a, mut b] = configs();
    b.families = vec![Family::Ipv4Unicast];
    let mut pair = Pair::established([a, b]);
    pair.routes(A, routes(["192.0.2.10/32", "2001:db8::10/128"]));
    pair.settle();
    let established = pair.status(A).established.unwrap();
    assert_eq!(established.families, [Family::Ipv4Unicast]);
    assert_eq!(established.withheld, [(Withheld::FamilyNotNegotiated, 1)].into());
    assert_eq!(pair.heard(B).end_of_rib, [Family::Ipv4Unicast]);
}

#[test]
fn no_common_family_is_no_session_rfc5492() {
    let [mut a, mut b] = configs();
    (a.families, b.families) = (vec![Family::Ipv4Unicast], vec![Family::Ipv6Unicast]);
    b.passive = true;
    let mut pair = Pair::new([a, b]);
    pair.settle();
    assert_eq!(pair.status(A).state, State::Idle);
    assert!(
        pair.last_error(A).contains("2/7 OPEN Message Error, Unsupported Capability"),
        "{}",
        pair.last_error(A)
    );
}

#[test]
fn ten_thousand_routes_are_packed_b41() {
    let mut pair = Pair::established(configs());
    let wanted: Routes = (0..10_000u32)
        .map(|n| (prefix(&format!("10.{}.{}.{}/32", n >> 16, n >> 8 & 255, n & 255)), Route::default()))
        .collect();
    pair.forget_heard(B);
    pair.routes(A, wanted.clone());
    pair.settle();
    assert_eq!(pair.heard(B).routes.len(), 10_000);
    assert!(pair.heard(B).updates <= 10_000 * 5 / 4000 + 5, "{} updates", pair.heard(B).updates);
    pair.routes(A, Routes::new());
    pair.settle();
    assert!(pair.heard(B).routes.is_empty());
}

#[test]
fn end_of_rib_waits_for_the_first_set_of_routes() {
    use portolan_bgp::{Action, ConnId, Speaker, wire::Open};
    let now = super::start_of_time();
    let [mut config, peer] = configs();
    config.passive = true;
    let mut speaker = Speaker::new();
    speaker.set_peers([(config.name.clone(), config.clone())].into(), now);
    let conn = ConnId::Accepted(1);
    speaker.handle_connected(conn, ([10, 0, 0, 1], 179).into(), config.remote, now);
    let format = portolan_bgp::wire::Format { four_octet_as: true, internal: false };
    let open = Message::Open(Open::new(peer.local_asn, 90, peer.router_id, &Family::ALL));
    let mut sent = Vec::new();
    let mut turn = |speaker: &mut Speaker| {
        while let Some(action) = speaker.poll_action() {
            if let Action::Send { conn, bytes } = action {
                sent.extend(bytes);
                speaker.handle_sent(conn, now);
                speaker.handle_timeout(now);
            }
        }
        std::mem::take(&mut sent)
    };
    turn(&mut speaker);
    speaker.handle_input(conn, &open.encode(format), now);
    turn(&mut speaker);
    speaker.handle_input(conn, &Message::Keepalive.encode(format), now);
    assert_eq!(turn(&mut speaker), []);
    speaker.set_routes(Default::default(), now);
    let expected = Family::ALL
        .map(|family| Message::Update(portolan_bgp::wire::Update::end_of_rib(family)).encode(format));
    assert_eq!(turn(&mut speaker), expected.concat());
}

#[test]
fn route_refresh_sends_a_family_again_rfc2918() {
    let mut pair = Pair::established(configs());
    pair.routes(A, routes(["192.0.2.10/32", "2001:db8::10/128"]));
    pair.settle();
    pair.forget_heard(B);
    let format = portolan_bgp::wire::Format { four_octet_as: true, internal: false };
    pair.inject(A, &Message::RouteRefresh(Some(Family::Ipv6Unicast)).encode(format));
    pair.settle();
    assert_eq!(pair.heard(B).routes.keys().collect::<Vec<_>>(), [&prefix("2001:db8::10/128")]);
    pair.inject(A, &Message::RouteRefresh(None).encode(format));
    pair.settle();
    assert_eq!(pair.heard(B).updates, 1);
}

#[test]
fn a_slow_peer_gets_the_newest_routes_and_not_all_between() {
    let mut pair = Pair::established(configs());
    pair.stuck[A] = true;
    pair.routes(A, routes(["192.0.2.1/32"]));
    for n in 2..100u8 {
        pair.routes(A, routes([format!("192.0.2.{n}/32").as_str()]));
    }
    let last = pair.routes(A, routes(["192.0.2.200/32"]));
    pair.settle();
    assert!(pair.speaker(A).written() < last);
    assert_eq!(pair.heard(B).routes.len(), 1);
    pair.stuck[A] = false;
    pair.finish_writes(A);
    pair.settle();
    assert_eq!(pair.heard(B).routes.keys().collect::<Vec<_>>(), [&prefix("192.0.2.200/32")]);
    assert_eq!(pair.heard(B).withdrawn, [prefix("192.0.2.1/32")]);
    assert_eq!(pair.speaker(A).written(), last);
}

#[test]
fn shutdown_withdraws_and_says_why_b14() {
    let mut pair = Pair::established(configs());
    pair.routes(A, routes(["192.0.2.10/32", "2001:db8::10/128"]));
    pair.settle();
    pair.shutdown(A, "node drain");
    pair.settle();
    assert!(pair.heard(B).routes.is_empty());
    assert_eq!(
        pair.last_error(B),
        "received NOTIFICATION 6/2 Cease, Administrative Shutdown: \"node drain\""
    );
    pair.advance(3600 * SECOND);
    assert_eq!(pair.status(A).state, State::Idle);
}
