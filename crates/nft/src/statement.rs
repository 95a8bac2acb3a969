use std::net::IpAddr;
use std::time::Duration;

use crate::{Atom, Name, Verdict};

/// Where one field of a key comes from.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Field {
    /// `ip saddr` or `ip6 saddr`, by the table's family.
    Saddr,
    Daddr,
    /// `meta l4proto`.
    L4Proto,
    /// `th sport`.
    Sport,
    Dport,
    /// `numgen random mod <modulus> offset <offset>`: only as the last field of a key, because nothing that follows
    /// a nested number generator can be said in nft's language.
    Numgen {
        modulus: u32,
        offset: u32,
    },
    /// `ct original ip saddr`.
    CtOriginalSaddr,
    CtOriginalDaddr,
    /// `ct original proto-dst`: the port that the client asked for.
    CtOriginalDport,
    /// `ct reply proto-src`: the port that the client gets its answers from, before they are translated back.
    CtReplySport,
    /// `meta mark`.
    Mark,
    /// `meta priority`.
    Priority,
    /// `meta iifname`.
    Iif,
    Oif,
}

/// One part of a rule; the parts are tried in order, and the first match that fails ends the rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statement {
    /// `<field> <value>`, or `!=` when negated.
    Compare {
        field: Field,
        value: Atom,
        negate: bool,
    },
    /// `meta iifname "<prefix>*"`: at most 14 bytes (nft reads no more), without an asterisk or a double quote.
    IifPrefix(Name),
    /// `<field> <address>/<length>`; `field` is an address of the prefix's family.
    InPrefix {
        field: Field,
        address: IpAddr,
        length: u8,
        negate: bool,
    },
    /// `<field> & ::<mask> == ::<value>`, or the like in IPv4: bits of an address's last byte.
    LastByte {
        field: Field,
        mask: u8,
        value: u8,
    },
    /// `<key> @<set>`.
    InSet {
        key: Vec<Field>,
        set: Name,
        negate: bool,
    },
    /// `meta mark & <mask> == <value>`.
    MarkTest {
        mask: u32,
        value: u32,
    },
    /// `meta mark set meta mark or <bits>`.
    MarkOr(u32),
    /// `meta mark set meta mark xor <bits>`.
    MarkXor(u32),
    /// `meta priority set <number>`.
    SetPriority(u32),
    /// `meta priority set numgen random mod <modulus> offset <offset>`.
    SetPriorityRandom {
        modulus: u32,
        offset: u32,
    },
    /// `meta priority set <key> map @<map>`.
    SetPriorityFrom {
        key: Vec<Field>,
        map: Name,
    },
    /// `ct status dnat`.
    CtStatusDnat,
    /// `fib daddr type local`: the destination is an address of this node.
    DaddrIsLocal,
    /// `<key> vmap @<map>`.
    Vmap {
        key: Vec<Field>,
        map: Name,
    },
    /// `dnat ip to <key> map @<map>`: the map gives address . port. With `port`, `map @<map>:<port>`: the map gives the
    /// address, and the rule must have matched the protocol (nft reads it as text only then).
    Dnat {
        key: Vec<Field>,
        map: Name,
        port: Option<u16>,
    },
    Masquerade {
        fully_random: bool,
    },
    /// Counts the packets that come as far as this: [`DumpedRule::packets`](crate::DumpedRule::packets).
    Counter,
    /// ICMP port unreachable.
    Reject,
    /// TCP reset; the rule must have matched TCP.
    RejectTcpReset,
    Verdict(Verdict),
    /// `update @<set> { <key> timeout <timeout> : <value> }`; `value` is empty for a plain set.
    Update {
        set: Name,
        key: Vec<Field>,
        value: Vec<Field>,
        timeout: Option<Duration>,
    },
}
