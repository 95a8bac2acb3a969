//! Many prefixes in as few UPDATEs as they fit in (B41).

use std::net::IpAddr;

use super::{Announcement, Format, MAX_LEN, Message, PathAttributes, Update, nlri};
use crate::{Family, Prefix};

/// An MP attribute that outgrows 255 octets has a length one octet longer.
const EXTENDED_LENGTH: usize = 1;

/// The largest prefix, ::/128, on the wire.
const LONGEST_PREFIX: usize = 17;

/// Whether an UPDATE with these attributes has room for any one prefix.
pub fn fits(attributes: &PathAttributes, next_hop: IpAddr, format: Format) -> bool {
    announcement_overhead(attributes, next_hop, format) + LONGEST_PREFIX <= MAX_LEN
}

/// Whole UPDATEs that announce `prefixes`, all of the next hop's family; the attributes must [fit](fits).
pub fn announce(
    prefixes: &[Prefix],
    attributes: &PathAttributes,
    next_hop: IpAddr,
    format: Format,
    out: &mut Vec<u8>,
) {
    let room = MAX_LEN.saturating_sub(announcement_overhead(attributes, next_hop, format));
    for prefixes in chunks(prefixes, room) {
        out.extend(announcement(prefixes, attributes, next_hop).encode(format));
    }
}

/// Whole UPDATEs that withdraw `prefixes`, all of one family.
pub fn withdraw(prefixes: &[Prefix], out: &mut Vec<u8>) {
    // Header, two lengths, and for IPv6 the MP_UNREACH_NLRI header: nothing in them depends on the peer.
    const OVERHEAD: usize = 19 + 4 + 4 + 3;
    let format = Format { four_octet_as: true, internal: false };
    for prefixes in chunks(prefixes, MAX_LEN - OVERHEAD) {
        let update = Update { withdrawn: prefixes.to_vec(), ..Update::default() };
        out.extend(Message::Update(update).encode(format));
    }
}

fn announcement_overhead(attributes: &PathAttributes, next_hop: IpAddr, format: Format) -> usize {
    let length = announcement(&[], attributes, next_hop).encode(format).len();
    length + if Family::of_address(&next_hop) == Family::Ipv6Unicast { EXTENDED_LENGTH } else { 0 }
}

fn announcement(prefixes: &[Prefix], attributes: &PathAttributes, next_hop: IpAddr) -> Message {
    Message::Update(Update {
        announced: vec![Announcement { next_hop, prefixes: prefixes.to_vec() }],
        attributes: Some(attributes.clone()),
        ..Update::default()
    })
}

/// The longest runs that take at most `room` octets each.
fn chunks(mut prefixes: &[Prefix], room: usize) -> impl Iterator<Item = &[Prefix]> {
    std::iter::from_fn(move || {
        let mut used = 0;
        let fitting = prefixes.iter().take_while(|prefix| {
            used += nlri::encoded_len(prefix);
            used <= room
        });
        let (head, tail) = prefixes.split_at(fitting.count());
        prefixes = tail;
        (!head.is_empty()).then_some(head)
    })
}
