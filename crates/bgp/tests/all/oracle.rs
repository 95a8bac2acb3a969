//! Random messages against two independent codecs, rustbgpd-wire and netgauze-bgp-pkt: what we write they read alike, what
//! they write we read alike, and what rustbgpd-wire gives up a session for, so do we.

mod netgauze;
mod rustbgpd;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use arbitrary::{Result, Unstructured};
use arbtest::arbtest;
use portolan_bgp::wire::{
    self, Announcement, Capability, Format, Message, Open, Origin, PathAttributes, Update,
};
use portolan_bgp::{Community, Family, Prefix};

const FORMAT: Format = Format { four_octet_as: true, internal: false };

/// What an UPDATE says, however a codec puts it.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    withdrawn: BTreeSet<Prefix>,
    announced: BTreeMap<Prefix, IpAddr>,
    as_path: Vec<u32>,
    med: Option<u32>,
    communities: BTreeSet<Community>,
}

#[derive(Clone, Debug, PartialEq)]
struct SaidOpen {
    asn: u32,
    hold_time_secs: u16,
    router_id: Ipv4Addr,
    families: BTreeSet<Family>,
    route_refresh: bool,
}

#[test]
fn updates_we_write_are_read_alike_by_others() {
    arbtest(|u| {
        let said = arbitrary_said(u)?;
        let bytes = ours(&said).encode(FORMAT);
        assert_eq!(rustbgpd::read(&bytes), said);
        assert_eq!(netgauze::read(&bytes), said);
        Ok(())
    });
}

#[test]
fn updates_others_write_are_read_alike_by_us() {
    arbtest(|u| {
        let said = arbitrary_said(u)?;
        for bytes in [rustbgpd::write(&said), netgauze::write(&said)] {
            assert_eq!(read(&bytes), said);
        }
        Ok(())
    });
}

