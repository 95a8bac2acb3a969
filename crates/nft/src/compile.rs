//! Statements to expressions. The expressions are those that nft 1.0.6 makes of the same text.

use std::net::IpAddr;

use crate::{
    Atom, Bytes, CmpOp, CtKey, Expr, Field, MetaKey, Name, PayloadBase, Reg, Rule, Statement, TableFamily,
};

/// IPS_DST_NAT of `enum ip_conntrack_status`.
const CT_STATUS_DNAT: u32 = 1 << 5;
/// The kernel's type of addresses that are this node's.
const RTN_LOCAL: u32 = 2;

impl Rule {
    /// The rule in the kernel's language.
    pub fn compile(&self, family: TableFamily) -> Vec<Expr> {
        let mut compiler = Compiler { family, exprs: Vec::new() };
        self.statements.iter().for_each(|statement| compiler.statement(statement));
        compiler.exprs
    }
}

struct Compiler {
    family: TableFamily,
    exprs: Vec<Expr>,
}

/// Keys are loaded here, anew for each use: nft(8) aborts on listing a rule that uses a part of a key again.
const R0: Reg = Reg(0);

impl Compiler {
    fn statement(&mut self, statement: &Statement) {
        match statement {
            Statement::Compare { field, value, negate } => self.compare(field, value, *negate),
            Statement::IifPrefix(prefix) => {
                self.exprs.push(Field::Iif.load(R0, self.family));
                self.cmp(CmpOp::Eq, &prefix.as_bytes()[..prefix.len().min(14)]);
            }
            Statement::InPrefix { field, address, length, negate } => {
                self.prefix(field, address, *length, *negate);
            }
            Statement::LastByte { field, mask, value } => {
                let before = self.family.address_len() - 1;
                let last = |byte| [vec![0; before], vec![byte]].concat();
                self.exprs.push(field.load(R0, self.family));
                self.bitwise(&last(*mask), &last(0));
                self.cmp(CmpOp::Eq, &last(*value));
            }
            Statement::InSet { key, set, negate } => {
                self.load(key, R0);
                self.exprs.push(Expr::Lookup { set: set.clone(), sreg: R0, dreg: None, negate: *negate });
            }
            Statement::MarkTest { mask, value } => {
                self.mark(*mask, 0);
                self.cmp(CmpOp::Eq, &value.to_ne_bytes());
            }
            Statement::MarkOr(bits) => self.set_mark(!bits, *bits),
            Statement::MarkXor(bits) => self.set_mark(u32::MAX, *bits),
            Statement::SetPriority(number) => {
                self.exprs.push(Expr::Immediate { dreg: R0, value: Bytes::new(&number.to_ne_bytes()) });
                self.exprs.push(Expr::MetaSet { sreg: R0, key: MetaKey::Priority });
            }
            Statement::SetPriorityRandom { modulus, offset } => {
                self.exprs.push(Expr::Numgen { dreg: R0, modulus: *modulus, offset: *offset });
                self.exprs.push(Expr::MetaSet { sreg: R0, key: MetaKey::Priority });
            }
            Statement::SetPriorityFrom { key, map } => {
                self.look_up(key, map);
                self.exprs.push(Expr::MetaSet { sreg: R0, key: MetaKey::Priority });
            }
            Statement::CtStatusDnat => {
                self.exprs.push(Expr::Ct { dreg: R0, key: CtKey::Status });
                self.bitwise(&CT_STATUS_DNAT.to_ne_bytes(), &[0; 4]);
                self.cmp(CmpOp::Neq, &[0; 4]);
            }
            Statement::DaddrIsLocal => {
                self.exprs.push(Expr::FibDaddrType { dreg: R0 });
                self.cmp(CmpOp::Eq, &RTN_LOCAL.to_ne_bytes());
            }
            Statement::Vmap { key, map } => {
                self.load(key, R0);
                self.exprs.push(Expr::Vmap { set: map.clone(), sreg: R0 });
            }
            Statement::Dnat { key, map, port } => self.dnat(key, map, *port),
            Statement::Masquerade { fully_random } => {
                self.exprs.push(Expr::Masquerade { fully_random: *fully_random });
            }
            Statement::Counter => self.exprs.push(Expr::Counter),
            Statement::Reject => self.exprs.push(Expr::RejectPortUnreachable),
            Statement::RejectTcpReset => self.exprs.push(Expr::RejectTcpReset),
            Statement::Verdict(verdict) => self.exprs.push(Expr::Verdict(verdict.clone())),
            Statement::Update { set, key, value, timeout } => {
                let end = self.load(key, R0);
                self.load(value, end);
                let value = (!value.is_empty()).then_some(end);
                self.exprs.push(Expr::Update { set: set.clone(), key: R0, value, timeout: *timeout });
            }
        }
    }

    /// Loads a concatenation, each field in whole registers; gives the first register after it.
    fn load(&mut self, key: &[Field], start: Reg) -> Reg {
        key.iter().fold(start, |dreg, field| {
            self.exprs.push(field.load(dreg, self.family));
            dreg.after(field.len(self.family))
        })
    }

    fn compare(&mut self, field: &Field, value: &Atom, negate: bool) {
        self.exprs.push(field.load(R0, self.family));
        self.cmp(equal(negate), &Bytes::concat(std::slice::from_ref(value)));
    }

