//! UPDATE (RFC 4271 4.3), with both families' prefixes brought together (RFC 4760).

use std::net::{IpAddr, Ipv6Addr};

use super::attributes::{self, AttributeError, Disposition, PathAttributes, code};
use super::reader::Reader;
use super::{Format, Notification, nlri};
use crate::{Family, Prefix};

/// Prefixes of one family behind one next hop of the same family.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub next_hop: IpAddr,
    pub prefixes: Vec<Prefix>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Update {
    /// Of either family.
    pub withdrawn: Vec<Prefix>,
    /// At most one of each family.
    pub announced: Vec<Announcement>,
    /// Present where something is announced.
    pub attributes: Option<PathAttributes>,
    /// The peer has said all it knows of this family (RFC 4724 2); such an UPDATE says nothing else.
    pub end_of_rib: Option<Family>,
    /// What was wrong with a received one that need not end the session (RFC 7606). Never sent.
    pub errors: Vec<AttributeError>,
}

impl Update {
    pub fn end_of_rib(family: Family) -> Self {
        Update { end_of_rib: Some(family), ..Update::default() }
    }

    pub(super) fn encode(&self, format: Format, out: &mut Vec<u8>) {
        let withdrawn_v4 = of_family(&self.withdrawn, Family::Ipv4Unicast);
        length_prefixed(out, |out| withdrawn_v4.for_each(|prefix| nlri::encode(prefix, out)));
        length_prefixed(out, |out| self.encode_attributes(format, out));
        for announcement in self.announced.iter().filter(|announcement| announcement.next_hop.is_ipv4()) {
            announcement.prefixes.iter().for_each(|prefix| nlri::encode(prefix, out));
        }
    }

    /// RFC 7606 5.1: the multiprotocol attributes come first, so that a receiver finds the prefixes whatever follows.
    fn encode_attributes(&self, format: Format, out: &mut Vec<u8>) {
        let mut next_hop_v4 = None;
        for announcement in &self.announced {
            match announcement.next_hop {
                IpAddr::V4(next_hop) => next_hop_v4 = Some(next_hop),
                IpAddr::V6(next_hop) => encode_mp_reach(next_hop, &announcement.prefixes, out),
            }
        }
        let withdrawn_v6: Vec<_> = of_family(&self.withdrawn, Family::Ipv6Unicast).collect();
        if !withdrawn_v6.is_empty() || self.end_of_rib == Some(Family::Ipv6Unicast) {
            encode_mp_unreach(&withdrawn_v6, out);
        }
        if let Some(attributes) = &self.attributes {
            attributes.encode(next_hop_v4, format, out);
        }
    }

    pub(super) fn decode(body: &[u8], format: Format) -> Result<Update, Notification> {
        let (withdrawn, attributes, nlri) = sections(body).ok_or(Notification::MALFORMED_ATTRIBUTE_LIST)?;
        let prefixes =
            |bytes| nlri::decode_all(Family::Ipv4Unicast, bytes).ok_or(Notification::INVALID_NETWORK_FIELD);
        let mut update = Update { withdrawn: prefixes(withdrawn)?, ..Update::default() };
        let nlri = prefixes(nlri)?;
        // RFC 4724 2.
        if update.withdrawn.is_empty() && attributes.is_empty() && nlri.is_empty() {
            return Ok(Update::end_of_rib(Family::Ipv4Unicast));
        }
        let (raw, overrun) = attributes::split(attributes);
        // RFC 7606 4, 5.3: prefixes are lost with it, so nothing less than a reset tells which.
        if overrun.is_some_and(|error| matches!(error.attribute, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI))
        {
            return Err(Notification::OPTIONAL_ATTRIBUTE_ERROR);
        }
        update.decode_multiprotocol(&raw, nlri.is_empty())?;
        // RFC 7606 5.2: without any prefix announced there is nothing that the other attributes could be wrong about.
        if !nlri.is_empty() || !update.announced.is_empty() {
            update.judge(&raw, overrun, nlri, format);
        }
        Ok(update)
    }

    /// MP_REACH_NLRI and MP_UNREACH_NLRI, before all others (RFC 7606 3 g, 5.3, 7.11).
    fn decode_multiprotocol(&mut self, raw: &[attributes::Raw], alone: bool) -> Result<(), Notification> {
        let mut seen = Vec::new();
        for attribute in raw {
            if !matches!(attribute.code, code::MP_REACH_NLRI | code::MP_UNREACH_NLRI) {
                continue;
            }
            if seen.contains(&attribute.code) {
                return Err(Notification::MALFORMED_ATTRIBUTE_LIST);
            }
            seen.push(attribute.code);
            match attribute.code {
                code::MP_REACH_NLRI => self.announced.extend(decode_mp_reach(attribute.value)?),
                _ => {
                    let Some((family, prefixes)) = decode_mp_unreach(attribute.value)? else { continue };
                    let nothing_else = alone && raw.len() == 1 && self.withdrawn.is_empty();
                    self.end_of_rib = (prefixes.is_empty() && nothing_else).then_some(family);
                    self.withdrawn.extend(prefixes);
                }
            }
        }
        Ok(())
    }

