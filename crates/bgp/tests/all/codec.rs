//! Messages as (bytes, value) tables used both ways, and malformed ones with what becomes of them.

use portolan_bgp::wire::{
    self, Announcement, Capability, Disposition, Format, Message, Notification, Open, Origin, PathAttributes,
    Update,
};
use portolan_bgp::{Community, Family};

use super::fsm::hex;
use super::prefix;

const EXTERNAL: Format = Format { four_octet_as: true, internal: false };
const INTERNAL: Format = Format { four_octet_as: true, internal: true };
const OLD: Format = Format { four_octet_as: false, internal: false };

const MARKER: &str = "ffffffffffffffffffffffffffffffff";

/// Puts a header in front of a type and a body.
fn message(kind_and_body: &str) -> Vec<u8> {
    let mut bytes = hex(MARKER);
    let rest = hex(kind_and_body);
    bytes.extend((rest.len() as u16 + 18).to_be_bytes());
    bytes.extend(rest);
    bytes
}

fn check(kind_and_body: &str, format: Format, value: Message) {
    let bytes = message(kind_and_body);
    assert_eq!(Message::decode(&bytes, format).as_ref(), Ok(&value), "decode {kind_and_body}");
    assert_eq!(value.encode(format), bytes, "encode {value:?}");
}

/// The two lengths are put in.
fn sections(withdrawn: &str, attributes: &str, nlri: &str) -> String {
    format!("02 {:04x} {withdrawn} {:04x} {attributes} {nlri}", hex(withdrawn).len(), hex(attributes).len())
}

fn check_update(withdrawn: &str, attributes: &str, nlri: &str, format: Format, update: Update) {
    check(&sections(withdrawn, attributes, nlri), format, Message::Update(update));
}

fn announced(next_hop: &str, prefixes: &[&str], attributes: PathAttributes) -> Update {
    let prefixes = prefixes.iter().map(|text| prefix(text)).collect();
    let announced = vec![Announcement { next_hop: next_hop.parse().unwrap(), prefixes }];
    Update { announced, attributes: Some(attributes), ..Update::default() }
}

fn withdrawn(prefixes: &[&str]) -> Update {
    Update { withdrawn: prefixes.iter().map(|text| prefix(text)).collect(), ..Update::default() }
}

fn path(as_path: &[u32]) -> PathAttributes {
    PathAttributes {
        origin: Origin::Igp,
        as_path: as_path.to_vec(),
        med: None,
        local_pref: None,
        communities: Vec::new(),
    }
}

#[test]
fn keepalive_notification_and_route_refresh() {
    check("04", EXTERNAL, Message::Keepalive);
    check("03 0400", EXTERNAL, Message::Notification(Notification::HOLD_TIMER_EXPIRED));
    let drain = Notification::administrative_shutdown("node drain");
    check("03 0602 0a 6e6f646520647261696e", EXTERNAL, Message::Notification(drain));
    check("05 0001 00 01", EXTERNAL, Message::RouteRefresh(Some(Family::Ipv4Unicast)));
    check("05 0002 00 01", EXTERNAL, Message::RouteRefresh(Some(Family::Ipv6Unicast)));
}

#[test]
fn open_with_capabilities_rfc5492() {
    let open = |my_as, capabilities| {
        Message::Open(Open { my_as, hold_time_secs: 90, router_id: [10, 0, 0, 1].into(), capabilities })
    };
    check("01 04 fc00 005a 0a000001 00", EXTERNAL, open(64512, vec![]));
    check(
        "01 04 5ba0 005a 0a000001 16 02 14 010400010001 010400020001 0200 4104fa56ea01",
        EXTERNAL,
        open(23456, Open::new(4_200_000_001, 90, [10, 0, 0, 1].into(), &Family::ALL).capabilities),
    );
    let graceful_restart = Capability::Unknown { code: 64, value: vec![0, 120] };
    check("01 04 fc00 005a 0a000001 06 02 04 4002 0078", EXTERNAL, open(64512, vec![graceful_restart]));
}

