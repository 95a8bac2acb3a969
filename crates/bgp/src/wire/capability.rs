//! Capabilities (RFC 5492): what an end can do, said in its OPEN.

use super::reader::Reader;
use crate::Family;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Capability {
    /// RFC 4760.
    Multiprotocol(Family),
    /// RFC 2918.
    RouteRefresh,
    /// RFC 6793.
    FourOctetAs(u32),
    /// Anything else, families we do not carry included (B44): skipped, but kept to be shown.
    Unknown { code: u8, value: Vec<u8> },
}

const MULTIPROTOCOL: u8 = 1;
const ROUTE_REFRESH: u8 = 2;
const FOUR_OCTET_AS: u8 = 65;

impl Capability {
    pub(crate) fn encode_all(capabilities: &[Capability]) -> Vec<u8> {
        let mut out = Vec::new();
        capabilities.iter().for_each(|capability| capability.encode(&mut out));
        out
    }

    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Capability::Multiprotocol(family) => {
                let (afi, safi) = family.code();
                out.extend_from_slice(&[MULTIPROTOCOL, 4]);
                out.extend_from_slice(&afi.to_be_bytes());
                out.extend_from_slice(&[0, safi]);
            }
            Capability::RouteRefresh => out.extend_from_slice(&[ROUTE_REFRESH, 0]),
            Capability::FourOctetAs(asn) => {
                out.extend_from_slice(&[FOUR_OCTET_AS, 4]);
                out.extend_from_slice(&asn.to_be_bytes());
            }
            Capability::Unknown { code, value } => {
                out.extend_from_slice(&[*code, value.len() as u8]);
                out.extend_from_slice(value);
            }
        }
    }

    /// The value of one Capabilities parameter. A known code with a value of another shape is an unknown one.
    pub(super) fn decode_all(bytes: &[u8]) -> Option<Vec<Capability>> {
        let mut reader = Reader::new(bytes);
        let mut capabilities = Vec::new();
        while !reader.is_empty() {
            let code = reader.u8()?;
            let length = reader.u8()?;
            capabilities.push(Capability::decode(code, reader.take(usize::from(length))?));
        }
        Some(capabilities)
    }

    fn decode(code: u8, value: &[u8]) -> Capability {
        let unknown = || Capability::Unknown { code, value: value.to_vec() };
        match (code, value) {
            (MULTIPROTOCOL, &[a, b, _reserved, safi]) => Family::from_code(u16::from_be_bytes([a, b]), safi)
                .map_or_else(unknown, Capability::Multiprotocol),
            (ROUTE_REFRESH, []) => Capability::RouteRefresh,
            (FOUR_OCTET_AS, &[a, b, c, d]) => Capability::FourOctetAs(u32::from_be_bytes([a, b, c, d])),
            _ => unknown(),
        }
    }
}