    /// The other attributes; where they cannot be trusted, what was announced counts as withdrawn (RFC 7606 2).
    fn judge(
        &mut self,
        raw: &[attributes::Raw],
        overrun: Option<AttributeError>,
        nlri: Vec<Prefix>,
        format: Format,
    ) {
        let decoded = attributes::decode(raw, format, !nlri.is_empty());
        self.errors = decoded.errors;
        self.errors.extend(overrun);
        let withdraw = self.errors.iter().any(|error| error.disposition == Disposition::TreatAsWithdraw);
        match (withdraw, decoded.next_hop) {
            (false, Some(next_hop)) if !nlri.is_empty() => {
                self.announced.insert(0, Announcement { next_hop: next_hop.into(), prefixes: nlri });
            }
            (false, _) => {}
            (true, _) => {
                self.withdrawn.extend(nlri);
                self.withdrawn
                    .extend(self.announced.drain(..).flat_map(|announcement| announcement.prefixes));
            }
        }
        self.attributes = (!self.announced.is_empty()).then_some(decoded.attributes);
    }
}

fn of_family(prefixes: &[Prefix], family: Family) -> impl Iterator<Item = &Prefix> {
    prefixes.iter().filter(move |prefix| Family::of(prefix) == family)
}

/// (withdrawn routes, path attributes, NLRI), or None where the lengths contradict each other (RFC 4271 6.3).
fn sections(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let mut reader = Reader::new(body);
    let length = reader.u16()?;
    let withdrawn = reader.take(usize::from(length))?;
    let length = reader.u16()?;
    let attributes = reader.take(usize::from(length))?;
    Some((withdrawn, attributes, reader.rest()))
}

fn length_prefixed(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let at = out.len();
    out.extend_from_slice(&[0, 0]);
    write(out);
    let length = (out.len() - at - 2) as u16;
    out[at..at + 2].copy_from_slice(&length.to_be_bytes());
}

/// RFC 2545 3, with the global address alone: a link-local one beside it has broken routers (B4).
fn encode_mp_reach(next_hop: Ipv6Addr, prefixes: &[Prefix], out: &mut Vec<u8>) {
    let mut value = family_header(Family::Ipv6Unicast);
    value.push(16);
    value.extend_from_slice(&next_hop.octets());
    value.push(0);
    prefixes.iter().for_each(|prefix| nlri::encode(prefix, &mut value));
    attributes::encode_one(attributes::OPTIONAL, code::MP_REACH_NLRI, &value, out);
}

fn encode_mp_unreach(prefixes: &[&Prefix], out: &mut Vec<u8>) {
    let mut value = family_header(Family::Ipv6Unicast);
    prefixes.iter().for_each(|prefix| nlri::encode(prefix, &mut value));
    attributes::encode_one(attributes::OPTIONAL, code::MP_UNREACH_NLRI, &value, out);
}

fn family_header(family: Family) -> Vec<u8> {
    let (afi, safi) = family.code();
    let [a, b] = afi.to_be_bytes();
    vec![a, b, safi]
}

/// None for a family we do not carry (B44). RFC 7606 7.11: a next hop of another length hides where the prefixes are.
fn decode_mp_reach(value: &[u8]) -> Result<Option<Announcement>, Notification> {
    let mut reader = Reader::new(value);
    let header = (reader.u16(), reader.u8(), reader.u8());
    let (Some(afi), Some(safi), Some(length)) = header else {
        return Err(Notification::OPTIONAL_ATTRIBUTE_ERROR);
    };
    let Some(family) = Family::from_code(afi, safi) else { return Ok(None) };
    let next_hop = reader.take(usize::from(length)).ok_or(Notification::OPTIONAL_ATTRIBUTE_ERROR)?;
    let _reserved = reader.u8().ok_or(Notification::OPTIONAL_ATTRIBUTE_ERROR)?;
    let next_hop = decode_next_hop(family, next_hop).ok_or(Notification::OPTIONAL_ATTRIBUTE_ERROR)?;
    let prefixes = nlri::decode_all(family, reader.rest()).ok_or(Notification::OPTIONAL_ATTRIBUTE_ERROR)?;
    Ok((!prefixes.is_empty()).then_some(Announcement { next_hop, prefixes }))
}

fn decode_next_hop(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match (family, bytes.len()) {
        (Family::Ipv4Unicast, 4) => Some(IpAddr::from(*bytes.first_chunk::<4>()?)),
        // RFC 2545 3: the second of two is link-local.
        (Family::Ipv6Unicast, 16 | 32) => Some(IpAddr::from(*bytes.first_chunk::<16>()?)),
        (Family::Ipv4Unicast | Family::Ipv6Unicast, _) => None,
    }
}

fn decode_mp_unreach(value: &[u8]) -> Result<Option<(Family, Vec<Prefix>)>, Notification> {
    let mut reader = Reader::new(value);
    let (Some(afi), Some(safi)) = (reader.u16(), reader.u8()) else {
        return Err(Notification::OPTIONAL_ATTRIBUTE_ERROR);
    };
    let Some(family) = Family::from_code(afi, safi) else { return Ok(None) };
    let prefixes = nlri::decode_all(family, reader.rest()).ok_or(Notification::OPTIONAL_ATTRIBUTE_ERROR)?;
    Ok(Some((family, prefixes)))
}
