//! Requests for what the kernel has, and reading its answers.

use std::time::Duration;

use portolan_netlink::{Attributes, Writer, flag, nfnetlink};

use crate::netlink::{SUBSYSTEM, msg};
use crate::{
    Base, Bytes, ChainKind, Dumped, DumpedChain, DumpedRule, Element, Expr, Extra, Hook, Name, Range, Set,
    TableId, Value, Verdict, userdata,
};

/// A question to the kernel. All but `Generation` and `Table` are answered by many objects and a [`Content::Done`].
///
/// [`Content::Done`]: crate::Content::Done
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request {
    /// Answered by an object that [`generation`] reads.
    Generation,
    /// Answered by an object, or by the error ENOENT.
    Table,
    Chains,
    Rules,
    /// Those of one chain.
    RulesOf(Name),
    Sets,
    /// The elements of one set.
    Elements(Name),
}

impl Request {
    pub fn encode(&self, table: &TableId, seq: u32) -> Vec<u8> {
        let (kind, flags) = match self {
            Request::Generation => (msg::GETGEN, 0),
            Request::Table => (msg::GETTABLE, 0),
            Request::Chains => (msg::GETCHAIN, flag::DUMP),
            Request::Rules | Request::RulesOf(_) => (msg::GETRULE, flag::DUMP),
            Request::Sets => (msg::GETSET, flag::DUMP),
            Request::Elements(_) => (msg::GETSETELEM, flag::DUMP),
        };
        let mut w = Writer::default();
        let header = nfnetlink(table.family.number(), 0);
        w.message(SUBSYSTEM << 8 | kind as u16, flags, seq, &header, |w| {
            if *self != Request::Generation {
                w.text(1, &table.name);
            }
            if let Request::Elements(name) | Request::RulesOf(name) = self {
                w.text(2, name);
            }
        });
        w.0
    }
}

/// The generation of the whole ruleset, from the answer to [`Request::Generation`]: it changes with every transaction.
pub fn generation(kind: u8, attributes: &[u8]) -> Option<u32> {
    (kind == msg::NEWGEN).then(|| Attributes(attributes).u32(1)).flatten()
}

/// What a message of nf_tables' monitor group speaks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subject<'a> {
    pub table: &'a str,
    /// Of a chain or a rule.
    pub chain: Option<&'a str>,
    /// It was made or changed, not deleted.
    pub added: bool,
}

impl<'a> Subject<'a> {
    /// None: not about an object in a table.
    pub fn read(kind: u8, attributes: &'a [u8]) -> Option<Subject<'a>> {
        let a = Attributes(attributes);
        let chain = match kind {
            msg::NEWCHAIN | msg::DELCHAIN => a.text(3),
            msg::NEWRULE | msg::DELRULE => a.text(2),
            msg::NEWGEN => return None,
            _ => None,
        };
        let added =
            matches!(kind, msg::NEWTABLE | msg::NEWCHAIN | msg::NEWRULE | msg::NEWSET | msg::NEWSETELEM);
        Some(Subject { table: a.text(1)?, chain, added })
    }
}

/// The kernel sent something that cannot be read: `what` says which part of which object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a dump of nf_tables holds {what}")]
pub struct Malformed {
    pub what: &'static str,
}

impl Dumped {
    /// Takes in one object of a dump; what belongs to other tables is passed over.
    pub fn read(
        &mut self,
        table: &TableId,
        kind: u8,
        family: u8,
        attributes: &[u8],
    ) -> Result<(), Malformed> {
        let a = Attributes(attributes);
        if family != table.family.number() || a.text(1) != Some(&table.name) {
            return Ok(());
        }
        match kind {
            msg::NEWCHAIN => self.read_chain(a),
            msg::NEWRULE => self.read_rule(a, table),
            msg::NEWSET => self.read_set(a, table),
            msg::NEWSETELEM => self.read_elements(a),
            _ => Ok(()),
        }
    }

    /// No element came twice. The kernel walks a hash table once for each part of a dump and passes over as many elements as it has
    /// sent; while the table grows or shrinks, which it does for some milliseconds after a large transaction, their order changes,
    /// and for each element that comes again another does not come at all. Not asked of sets that packets change meanwhile, or of
    /// ranges, which are in no hash table.
    pub fn is_whole(&self) -> bool {
        self.elements.iter().all(|(set, elements)| {
            let hashed = self.sets.get(set).is_none_or(|set| !set.interval && !set.dynamic && !set.timeouts);
            !hashed || all_differ(elements)
        })
    }

