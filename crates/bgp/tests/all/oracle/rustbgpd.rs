//! rustbgpd-wire.

use bytes::Bytes;
use rustbgpd_wire::{
    Afi, AsPath, AsPathSegment, Capability, Ipv4NlriEntry, Ipv4Prefix, Ipv4UnicastMode, Ipv6Prefix,
    LargeCommunity, Message, MpReachNlri, MpUnreachNlri, NlriEntry, OpenMessage, Origin, PathAttribute,
    Prefix as TheirPrefix, Safi, UpdateMessage, decode_message, encode_message,
};

use super::{Community, Family, IpAddr, Prefix, Said, SaidOpen};

pub fn read(bytes: &[u8]) -> Said {
    let update = match decode_message(&mut Bytes::copy_from_slice(bytes), 4096) {
        Ok(Message::Update(update)) => update.parse(true, false, &[]).unwrap(),
        other => panic!("{other:?}"),
    };
    let mut said = Said {
        withdrawn: update.withdrawn.iter().map(|entry| v4(entry.prefix)).collect(),
        ..Said::default()
    };
    let mut next_hop = None;
    for attribute in update.attributes {
        match attribute {
            PathAttribute::Origin(origin) => assert_eq!(origin, Origin::Igp),
            PathAttribute::AsPath(path) => said.as_path = path.asns().collect(),
            PathAttribute::NextHop(address) => next_hop = Some(IpAddr::from(address)),
            PathAttribute::Med(med) => said.med = Some(med),
            PathAttribute::Communities(list) => {
                said.communities.extend(list.into_iter().map(Community::Standard))
            }
            PathAttribute::LargeCommunities(list) => said.communities.extend(list.into_iter().map(large)),
            PathAttribute::MpReachNlri(reach) => {
                assert_eq!(reach.link_local_next_hop, None);
                said.announced
                    .extend(reach.announced.iter().map(|entry| (ours(entry.prefix), reach.next_hop)));
            }
            PathAttribute::MpUnreachNlri(unreach) => {
                said.withdrawn.extend(unreach.withdrawn.iter().map(|entry| ours(entry.prefix)));
            }
            other => panic!("{other:?}"),
        }
    }
    said.announced.extend(update.announced.iter().map(|entry| (v4(entry.prefix), next_hop.unwrap())));
    said
}

pub fn write(said: &Said) -> Vec<u8> {
    let (announced, reach) = split(said.announced.keys());
    let (withdrawn, unreach) = split(&said.withdrawn);
    let mut attributes = Vec::new();
    let next_hop = said.announced.values().next();
    if let Some(next_hop) = next_hop {
        let path = AsPath { segments: vec![AsPathSegment::AsSequence(said.as_path.clone())] };
        attributes.extend([PathAttribute::Origin(Origin::Igp), PathAttribute::AsPath(path)]);
        attributes.extend(said.med.map(PathAttribute::Med));
        if let IpAddr::V4(next_hop) = next_hop {
            attributes.push(PathAttribute::NextHop(*next_hop));
        }
        let (mut standard, mut large) = (Vec::new(), Vec::new());
        for community in &said.communities {
            match *community {
                Community::Standard(value) => standard.push(value),
                Community::Large(a, b, c) => large.push(LargeCommunity::new(a, b, c)),
            }
        }
        attributes.extend((!standard.is_empty()).then_some(PathAttribute::Communities(standard)));
        attributes.extend((!large.is_empty()).then_some(PathAttribute::LargeCommunities(large)));
    }
    if let Some(next_hop) = next_hop.filter(|_| !reach.is_empty()) {
        attributes.push(PathAttribute::MpReachNlri(Box::new(mp_reach(*next_hop, reach))));
    }
    if !unreach.is_empty() {
        attributes.push(PathAttribute::MpUnreachNlri(Box::new(mp_unreach(unreach))));
    }
    let update =
        UpdateMessage::build(&announced, &withdrawn, &attributes, true, false, Ipv4UnicastMode::Body);
    encode_message(&Message::Update(update)).unwrap().to_vec()
}

