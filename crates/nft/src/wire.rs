//! Expressions and verdicts as nested attributes, both ways. Numbers in calls are attribute types of linux/netfilter/nf_tables.h.

use std::time::Duration;

use crate::{Bytes, CmpOp, CtKey, Expr, MetaKey, Name, PayloadBase, Reg, TableFamily, Verdict};
use portolan_netlink::{Attributes, Writer};

/// NF_NAT_RANGE_PROTO_RANDOM_FULLY.
const FULLY_RANDOM: u32 = 1 << 4;
/// NF_NAT_RANGE_MAP_IPS and _PROTO_SPECIFIED: the kernel adds them to every nat expression with an address or a port.
const RANGE_GIVEN: u32 = 3;

impl TableFamily {
    /// NFPROTO_*.
    pub(crate) fn number(self) -> u8 {
        match self {
            TableFamily::Ip => 2,
            TableFamily::Ip6 => 10,
        }
    }
}

impl Reg {
    /// Registers are written as 4-byte ones (NFT_REG32_00 = 8), and dumped as 16-byte ones (NFT_REG_1 = 1) where one starts.
    fn encode(self) -> u32 {
        8 + self.0 as u32
    }

    fn decode(number: u32) -> Option<Reg> {
        match number {
            1..=4 => Some(Reg((number as u8 - 1) * 4)),
            8..=23 => Some(Reg(number as u8 - 8)),
            _ => None,
        }
    }
}

impl Verdict {
    /// The body of a verdict attribute.
    pub(crate) fn encode(&self, w: &mut Writer) {
        let (code, chain): (i32, _) = match self {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Jump(chain) => (-3, Some(chain)),
            Verdict::Goto(chain) => (-4, Some(chain)),
            Verdict::Return => (-5, None),
        };
        w.u32(1, code as u32);
        if let Some(chain) = chain {
            w.text(2, chain);
        }
    }

    pub(crate) fn decode(a: Attributes) -> Option<Verdict> {
        Some(match a.u32(1)? as i32 {
            0 => Verdict::Drop,
            1 => Verdict::Accept,
            -3 => Verdict::Jump(a.text(2)?.into()),
            -4 => Verdict::Goto(a.text(2)?.into()),
            -5 => Verdict::Return,
            _ => return None,
        })
    }
}

fn value(w: &mut Writer, kind: u16, bytes: &[u8]) {
    w.nest(kind, |w| w.bytes(1, bytes));
}

fn value_of(a: Attributes, kind: u16) -> Option<Bytes> {
    Some(Bytes::new(a.nest(kind)?.get(1)?))
}

fn reg_of(a: Attributes, kind: u16) -> Option<Reg> {
    Reg::decode(a.u32(kind)?)
}

impl Expr {
    /// The name and attributes of one expression.
    pub(crate) fn encode(&self, w: &mut Writer, family: TableFamily) {
        w.text(1, self.name());
        w.nest(2, |w| self.encode_attributes(w, family));
    }

    fn name(&self) -> &str {
        match self {
            Expr::Payload { .. } => "payload",
            Expr::Meta { .. } | Expr::MetaSet { .. } => "meta",
            Expr::Ct { .. } => "ct",
            Expr::Cmp { .. } => "cmp",
            Expr::Bitwise { .. } => "bitwise",
            Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
            Expr::Lookup { .. } | Expr::Vmap { .. } => "lookup",
            Expr::Numgen { .. } => "numgen",
            Expr::Update { .. } => "dynset",
            Expr::Dnat { .. } => "nat",
            Expr::Masquerade { .. } => "masq",
            Expr::Counter => "counter",
            Expr::RejectPortUnreachable | Expr::RejectTcpReset => "reject",
            Expr::FibDaddrType { .. } => "fib",
            Expr::Unknown(name) => name,
        }
    }