    fn read_chain(&mut self, a: Attributes) -> Result<(), Malformed> {
        let name = a.text(3).ok_or(Malformed { what: "a chain without a name" })?;
        let base = a.nest(4).map(|hook| Base::decode(hook, a));
        self.chains.entry(name.into()).or_default().base = base;
        Ok(())
    }

    fn read_rule(&mut self, a: Attributes, table: &TableId) -> Result<(), Malformed> {
        let chain = a.text(2).ok_or(Malformed { what: "a rule without a chain" })?;
        let handle = a.u64(3).ok_or(Malformed { what: "a rule without a handle" })?;
        let exprs = || a.nest(4).into_iter().flatten().map(|(_, expr)| Attributes(expr));
        let rule = DumpedRule {
            handle,
            exprs: exprs().map(|expr| Expr::decode(expr, table.family)).collect(),
            packets: exprs().find_map(Expr::counted),
            comment: a.get(7).and_then(|bytes| userdata::comment(bytes, userdata::RULE_COMMENT)),
        };
        match self.chains.get_mut(chain) {
            Some(known) => known.rules.push(rule),
            None => {
                self.chains.insert(chain.into(), DumpedChain { base: None, rules: vec![rule] });
            }
        }
        Ok(())
    }

    fn read_set(&mut self, a: Attributes, table: &TableId) -> Result<(), Malformed> {
        let name = a.text(2).ok_or(Malformed { what: "a set without a name" })?;
        self.sets.insert(name.into(), Set::decode(a, table.family));
        Ok(())
    }

    fn read_elements(&mut self, a: Attributes) -> Result<(), Malformed> {
        let set = a.text(2).ok_or(Malformed { what: "elements without a set" })?;
        if !self.elements.contains_key(set) {
            self.elements.insert(set.into(), Vec::new());
        }
        let (Some(list), Some(elements)) = (a.nest(3), self.elements.get_mut(set)) else { return Ok(()) };
        for (_, element) in list {
            elements.push(Element::decode(Attributes(element))?);
        }
        Ok(())
    }
}

#[expect(
    clippy::disallowed_types,
    reason = "it is asked, never gone through; sorted keys take three times as long"
)]
fn all_differ(elements: &[Element]) -> bool {
    let mut seen = std::collections::HashSet::with_capacity(elements.len());
    elements.iter().all(|element| seen.insert(&element.key))
}

impl Base {
    fn decode(hook: Attributes, chain: Attributes) -> Base {
        let at = Hook::ALL.into_iter().find(|h| hook.u32(1) == Some(h.number()));
        let kind = [ChainKind::Filter, ChainKind::Nat, ChainKind::Route]
            .into_iter()
            .find(|kind| chain.text(7) == Some(kind.name()));
        let accepts = chain.u32(5).is_none_or(|policy| policy == 1);
        Base {
            kind: kind.filter(|_| at.is_some() && accepts).unwrap_or(ChainKind::Other),
            hook: at.unwrap_or(Hook::Prerouting),
            priority: hook.u32(2).unwrap_or(0) as i32,
        }
    }
}

impl Element {
    fn decode(a: Attributes) -> Result<Element, Malformed> {
        let (mut key, mut value, mut flags, mut last) = (None, Value::None, 0, None);
        let (mut timeout, mut expires) = (None, None);
        let data = |payload| Attributes(payload).get(1);
        let number = |payload: &[u8]| payload.try_into().ok().map(u64::from_be_bytes);
        let duration = |payload| number(payload).filter(|ms| *ms != 0).map(Duration::from_millis);
        for (kind, payload) in a {
            match kind {
                1 => key = data(payload),
                2 => {
                    let unknown = Malformed { what: "an element's value of no known kind" };
                    value = Value::decode(Attributes(payload)).ok_or(unknown)?;
                }
                3 => flags = payload.try_into().map_or(0, u32::from_be_bytes),
                4 => timeout = duration(payload),
                5 => expires = duration(payload),
                10 => last = data(payload),
                _ => {}
            }
        }
        let key = key.ok_or(Malformed { what: "an element without a key" })?;
        let range = match flags & 1 != 0 {
            true => Some(Range::End),
            false => last.map(|last| Range::To(Bytes::new(last))),
        };
        let extra = Extra { range, timeout, expires };
        let extra = (extra != Extra::default()).then(|| Box::new(extra));
        Ok(Element { key: Bytes::new(key), value, extra })
    }
}

impl Value {
    fn decode(a: Attributes) -> Option<Value> {
        match a.nest(2) {
            Some(verdict) => Some(Value::Verdict(Verdict::decode(verdict)?)),
            None => Some(Value::Bytes(Bytes::new(a.get(1)?))),
        }
    }
}
