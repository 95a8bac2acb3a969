//! Path attributes (RFC 4271 5), and what to do with malformed ones (RFC 7606).

use std::net::Ipv4Addr;

use super::reader::Reader;
use super::{AS_TRANS, Format};
use crate::Community;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Origin {
    Igp,
    Egp,
    Incomplete,
}

/// The attributes we send and understand; the next hop stands with the prefixes ([`super::Announcement`]).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PathAttributes {
    pub origin: Origin,
    /// The AS numbers of its sequences. Sets are obsolete (RFC 9774), confederations are not ours (B44).
    pub as_path: Vec<u32>,
    pub med: Option<u32>,
    pub local_pref: Option<u32>,
    /// Sorted, without duplicates.
    pub communities: Vec<Community>,
}

/// A received attribute that was not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttributeError {
    /// The attribute's type code.
    pub attribute: u8,
    pub disposition: Disposition,
    pub reason: &'static str,
}

/// RFC 7606 2; what would end the session is a [`super::Notification`] instead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    Discard,
    TreatAsWithdraw,
}

/// Attribute type codes.
pub(super) mod code {
    pub const ORIGIN: u8 = 1;
    pub const AS_PATH: u8 = 2;
    pub const NEXT_HOP: u8 = 3;
    pub const MULTI_EXIT_DISC: u8 = 4;
    pub const LOCAL_PREF: u8 = 5;
    pub const ATOMIC_AGGREGATE: u8 = 6;
    pub const AGGREGATOR: u8 = 7;
    pub const COMMUNITIES: u8 = 8;
    pub const ORIGINATOR_ID: u8 = 9;
    pub const CLUSTER_LIST: u8 = 10;
    pub const MP_REACH_NLRI: u8 = 14;
    pub const MP_UNREACH_NLRI: u8 = 15;
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    pub const AS4_PATH: u8 = 17;
    pub const AS4_AGGREGATOR: u8 = 18;
    pub const LARGE_COMMUNITIES: u8 = 32;
}

pub(super) const OPTIONAL: u8 = 0x80;
const TRANSITIVE: u8 = 0x40;
const EXTENDED_LENGTH: u8 = 0x10;

const AS_SEQUENCE: u8 = 2;
/// A segment counts its AS numbers in one octet.
const MAX_SEGMENT: usize = 255;

impl PathAttributes {
    /// In the order of their type codes. `next_hop` is for IPv4 prefixes outside MP_REACH_NLRI.
    pub(super) fn encode(&self, next_hop: Option<Ipv4Addr>, format: Format, out: &mut Vec<u8>) {
        encode_one(TRANSITIVE, code::ORIGIN, &[self.origin as u8], out);
        encode_one(TRANSITIVE, code::AS_PATH, &encode_as_path(&self.as_path, format.four_octet_as), out);
        if let Some(next_hop) = next_hop {
            encode_one(TRANSITIVE, code::NEXT_HOP, &next_hop.octets(), out);
        }
        if let Some(med) = self.med {
            encode_one(OPTIONAL, code::MULTI_EXIT_DISC, &med.to_be_bytes(), out);
        }
        if let Some(local_pref) = self.local_pref {
            encode_one(TRANSITIVE, code::LOCAL_PREF, &local_pref.to_be_bytes(), out);
        }
        let (mut standard, mut large) = (Vec::new(), Vec::new());
        for community in &self.communities {
            match *community {
                Community::Standard(value) => standard.extend(value.to_be_bytes()),
                Community::Large(a, b, c) => large.extend([a, b, c].into_iter().flat_map(u32::to_be_bytes)),
            }
        }
        if !standard.is_empty() {
            encode_one(OPTIONAL | TRANSITIVE, code::COMMUNITIES, &standard, out);
        }
        // RFC 6793 4.2.2: only where AS_PATH could not hold them.
        if !format.four_octet_as && self.as_path.iter().any(|asn| *asn > u32::from(u16::MAX)) {
            encode_one(OPTIONAL | TRANSITIVE, code::AS4_PATH, &encode_as_path(&self.as_path, true), out);
        }
        if !large.is_empty() {
            encode_one(OPTIONAL | TRANSITIVE, code::LARGE_COMMUNITIES, &large, out);
        }
    }
}

