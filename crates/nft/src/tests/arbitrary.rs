use std::net::IpAddr;
use std::time::Duration;

use arbitrary::{Result, Unstructured};

use crate::{
    Atom, Bytes, CmpOp, CtKey, Element, Expr, Extra, Field, KeyType, MetaKey, Name, PayloadBase, Range, Reg,
    Set, Statement, TableFamily, Value, ValueType, Verdict,
};

pub type Input<'a, 'b> = &'a mut Unstructured<'b>;

pub fn family(u: Input) -> Result<TableFamily> {
    Ok(*u.choose(&[TableFamily::Ip, TableFamily::Ip6])?)
}

pub fn name(u: Input) -> Result<Name> {
    Ok(Name::from(*u.choose(&["a", "pick-3", "cluster-ips", "a-rather-long-name-of-a-chain"])?))
}

pub fn verdict(u: Input) -> Result<Verdict> {
    Ok(match u.int_in_range(0..=4)? {
        0 => Verdict::Accept,
        1 => Verdict::Drop,
        2 => Verdict::Return,
        3 => Verdict::Jump(name(u)?),
        _ => Verdict::Goto(name(u)?),
    })
}

fn reg(u: Input) -> Result<Reg> {
    Ok(Reg(u.int_in_range(0..=15)?))
}

fn short(u: Input) -> Result<Bytes> {
    let len = u.int_in_range(1..=40)?;
    Ok(Bytes::new(u.bytes(len).unwrap_or(&[7])))
}

/// Of a whole number of milliseconds, and more than none.
fn duration(u: Input) -> Result<Duration> {
    Ok(Duration::from_millis(u.int_in_range(1..=u32::MAX as u64)?))
}

fn option<T>(u: Input, f: impl FnOnce(Input) -> Result<T>) -> Result<Option<T>> {
    if u.arbitrary()? { f(u).map(Some) } else { Ok(None) }
}

pub fn expr(u: Input, family: TableFamily) -> Result<Expr> {
    let metas = [MetaKey::Priority, MetaKey::Mark, MetaKey::IifName, MetaKey::OifName, MetaKey::L4Proto];
    let cts =
        [CtKey::Status, CtKey::OriginalSaddr, CtKey::OriginalDaddr, CtKey::OriginalDport, CtKey::ReplySport];
    Ok(match u.int_in_range(0..=17)? {
        0 => Expr::Payload {
            dreg: reg(u)?,
            base: *u.choose(&[PayloadBase::Network, PayloadBase::Transport])?,
            offset: u.arbitrary()?,
            len: u.arbitrary()?,
        },
        1 => Expr::Meta { dreg: reg(u)?, key: *u.choose(&metas)? },
        2 => Expr::MetaSet { sreg: reg(u)?, key: *u.choose(&metas)? },
        3 => Expr::Ct { dreg: reg(u)?, key: *u.choose(&cts)? },
        4 => Expr::Cmp { sreg: reg(u)?, op: *u.choose(&[CmpOp::Eq, CmpOp::Neq])?, value: short(u)? },
        5 => Expr::Bitwise { sreg: reg(u)?, dreg: reg(u)?, mask: short(u)?, xor: short(u)? },
        6 => Expr::Immediate { dreg: reg(u)?, value: short(u)? },
        7 => Expr::Verdict(verdict(u)?),
        8 => Expr::Lookup { set: name(u)?, sreg: reg(u)?, dreg: option(u, reg)?, negate: u.arbitrary()? },
        9 => Expr::Vmap { set: name(u)?, sreg: reg(u)? },
        10 => Expr::Numgen { dreg: reg(u)?, modulus: u.arbitrary()?, offset: u.arbitrary()? },
        11 => Expr::Update {
            set: name(u)?,
            key: reg(u)?,
            value: option(u, reg)?,
            timeout: option(u, duration)?,
        },
        12 => Expr::Dnat { family, address: reg(u)?, port: option(u, reg)? },
        13 => Expr::Masquerade { fully_random: u.arbitrary()? },
        14 => Expr::RejectPortUnreachable,
        15 => Expr::RejectTcpReset,
        16 => Expr::Counter,
        _ => Expr::FibDaddrType { dreg: reg(u)? },
    })
}

/// One to four fields: the kernel takes at most 64 bytes, which is one field fewer in IPv6.
pub fn key(u: Input) -> Result<Vec<KeyType>> {
    let kinds = [
        KeyType::Address,
        KeyType::Protocol,
        KeyType::Port,
        KeyType::Index,
        KeyType::Mark,
        KeyType::Priority,
        KeyType::Interface,
    ];
    (0..u.int_in_range(1..=4)?).map(|_| Ok(*u.choose(&kinds)?)).collect()
}

pub fn atoms(u: Input, family: TableFamily, types: &[KeyType]) -> Result<Vec<Atom>> {
    types.iter().map(|kind| atom(u, family, *kind)).collect()
}

fn atom(u: Input, family: TableFamily, kind: KeyType) -> Result<Atom> {
    Ok(match (kind, family) {
        (KeyType::Address, TableFamily::Ip) => Atom::Address(IpAddr::from(u.arbitrary::<[u8; 4]>()?)),
        (KeyType::Address, TableFamily::Ip6) => Atom::Address(IpAddr::from(u.arbitrary::<[u8; 16]>()?)),
        (KeyType::Protocol, _) => Atom::Protocol(u.arbitrary()?),
        (KeyType::Port, _) => Atom::Port(u.arbitrary()?),
        (KeyType::Index | KeyType::Other(_), _) => Atom::Index(u.arbitrary()?),
        (KeyType::Mark, _) => Atom::Mark(u.arbitrary()?),
        (KeyType::Priority, _) => Atom::Priority(u.arbitrary()?),
        (KeyType::Interface, _) => {
            Atom::Interface(u.choose(&["lo", "eth0", "a15bytelongname"])?.to_owned().into())
        }
    })
}