    fn encode_attributes(&self, w: &mut Writer, family: TableFamily) {
        match self {
            Expr::Payload { dreg, base, offset, len } => {
                w.u32(1, dreg.encode());
                w.u32(2, base.number());
                w.u32(3, *offset);
                w.u32(4, *len);
            }
            Expr::Meta { dreg, key } => {
                w.u32(2, key.number());
                w.u32(1, dreg.encode());
            }
            Expr::MetaSet { sreg, key } => {
                w.u32(2, key.number());
                w.u32(3, sreg.encode());
            }
            Expr::Ct { dreg, key } => {
                w.u32(2, key.number(family));
                w.u32(1, dreg.encode());
                if let Some(direction) = key.direction() {
                    w.bytes(3, &[direction]);
                }
            }
            Expr::Cmp { sreg, op, value: v } => {
                w.u32(1, sreg.encode());
                w.u32(2, matches!(op, CmpOp::Neq) as u32);
                value(w, 3, v);
            }
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                w.u32(1, sreg.encode());
                w.u32(2, dreg.encode());
                w.u32(3, mask.len() as u32);
                value(w, 4, mask);
                value(w, 5, xor);
            }
            Expr::Immediate { dreg, value: v } => {
                w.u32(1, dreg.encode());
                value(w, 2, v);
            }
            Expr::Verdict(verdict) => {
                w.u32(1, VERDICT_REG);
                w.nest(2, |w| w.nest(2, |w| verdict.encode(w)));
            }
            Expr::Lookup { set, sreg, dreg, negate } => {
                w.text(1, set);
                w.u32(2, sreg.encode());
                if let Some(dreg) = dreg {
                    w.u32(3, dreg.encode());
                }
                if *negate {
                    w.u32(5, 1); // NFT_LOOKUP_F_INV
                }
            }
            Expr::Vmap { set, sreg } => {
                w.text(1, set);
                w.u32(2, sreg.encode());
                w.u32(3, VERDICT_REG);
            }
            Expr::Numgen { dreg, modulus, offset } => {
                w.u32(1, dreg.encode());
                w.u32(2, *modulus);
                w.u32(3, NUMGEN_RANDOM);
                w.u32(4, *offset);
            }
            Expr::Update { set, key, value, timeout } => {
                w.text(1, set);
                w.u32(3, DYNSET_UPDATE);
                w.u32(4, key.encode());
                if let Some(value) = value {
                    w.u32(5, value.encode());
                }
                if let Some(timeout) = timeout {
                    w.u64(6, millis(timeout));
                }
            }
            Expr::Dnat { family, address, port } => {
                w.u32(1, NAT_DNAT);
                w.u32(2, family.number() as u32);
                w.u32(3, address.encode());
                if let Some(port) = port {
                    w.u32(5, port.encode());
                }
            }
            Expr::Masquerade { fully_random: true } => w.u32(1, FULLY_RANDOM),
            Expr::Masquerade { fully_random: false } => {}
            Expr::Counter => {
                w.u64(1, 0);
                w.u64(2, 0);
            }
            Expr::RejectPortUnreachable => {
                w.u32(1, REJECT_ICMP);
                w.bytes(2, &[port_unreachable(family)]);
            }
            Expr::RejectTcpReset => w.u32(1, REJECT_RESET),
            Expr::FibDaddrType { dreg } => {
                w.u32(1, dreg.encode());
                w.u32(2, FIB_ADDRTYPE);
                w.u32(3, FIB_DADDR);
            }
            // the kernel knows no such name, and refuses the transaction
            Expr::Unknown(_) => {}
        }
    }

    /// How many packets an expression has counted, if it is a counter.
    pub(crate) fn counted(a: Attributes) -> Option<u64> {
        (a.text(1) == Some("counter")).then(|| a.nest(2)?.u64(2))?
    }

    /// What cannot be read faithfully is [`Expr::Unknown`].
    pub(crate) fn decode(a: Attributes, family: TableFamily) -> Expr {
        let name = a.text(1).unwrap_or_default();
        a.nest(2)
            .or((name == "masq").then_some(Attributes(&[])))
            .and_then(|a| Expr::decode_attributes(name, a, family))
            .unwrap_or_else(|| Expr::Unknown(name.into()))
    }

    fn decode_attributes(name: &str, a: Attributes, family: TableFamily) -> Option<Expr> {
        Some(match name {
            "payload" => Expr::Payload {
                dreg: reg_of(a, 1)?,
                base: PayloadBase::from_number(a.u32(2)?)?,
                offset: a.u32(3)?,
                len: a.u32(4)?,
            },
            "meta" => {
                let key = MetaKey::from_number(a.u32(2)?)?;
                match reg_of(a, 1) {
                    Some(dreg) => Expr::Meta { dreg, key },
                    None => Expr::MetaSet { sreg: reg_of(a, 3)?, key },
                }
            }
            "ct" => {
                let key = CtKey::from_number(a.u32(2)?, family)?;
                let direction = key.direction().map(|direction| [direction]);
                (a.get(3) == direction.as_ref().map(|d| &d[..]))
                    .then_some(Expr::Ct { dreg: reg_of(a, 1)?, key })?
            }
            "cmp" => {
                let op = match a.u32(2)? {
                    0 => CmpOp::Eq,
                    1 => CmpOp::Neq,
                    _ => return None,
                };
                Expr::Cmp { sreg: reg_of(a, 1)?, op, value: value_of(a, 3)? }
            }
            "bitwise" => decode_bitwise(a)?,
            "immediate" => decode_immediate(a)?,
            "lookup" => decode_lookup(a)?,
            "numgen" => {
                (a.u32(3)? == NUMGEN_RANDOM).then_some(())?;
                Expr::Numgen { dreg: reg_of(a, 1)?, modulus: a.u32(2)?, offset: a.u32(4).unwrap_or(0) }
            }
            "dynset" => decode_update(a)?,
            "nat" => decode_nat(a)?,
            "masq" => {
                let ports = a.get(2).is_some() || a.get(3).is_some();
                match a.u32(1).unwrap_or(0) {
                    0 if !ports => Expr::Masquerade { fully_random: false },
                    FULLY_RANDOM if !ports => Expr::Masquerade { fully_random: true },
                    _ => return None,
                }
            }
            "counter" => Expr::Counter,
            "reject" => match (a.u32(1)?, a.get(2)) {
                (REJECT_ICMP, Some([code])) if *code == port_unreachable(family) => {
                    Expr::RejectPortUnreachable
                }
                (REJECT_RESET, _) => Expr::RejectTcpReset,
                _ => return None,
            },
            "fib" => {
                (a.u32(2)? == FIB_ADDRTYPE && a.u32(3)? == FIB_DADDR).then_some(())?;
                Expr::FibDaddrType { dreg: reg_of(a, 1)? }
            }
            _ => return None,
        })
    }
}