#[test]
fn open_in_other_shapes_is_understood() {
    let decode = |text: &str| match Message::decode(&message(text), EXTERNAL) {
        Ok(Message::Open(open)) => open,
        other => panic!("{text}: {other:?}"),
    };
    // One parameter for each capability.
    let open = decode("01 04 fc00 005a 0a000001 0c 02 02 0200 02 06 41040000fc01");
    assert_eq!(open.capabilities, [Capability::RouteRefresh, Capability::FourOctetAs(64513)]);
    // RFC 9072: the extended format, with and without the length of 255.
    for length in ["ff", "09"] {
        let open = decode(&format!("01 04 fc00 005a 0a000001 {length} ff 0009 02 0006 41040000fc01"));
        assert_eq!(open.asn(), 64513);
    }
    // A four-octet AS capability of two octets is no such thing.
    assert_eq!(decode("01 04 fc00 005a 0a000001 06 02 04 4102fc01").asn(), 64512);
    // A multiprotocol capability of another family leaves out IPv4 (RFC 4760 8).
    let evpn = decode("01 04 fc00 005a 0a000001 08 02 06 010400190046");
    assert!(!evpn.carries(Family::Ipv4Unicast) && !evpn.carries(Family::Ipv6Unicast));
}

#[test]
fn an_open_with_many_capabilities_takes_the_extended_format_rfc9072() {
    let many = |count| (0..count).map(|_| Capability::FourOctetAs(64513)).collect();
    for count in [41, 42, 43, 100] {
        let open =
            Open { my_as: 1, hold_time_secs: 90, router_id: [10, 0, 0, 1].into(), capabilities: many(count) };
        let bytes = Message::Open(open.clone()).encode(EXTERNAL);
        assert_eq!(Message::decode(&bytes, EXTERNAL), Ok(Message::Open(open)), "{count}");
    }
}

#[test]
fn malformed_open() {
    let check = |text: &str, expected: Notification| {
        assert_eq!(Message::decode(&message(text), EXTERNAL), Err(expected), "{text}");
    };
    check("01 03 fc00 005a 0a000001 00", Notification::unsupported_version());
    check("01 04 fc00 005a 0a000001 01", Notification::MALFORMED_OPEN);
    check("01 04 fc00 005a 0a000001 00 00", Notification::MALFORMED_OPEN);
    check("01 04 fc00 005a 0a000001 03 02 02 02", Notification::MALFORMED_OPEN);
    check("01 04 fc00 005a 0a000001 03 02 01 02", Notification::MALFORMED_OPEN);
    check("01 04 fc00 005a 0a000001 05 02 03 4104fc", Notification::MALFORMED_OPEN);
    check("01 04 fc00 005a 0a000001 03 01 01 00", Notification::UNSUPPORTED_OPTIONAL_PARAMETER);
    check("01 04 fc00 005a 0a000001 ff ff 00", Notification::MALFORMED_OPEN);
    check("01 04 fc00 005a 0a000001 ff ff 0003 02 0009", Notification::MALFORMED_OPEN);
}

#[test]
fn updates_of_both_families_b4() {
    check_update("", "", "", EXTERNAL, Update::end_of_rib(Family::Ipv4Unicast));
    check_update("", "800f03 000201", "", EXTERNAL, Update::end_of_rib(Family::Ipv6Unicast));
    check_update("20c000020a 180af401", "", "", EXTERNAL, withdrawn(&["192.0.2.10/32", "10.244.1.0/24"]));
    check_update("", "800f04 000201 00", "", EXTERNAL, withdrawn(&["::/0"]));
    check_update(
        "",
        "800f14 000201 8020010db8000000000000000000000010",
        "",
        EXTERNAL,
        withdrawn(&["2001:db8::10/128"]),
    );
    check_update(
        "",
        "40010100 4002060201 0000fc00 400304 0a000001",
        "20c000020a 00",
        EXTERNAL,
        announced("10.0.0.1", &["192.0.2.10/32", "0.0.0.0/0"], path(&[64512])),
    );
    check_update(
        "",
        "800e26 000201 10 fd000000000000000000000000000001 00 8020010db8000000000000000000000010
         40010100 4002060201 0000fc00",
        "",
        EXTERNAL,
        announced("fd00::1", &["2001:db8::10/128"], path(&[64512])),
    );
}

