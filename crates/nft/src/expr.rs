//! The kernel's register machine: what rules are made of in messages and dumps.

use std::time::Duration;

use crate::{Bytes, Name, TableFamily, Verdict};

/// One of the sixteen 4-byte registers (NFT_REG32_00 is 0). Longer things take several in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reg(pub u8);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PayloadBase {
    Network,
    Transport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// Four bytes in host order, which nft shows as `<major>:<minor>`, of 16 bits each, in hexadecimal.
    Priority,
    Mark,
    /// `iifname`: sixteen bytes.
    IifName,
    OifName,
    L4Proto,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CtKey {
    Status,
    OriginalSaddr,
    OriginalDaddr,
    OriginalDport,
    ReplySport,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    Eq,
    Neq,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    Payload {
        dreg: Reg,
        base: PayloadBase,
        offset: u32,
        len: u32,
    },
    Meta {
        dreg: Reg,
        key: MetaKey,
    },
    MetaSet {
        sreg: Reg,
        key: MetaKey,
    },
    Ct {
        dreg: Reg,
        key: CtKey,
    },
    Cmp {
        sreg: Reg,
        op: CmpOp,
        value: Bytes,
    },
    /// dreg = (sreg & mask) ^ xor.
    Bitwise {
        sreg: Reg,
        dreg: Reg,
        mask: Bytes,
        xor: Bytes,
    },
    Immediate {
        dreg: Reg,
        value: Bytes,
    },
    Verdict(Verdict),
    /// A set without `dreg`, a data map with it.
    Lookup {
        set: Name,
        sreg: Reg,
        dreg: Option<Reg>,
        negate: bool,
    },
    Vmap {
        set: Name,
        sreg: Reg,
    },
    Numgen {
        dreg: Reg,
        modulus: u32,
        offset: u32,
    },
    Update {
        set: Name,
        key: Reg,
        value: Option<Reg>,
        timeout: Option<Duration>,
    },
    Dnat {
        family: TableFamily,
        address: Reg,
        port: Option<Reg>,
    },
    Masquerade {
        fully_random: bool,
    },
    /// What it has counted is [`DumpedRule::packets`](crate::DumpedRule::packets): a rule is the same whatever that is.
    Counter,
    RejectPortUnreachable,
    RejectTcpReset,
    /// The type of the destination address (RTN_*).
    FibDaddrType {
        dreg: Reg,
    },
    /// Read from a dump, never written: an expression, or a form of one, that we do not write.
    Unknown(Name),
}