pub(super) fn encode_one(flags: u8, code: u8, value: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[flags, code, length]),
        Err(_) => {
            out.extend_from_slice(&[flags | EXTENDED_LENGTH, code]);
            out.extend_from_slice(&(value.len() as u16).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

fn encode_as_path(path: &[u32], four_octet_as: bool) -> Vec<u8> {
    let mut value = Vec::new();
    for segment in path.chunks(MAX_SEGMENT) {
        value.extend_from_slice(&[AS_SEQUENCE, segment.len() as u8]);
        for asn in segment {
            match four_octet_as {
                true => value.extend(asn.to_be_bytes()),
                false => value.extend(u16::try_from(*asn).unwrap_or(AS_TRANS).to_be_bytes()),
            }
        }
    }
    value
}

/// An attribute as it came.
pub(super) struct Raw<'a> {
    flags: u8,
    pub(super) code: u8,
    pub(super) value: &'a [u8],
}

/// Cuts the attributes apart. Where one runs off the end, the ones before it stand (RFC 7606 4).
pub(super) fn split(bytes: &[u8]) -> (Vec<Raw<'_>>, Option<AttributeError>) {
    let mut reader = Reader::new(bytes);
    let mut raw = Vec::new();
    while !reader.is_empty() {
        let code = reader.rest().get(1).copied().unwrap_or(0);
        match split_one(&mut reader) {
            Some(attribute) => raw.push(attribute),
            None => return (raw, Some(withdraw(code, "runs past the attributes' end"))),
        }
    }
    (raw, None)
}

fn split_one<'a>(reader: &mut Reader<'a>) -> Option<Raw<'a>> {
    let (flags, code) = (reader.u8()?, reader.u8()?);
    let length = match flags & EXTENDED_LENGTH {
        0 => usize::from(reader.u8()?),
        _ => usize::from(reader.u16()?),
    };
    Some(Raw { flags, code, value: reader.take(length)? })
}

pub(super) struct Decoded {
    pub(super) attributes: PathAttributes,
    pub(super) next_hop: Option<Ipv4Addr>,
    pub(super) errors: Vec<AttributeError>,
}

/// Judges the attributes of an UPDATE that announces something; `classic` when some of that is in the NLRI field.
pub(super) fn decode(raw: &[Raw], format: Format, classic: bool) -> Decoded {
    let mut found = Found::default();
    let mut errors = Vec::new();
    let mut seen = [false; 256];
    for attribute in raw {
        // RFC 7606 3 g: the first of each counts.
        if std::mem::replace(&mut seen[usize::from(attribute.code)], true) {
            errors.push(discard(attribute.code, "appears twice"));
        } else if let Err(error) = found.take(attribute, format) {
            errors.push(error);
        }
    }
    // RFC 7606 3 d.
    let mut mandatory = vec![code::ORIGIN, code::AS_PATH];
    mandatory.extend(classic.then_some(code::NEXT_HOP));
    mandatory.extend(format.internal.then_some(code::LOCAL_PREF));
    let missing = mandatory.into_iter().filter(|code| !seen[usize::from(*code)]);
    errors.extend(missing.map(|code| withdraw(code, "is missing")));
    found.finish(errors)
}

#[derive(Default)]
struct Found {
    origin: Option<Origin>,
    as_path: Vec<u32>,
    as4_path: Vec<u32>,
    next_hop: Option<Ipv4Addr>,
    med: Option<u32>,
    local_pref: Option<u32>,
    communities: Vec<Community>,
}

impl Found {
    /// RFC 7606 7, attribute by attribute.
    fn take(&mut self, raw: &Raw, format: Format) -> Result<(), AttributeError> {
        check_flags(raw)?;
        let malformed = |reason| move || withdraw(raw.code, reason);
        let length = malformed("has a wrong length");
        match raw.code {
            code::ORIGIN => {
                self.origin = Some(decode_origin(raw.value).ok_or_else(malformed("is no origin"))?)
            }
            code::AS_PATH => {
                let path = decode_as_path(raw.value, format.four_octet_as);
                self.as_path = path.map_err(|reason| withdraw(raw.code, reason))?;
            }
            code::NEXT_HOP => {
                let octets: [u8; 4] = raw.value.try_into().map_err(|_| length())?;
                self.next_hop = Some(octets.into());
            }
            code::MULTI_EXIT_DISC => self.med = Some(decode_u32(raw.value).ok_or_else(length)?),
            // RFC 7606 7.5, 7.9, 7.10: from an external peer these mean nothing, well formed or not.
            code::LOCAL_PREF | code::ORIGINATOR_ID | code::CLUSTER_LIST if !format.internal => {
                return Err(discard(raw.code, "comes from an external peer"));
            }
            code::LOCAL_PREF => self.local_pref = Some(decode_u32(raw.value).ok_or_else(length)?),
            code::ORIGINATOR_ID => check_length(raw, raw.value.len() == 4)?,
            code::CLUSTER_LIST => check_multiple(raw, 4)?,
            code::COMMUNITIES => {
                check_multiple(raw, 4)?;
                let (values, _) = raw.value.as_chunks::<4>();
                self.communities.extend(values.iter().map(|v| Community::Standard(u32::from_be_bytes(*v))));
            }
            code::EXTENDED_COMMUNITIES => check_multiple(raw, 8)?,
            code::LARGE_COMMUNITIES => {
                check_multiple(raw, 12)?;
                let (values, _) = raw.value.as_chunks::<4>();
                let values: Vec<_> = values.iter().map(|v| u32::from_be_bytes(*v)).collect();
                self.communities.extend(values.chunks_exact(3).map(|v| Community::Large(v[0], v[1], v[2])));
            }
            // RFC 6793 6: between speakers of four-octet numbers these two mean nothing.
            code::AS4_PATH | code::AS4_AGGREGATOR if format.four_octet_as => {
                return Err(discard(raw.code, "comes from a four-octet AS speaker"));
            }
            code::AS4_PATH => {
                let path = decode_as_path(raw.value, true);
                self.as4_path = path.map_err(|reason| discard(raw.code, reason))?;
            }
            code::AS4_AGGREGATOR if raw.value.len() != 8 => {
                return Err(discard(raw.code, "has a wrong length"));
            }
            // RFC 7606 7.6, 7.7.
            code::ATOMIC_AGGREGATE if !raw.value.is_empty() => {
                return Err(discard(raw.code, "has a wrong length"));
            }
            code::AGGREGATOR if raw.value.len() != if format.four_octet_as { 8 } else { 6 } => {
                return Err(discard(raw.code, "has a wrong length"));
            }
            // Read before all others; and what we do not know changes nothing for a speaker that imports nothing.
            _ => {}
        }
        Ok(())
    }

