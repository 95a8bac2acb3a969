//! What BIRD 2.0.12 and FRR 8.4 really send: router 10.99.0.1, AS 64500, to a peer of AS 4200000001. The same messages are
//! seeds of the fuzzer.

use portolan_bgp::wire::{Announcement, Format, Message, Open, Origin, PathAttributes, Update};
use portolan_bgp::{Community, Family};

use super::prefix;

const FORMAT: Format = Format { four_octet_as: true, internal: false };

fn decode(bytes: &[u8]) -> Message {
    Message::decode(bytes, FORMAT).unwrap()
}

fn open(bytes: &[u8]) -> Open {
    match decode(bytes) {
        Message::Open(open) => open,
        other => panic!("{other:?}"),
    }
}

fn announced(next_hop: &str, text: &str, med: Option<u32>, communities: &[Community]) -> Message {
    let announced = vec![Announcement { next_hop: next_hop.parse().unwrap(), prefixes: vec![prefix(text)] }];
    let communities = communities.to_vec();
    let attributes =
        PathAttributes { origin: Origin::Igp, as_path: vec![64500], med, local_pref: None, communities };
    Message::Update(Update { announced, attributes: Some(attributes), ..Update::default() })
}

const MARKS: [Community; 2] = [Community::Standard(0xfbf4_0007), Community::Large(64500, 1, 2)];

macro_rules! seed {
    ($name:literal) => {
        include_bytes!(concat!("../../../../tests/fuzz/seeds/bgp_decode/", $name)).as_slice()
    };
}

#[test]
fn opens() {
    for (bytes, hold_time_secs) in [(seed!("bird-open"), 240), (seed!("frr-open"), 180)] {
        let open = open(bytes);
        assert_eq!((open.asn(), open.hold_time_secs), (64500, hold_time_secs));
        assert_eq!(open.router_id.to_string(), "10.99.0.1");
        assert!(open.route_refresh() && Family::ALL.into_iter().all(|family| open.carries(family)));
    }
}

#[test]
fn updates_of_bird() {
    let check = |bytes: &[u8], message: Message| {
        assert_eq!(decode(bytes), message);
        // BIRD writes as we do, but for the extended length of its MP_REACH_NLRI.
        if !matches!(&message, Message::Update(update) if update.announced.iter().any(|a| a.next_hop.is_ipv6()))
        {
            assert_eq!(message.encode(FORMAT), bytes);
        }
    };
    check(seed!("bird-update-marked"), announced("10.99.0.1", "198.51.100.7/32", None, &MARKS));
    check(seed!("bird-update"), announced("10.99.0.1", "203.0.113.0/24", None, &[]));
    check(seed!("bird-update-v6"), announced("fd99::1", "2001:db8:1::/48", None, &[]));
    check(seed!("bird-end-of-rib"), Message::Update(Update::end_of_rib(Family::Ipv4Unicast)));
    check(seed!("bird-end-of-rib-v6"), Message::Update(Update::end_of_rib(Family::Ipv6Unicast)));
}

#[test]
fn updates_of_frr() {
    let check = |bytes: &[u8], message: Message| assert_eq!(decode(bytes), message);
    check(seed!("frr-update"), announced("127.0.0.1", "203.0.113.0/24", Some(0), &[]));
    check(seed!("frr-update-v6"), announced("fd99::1", "2001:db8:1::/48", Some(0), &[]));
    check(seed!("frr-update-marked"), announced("127.0.0.1", "198.51.100.7/32", Some(50), &MARKS));
}