#[test]
fn updates_with_all_attributes() {
    let attributes = PathAttributes {
        med: Some(50),
        local_pref: Some(100),
        communities: vec![
            Community::Standard(0xfc00_0007),
            Community::Standard(0xffff_0000),
            Community::Large(64512, 1, 2),
        ],
        ..path(&[])
    };
    check_update(
        "",
        "40010100 400200 400304 0a000001 800404 00000032 400504 00000064 c00808 fc000007 ffff0000
         c0200c 0000fc00 00000001 00000002",
        "20c000020a",
        INTERNAL,
        announced("10.0.0.1", &["192.0.2.10/32"], attributes),
    );
    check_update(
        "",
        "40010100 400204 0201 5ba0 400304 0a000001 c01106 0201 fa56ea01",
        "20c000020a",
        OLD,
        announced("10.0.0.1", &["192.0.2.10/32"], path(&[4_200_000_001])),
    );
}

#[test]
fn a_long_path_takes_two_segments() {
    let long = announced("10.0.0.1", &["192.0.2.10/32"], path(&[64512; 256]));
    let bytes = Message::Update(long.clone()).encode(EXTERNAL);
    assert_eq!(Message::decode(&bytes, EXTERNAL), Ok(Message::Update(long)));
}

#[test]
fn packed_updates_are_full_but_not_too_full_b41() {
    let v4: Vec<_> = (0..5000u32).map(|n| prefix(&format!("10.1.{}.{}/32", n >> 8, n & 255))).collect();
    let v6: Vec<_> = (0..1000u32).map(|n| prefix(&format!("2001:db8::{n:x}/128"))).collect();
    for (prefixes, next_hop) in [(&v4, "10.0.0.1"), (&v6, "fd00::1")] {
        let mut out = Vec::new();
        wire::announce(prefixes, &path(&[64512]), next_hop.parse().unwrap(), EXTERNAL, &mut out);
        check_packed(&out, prefixes, |update| update.announced[0].prefixes.clone());
        let mut out = Vec::new();
        wire::withdraw(prefixes, &mut out);
        check_packed(&out, prefixes, |update| update.withdrawn.clone());
    }
}

fn check_packed(
    mut bytes: &[u8],
    prefixes: &[portolan_bgp::Prefix],
    of: impl Fn(&Update) -> Vec<portolan_bgp::Prefix>,
) {
    let mut found = Vec::new();
    let mut lengths = Vec::new();
    while let Some(length) = wire::frame(bytes).unwrap() {
        let Ok(Message::Update(update)) = Message::decode(&bytes[..length], EXTERNAL) else { panic!() };
        found.extend(of(&update));
        lengths.push(length);
        bytes = &bytes[length..];
    }
    assert_eq!(found, prefixes);
    let (_last, full) = lengths.split_last().unwrap();
    assert!(full.iter().all(|length| (4096 - 22..=4096).contains(length)), "{lengths:?}");
}