const VERDICT_REG: u32 = 0;
const NUMGEN_RANDOM: u32 = 1;
const DYNSET_UPDATE: u32 = 1;
const NAT_DNAT: u32 = 1;
const REJECT_ICMP: u32 = 0;
const REJECT_RESET: u32 = 1;
const FIB_ADDRTYPE: u32 = 3;
const FIB_DADDR: u32 = 1 << 1;

/// ICMP_PORT_UNREACH, ICMPV6_PORT_UNREACH.
fn port_unreachable(family: TableFamily) -> u8 {
    match family {
        TableFamily::Ip => 3,
        TableFamily::Ip6 => 4,
    }
}

pub(crate) fn millis(duration: &Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn decode_bitwise(a: Attributes) -> Option<Expr> {
    // other operations than mask-and-xor have no mask
    (a.u32(6).unwrap_or(0) == 0).then_some(())?;
    Some(Expr::Bitwise {
        sreg: reg_of(a, 1)?,
        dreg: reg_of(a, 2)?,
        mask: value_of(a, 4)?,
        xor: value_of(a, 5)?,
    })
}

fn decode_immediate(a: Attributes) -> Option<Expr> {
    if a.u32(1)? == VERDICT_REG {
        return Some(Expr::Verdict(Verdict::decode(a.nest(2)?.nest(2)?)?));
    }
    Some(Expr::Immediate { dreg: reg_of(a, 1)?, value: value_of(a, 2)? })
}

fn decode_lookup(a: Attributes) -> Option<Expr> {
    let set: Name = a.text(1)?.into();
    let sreg = reg_of(a, 2)?;
    let negate = match a.u32(5).unwrap_or(0) {
        0 => false,
        1 => true,
        _ => return None,
    };
    Some(match a.u32(3) {
        Some(VERDICT_REG) if !negate => Expr::Vmap { set, sreg },
        Some(dreg) => Expr::Lookup { set, sreg, dreg: Some(Reg::decode(dreg)?), negate },
        None => Expr::Lookup { set, sreg, dreg: None, negate },
    })
}

fn decode_update(a: Attributes) -> Option<Expr> {
    // flags or further expressions (counters, limits) are not ours
    let plain = a.u32(9).unwrap_or(0) == 0 && a.get(7).is_none() && a.get(10).is_none();
    (a.u32(3)? == DYNSET_UPDATE && plain).then_some(())?;
    Some(Expr::Update {
        set: a.text(1)?.into(),
        key: reg_of(a, 4)?,
        value: a.u32(5).map(|reg| Reg::decode(reg).ok_or(())).transpose().ok()?,
        timeout: a.u64(6).filter(|ms| *ms != 0).map(Duration::from_millis),
    })
}

fn decode_nat(a: Attributes) -> Option<Expr> {
    let family = match a.u32(2)? {
        2 => TableFamily::Ip,
        10 => TableFamily::Ip6,
        _ => return None,
    };
    let address = reg_of(a, 3)?;
    let port = a.u32(5).map(|reg| Reg::decode(reg).ok_or(())).transpose().ok()?;
    // the kernel repeats the lower ends of the ranges as the upper ones
    let single = a.u32(4).is_none_or(|max| Reg::decode(max) == Some(address))
        && a.u32(6).is_none_or(|max| Reg::decode(max) == port);
    let flags = a.u32(7).unwrap_or(0) & !RANGE_GIVEN;
    (a.u32(1)? == NAT_DNAT && single && flags == 0).then_some(Expr::Dnat { family, address, port })
}

impl PayloadBase {
    fn number(self) -> u32 {
        match self {
            PayloadBase::Network => 1,
            PayloadBase::Transport => 2,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [PayloadBase::Network, PayloadBase::Transport].into_iter().find(|base| base.number() == number)
    }
}

impl MetaKey {
    pub(crate) fn number(self) -> u32 {
        match self {
            MetaKey::Priority => 2,
            MetaKey::Mark => 3,
            MetaKey::IifName => 6,
            MetaKey::OifName => 7,
            MetaKey::L4Proto => 16,
        }
    }

    fn from_number(number: u32) -> Option<Self> {
        [MetaKey::Priority, MetaKey::Mark, MetaKey::IifName, MetaKey::OifName, MetaKey::L4Proto]
            .into_iter()
            .find(|key| key.number() == number)
    }
}

impl CtKey {
    fn number(self, family: TableFamily) -> u32 {
        match (self, family) {
            (CtKey::Status, _) => 2,
            (CtKey::ReplySport, _) => 11,
            (CtKey::OriginalDport, _) => 12,
            (CtKey::OriginalSaddr, TableFamily::Ip) => 19,
            (CtKey::OriginalDaddr, TableFamily::Ip) => 20,
            (CtKey::OriginalSaddr, TableFamily::Ip6) => 21,
            (CtKey::OriginalDaddr, TableFamily::Ip6) => 22,
        }
    }

    fn from_number(number: u32, family: TableFamily) -> Option<Self> {
        [CtKey::Status, CtKey::OriginalSaddr, CtKey::OriginalDaddr, CtKey::OriginalDport, CtKey::ReplySport]
            .into_iter()
            .find(|key| key.number(family) == number)
    }

    /// Of `enum ip_conntrack_dir`; None for what a connection has but once.
    fn direction(self) -> Option<u8> {
        match self {
            CtKey::Status => None,
            CtKey::OriginalSaddr | CtKey::OriginalDaddr | CtKey::OriginalDport => Some(0),
            CtKey::ReplySport => Some(1),
        }
    }
}