pub fn set(u: Input) -> Result<Set> {
    let timeout = option(u, duration)?;
    Ok(Set {
        key: key(u)?,
        value: option(u, |u| {
            Ok(if u.arbitrary()? { ValueType::Verdict } else { ValueType::Concat(key(u)?) })
        })?,
        interval: u.arbitrary()?,
        dynamic: u.arbitrary()?,
        timeouts: timeout.is_none() && u.arbitrary()?,
        timeout,
        size: option(u, |u| u.arbitrary())?,
        comment: option(u, name)?,
    })
}

pub fn element(u: Input, family: TableFamily, set: &Set) -> Result<Element> {
    let key = |u: Input| Ok(Bytes::concat(&atoms(u, family, &set.key)?));
    let range = match set.interval {
        true if set.key.len() > 1 => Some(Range::To(key(u)?)),
        true => option(u, |_| Ok(Range::End))?,
        false => None,
    };
    let extra = Extra { range, timeout: option(u, duration)?, expires: None };
    Ok(Element {
        key: key(u)?,
        value: match &set.value {
            None => Value::None,
            Some(ValueType::Verdict) => Value::Verdict(verdict(u)?),
            Some(ValueType::Concat(types)) => Value::Bytes(Bytes::concat(&atoms(u, family, types)?)),
        },
        extra: (extra != Extra::default()).then(|| Box::new(extra)),
    })
}

pub fn field(u: Input) -> Result<Field> {
    let fields = [
        Field::Saddr,
        Field::Daddr,
        Field::L4Proto,
        Field::Sport,
        Field::Dport,
        Field::Numgen { modulus: 3, offset: 65536 },
        Field::CtOriginalSaddr,
        Field::CtOriginalDaddr,
        Field::CtOriginalDport,
        Field::CtReplySport,
        Field::Mark,
        Field::Priority,
        Field::Iif,
        Field::Oif,
    ];
    Ok(u.choose(&fields)?.clone())
}

/// Fields that fit into the registers; a number generator may stand last.
fn fields(u: Input) -> Result<Vec<Field>> {
    let numgen = |field: &Field| matches!(field, Field::Numgen { .. });
    let mut fields: Vec<Field> = (0..u.int_in_range(1..=3)?).map(|_| field(u)).collect::<Result<_>>()?;
    if let Some(first) = fields.iter().position(numgen) {
        fields.truncate(first + 1);
    }
    Ok(fields)
}

pub fn statement(u: Input, family: TableFamily) -> Result<Statement> {
    Ok(match u.int_in_range(0..=19)? {
        0 => {
            let field = field(u)?;
            let value = atom(u, family, field.key_type())?;
            Statement::Compare { field, value, negate: u.arbitrary()? }
        }
        1 => {
            let field = u.choose(&[Field::Saddr, Field::Daddr])?.clone();
            let length = u.int_in_range(0..=family.address_len() as u8 * 8 - 1)?;
            let host = family.address_len() as u32 * 8 - length as u32;
            let clear = |ip: u128| ip.checked_shr(host).map_or(0, |net| net << host);
            let address = match family {
                TableFamily::Ip => IpAddr::from((clear(u.arbitrary::<u32>()?.into()) as u32).to_be_bytes()),
                TableFamily::Ip6 => IpAddr::from(clear(u.arbitrary()?).to_be_bytes()),
            };
            Statement::InPrefix { field, address, length, negate: u.arbitrary()? }
        }
        2 => Statement::InSet { key: fields(u)?, set: name(u)?, negate: u.arbitrary()? },
        3 => Statement::MarkTest { mask: u.arbitrary()?, value: u.arbitrary()? },
        4 => Statement::MarkOr(u.int_in_range(1..=u32::MAX)?),
        5 => Statement::MarkXor(u.arbitrary()?),
        6 => Statement::CtStatusDnat,
        7 => Statement::DaddrIsLocal,
        8 => Statement::Vmap { key: fields(u)?, map: name(u)? },
        9 => Statement::Dnat { key: fields(u)?, map: name(u)?, port: u.arbitrary()? },
        10 => Statement::Masquerade { fully_random: u.arbitrary()? },
        11 => u.choose(&[Statement::Reject, Statement::RejectTcpReset])?.clone(),
        12 => Statement::Verdict(verdict(u)?),
        13 => Statement::Counter,
        14 => Statement::IifPrefix(Name::from(*u.choose(&["v", "cali", "a14byteslong14"])?)),
        15 => Statement::SetPriority(u.arbitrary()?),
        17 => Statement::SetPriorityRandom { modulus: u.arbitrary()?, offset: u.arbitrary()? },
        16 => Statement::SetPriorityFrom { key: fields(u)?, map: name(u)? },
        18 => {
            let (mask, value): (u8, u8) = (u.int_in_range(1..=255)?, u.arbitrary()?);
            let field = u.choose(&[Field::Saddr, Field::Daddr])?.clone();
            Statement::LastByte { field, mask, value: value & mask }
        }
        _ => Statement::Update {
            set: name(u)?,
            key: fields(u)?,
            value: if u.arbitrary()? { vec![field(u)?] } else { vec![] },
            timeout: option(u, duration)?,
        },
    })
}