#[test]
fn updates_that_end_the_session() {
    let check = |body: &str, expected: Notification| {
        assert_eq!(Message::decode(&message(&format!("02 {body}")), EXTERNAL), Err(expected), "{body}");
    };
    check("0001 0000", Notification::MALFORMED_ATTRIBUTE_LIST);
    check("0000 0001", Notification::MALFORMED_ATTRIBUTE_LIST);
    check("ffff ffff", Notification::MALFORMED_ATTRIBUTE_LIST);
    // RFC 7606 5.3: where a prefix ends cannot be known.
    check("0002 2100 0000", Notification::INVALID_NETWORK_FIELD);
    check("0000 0000 20c00002", Notification::INVALID_NETWORK_FIELD);
    check("0000 0007 800f04 000201 81", Notification::OPTIONAL_ATTRIBUTE_ERROR);
    // RFC 7606 3 g and 7.11: twice, and a next hop of 5 octets.
    check("0000 000c 800f03 000201 800f03 000201", Notification::MALFORMED_ATTRIBUTE_LIST);
    check("0000 000d 800e0a 000201 05 0000000000 00", Notification::OPTIONAL_ATTRIBUTE_ERROR);
    check("0000 0005 800e02 0002", Notification::OPTIONAL_ATTRIBUTE_ERROR);
    check("0000 0006 800f04 000201", Notification::OPTIONAL_ATTRIBUTE_ERROR);
}

/// An announcement of 10.0.0.0/8 whose attributes are as given.
fn judged(attributes: &str, format: Format) -> Update {
    match Message::decode(&message(&sections("", attributes, "080a")), format) {
        Ok(Message::Update(update)) => update,
        other => panic!("{attributes}: {other:?}"),
    }
}

const GOOD: &str = "40010100 4002060201 0000fc01 400304 0a000002";

#[test]
fn treat_as_withdraw_rfc7606() {
    let check = |attributes: &str, format: Format, attribute: u8, reason: &str| {
        let update = judged(attributes, format);
        assert_eq!(update.withdrawn, [prefix("10.0.0.0/8")], "{attributes}");
        assert_eq!((update.announced.len(), update.attributes), (0, None), "{attributes}");
        let error =
            update.errors.iter().find(|error| error.disposition == Disposition::TreatAsWithdraw).unwrap();
        assert_eq!((error.attribute, error.reason), (attribute, reason), "{attributes}");
    };
    // 3 d: missing ones.
    check("4002060201 0000fc01 400304 0a000002", EXTERNAL, 1, "is missing");
    check("40010100 400304 0a000002", EXTERNAL, 2, "is missing");
    check("40010100 4002060201 0000fc01", EXTERNAL, 3, "is missing");
    check(GOOD, INTERNAL, 5, "is missing");
    // 3 c: flags.
    check(&GOOD.replace("400101", "c00101"), EXTERNAL, 1, "has wrong flags");
    check(&format!("{GOOD} 400404 00000000"), EXTERNAL, 4, "has wrong flags");
    check(&format!("{GOOD} 406300"), EXTERNAL, 99, "is well-known, but not known");
    // 4: lengths.
    check(&format!("{GOOD} 800404 0000"), EXTERNAL, 4, "runs past the attributes' end");
    check(&format!("{GOOD} 80"), EXTERNAL, 0, "runs past the attributes' end");
    check(&format!("{GOOD} 900404"), EXTERNAL, 4, "runs past the attributes' end");
    // 7.1 to 7.4, 7.8.
    check(&GOOD.replace("40010100", "40010103"), EXTERNAL, 1, "is no origin");
    check(&GOOD.replace("40010100", "4001020000"), EXTERNAL, 1, "is no origin");
    check(&GOOD.replace("4002060201 0000fc01", "4002060202 0000fc01"), EXTERNAL, 2, "ends within a segment");
    check(&GOOD.replace("4002060201 0000fc01", "4002020200"), EXTERNAL, 2, "has an empty segment");
    check(&GOOD.replace("4002060201 0000fc01", "40020102"), EXTERNAL, 2, "ends within a segment");
    check(&GOOD.replace("0000fc01", "00000000"), EXTERNAL, 2, "contains AS 0");
    check(&GOOD.replace("060201", "060101"), EXTERNAL, 2, "has a segment that is no sequence");
    check(&GOOD.replace("400304 0a000002", "400303 0a0000"), EXTERNAL, 3, "has a wrong length");
    check(&format!("{GOOD} 800403 000000"), EXTERNAL, 4, "has a wrong length");
    check(&format!("{GOOD} 400503 000000"), INTERNAL, 5, "has a wrong length");
    check(&format!("{GOOD} c00800"), EXTERNAL, 8, "has a wrong length");
    check(&format!("{GOOD} c00803 000000"), EXTERNAL, 8, "has a wrong length");
    check(&format!("{GOOD} 400504 00000064 800903 000000"), INTERNAL, 9, "has a wrong length");
    check(&format!("{GOOD} 400504 00000064 800a00"), INTERNAL, 10, "has a wrong length");
    check(&format!("{GOOD} c01007 00000000000000"), EXTERNAL, 16, "has a wrong length");
    check(&format!("{GOOD} c0200b 0000000000000000000000"), EXTERNAL, 32, "has a wrong length");
}

