//! Prefixes on the wire: a length in bits, and as many octets as it takes (RFC 4271 4.3).

use std::net::IpAddr;

use ipnet::IpNet;

use super::reader::Reader;
use crate::{Family, Prefix};

pub(super) fn encoded_len(prefix: &Prefix) -> usize {
    1 + usize::from(prefix.prefix_len()).div_ceil(8)
}

pub(super) fn encode(prefix: &Prefix, out: &mut Vec<u8>) {
    out.push(prefix.prefix_len());
    let octets = encoded_len(prefix) - 1;
    match prefix.network() {
        IpAddr::V4(ip) => out.extend_from_slice(&ip.octets()[..octets]),
        IpAddr::V6(ip) => out.extend_from_slice(&ip.octets()[..octets]),
    }
}

/// All of `bytes`, or None where a length is too long for the family or runs off the end.
pub(super) fn decode_all(family: Family, bytes: &[u8]) -> Option<Vec<Prefix>> {
    let mut reader = Reader::new(bytes);
    let mut prefixes = Vec::new();
    while !reader.is_empty() {
        prefixes.push(decode(family, &mut reader)?);
    }
    Some(prefixes)
}

/// Bits after the prefix's length are irrelevant (RFC 4271 4.3) and dropped.
fn decode(family: Family, reader: &mut Reader) -> Option<Prefix> {
    let length = reader.u8()?;
    let octets = reader.take(usize::from(length).div_ceil(8))?;
    let address = match family {
        Family::Ipv4Unicast => IpAddr::from(padded::<4>(octets)?),
        Family::Ipv6Unicast => IpAddr::from(padded::<16>(octets)?),
    };
    IpNet::new(address, length).ok().map(|prefix| prefix.trunc())
}

fn padded<const N: usize>(octets: &[u8]) -> Option<[u8; N]> {
    let mut address = [0; N];
    address.get_mut(..octets.len())?.copy_from_slice(octets);
    Some(address)
}
