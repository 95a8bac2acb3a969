//! Expressions back to statements: what a dumped table says, in our words.

use std::net::IpAddr;

use crate::{
    Atom, Bytes, Chain, CmpOp, CtKey, Dumped, DumpedRule, Expr, Field, KeyType, MetaKey, Name, PayloadBase,
    Reg, Rule, Statement, Table, TableFamily, TableId,
};

/// A whole name is compared with its padding, the beginning of one without.
const INTERFACE_LEN: usize = 16;

impl Dumped {
    /// The table with every rule that we have words for, and chain and handle of those that it lacks.
    pub fn table(&self, id: TableId) -> (Table, Vec<(Name, u64)>) {
        let (mut table, mut unread) = (Table::new(id), Vec::new());
        (table.sets, table.elements) = (self.sets.clone(), self.elements.clone());
        for (name, dumped) in &self.chains {
            let mut chain = Chain { base: dumped.base, rules: Vec::new() };
            for rule in &dumped.rules {
                match rule.read(table.id.family) {
                    Some(rule) => chain.rules.push(rule),
                    None => unread.push((name.clone(), rule.handle)),
                }
            }
            table.chains.insert(name.clone(), chain);
        }
        (table, unread)
    }
}

impl DumpedRule {
    /// A rule that compiles to these very expressions; None when there is none.
    pub fn read(&self, family: TableFamily) -> Option<Rule> {
        let (mut statements, mut rest) = (Vec::new(), &self.exprs[..]);
        while !rest.is_empty() {
            let (statement, after) = one(rest, family)?;
            statements.push(statement);
            rest = after;
        }
        let rule = Rule { statements, comment: self.comment.clone() };
        (rule.compile(family) == self.exprs).then_some(rule)
    }
}

/// The first statement and what follows it. May be wrong in details: the caller compiles it again.
fn one(exprs: &[Expr], family: TableFamily) -> Option<(Statement, &[Expr])> {
    Some(match exprs {
        [Expr::Verdict(verdict), rest @ ..] => (Statement::Verdict(verdict.clone()), rest),
        [Expr::Masquerade { fully_random }, rest @ ..] => {
            (Statement::Masquerade { fully_random: *fully_random }, rest)
        }
        [Expr::Counter, rest @ ..] => (Statement::Counter, rest),
        [Expr::Meta { key: MetaKey::IifName, .. }, Expr::Cmp { value, .. }, rest @ ..]
            if value.len() < INTERFACE_LEN =>
        {
            (Statement::IifPrefix(std::str::from_utf8(value).ok()?.into()), rest)
        }
        [Expr::Immediate { value, .. }, Expr::MetaSet { .. }, rest @ ..] => {
            (Statement::SetPriority(number(value)?), rest)
        }
        [Expr::Numgen { modulus, offset, .. }, Expr::MetaSet { .. }, rest @ ..] => {
            (Statement::SetPriorityRandom { modulus: *modulus, offset: *offset }, rest)
        }
        [Expr::RejectPortUnreachable, rest @ ..] => (Statement::Reject, rest),
        [Expr::RejectTcpReset, rest @ ..] => (Statement::RejectTcpReset, rest),
        [Expr::Ct { key: CtKey::Status, .. }, Expr::Bitwise { .. }, Expr::Cmp { .. }, rest @ ..] => {
            (Statement::CtStatusDnat, rest)
        }
        [Expr::FibDaddrType { .. }, Expr::Cmp { .. }, rest @ ..] => (Statement::DaddrIsLocal, rest),
        [
            Expr::Meta { key: MetaKey::Mark, .. },
            Expr::Bitwise { mask, xor, .. },
            Expr::MetaSet { .. },
            rest @ ..,
        ] => (set_mark(number(mask)?, number(xor)?), rest),
        [
            Expr::Meta { key: MetaKey::Mark, .. },
            Expr::Bitwise { mask, .. },
            Expr::Cmp { value, .. },
            rest @ ..,
        ] => (Statement::MarkTest { mask: number(mask)?, value: number(value)? }, rest),
        [load, Expr::Bitwise { mask, .. }, Expr::Cmp { value, .. }, rest @ ..]
            if mask.first() == Some(&0) && mask.last() != Some(&0) =>
        {
            let field = read_field(load, family)?.1;
            (Statement::LastByte { field, mask: *mask.last()?, value: *value.last()? }, rest)
        }
        [load, Expr::Bitwise { mask, .. }, Expr::Cmp { op, value, .. }, rest @ ..] => {
            let length = mask.iter().map(|byte| byte.leading_ones() as u8).sum();
            (prefix(read_field(load, family)?.1, value, length, *op, family)?, rest)
        }
        [Expr::Payload { base, offset, len, dreg }, Expr::Cmp { op, value, .. }, rest @ ..]
            if *base == PayloadBase::Network && (*len as usize) < family.address_len() =>
        {
            let whole =
                Expr::Payload { dreg: *dreg, base: *base, offset: *offset, len: family.address_len() as u32 };
            (prefix(read_field(&whole, family)?.1, value, (*len * 8) as u8, *op, family)?, rest)
        }
        exprs => return keyed(exprs, family),
    })
}

