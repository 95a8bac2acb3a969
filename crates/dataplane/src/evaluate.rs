//! What a table does with the first packet of a connection, and why: the kernel's rules, read by a machine of our own.
//!
//! Reads nothing but the table, so that what it says about a packet does not repeat what plans say.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use portolan_model::{Backend, Protocol};
use portolan_nft::{
    Atom, Bytes, Chain, ChainKind, Element, Field, Hook, KeyType, Name, Range, Statement, Table, Value,
    Verdict,
};

/// The first packet of a connection. Pods are told as the rules do it, by address or by interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packet {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub protocol: Protocol,
    /// Sent by a process of the node itself (or of a pod in the host's network).
    pub from_node: bool,
    /// The interface that it comes in by. None: nobody said, or it is sent by the node itself; then no rule that asks for
    /// one matches.
    pub interface: Option<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Outcome {
    /// Sent to one of these, with equal chances as far as the kernel goes; sorted, never empty.
    Dnat(Vec<Candidate>),
    /// Refused by an ICMP error.
    Reject,
    /// Refused by a TCP reset.
    Reset,
    Drop,
    /// Not for us: the packet goes on as it is.
    Pass,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Candidate {
    pub backend: Backend,
    /// The backend sees the node's address instead of the client's.
    pub masquerade: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub outcome: Outcome,
    /// One line for each rule that took part, in order.
    pub reasons: Vec<String>,
}

/// Follows a packet through the nat hooks. When only some draws of a random number find an endpoint, the outcome is what
/// befalls the others: the worst case.
pub fn evaluate(table: &Table, packet: &Packet) -> Trace {
    let tables = Lookup::new(table);
    let mut walk = Walk::new(&tables, packet);
    let end = walk.hook(if packet.from_node { Hook::Output } else { Hook::Prerouting });
    let outcome = match end {
        Some(End::Reject) => Outcome::Reject,
        Some(End::Reset) => Outcome::Reset,
        Some(End::Drop) => Outcome::Drop,
        Some(End::Dnat) => Outcome::Dnat(walk.candidates(packet)),
        Some(End::Accept | End::Masquerade) | None => Outcome::Pass,
    };
    Trace { outcome, reasons: walk.reasons }
}

/// The table's elements by key.
struct Lookup<'a> {
    table: &'a Table,
    sets: BTreeMap<&'a str, BTreeMap<&'a Bytes, &'a Element>>,
}

struct Walk<'a> {
    tables: &'a Lookup<'a>,
    source: SocketAddr,
    destination: SocketAddr,
    protocol: Protocol,
    interface: Option<Name>,
    is_forwarded: bool,
    /// Where the client sent it; None before DNAT.
    original: Option<SocketAddr>,
    mark: u32,
    priority: Priority,
    /// What the draws found so far.
    found: Vec<Backend>,
    reasons: Vec<String>,
}

/// One of so many numbers from the first on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Priority {
    first: u32,
    draws: u32,
}

impl Default for Priority {
    fn default() -> Self {
        Priority { first: 0, draws: 1 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Accept,
    Drop,
    Reject,
    Reset,
    Dnat,
    Masquerade,
}

enum Flow {
    /// The rule did not match or does not decide.
    Next,
    Jump(Name),
    Goto(Name),
    Return,
    End(End),
}

impl<'a> Lookup<'a> {
    fn new(table: &'a Table) -> Self {
        let by_key = |elements: &'a Vec<Element>| elements.iter().map(|e| (&e.key, e)).collect();
        Lookup { table, sets: table.elements.iter().map(|(name, e)| (&**name, by_key(e))).collect() }
    }

    fn find(&self, set: &str, key: &Bytes) -> Option<&'a Element> {
        let elements = self.sets.get(set)?;
        match self.table.sets.get(set) {
            Some(declared) if declared.interval => {
                elements.values().find(|element| self.in_range(element, key, &declared.key)).copied()
            }
            _ => elements.get(key).copied(),
        }
    }

    /// Every field lies within its own bounds.
    fn in_range(&self, element: &Element, key: &Bytes, types: &[KeyType]) -> bool {
        let last = match element.extra.as_ref().and_then(|extra| extra.range.as_ref()) {
            Some(Range::To(last)) => last,
            _ => &element.key,
        };
        let atoms = |bytes: &Bytes| bytes.atoms(self.table.id.family, types).unwrap_or_default();
        let (first, key, last) = (atoms(&element.key), atoms(key), atoms(last));
        !key.is_empty()
            && first.iter().zip(&key).zip(&last).all(|((first, key), last)| first <= key && key <= last)
    }

    fn base_chains(&self, hook: Hook) -> Vec<(&'a Name, &'a Chain)> {
        let hooked = |chain: &Chain| chain.base.is_some_and(|b| b.hook == hook && b.kind == ChainKind::Nat);
        let mut chains: Vec<_> = self.table.chains.iter().filter(|(_, chain)| hooked(chain)).collect();
        chains.sort_by_key(|(_, chain)| chain.base.map(|base| base.priority));
        chains
    }
}

impl<'a> Walk<'a> {
    fn new(tables: &'a Lookup<'a>, packet: &Packet) -> Self {
        Walk {
            tables,
            source: packet.source,
            destination: packet.destination,
            protocol: packet.protocol,
            interface: packet.interface.clone(),
            is_forwarded: !packet.from_node,
            original: None,
            mark: 0,
            priority: Priority::default(),
            found: Vec::new(),
            reasons: Vec::new(),
        }
    }

