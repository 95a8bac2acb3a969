//! OPEN (RFC 4271 4.2).

use std::net::Ipv4Addr;

use super::reader::Reader;
use super::{Capability, Notification};
use crate::Family;

/// Stands for a four-octet AS number where there is room for two (RFC 6793).
pub const AS_TRANS: u16 = 23456;

const VERSION: u8 = 4;
/// Optional parameters: Capabilities (RFC 5492), and the mark of the extended format (RFC 9072).
const CAPABILITIES: u8 = 2;
const EXTENDED: u8 = 255;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Open {
    /// The two-octet field; the AS number is [`Open::asn`].
    pub my_as: u16,
    pub hold_time_secs: u16,
    pub router_id: Ipv4Addr,
    pub capabilities: Vec<Capability>,
}

impl Open {
    /// An OPEN with everything this speaker can do.
    pub fn new(asn: u32, hold_time_secs: u16, router_id: Ipv4Addr, families: &[Family]) -> Self {
        let mut capabilities: Vec<_> = families.iter().copied().map(Capability::Multiprotocol).collect();
        capabilities.extend([Capability::RouteRefresh, Capability::FourOctetAs(asn)]);
        Open { my_as: u16::try_from(asn).unwrap_or(AS_TRANS), hold_time_secs, router_id, capabilities }
    }

    /// The sender's AS number (RFC 6793 4.1).
    pub fn asn(&self) -> u32 {
        self.four_octet_as().unwrap_or(u32::from(self.my_as))
    }

    pub fn four_octet_as(&self) -> Option<u32> {
        self.capabilities.iter().find_map(|capability| match capability {
            Capability::FourOctetAs(asn) => Some(*asn),
            Capability::Multiprotocol(_) | Capability::RouteRefresh | Capability::Unknown { .. } => None,
        })
    }

    /// A sender without any multiprotocol capability speaks IPv4 unicast (RFC 4760 8).
    pub fn carries(&self, family: Family) -> bool {
        let multiprotocol = |capability: &Capability| match capability {
            Capability::Multiprotocol(_) => true,
            Capability::Unknown { code, .. } => *code == 1,
            Capability::RouteRefresh | Capability::FourOctetAs(_) => false,
        };
        match self.capabilities.iter().any(multiprotocol) {
            true => self.capabilities.contains(&Capability::Multiprotocol(family)),
            false => family == Family::Ipv4Unicast,
        }
    }

    pub fn route_refresh(&self) -> bool {
        self.capabilities.contains(&Capability::RouteRefresh)
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.push(VERSION);
        out.extend_from_slice(&self.my_as.to_be_bytes());
        out.extend_from_slice(&self.hold_time_secs.to_be_bytes());
        out.extend_from_slice(&self.router_id.octets());
        let capabilities = Capability::encode_all(&self.capabilities);
        match u8::try_from(capabilities.len() + 2) {
            _ if capabilities.is_empty() => out.push(0),
            Ok(EXTENDED) | Err(_) => encode_extended(&capabilities, out),
            Ok(length) => {
                out.extend_from_slice(&[length, CAPABILITIES, length - 2]);
                out.extend_from_slice(&capabilities);
            }
        }
    }

    pub(super) fn decode(body: &[u8]) -> Result<Open, Notification> {
        let mut reader = Reader::new(body);
        let version = reader.u8().ok_or(Notification::MALFORMED_OPEN)?;
        if version != VERSION {
            return Err(Notification::unsupported_version());
        }
        let fixed = (reader.u16(), reader.u16(), reader.array::<4>());
        let (Some(my_as), Some(hold_time_secs), Some(router_id)) = fixed else {
            return Err(Notification::MALFORMED_OPEN);
        };
        let capabilities = decode_parameters(reader)?;
        Ok(Open { my_as, hold_time_secs, router_id: router_id.into(), capabilities })
    }
}

fn encode_extended(capabilities: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&[EXTENDED, EXTENDED]);
    out.extend_from_slice(&(capabilities.len() as u16 + 3).to_be_bytes());
    out.push(CAPABILITIES);
    out.extend_from_slice(&(capabilities.len() as u16).to_be_bytes());
    out.extend_from_slice(capabilities);
}

fn decode_parameters(mut reader: Reader) -> Result<Vec<Capability>, Notification> {
    let length = reader.u8().ok_or(Notification::MALFORMED_OPEN)?;
    // RFC 9072 2: a first parameter of type 255 marks the extended format, whatever the one-octet length says.
    let extended = length != 0 && reader.rest().first() == Some(&EXTENDED);
    let length = match extended {
        false => Some(usize::from(length)),
        true => reader.take(1).and_then(|_mark| reader.u16()).map(usize::from),
    };
    // What stands after the parameters belongs to nothing.
    if length != Some(reader.rest().len()) {
        return Err(Notification::MALFORMED_OPEN);
    }
    let mut capabilities = Vec::new();
    while !reader.is_empty() {
        let (kind, value) = decode_parameter(&mut reader, extended).ok_or(Notification::MALFORMED_OPEN)?;
        if kind != CAPABILITIES {
            return Err(Notification::UNSUPPORTED_OPTIONAL_PARAMETER);
        }
        capabilities.extend(Capability::decode_all(value).ok_or(Notification::MALFORMED_OPEN)?);
    }
    Ok(capabilities)
}

fn decode_parameter<'a>(reader: &mut Reader<'a>, extended: bool) -> Option<(u8, &'a [u8])> {
    let kind = reader.u8()?;
    let length = match extended {
        true => usize::from(reader.u16()?),
        false => usize::from(reader.u8()?),
    };
    Some((kind, reader.take(length)?))
}