/// A statement that begins with loading a key.
fn keyed(exprs: &[Expr], family: TableFamily) -> Option<(Statement, &[Expr])> {
    let loads: Vec<(Reg, Field)> = exprs.iter().map_while(|expr| read_field(expr, family)).collect();
    let fields = |loads: &[(Reg, Field)]| loads.iter().map(|(_, field)| field.clone()).collect::<Vec<_>>();
    let key = fields(&loads);
    Some(match exprs.get(loads.len()..)? {
        [Expr::Lookup { set, dreg: None, negate, .. }, rest @ ..] => {
            (Statement::InSet { key, set: set.clone(), negate: *negate }, rest)
        }
        [Expr::Lookup { set, .. }, Expr::Dnat { .. }, rest @ ..] => {
            (Statement::Dnat { key, map: set.clone(), port: None }, rest)
        }
        [Expr::Lookup { set, .. }, Expr::Immediate { value, .. }, Expr::Dnat { .. }, rest @ ..] => {
            let port = Some(u16::from_be_bytes(value[..].try_into().ok()?));
            (Statement::Dnat { key, map: set.clone(), port }, rest)
        }
        [Expr::Lookup { set, .. }, Expr::MetaSet { .. }, rest @ ..] => {
            (Statement::SetPriorityFrom { key, map: set.clone() }, rest)
        }
        [Expr::Vmap { set, .. }, rest @ ..] => (Statement::Vmap { key, map: set.clone() }, rest),
        [Expr::Cmp { op, value, .. }, rest @ ..] => {
            let [field] = &key[..] else { return None };
            let value = value.atoms(family, &[field.key_type()])?.pop()?;
            (Statement::Compare { field: field.clone(), value, negate: *op == CmpOp::Neq }, rest)
        }
        [Expr::Update { set, value, timeout, .. }, rest @ ..] => {
            let of_key = loads.iter().take_while(|(reg, _)| value.is_none_or(|value| *reg < value)).count();
            let (key, value) = loads.split_at(of_key);
            let (set, key, value) = (set.clone(), fields(key), fields(value));
            (Statement::Update { set, key, value, timeout: *timeout }, rest)
        }
        _ => return None,
    })
}

/// The field that is loaded, and where to.
fn read_field(expr: &Expr, family: TableFamily) -> Option<(Reg, Field)> {
    const FIELDS: [Field; 13] = [
        Field::Saddr,
        Field::Daddr,
        Field::L4Proto,
        Field::Sport,
        Field::Dport,
        Field::CtOriginalSaddr,
        Field::CtOriginalDaddr,
        Field::CtOriginalDport,
        Field::CtReplySport,
        Field::Mark,
        Field::Priority,
        Field::Iif,
        Field::Oif,
    ];
    let dreg = match expr {
        Expr::Numgen { dreg, modulus, offset } => {
            return Some((*dreg, Field::Numgen { modulus: *modulus, offset: *offset }));
        }
        Expr::Payload { dreg, .. } | Expr::Meta { dreg, .. } | Expr::Ct { dreg, .. } => *dreg,
        _ => return None,
    };
    FIELDS.into_iter().find(|field| field.load(dreg, family) == *expr).map(|field| (dreg, field))
}

fn set_mark(mask: u32, xor: u32) -> Statement {
    if mask == u32::MAX { Statement::MarkXor(xor) } else { Statement::MarkOr(xor) }
}

/// `value` may be only the address's first bytes.
fn prefix(field: Field, value: &Bytes, length: u8, op: CmpOp, family: TableFamily) -> Option<Statement> {
    let mut whole = vec![0; family.address_len()];
    whole.get_mut(..value.len())?.copy_from_slice(value);
    let address: IpAddr = match Bytes::new(&whole).atoms(family, &[KeyType::Address])?.pop()? {
        Atom::Address(address) => address,
        _ => return None,
    };
    Some(Statement::InPrefix { field, address, length, negate: op == CmpOp::Neq })
}

fn number(bytes: &Bytes) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes[..].try_into().ok()?))
}