    fn hook(&mut self, hook: Hook) -> Option<End> {
        let chains = self.tables.base_chains(hook);
        chains.into_iter().find_map(|(name, _)| self.chain(name))
    }

    /// Where each backend that was found leads in postrouting.
    fn candidates(&mut self, packet: &Packet) -> Vec<Candidate> {
        let mut found = std::mem::take(&mut self.found);
        found.sort();
        found.dedup();
        let after = |backend: Backend| {
            let mut walk = Walk::new(self.tables, packet);
            (walk.destination, walk.original, walk.mark) = (backend, Some(packet.destination), self.mark);
            let masquerade = walk.hook(Hook::Postrouting) == Some(End::Masquerade);
            self.reasons.extend(walk.reasons.into_iter().map(|reason| format!("to {backend}: {reason}")));
            Candidate { backend, masquerade }
        };
        found.into_iter().map(after).collect()
    }

    fn chain(&mut self, name: &Name) -> Option<End> {
        let chain = self.tables.table.chains.get(name)?;
        for rule in &chain.rules {
            match self.rule(name, &rule.statements) {
                Flow::Next => {}
                Flow::Jump(chain) => match self.chain(&chain) {
                    None => {}
                    end => return end,
                },
                Flow::Goto(chain) => return self.chain(&chain),
                Flow::Return => return None,
                Flow::End(end) => return Some(end),
            }
        }
        None
    }

    fn rule(&mut self, chain: &Name, statements: &[Statement]) -> Flow {
        for statement in statements {
            match self.statement(chain, statement) {
                Some(Flow::Next) => {}
                Some(flow) => return flow,
                None => return Flow::Next,
            }
        }
        Flow::Next
    }

    /// None = the rule does not match.
    fn statement(&mut self, chain: &Name, statement: &Statement) -> Option<Flow> {
        let matches = |yes: bool| yes.then_some(Flow::Next);
        if asks_for_interface(statement) && self.interface.is_none() && self.is_forwarded {
            self.note(chain, "asks for the interface that it comes in by, which nobody said".into());
        }
        match statement {
            Statement::Compare { field, value, negate } => matches((self.atom(field)? == *value) != *negate),
            Statement::InPrefix { field, address, length, negate } => {
                let Atom::Address(ip) = self.atom(field)? else { return None };
                let within = ipnet::IpNet::new(*address, *length).is_ok_and(|net| net.contains(&ip));
                matches(within != *negate)
            }
            Statement::LastByte { field, mask, value } => {
                let Atom::Address(ip) = self.atom(field)? else { return None };
                let last = match ip {
                    IpAddr::V4(ip) => ip.octets()[3],
                    IpAddr::V6(ip) => ip.octets()[15],
                };
                matches(last & mask == *value)
            }
            Statement::InSet { key, set, negate } => {
                let there = self.tables.find(set, &self.key(key)?).is_some();
                matches(there != *negate)
            }
            Statement::MarkTest { mask, value } => matches(self.mark & mask == *value),
            Statement::MarkOr(bits) => {
                self.mark |= bits;
                self.note(chain, format!("marked {bits:#x}"));
                Some(Flow::Next)
            }
            Statement::MarkXor(bits) => {
                self.mark ^= bits;
                Some(Flow::Next)
            }
            Statement::SetPriority(number) => {
                self.priority = Priority { first: *number, draws: 1 };
                Some(Flow::Next)
            }
            Statement::SetPriorityRandom { modulus, offset } => {
                self.priority = Priority { first: *offset, draws: *modulus };
                Some(Flow::Next)
            }
            Statement::SetPriorityFrom { key, map } => self.set_priority(chain, key, map),
            Statement::IifPrefix(prefix) => {
                let Atom::Interface(name) = self.atom(&Field::Iif)? else { return None };
                matches(name.starts_with(&**prefix))
            }
            Statement::Counter => Some(Flow::Next),
            Statement::CtStatusDnat => matches(self.original.is_some()),
            // where addresses live is not in the table
            Statement::DaddrIsLocal => None,
            Statement::Update { timeout, .. } => {
                self.note(chain, format!("the client is remembered for {:?}", timeout.unwrap_or_default()));
                Some(Flow::Next)
            }
            Statement::Vmap { key, map } => self.vmap(chain, key, map),
            Statement::Dnat { key, map, port } => self.dnat(chain, key, map, *port),
            Statement::Masquerade { .. } => self.end(chain, End::Masquerade, "masqueraded"),
            Statement::Reject => self.end(chain, End::Reject, "rejected"),
            Statement::RejectTcpReset => self.end(chain, End::Reset, "reset"),
            Statement::Verdict(verdict) => Some(self.verdict(chain, verdict)),
        }
    }

