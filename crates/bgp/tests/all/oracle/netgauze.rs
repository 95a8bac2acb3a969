//! netgauze-bgp-pkt.

use std::io::Cursor;

use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::capabilities::{
    BgpCapability, FourOctetAsCapability, MultiProtocolExtensionsCapability,
};
use netgauze_bgp_pkt::community::{Community as TheirCommunity, LargeCommunity};
use netgauze_bgp_pkt::nlri::{Ipv4Unicast, Ipv4UnicastAddress, Ipv6Unicast, Ipv6UnicastAddress};
use netgauze_bgp_pkt::open::{BgpOpenMessage, BgpOpenMessageParameter};
use netgauze_bgp_pkt::path_attribute::{
    As4PathSegment, AsPath, AsPathSegmentType, Communities, LargeCommunities, MpReach, MpUnreach,
    MultiExitDiscriminator, NextHop, Origin, PathAttribute, PathAttributeValue,
};
use netgauze_bgp_pkt::update::BgpUpdateMessage;
use netgauze_bgp_pkt::wire::deserializer::BgpParsingContext;
use netgauze_iana::address_family::AddressType;
use netgauze_parse_utils::WritablePdu;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;

use super::{Community, Family, IpAddr, Prefix, Said, SaidOpen};

fn decode(bytes: &[u8]) -> BgpMessage {
    BgpMessage::parse(&mut SliceReader::new(bytes), &mut BgpParsingContext::default()).unwrap()
}

fn encode(message: BgpMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.write(&mut Cursor::new(&mut bytes)).unwrap();
    bytes
}

pub fn read(bytes: &[u8]) -> Said {
    let BgpMessage::Update(update) = decode(bytes) else { panic!() };
    let v4 = |address: &Ipv4UnicastAddress| Prefix::V4(address.network().address());
    let v6 = |address: &Ipv6UnicastAddress| Prefix::V6(address.network().address());
    let mut said = Said { withdrawn: update.withdraw_routes().iter().map(v4).collect(), ..Said::default() };
    let mut next_hop = None;
    for attribute in update.path_attributes() {
        match attribute.value() {
            PathAttributeValue::Origin(origin) => assert_eq!(*origin, Origin::IGP),
            PathAttributeValue::AsPath(AsPath::As4PathSegments(segments)) => {
                said.as_path = segments.iter().flat_map(|segment| segment.as_numbers()).copied().collect();
            }
            PathAttributeValue::NextHop(address) => next_hop = Some(IpAddr::from(address.next_hop())),
            PathAttributeValue::MultiExitDiscriminator(med) => said.med = Some(med.metric()),
            PathAttributeValue::Communities(list) => {
                said.communities.extend(list.communities().iter().map(|c| Community::Standard(c.value())));
            }
            PathAttributeValue::LargeCommunities(list) => {
                said.communities.extend(list.communities().iter().map(large))
            }
            PathAttributeValue::MpReach(MpReach::Ipv6Unicast { next_hop_global, next_hop_local, nlri }) => {
                assert_eq!(*next_hop_local, None);
                said.announced
                    .extend(nlri.iter().map(|address| (v6(address), IpAddr::from(*next_hop_global))));
            }
            PathAttributeValue::MpUnreach(MpUnreach::Ipv6Unicast { nlri }) => {
                said.withdrawn.extend(nlri.iter().map(v6))
            }
            other => panic!("{other:?}"),
        }
    }
    said.announced.extend(update.nlri().iter().map(|address| (v4(address), next_hop.unwrap())));
    said
}

