//! Declarations of sets as attributes, both ways.

use std::time::Duration;

use crate::wire::millis;
use crate::{KeyType, Set, TableFamily, ValueType, userdata};
use portolan_netlink::{Attributes, Writer};

/// `enum nft_set_flags`.
mod flag {
    pub const INTERVAL: u32 = 0x4;
    pub const MAP: u32 = 0x8;
    pub const TIMEOUT: u32 = 0x10;
    pub const EVAL: u32 = 0x20;
    pub const CONCAT: u32 = 0x80;
    pub const OURS: u32 = INTERVAL | MAP | TIMEOUT | EVAL | CONCAT;
}

/// NFT_DATA_VERDICT.
const VERDICT: u32 = 0xffff_ff00;
/// nft packs the types of a concatenation, six bits each.
const TYPE_BITS: u32 = 6;

impl KeyType {
    /// nft's `enum datatypes`.
    fn number(self, family: TableFamily) -> u8 {
        match (self, family) {
            (KeyType::Index, _) => 4,
            (KeyType::Address, TableFamily::Ip) => 7,
            (KeyType::Address, TableFamily::Ip6) => 8,
            (KeyType::Protocol, _) => 12,
            (KeyType::Port, _) => 13,
            (KeyType::Mark, _) => 19,
            (KeyType::Priority, _) => 23,
            (KeyType::Interface, _) => 41,
            (KeyType::Other(number), _) => number,
        }
    }

    fn from_number(number: u8, family: TableFamily) -> KeyType {
        [
            KeyType::Address,
            KeyType::Protocol,
            KeyType::Port,
            KeyType::Index,
            KeyType::Mark,
            KeyType::Priority,
            KeyType::Interface,
        ]
        .into_iter()
        .find(|kind| kind.number(family) == number)
        .unwrap_or(KeyType::Other(number))
    }
}

fn pack(types: &[KeyType], family: TableFamily) -> u32 {
    types.iter().fold(0, |packed, kind| packed << TYPE_BITS | kind.number(family) as u32)
}

fn unpack(packed: u32, family: TableFamily) -> Vec<KeyType> {
    let mut types: Vec<_> = (0..5)
        .map(|i| (packed >> (i * TYPE_BITS)) as u8 & 0x3f)
        .take_while(|number| *number != 0)
        .map(|number| KeyType::from_number(number, family))
        .collect();
    types.reverse();
    types
}

/// Length in bytes of a key or value with these fields.
fn packed_len(types: &[KeyType], family: TableFamily) -> u32 {
    let len = |kind: &KeyType| kind.len(family);
    (match types {
        [kind] => len(kind),
        _ => types.iter().map(|kind| len(kind).next_multiple_of(4)).sum(),
    }) as u32
}

impl Set {
    fn is_ranges_of_several_fields(&self) -> bool {
        self.interval && self.key.len() > 1
    }

    fn flags(&self) -> u32 {
        let when = |on, bits| if on { bits } else { 0 };
        when(self.interval, flag::INTERVAL)
            | when(self.value.is_some(), flag::MAP)
            | when(self.timeouts || self.timeout.is_some(), flag::TIMEOUT)
            | when(self.dynamic, flag::EVAL)
            | when(self.is_ranges_of_several_fields(), flag::CONCAT)
    }

    /// Everything but the names of table and set. `id` is any number that no other set of the transaction has.
    pub(crate) fn encode(&self, w: &mut Writer, family: TableFamily, id: u32) {
        w.u32(3, self.flags());
        w.u32(4, pack(&self.key, family));
        w.u32(5, packed_len(&self.key, family));
        match &self.value {
            None => {}
            Some(ValueType::Verdict) => w.u32(6, VERDICT),
            Some(ValueType::Concat(types)) => {
                w.u32(6, pack(types, family));
                w.u32(7, packed_len(types, family));
            }
        }
        w.u32(10, id);
        if self.size.is_some() || self.is_ranges_of_several_fields() {
            w.nest(9, |w| self.encode_description(w, family));
        }
        if let Some(timeout) = &self.timeout {
            w.u64(11, millis(timeout));
        }
        w.bytes(13, &userdata::of_set(self, family));
    }

    fn encode_description(&self, w: &mut Writer, family: TableFamily) {
        if let Some(size) = self.size {
            w.u32(1, size);
        }
        if self.is_ranges_of_several_fields() {
            w.nest(2, |w| {
                for kind in &self.key {
                    w.nest(1, |w| w.u32(1, kind.len(family) as u32));
                }
            });
        }
    }

    /// What is not of our making gets a key of an unknown type.
    pub(crate) fn decode(a: Attributes, family: TableFamily) -> Set {
        let flags = a.u32(3).unwrap_or(0);
        let timeout = a.u64(11).filter(|ms| *ms != 0).map(Duration::from_millis);
        let value = (flags & flag::MAP != 0).then(|| match a.u32(6).unwrap_or(0) {
            VERDICT => ValueType::Verdict,
            packed => ValueType::Concat(unpack(packed, family)),
        });
        let mut set = Set {
            key: unpack(a.u32(4).unwrap_or(0), family),
            value,
            interval: flags & flag::INTERVAL != 0,
            dynamic: flags & flag::EVAL != 0,
            timeouts: flags & flag::TIMEOUT != 0 && timeout.is_none(),
            timeout,
            size: a.nest(9).and_then(|description| description.u32(1)),
            comment: a.get(13).and_then(|bytes| userdata::comment(bytes, userdata::SET_COMMENT)),
        };
        let readable = flags & !flag::OURS == 0
            && flags == set.flags()
            && a.u32(5) == Some(packed_len(&set.key, family))
            && match &set.value {
                Some(ValueType::Concat(types)) => a.u32(7) == Some(packed_len(types, family)),
                _ => true,
            };
        if !readable {
            set.key = vec![KeyType::Other(0)];
        }
        set
    }
}