    fn vmap(&mut self, chain: &Name, key: &[Field], map: &Name) -> Option<Flow> {
        let tables = self.tables;
        let Value::Verdict(verdict) = &tables.find(map, &self.key(key)?)?.value else { return None };
        if *key != [Field::Priority] {
            self.found_in(chain, map);
        }
        Some(self.verdict(chain, verdict))
    }

    fn set_priority(&mut self, chain: &Name, key: &[Field], map: &Name) -> Option<Flow> {
        let tables = self.tables;
        let Value::Bytes(number) = &tables.find(map, &self.key(key)?)?.value else { return None };
        self.priority = Priority { first: u32::from_ne_bytes(number[..].try_into().ok()?), draws: 1 };
        self.found_in(chain, map);
        Some(Flow::Next)
    }

    fn found_in(&mut self, chain: &Name, map: &Name) {
        self.note(chain, format!("{}/{} is in {map}", self.destination, self.protocol));
    }

    /// Every draw is tried: those that find an endpoint are done, and if all do, so is the packet.
    fn dnat(&mut self, chain: &Name, key: &[Field], map: &Name, port: Option<u16>) -> Option<Flow> {
        let Priority { first, draws } = match key.last()? {
            Field::Numgen { modulus, offset } => Priority { first: *offset, draws: *modulus },
            Field::Priority => self.priority,
            _ => Priority::default(),
        };
        let found: Vec<Backend> =
            (0..draws).filter_map(|draw| self.endpoint(key, map, port, first.wrapping_add(draw))).collect();
        let missing = draws as usize - found.len();
        if !found.is_empty() {
            self.note(chain, format!("{} of {draws} draws find an endpoint in {map}", found.len()));
        }
        self.found.extend(found);
        (missing == 0).then_some(Flow::End(End::Dnat))
    }

    fn endpoint(&self, key: &[Field], map: &Name, port: Option<u16>, draw: u32) -> Option<Backend> {
        let atom = |field: &Field| match field {
            Field::Numgen { .. } => Some(Atom::Index(draw)),
            Field::Priority => Some(Atom::Priority(draw)),
            field => self.atom(field),
        };
        let key = Bytes::concat(&key.iter().map(atom).collect::<Option<Vec<_>>>()?);
        let Value::Bytes(value) = &self.tables.find(map, &key)?.value else { return None };
        let types = if port.is_some() { &[KeyType::Address][..] } else { &[KeyType::Address, KeyType::Port] };
        let mut atoms = value.atoms(self.tables.table.id.family, types)?;
        atoms.extend(port.map(Atom::Port));
        match atoms[..] {
            [Atom::Address(ip), Atom::Port(port)] => Some(SocketAddr::new(ip, port)),
            _ => None,
        }
    }

    fn verdict(&mut self, chain: &Name, verdict: &Verdict) -> Flow {
        match verdict {
            Verdict::Accept => Flow::End(End::Accept),
            Verdict::Drop => {
                self.note(chain, "dropped".into());
                Flow::End(End::Drop)
            }
            Verdict::Return => Flow::Return,
            Verdict::Jump(to) => Flow::Jump(to.clone()),
            Verdict::Goto(to) => {
                self.note(chain, format!("goto {to}"));
                Flow::Goto(to.clone())
            }
        }
    }

    fn end(&mut self, chain: &Name, end: End, reason: &str) -> Option<Flow> {
        self.note(chain, reason.into());
        Some(Flow::End(end))
    }

    fn note(&mut self, chain: &Name, reason: String) {
        self.reasons.push(format!("{chain}: {reason}"));
    }

    fn key(&self, fields: &[Field]) -> Option<Bytes> {
        Some(Bytes::concat(&fields.iter().map(|field| self.atom(field)).collect::<Option<Vec<_>>>()?))
    }

    /// None for what a packet alone does not tell.
    fn atom(&self, field: &Field) -> Option<Atom> {
        let address = |ip: IpAddr| Some(Atom::Address(ip));
        match field {
            Field::Saddr => address(self.source.ip()),
            Field::Daddr => address(self.destination.ip()),
            Field::L4Proto => Some(Atom::Protocol(self.protocol.number())),
            Field::Sport => Some(Atom::Port(self.source.port())),
            Field::Dport => Some(Atom::Port(self.destination.port())),
            Field::CtOriginalSaddr => address(self.source.ip()),
            Field::CtOriginalDaddr => address(self.original.unwrap_or(self.destination).ip()),
            Field::CtReplySport => Some(Atom::Port(self.destination.port())),
            Field::CtOriginalDport => Some(Atom::Port(self.original.unwrap_or(self.destination).port())),
            Field::Mark => Some(Atom::Mark(self.mark)),
            Field::Priority => (self.priority.draws == 1).then_some(Atom::Priority(self.priority.first)),
            Field::Iif => self.interface.clone().map(Atom::Interface),
            Field::Numgen { .. } | Field::Oif => None,
        }
    }
}

fn asks_for_interface(statement: &Statement) -> bool {
    matches!(statement, Statement::IifPrefix(_) | Statement::Compare { field: Field::Iif, .. })
}
