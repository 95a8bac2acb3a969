//! What nft(8) keeps beside sets and rules for its own listing: comments, byte orders, and the expressions of `typeof`.
//!
//! Written in the bytes of nft 1.0.6, which every later version reads: a `typeof` map in the bytes of 1.1 crashes 1.0.6.
//! Items are (type: u8, length: u8, value); numbers are 32 bits in host order.

use crate::{KeyType, Name, Set, TableFamily, ValueType};

/// NFTNL_UDATA_RULE_COMMENT.
pub(crate) const RULE_COMMENT: u8 = 0;
/// NFTNL_UDATA_SET_COMMENT.
pub(crate) const SET_COMMENT: u8 = 7;
/// nft refuses longer ones.
const LONGEST_COMMENT: usize = 128;

pub(crate) fn of_rule(comment: &str) -> Vec<u8> {
    let mut items = Items::default();
    items.comment(RULE_COMMENT, comment);
    items.0
}

pub(crate) fn of_set(set: &Set, family: TableFamily) -> Vec<u8> {
    let mut items = Items::default();
    items.number(0, byte_order(&set.key));
    if let Some(value) = &set.value {
        items.number(1, value_byte_order(value));
    }
    if is_typeof(&set.key) {
        items.nest(3, |items| items.typeof_key(&set.key, family));
        if let Some(ValueType::Concat(types)) = &set.value {
            items.nest(4, |items| items.typeof_key(types, family));
        }
    }
    if set.value.is_some() {
        items.number(6, 0); // values are not ranges
    }
    if let Some(comment) = &set.comment {
        items.comment(SET_COMMENT, comment);
    }
    items.0
}

/// The comment among the items, if any. Ends at the first byte that makes no sense.
pub(crate) fn comment(mut bytes: &[u8], kind: u8) -> Option<Name> {
    while let [this, len, rest @ ..] = bytes {
        let (value, tail) = rest.split_at_checked(*len as usize)?;
        if *this == kind {
            let text = value.strip_suffix(&[0]).unwrap_or(value);
            return Some(std::str::from_utf8(text).ok()?.into());
        }
        bytes = tail;
    }
    None
}

/// A number generator in a key has no type name: nft can print such a map only with `typeof`.
pub(crate) fn is_typeof(key: &[KeyType]) -> bool {
    key.contains(&KeyType::Index)
}

/// nft's `enum byteorder`: 0 for a concatenation, 1 for host order, 2 for network order.
fn byte_order(types: &[KeyType]) -> u32 {
    match types {
        [KeyType::Address | KeyType::Protocol | KeyType::Port] => 2,
        [KeyType::Index | KeyType::Mark | KeyType::Priority | KeyType::Interface] => 1,
        _ => 0,
    }
}

fn value_byte_order(value: &ValueType) -> u32 {
    match value {
        ValueType::Verdict => 0,
        ValueType::Concat(types) => byte_order(types),
    }
}

#[derive(Default)]
struct Items(Vec<u8>);

/// nft's `enum expr_types`.
mod expr {
    pub const PAYLOAD: u32 = 7;
    pub const META: u32 = 9;
    pub const CONCAT: u32 = 13;
    pub const NUMGEN: u32 = 23;
}

impl Items {
    fn number(&mut self, kind: u8, value: u32) {
        self.0.extend_from_slice(&[kind, 4]);
        self.0.extend_from_slice(&value.to_ne_bytes());
    }

    fn nest(&mut self, kind: u8, f: impl FnOnce(&mut Items)) {
        let at = self.0.len();
        self.0.extend_from_slice(&[kind, 0]);
        f(self);
        // the longest, a key of five fields, has 120 bytes
        self.0[at + 1] = (self.0.len() - at - 2) as u8;
    }

    fn comment(&mut self, kind: u8, comment: &str) {
        let comment = cut(comment);
        self.nest(kind, |items| {
            items.0.extend_from_slice(comment.as_bytes());
            items.0.push(0);
        });
    }

    fn typeof_key(&mut self, types: &[KeyType], family: TableFamily) {
        if let [kind] = types {
            return self.typeof_field(*kind, family);
        }
        self.number(0, expr::CONCAT);
        self.nest(1, |items| {
            for (i, kind) in types.iter().enumerate() {
                items.nest(i as u8, |items| items.typeof_field(*kind, family));
            }
        });
    }

    /// Any expression of the type will do; these are the ones of the text that we render.
    fn typeof_field(&mut self, kind: KeyType, family: TableFamily) {
        match (kind, family) {
            (KeyType::Address, TableFamily::Ip) => self.expr(expr::PAYLOAD, &[12, 12]), // ip daddr
            (KeyType::Address, TableFamily::Ip6) => self.expr(expr::PAYLOAD, &[13, 9]), // ip6 daddr
            (KeyType::Port, _) => self.expr(expr::PAYLOAD, &[11, 2]),                   // th dport
            (KeyType::Protocol, _) => self.expr(expr::META, &[16]),
            (KeyType::Mark, _) => self.expr(expr::META, &[3]),
            (KeyType::Priority, _) => self.expr(expr::META, &[2]),
            (KeyType::Interface, _) => self.expr(expr::META, &[6]),
            (KeyType::Index | KeyType::Other(_), _) => self.expr(expr::NUMGEN, &[1, 2, 0]), // random mod 2
        }
    }

    fn expr(&mut self, kind: u32, numbers: &[u32]) {
        self.number(0, kind);
        self.nest(1, |items| {
            for (i, number) in numbers.iter().enumerate() {
                items.number(i as u8, *number);
            }
        });
    }
}

/// A comment as nft can take it in: short, and without the quote that would end it.
pub(crate) fn cut(comment: &str) -> String {
    let mut end = comment.len().min(LONGEST_COMMENT);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    comment[..end].replace(|c: char| c == '"' || c.is_control(), "'")
}