pub fn write(said: &Said) -> Vec<u8> {
    let (announced, reach) = split(said.announced.keys());
    let (withdrawn, unreach) = split(&said.withdrawn);
    let mut attributes = Vec::new();
    if let Some(next_hop) = said.announced.values().next() {
        let segment = As4PathSegment::new(AsPathSegmentType::AsSequence, said.as_path.clone());
        attributes.push(attribute(false, true, PathAttributeValue::Origin(Origin::IGP)));
        attributes.push(attribute(
            false,
            true,
            PathAttributeValue::AsPath(AsPath::as4_path_segments([segment])),
        ));
        match next_hop {
            IpAddr::V4(ip) => {
                attributes.push(attribute(false, true, PathAttributeValue::NextHop(NextHop::new(*ip))))
            }
            IpAddr::V6(ip) => {
                let reach =
                    MpReach::Ipv6Unicast { next_hop_global: *ip, next_hop_local: None, nlri: reach.into() };
                attributes.push(attribute(true, false, PathAttributeValue::MpReach(reach)));
            }
        }
        if let Some(med) = said.med {
            let med = PathAttributeValue::MultiExitDiscriminator(MultiExitDiscriminator::new(med));
            attributes.push(attribute(true, false, med));
        }
        attributes.extend(communities(said));
    }
    if !unreach.is_empty() {
        let unreach = MpUnreach::Ipv6Unicast { nlri: unreach.into() };
        attributes.push(attribute(true, false, PathAttributeValue::MpUnreach(unreach)));
    }
    encode(BgpMessage::Update(BgpUpdateMessage::new(withdrawn, attributes, announced)))
}

pub fn read_open(bytes: &[u8]) -> SaidOpen {
    let BgpMessage::Open(open) = decode(bytes) else { panic!() };
    let capabilities = open.capabilities();
    let families = Family::ALL.into_iter().filter(|family| capabilities.contains(&&multiprotocol(*family)));
    SaidOpen {
        asn: open.my_asn4(),
        hold_time_secs: open.hold_time(),
        router_id: open.bgp_id(),
        families: families.collect(),
        route_refresh: capabilities.contains(&&BgpCapability::RouteRefresh),
    }
}

pub fn write_open(said: &SaidOpen) -> Vec<u8> {
    let mut capabilities: Vec<_> = said.families.iter().copied().map(multiprotocol).collect();
    capabilities.extend([
        BgpCapability::RouteRefresh,
        BgpCapability::FourOctetAs(FourOctetAsCapability::new(said.asn)),
    ]);
    let my_as = u16::try_from(said.asn).unwrap_or(23456);
    let parameters = [BgpOpenMessageParameter::new_capabilities(capabilities)];
    encode(BgpMessage::Open(BgpOpenMessage::new(my_as, said.hold_time_secs, said.router_id, parameters)))
}

fn multiprotocol(family: Family) -> BgpCapability {
    BgpCapability::MultiProtocolExtensions(MultiProtocolExtensionsCapability::new(match family {
        Family::Ipv4Unicast => AddressType::Ipv4Unicast,
        Family::Ipv6Unicast => AddressType::Ipv6Unicast,
    }))
}

fn communities(said: &Said) -> Vec<PathAttribute> {
    let (mut standard, mut large) = (Vec::new(), Vec::new());
    for community in &said.communities {
        match *community {
            Community::Standard(value) => standard.push(TheirCommunity::new(value)),
            Community::Large(a, b, c) => large.push(LargeCommunity::new(a, b, c)),
        }
    }
    let mut attributes = Vec::new();
    if !standard.is_empty() {
        attributes.push(attribute(true, true, PathAttributeValue::Communities(Communities::new(standard))));
    }
    if !large.is_empty() {
        attributes.push(attribute(
            true,
            true,
            PathAttributeValue::LargeCommunities(LargeCommunities::new(large)),
        ));
    }
    attributes
}

/// An extended length always, to see that we take it.
fn attribute(optional: bool, transitive: bool, value: PathAttributeValue) -> PathAttribute {
    PathAttribute::from(optional, transitive, false, true, value).unwrap()
}

fn split<'a>(
    prefixes: impl IntoIterator<Item = &'a Prefix>,
) -> (Vec<Ipv4UnicastAddress>, Vec<Ipv6UnicastAddress>) {
    let (mut v4, mut v6) = (Vec::new(), Vec::new());
    for prefix in prefixes {
        match prefix {
            Prefix::V4(net) => {
                v4.push(Ipv4UnicastAddress::new_no_path_id(Ipv4Unicast::from_net(*net).unwrap()))
            }
            Prefix::V6(net) => v6.push(Ipv6UnicastAddress::new(None, Ipv6Unicast::from_net(*net).unwrap())),
        }
    }
    (v4, v6)
}

fn large(community: &LargeCommunity) -> Community {
    Community::Large(community.global_admin(), community.local_data1(), community.local_data2())
}