    fn prefix(&mut self, field: &Field, address: &IpAddr, length: u8, negate: bool) {
        let mut bytes = match address {
            IpAddr::V4(ip) => ip.octets().to_vec(),
            IpAddr::V6(ip) => ip.octets().to_vec(),
        };
        let mask = mask(bytes.len(), length);
        bytes.iter_mut().zip(&mask).for_each(|(byte, mask)| *byte &= mask);
        let load = field.load(R0, self.family);
        let whole = length as usize / 8;
        if length == 0 || !length.is_multiple_of(8) || whole > bytes.len() {
            self.exprs.push(load);
            self.bitwise(&mask, &vec![0; mask.len()]);
            return self.cmp(equal(negate), &bytes);
        }
        // whole bytes need no mask, and a packet's header can be read only so far
        self.exprs.push(match load {
            Expr::Payload { dreg, base, offset, .. } => {
                Expr::Payload { dreg, base, offset, len: whole as u32 }
            }
            load => load,
        });
        self.cmp(equal(negate), &bytes[..whole]);
    }

    fn dnat(&mut self, key: &[Field], map: &Name, port: Option<u16>) {
        self.look_up(key, map);
        let behind = R0.after(self.family.address_len());
        if let Some(port) = port {
            self.exprs.push(Expr::Immediate { dreg: behind, value: Bytes::new(&port.to_be_bytes()) });
        }
        self.exprs.push(Expr::Dnat { family: self.family, address: R0, port: Some(behind) });
    }

    /// From R0 on: what the map has of the key.
    fn look_up(&mut self, key: &[Field], map: &Name) {
        self.load(key, R0);
        self.exprs.push(Expr::Lookup { set: map.clone(), sreg: R0, dreg: Some(R0), negate: false });
    }

    /// R0 = (mark & mask) ^ xor.
    fn mark(&mut self, mask: u32, xor: u32) {
        self.exprs.push(Expr::Meta { dreg: R0, key: MetaKey::Mark });
        self.bitwise(&mask.to_ne_bytes(), &xor.to_ne_bytes());
    }

    fn set_mark(&mut self, mask: u32, xor: u32) {
        self.mark(mask, xor);
        self.exprs.push(Expr::MetaSet { sreg: R0, key: MetaKey::Mark });
    }

    fn bitwise(&mut self, mask: &[u8], xor: &[u8]) {
        self.exprs.push(Expr::Bitwise { sreg: R0, dreg: R0, mask: Bytes::new(mask), xor: Bytes::new(xor) });
    }

    fn cmp(&mut self, op: CmpOp, value: &[u8]) {
        self.exprs.push(Expr::Cmp { sreg: R0, op, value: Bytes::new(value) });
    }
}

impl Reg {
    fn after(self, bytes: usize) -> Reg {
        Reg(self.0.saturating_add(bytes.div_ceil(4) as u8))
    }
}

impl Field {
    pub(crate) fn load(&self, dreg: Reg, family: TableFamily) -> Expr {
        let network = |offset| Expr::Payload {
            dreg,
            base: PayloadBase::Network,
            offset,
            len: family.address_len() as u32,
        };
        let transport = |offset| Expr::Payload { dreg, base: PayloadBase::Transport, offset, len: 2 };
        let meta = |key| Expr::Meta { dreg, key };
        let ct = |key| Expr::Ct { dreg, key };
        match (self, family) {
            (Field::Saddr, TableFamily::Ip) => network(12),
            (Field::Saddr, TableFamily::Ip6) => network(8),
            (Field::Daddr, TableFamily::Ip) => network(16),
            (Field::Daddr, TableFamily::Ip6) => network(24),
            (Field::L4Proto, _) => meta(MetaKey::L4Proto),
            (Field::Sport, _) => transport(0),
            (Field::Dport, _) => transport(2),
            (Field::Numgen { modulus, offset }, _) => {
                Expr::Numgen { dreg, modulus: *modulus, offset: *offset }
            }
            (Field::CtOriginalSaddr, _) => ct(CtKey::OriginalSaddr),
            (Field::CtOriginalDaddr, _) => ct(CtKey::OriginalDaddr),
            (Field::CtOriginalDport, _) => ct(CtKey::OriginalDport),
            (Field::CtReplySport, _) => ct(CtKey::ReplySport),
            (Field::Mark, _) => meta(MetaKey::Mark),
            (Field::Priority, _) => meta(MetaKey::Priority),
            (Field::Iif, _) => meta(MetaKey::IifName),
            (Field::Oif, _) => meta(MetaKey::OifName),
        }
    }

    fn len(&self, family: TableFamily) -> usize {
        self.key_type().len(family)
    }

    /// The type of a set's field that this may be looked up in.
    pub fn key_type(&self) -> crate::KeyType {
        use crate::KeyType;
        match self {
            Field::Saddr | Field::Daddr | Field::CtOriginalSaddr | Field::CtOriginalDaddr => KeyType::Address,
            Field::L4Proto => KeyType::Protocol,
            Field::Sport | Field::Dport | Field::CtOriginalDport | Field::CtReplySport => KeyType::Port,
            Field::Numgen { .. } => KeyType::Index,
            Field::Mark => KeyType::Mark,
            Field::Priority => KeyType::Priority,
            Field::Iif | Field::Oif => KeyType::Interface,
        }
    }
}

fn equal(negate: bool) -> CmpOp {
    if negate { CmpOp::Neq } else { CmpOp::Eq }
}

fn mask(len: usize, prefix: u8) -> Vec<u8> {
    let prefix = prefix as usize;
    (0..len).map(|i| (0xff00u16 >> prefix.saturating_sub(i * 8).min(8)) as u8).collect()
}