#[test]
fn packed_updates_are_read_alike_by_others_b41() {
    arbtest(|u| {
        let family = *u.choose(&Family::ALL)?;
        let prefixes: BTreeSet<Prefix> =
            (0..u.int_in_range(1..=1500)?).map(|_| prefix(u, family)).collect::<Result<_>>()?;
        let list: Vec<_> = prefixes.iter().copied().collect();
        let (attributes, next_hop) = (arbitrary_attributes(u)?, next_hop(u, family)?);
        let mut bytes = Vec::new();
        wire::announce(&list, &attributes, next_hop, FORMAT, &mut bytes);
        let heard: Vec<_> =
            messages(&bytes).into_iter().flat_map(|one| rustbgpd::read(one).announced).collect();
        assert_eq!(heard, prefixes.iter().map(|prefix| (*prefix, next_hop)).collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
fn opens_are_read_alike() {
    arbtest(|u| {
        let mut families: BTreeSet<_> = u
            .arbitrary_iter::<bool>()?
            .take(2)
            .zip(Family::ALL)
            .filter_map(|(yes, family)| yes.ok()?.then_some(family))
            .collect();
        families.insert(*u.choose(&Family::ALL)?);
        let said = SaidOpen {
            asn: u.int_in_range(1..=u32::MAX)?,
            hold_time_secs: u.int_in_range(3..=u16::MAX)?,
            router_id: ipv4(u)?,
            families,
            route_refresh: true,
        };
        let families: Vec<_> = said.families.iter().copied().collect();
        let open = Message::Open(Open::new(said.asn, said.hold_time_secs, said.router_id, &families));
        assert_eq!(rustbgpd::read_open(&open.encode(FORMAT)), said);
        assert_eq!(netgauze::read_open(&open.encode(FORMAT)), said);
        for bytes in [rustbgpd::write_open(&said), netgauze::write_open(&said)] {
            assert_eq!(read_open(&bytes), said);
        }
        Ok(())
    });
}

/// One byte of an UPDATE changed: both codecs agree whether the session can go on (RFC 7606).
#[test]
fn the_session_ends_for_the_same_updates() {
    arbtest(|u| {
        let mut bytes = ours(&arbitrary_said(u)?).encode(FORMAT);
        let at = u.int_in_range(19..=bytes.len() - 1)?;
        bytes[at] = u.arbitrary()?;
        if !is_judged_otherwise(&bytes) {
            let ours = Message::decode(&bytes, FORMAT);
            assert_eq!(ours.is_ok(), rustbgpd::survives(&bytes), "{bytes:02x?} {ours:?}");
        }
        Ok(())
    });
}

/// Where both are right: other families are skipped by us (B44) and read by rustbgpd-wire; wrong flags of the multiprotocol
/// attributes are a withdraw to us (RFC 7606 3 c) and fatal to it.
fn is_judged_otherwise(message: &[u8]) -> bool {
    let withdrawn = usize::from(u16::from_be_bytes([message[19], message[20]]));
    let mut attributes = message.get(23 + withdrawn..).unwrap_or_default();
    while let [flags, code, rest @ ..] = attributes {
        let (length, value) = match (flags & 0x10, rest) {
            (0, [length, value @ ..]) => (usize::from(*length), value),
            (0x10, [high, low, value @ ..]) => (usize::from(u16::from_be_bytes([*high, *low])), value),
            _ => return false,
        };
        if matches!(code, 14 | 15) && (flags & 0xc0 != 0x80 || !matches!(value, [0, 1 | 2, 1, ..])) {
            return true;
        }
        attributes = value.get(length..).unwrap_or_default();
    }
    false
}

fn arbitrary_said(u: &mut Unstructured) -> Result<Said> {
    let mut said = Said::default();
    let family = *u.choose(&Family::ALL)?;
    if u.arbitrary()? {
        said.withdrawn = (0..u.int_in_range(1..=20)?).map(|_| prefix(u, family)).collect::<Result<_>>()?;
        return Ok(said);
    }
    let next_hop = next_hop(u, family)?;
    said.announced =
        (0..u.int_in_range(1..=20)?).map(|_| Ok((prefix(u, family)?, next_hop))).collect::<Result<_>>()?;
    let attributes = arbitrary_attributes(u)?;
    (said.as_path, said.med) = (attributes.as_path, attributes.med);
    said.communities = attributes.communities.into_iter().collect();
    Ok(said)
}

fn arbitrary_attributes(u: &mut Unstructured) -> Result<PathAttributes> {
    let mut communities = BTreeSet::new();
    for _ in 0..u.int_in_range(0..=100)? {
        communities.insert(match u.arbitrary()? {
            true => Community::Standard(u.arbitrary()?),
            false => Community::Large(u.arbitrary()?, u.arbitrary()?, u.arbitrary()?),
        });
    }
    Ok(PathAttributes {
        origin: Origin::Igp,
        as_path: vec![u.int_in_range(1..=u32::MAX)?; u.int_in_range(1..=255)?],
        med: u.arbitrary()?,
        local_pref: None,
        communities: communities.into_iter().collect(),
    })
}

/// Unicast, since the others look at that.
fn prefix(u: &mut Unstructured, family: Family) -> Result<Prefix> {
    let (address, length) = match family {
        Family::Ipv4Unicast => (ipv4(u)?.into(), u.int_in_range(8..=32)?),
        Family::Ipv6Unicast => (ipv6(u)?.into(), u.int_in_range(8..=128)?),
    };
    Ok(Prefix::new(address, length).unwrap().trunc())
}

fn next_hop(u: &mut Unstructured, family: Family) -> Result<IpAddr> {
    Ok(match family {
        Family::Ipv4Unicast => ipv4(u)?.into(),
        Family::Ipv6Unicast => ipv6(u)?.into(),
    })
}

fn ipv4(u: &mut Unstructured) -> Result<Ipv4Addr> {
    Ok([u.int_in_range(1..=100)?, u.arbitrary()?, u.arbitrary()?, u.int_in_range(1..=254)?].into())
}

fn ipv6(u: &mut Unstructured) -> Result<Ipv6Addr> {
    Ok((u.arbitrary::<u128>()? >> 4 | 2 << 124).into())
}

fn ours(said: &Said) -> Message {
    let mut update = Update { withdrawn: said.withdrawn.iter().copied().collect(), ..Update::default() };
    if let Some(next_hop) = said.announced.values().next() {
        update.announced =
            vec![Announcement { next_hop: *next_hop, prefixes: said.announced.keys().copied().collect() }];
        update.attributes = Some(PathAttributes {
            origin: Origin::Igp,
            as_path: said.as_path.clone(),
            med: said.med,
            local_pref: None,
            communities: said.communities.iter().copied().collect(),
        });
    }
    Message::Update(update)
}

fn read(bytes: &[u8]) -> Said {
    let Ok(Message::Update(update)) = Message::decode(bytes, FORMAT) else { panic!("{bytes:02x?}") };
    assert_eq!(update.errors, []);
    let mut said = Said { withdrawn: update.withdrawn.into_iter().collect(), ..Said::default() };
    for Announcement { next_hop, prefixes } in update.announced {
        said.announced.extend(prefixes.into_iter().map(|prefix| (prefix, next_hop)));
    }
    if let Some(attributes) = update.attributes {
        (said.as_path, said.med) = (attributes.as_path, attributes.med);
        said.communities = attributes.communities.into_iter().collect();
    }
    said
}

fn read_open(bytes: &[u8]) -> SaidOpen {
    let Ok(Message::Open(open)) = Message::decode(bytes, FORMAT) else { panic!("{bytes:02x?}") };
    assert!(!open.capabilities.iter().any(|capability| matches!(capability, Capability::Unknown { .. })));
    SaidOpen {
        asn: open.asn(),
        hold_time_secs: open.hold_time_secs,
        router_id: open.router_id,
        families: Family::ALL.into_iter().filter(|family| open.carries(*family)).collect(),
        route_refresh: open.route_refresh(),
    }
}

fn messages(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut messages = Vec::new();
    while let Some(length) = wire::frame(bytes).unwrap() {
        messages.push(&bytes[..length]);
        bytes = &bytes[length..];
    }
    messages
}
