//! Session affinity (S41, S42): `affine-pick-E-from-N` first asks who is remembered, and the last hooks remember.
//!
//! ```text
//!   affine-pick-E-from-N ──> recall ──> [affinity, of the client] dnat                    else pick-E-from-N
//!   postrouting, input ──> remember ──> [affine, of the endpoint] remember-… ──> update of affinity
//! ```
//!
//! `affine` has (VIP . protocol . port . endpoint) of those endpoints that may be remembered, with the chain that knows for
//! how long. An endpoint that goes leaves `affine`, and what is remembered of it goes in the same transaction; a packet that
//! chose it earlier and comes to the last hook later is no longer recorded. What was recorded between the agent's look at the
//! clients and the commit is found by a second look. Checking each remembered endpoint when it is used instead is not
//! possible: one look-up cannot feed another in a rule that nft(8) can list.
//!
//! IPv4 remembers in one map `affinity` (client . VIP . protocol . port -> address . port). IPv6 has a map for each frontend
//! and each port of its endpoints ([`Ledger`], which says why): `recall` has (VIP . protocol . port) with the chain that
//! looks through the frontend's maps.

use portolan_model::{Family, Protocol};
use portolan_nft::{Atom, Field, KeyType, Rule, Set, Statement, ValueType};

use super::parts::{endpoint, frontend, is, jump, rule};
use super::{AFFINE, AFFINITY, RECALL, REMEMBER};
use crate::gate::{Gate, Open};
use crate::ledger::{Ledger, Recall};
use crate::target::Memory;

/// In one map, of clients. A client that finds it full is not remembered. The kernel reserves room by the lower 16 bits of it,
/// which are zero: an empty map costs a kilobyte instead of one for every 64 clients.
const REMEMBERED: u32 = 65_536;

/// The set that a family has beside those of both.
pub fn set(family: Family) -> (&'static str, Set) {
    use KeyType::{Address, Port, Protocol};
    match family {
        Family::Ipv4 => (AFFINITY, clients(&[Address, Address, Protocol, Port], &[Address, Port])),
        Family::Ipv6 => {
            let value = Some(ValueType::Verdict);
            (RECALL, Set { key: vec![Address, Protocol, Port], value, ..Set::default() })
        }
    }
}

/// Every [`Ledger`]'s declaration.
pub fn ledger() -> Set {
    clients(&[KeyType::Address], &[KeyType::Address])
}

fn clients(key: &[KeyType], value: &[KeyType]) -> Set {
    Set {
        key: key.to_vec(),
        value: Some(ValueType::Concat(value.to_vec())),
        dynamic: true,
        timeouts: true,
        size: Some(REMEMBERED),
        ..Set::default()
    }
}

/// The rule of the chain `recall`.
pub fn recall(family: Family) -> Rule {
    match family {
        Family::Ipv4 => {
            let mut key = frontend();
            key.insert(0, Field::Saddr);
            rule([Statement::Dnat { key, map: AFFINITY.into(), port: None }])
        }
        Family::Ipv6 => rule([Statement::Vmap { key: frontend(), map: RECALL.into() }]),
    }
}

/// The rules of the chain `remember`.
pub fn remember() -> Vec<Rule> {
    let mut key = asked();
    key.extend(endpoint());
    each_protocol(&Statement::Vmap { key, map: AFFINE.into() })
}

/// Priorities have been scratch until here. To look at one costs a packet less than to ask what became of its connection, and most
/// have none: forwarding over IPv4 has given them that of their TOS, which is 0 as a rule.
pub fn after_dnat(open: Open) -> Rule {
    let scratch = Statement::Compare { field: Field::Priority, value: Atom::Priority(0), negate: true };
    let (none, translated) = (Statement::SetPriority(0), Statement::CtStatusDnat);
    match open.has(Gate::Remember) {
        true => rule([translated, none, jump(REMEMBER)]),
        false => rule([scratch, translated, none]),
    }
}

/// S41: each new connection of a client begins its time anew.
pub fn remember_for(memory: Memory) -> Vec<Rule> {
    let mut key = asked();
    key.insert(0, Field::Saddr);
    each_protocol(&Statement::Update {
        set: AFFINITY.into(),
        key,
        value: endpoint().into(),
        timeout: Some(memory.timeout()),
    })
}

/// The same, of one IPv6 frontend and the endpoints at one port.
pub fn record(memory: Memory, ledger: Ledger) -> Vec<Rule> {
    let (key, value) = (vec![Field::Saddr], vec![Field::Daddr]);
    vec![rule([Statement::Update { set: ledger.name(), key, value, timeout: Some(memory.timeout()) }])]
}

pub fn look_through(recall: Recall) -> Vec<Rule> {
    let look = |ledger: Ledger| {
        let (key, map) = (vec![Field::Saddr], ledger.name());
        rule([is(ledger.key.protocol), Statement::Dnat { key, map, port: Some(ledger.port) }])
    };
    recall.ledgers().map(look).collect()
}

/// The frontend that the client asked for, once the packet goes elsewhere.
fn asked() -> Vec<Field> {
    vec![Field::CtOriginalDaddr, Field::L4Proto, Field::CtOriginalDport]
}

/// nft 1.0.6 reads the ports of a connection only in rules that name the protocol, and it leaves that out of what it lists
/// where the packet's own port is used as well.
fn each_protocol(statement: &Statement) -> Vec<Rule> {
    [Protocol::Tcp, Protocol::Udp, Protocol::Sctp].map(|p| rule([is(p), statement.clone()])).into()
}