/// Whether they keep the session.
pub fn survives(bytes: &[u8]) -> bool {
    match decode_message(&mut Bytes::copy_from_slice(bytes), 4096) {
        Ok(Message::Update(update)) => update.parse_revised(true, false, false, &[]).is_ok(),
        Ok(other) => panic!("{other:?}"),
        Err(_) => false,
    }
}

pub fn read_open(bytes: &[u8]) -> SaidOpen {
    let open = match decode_message(&mut Bytes::copy_from_slice(bytes), 4096) {
        Ok(Message::Open(open)) => open,
        other => panic!("{other:?}"),
    };
    SaidOpen {
        asn: open.four_byte_as(),
        hold_time_secs: open.hold_time,
        router_id: open.bgp_identifier,
        families: Family::ALL
            .into_iter()
            .filter(|family| open.capabilities.contains(&multiprotocol(*family)))
            .collect(),
        route_refresh: open.capabilities.contains(&Capability::RouteRefresh),
    }
}

pub fn write_open(said: &SaidOpen) -> Vec<u8> {
    let mut capabilities: Vec<_> = said.families.iter().copied().map(multiprotocol).collect();
    capabilities.extend([Capability::RouteRefresh, Capability::FourOctetAs { asn: said.asn }]);
    let open = OpenMessage {
        version: 4,
        my_as: u16::try_from(said.asn).unwrap_or(23456),
        hold_time: said.hold_time_secs,
        bgp_identifier: said.router_id,
        capabilities,
    };
    encode_message(&Message::Open(open)).unwrap().to_vec()
}

fn multiprotocol(family: Family) -> Capability {
    let afi = match family {
        Family::Ipv4Unicast => Afi::Ipv4,
        Family::Ipv6Unicast => Afi::Ipv6,
    };
    Capability::MultiProtocol { afi, safi: Safi::Unicast }
}

fn mp_reach(next_hop: IpAddr, announced: Vec<NlriEntry>) -> MpReachNlri {
    MpReachNlri {
        afi: Afi::Ipv6,
        safi: Safi::Unicast,
        next_hop,
        link_local_next_hop: None,
        announced,
        flowspec_announced: vec![],
        evpn_announced: vec![],
        bgpls_announced: vec![],
        vpn_announced: vec![],
        labeled_announced: vec![],
        rtc_announced: vec![],
    }
}

fn mp_unreach(withdrawn: Vec<NlriEntry>) -> MpUnreachNlri {
    MpUnreachNlri {
        afi: Afi::Ipv6,
        safi: Safi::Unicast,
        withdrawn,
        flowspec_withdrawn: vec![],
        evpn_withdrawn: vec![],
        bgpls_withdrawn: vec![],
        vpn_withdrawn: vec![],
        labeled_withdrawn: vec![],
        rtc_withdrawn: vec![],
    }
}

fn split<'a>(prefixes: impl IntoIterator<Item = &'a Prefix>) -> (Vec<Ipv4NlriEntry>, Vec<NlriEntry>) {
    let (mut classic, mut mp) = (Vec::new(), Vec::new());
    for prefix in prefixes {
        match prefix {
            Prefix::V4(net) => classic
                .push(Ipv4NlriEntry { path_id: 0, prefix: Ipv4Prefix::new(net.addr(), net.prefix_len()) }),
            Prefix::V6(net) => {
                mp.push(NlriEntry {
                    path_id: 0,
                    prefix: TheirPrefix::V6(Ipv6Prefix::new(net.addr(), net.prefix_len())),
                });
            }
        }
    }
    (classic, mp)
}

fn v4(prefix: Ipv4Prefix) -> Prefix {
    Prefix::new(prefix.addr.into(), prefix.len).unwrap()
}

fn ours(prefix: TheirPrefix) -> Prefix {
    match prefix {
        TheirPrefix::V4(prefix) => v4(prefix),
        TheirPrefix::V6(prefix) => Prefix::new(prefix.addr.into(), prefix.len).unwrap(),
    }
}

fn large(community: LargeCommunity) -> Community {
    Community::Large(community.global_admin, community.local_data1, community.local_data2)
}