#[test]
fn attribute_discard_rfc7606() {
    let check = |attributes: &str, format: Format, attribute: u8| {
        let update = judged(attributes, format);
        assert_eq!(update.announced.len(), 1, "{attributes}");
        let error = update.errors.first().unwrap();
        assert_eq!((error.attribute, error.disposition), (attribute, Disposition::Discard), "{attributes}");
    };
    check(&format!("{GOOD} 40010102"), EXTERNAL, 1);
    check(&format!("{GOOD} 400601 00"), EXTERNAL, 6);
    check(&format!("{GOOD} c00706 fc010a000001"), EXTERNAL, 7);
    check(&format!("{GOOD} 400504 00000064"), EXTERNAL, 5);
    check(&format!("{GOOD} 800904 00000064"), EXTERNAL, 9);
    check(&format!("{GOOD} c01106 0201 00000001"), EXTERNAL, 17);
    check(&GOOD.replace("4002060201 0000fc01", "4002040201 fc01 c01101 02"), OLD, 17);
}

#[test]
fn what_we_do_not_carry_is_skipped_b44() {
    // L2VPN EVPN, reachable and not.
    let bytes = message("02 0000 0014 800e09 001946 04 0a000002 00 800f05 001946 0101");
    let Ok(Message::Update(update)) = Message::decode(&bytes, EXTERNAL) else { panic!() };
    assert_eq!(update, Update::default());
    // An unknown optional attribute beside good ones.
    assert_eq!(judged(&format!("{GOOD} c0ff0101"), EXTERNAL).errors, []);
}

#[test]
fn other_shapes_of_good_updates() {
    let decode = |withdrawn: &str, attributes: &str, nlri: &str| match Message::decode(
        &message(&sections(withdrawn, attributes, nlri)),
        EXTERNAL,
    ) {
        Ok(Message::Update(update)) => update,
        other => panic!("{other:?}"),
    };
    // A next hop with a link-local one beside it (RFC 2545 3), and an extended length where none is needed.
    let update = decode(
        "",
        "900e0026 000201 20 fd000000000000000000000000000002 fe800000000000000000000000000002 00 00
         40010100 4002060201 0000fc01",
        "",
    );
    assert_eq!(update.announced[0].next_hop.to_string(), "fd00::2");
    assert_eq!(update.announced[0].prefixes, [prefix("::/0")]);
    // Bits behind a prefix's length do not count (RFC 4271 4.3).
    assert_eq!(decode("", GOOD, "09 0aff").announced[0].prefixes, [prefix("10.128.0.0/9")]);
    // Both families, announced and withdrawn, in one.
    let update = decode(
        "080b",
        "800e16 000201 10 fd000000000000000000000000000002 00 00 800f04 000201 00
         40010100 4002060201 0000fc01 400304 0a000002",
        "080a",
    );
    assert_eq!((update.announced.len(), update.withdrawn.len(), update.errors.len()), (2, 2, 0));
    // AS4_PATH shorter than AS_PATH: the old speakers' numbers stay in front (RFC 6793 4.2.3).
    let update = judged("40010100 400206 0202 fc01 5ba0 400304 0a000002 c01106 0201 fa56ea01", OLD);
    assert_eq!(update.attributes.unwrap().as_path, [64513, 4_200_000_001]);
}
