//! What rules are made of.

use ipnet::IpNet;
use portolan_model::Protocol;
use portolan_nft::{Atom, Field, Name, Rule, Statement, Verdict};

use super::VIPS;

pub fn frontend() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport]
}

/// Where the packet goes now.
pub fn endpoint() -> [Field; 2] {
    [Field::Daddr, Field::CtReplySport]
}

pub fn is(protocol: Protocol) -> Statement {
    let value = Atom::Protocol(protocol.number());
    Statement::Compare { field: Field::L4Proto, value, negate: false }
}

pub fn in_prefix(field: Field, net: &IpNet) -> Statement {
    Statement::InPrefix { field, address: net.addr(), length: net.prefix_len(), negate: false }
}

pub fn is_vip() -> Statement {
    Statement::InSet { key: vec![Field::Daddr], set: VIPS.into(), negate: false }
}

pub fn is_port(set: &str) -> Statement {
    Statement::InSet { key: frontend(), set: set.into(), negate: false }
}

pub fn jump(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Jump(Name::from(chain)))
}

pub fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(Name::from(chain)))
}

pub fn rule<const N: usize>(statements: [Statement; N]) -> Rule {
    Rule::new(statements.to_vec())
}