    fn finish(self, errors: Vec<AttributeError>) -> Decoded {
        let mut communities = self.communities;
        communities.sort_unstable();
        communities.dedup();
        let attributes = PathAttributes {
            origin: self.origin.unwrap_or(Origin::Incomplete),
            as_path: merge_as4(self.as_path, &self.as4_path),
            med: self.med,
            local_pref: self.local_pref,
            communities,
        };
        Decoded { attributes, next_hop: self.next_hop, errors }
    }
}

const fn withdraw(attribute: u8, reason: &'static str) -> AttributeError {
    AttributeError { attribute, disposition: Disposition::TreatAsWithdraw, reason }
}

const fn discard(attribute: u8, reason: &'static str) -> AttributeError {
    AttributeError { attribute, disposition: Disposition::Discard, reason }
}

/// RFC 7606 3 c. An attribute nobody knows may set any flag but "well-known".
fn check_flags(raw: &Raw) -> Result<(), AttributeError> {
    let expected = match raw.code {
        code::ORIGIN | code::AS_PATH | code::NEXT_HOP | code::LOCAL_PREF | code::ATOMIC_AGGREGATE => {
            TRANSITIVE
        }
        code::MULTI_EXIT_DISC | code::ORIGINATOR_ID | code::CLUSTER_LIST => OPTIONAL,
        code::MP_REACH_NLRI | code::MP_UNREACH_NLRI => OPTIONAL,
        code::AGGREGATOR | code::COMMUNITIES | code::EXTENDED_COMMUNITIES => OPTIONAL | TRANSITIVE,
        code::AS4_PATH | code::AS4_AGGREGATOR | code::LARGE_COMMUNITIES => OPTIONAL | TRANSITIVE,
        _ if raw.flags & OPTIONAL == 0 => return Err(withdraw(raw.code, "is well-known, but not known")),
        _ => return Ok(()),
    };
    match raw.flags & (OPTIONAL | TRANSITIVE) == expected {
        true => Ok(()),
        false => Err(withdraw(raw.code, "has wrong flags")),
    }
}

fn check_length(raw: &Raw, right: bool) -> Result<(), AttributeError> {
    right.then_some(()).ok_or(withdraw(raw.code, "has a wrong length"))
}

/// RFC 7606 7.8, 7.10, 7.14 and RFC 8092 5: one or more values of this many octets.
fn check_multiple(raw: &Raw, octets: usize) -> Result<(), AttributeError> {
    check_length(raw, !raw.value.is_empty() && raw.value.len().is_multiple_of(octets))
}

fn decode_origin(value: &[u8]) -> Option<Origin> {
    match value {
        [0] => Some(Origin::Igp),
        [1] => Some(Origin::Egp),
        [2] => Some(Origin::Incomplete),
        _ => None,
    }
}

fn decode_u32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// RFC 7606 7.2; AS 0 by RFC 7607, sets by RFC 9774, confederation segments by RFC 5065 5.3.
fn decode_as_path(value: &[u8], four_octet_as: bool) -> Result<Vec<u32>, &'static str> {
    let mut reader = Reader::new(value);
    let mut path = Vec::new();
    while !reader.is_empty() {
        let (Some(kind), Some(count)) = (reader.u8(), reader.u8()) else {
            return Err("ends within a segment");
        };
        if kind != AS_SEQUENCE {
            return Err("has a segment that is no sequence");
        }
        if count == 0 {
            return Err("has an empty segment");
        }
        for _ in 0..count {
            let asn = if four_octet_as { reader.u32() } else { reader.u16().map(u32::from) };
            match asn {
                None => return Err("ends within a segment"),
                Some(0) => return Err("contains AS 0"),
                Some(asn) => path.push(asn),
            }
        }
    }
    Ok(path)
}

/// RFC 6793 4.2.3: the old speakers' numbers in front, then what the first new one wrote down in full.
fn merge_as4(as_path: Vec<u32>, as4_path: &[u32]) -> Vec<u32> {
    match as_path.len().checked_sub(as4_path.len()) {
        Some(old) => as_path[..old].iter().chain(as4_path).copied().collect(),
        None => as_path,
    }
}
