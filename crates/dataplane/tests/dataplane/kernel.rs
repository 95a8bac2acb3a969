//! An interpreter of [`Command`]s that keeps nf_tables' rules: whole transactions, no duplicates, no dangling references.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use portolan_dataplane::{Dataplane, KernelState, Step, table_id};
use portolan_model::Family;
use portolan_nft::{
    Atom, Bytes, Chain, Command, Dumped, DumpedChain, DumpedRule, Element, Extra, Field, KeyType, Name,
    Statement, Table, Value, Verdict,
};

#[derive(Clone, Debug, Default)]
pub struct Kernel {
    tables: BTreeMap<Family, Loaded>,
    pub transactions: usize,
}

#[derive(Clone, Debug, Default)]
struct Loaded {
    sets: BTreeMap<Name, portolan_nft::Set>,
    elements: BTreeMap<Name, BTreeMap<Bytes, Element>>,
    chains: BTreeMap<Name, Chain>,
}

/// What a rule writes for a client: an element of `map`, with `frontend` behind the client in its key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    pub map: Name,
    pub frontend: Bytes,
    pub value: Bytes,
    pub timeout: Option<Duration>,
}

fn of_pair(field: &Field, pair: &[Atom]) -> Atom {
    match field {
        Field::CtOriginalDaddr => pair[0].clone(),
        Field::L4Proto => pair[1].clone(),
        Field::CtOriginalDport => pair[2].clone(),
        Field::Daddr => pair[3].clone(),
        Field::CtReplySport => pair[4].clone(),
        other => panic!("{other:?}"),
    }
}

fn family(step: &Step) -> Family {
    Family::ALL.into_iter().find(|family| table_id(*family) == step.table()).unwrap()
}

impl Kernel {
    /// Writes everything that is left to write; `after` sees the kernel after each transaction.
    pub fn write(&mut self, dataplane: &mut Dataplane, mut after: impl FnMut(&Kernel, &Kernel)) {
        for step in dataplane.steps() {
            let before = self.clone();
            self.apply(&step).unwrap_or_else(|error| panic!("{error}\n{:#?}", step.commands()));
            dataplane.applied(&step);
            after(&before, self);
        }
    }

    pub fn apply(&mut self, step: &Step) -> Result<(), String> {
        let family = family(step);
        let mut commands = step.commands();
        commands.extend(step.forget(&self.remembered(step)));
        self.commit(family, &commands)
    }

    /// What a step must see to forget.
    pub fn remembered(&self, step: &Step) -> BTreeMap<Name, Vec<Element>> {
        let elements = |map: &Name| self.elements(family(step), map).into_values().collect();
        step.forgets().into_iter().map(|map| (map.clone(), elements(&map))).collect()
    }

    /// A client comes to a frontend, and is remembered if it may be: for one of the endpoints that `choice` picks.
    pub fn remember(&mut self, family: Family, client: IpAddr, choice: usize) {
        let records = self.records(family);
        let Some(record) = records.get(choice % records.len().max(1)) else { return };
        let key = Bytes::new(&[&Bytes::concat(&[Atom::Address(client)])[..], &record.frontend].concat());
        let extra = Extra { timeout: record.timeout, expires: record.timeout, ..Extra::default() };
        let value = Value::Bytes(record.value.clone());
        let element = Element { key: key.clone(), value, extra: Some(Box::new(extra)) };
        let table = self.tables.get_mut(&family).unwrap();
        table.elements.get_mut(&record.map).unwrap().entry(key).or_insert(element);
    }

    /// All that may be remembered of a client: what the chains write that `affine` leads to.
    pub fn records(&self, family: Family) -> Vec<Record> {
        let types = [KeyType::Address, KeyType::Protocol, KeyType::Port, KeyType::Address, KeyType::Port];
        let affine = self.elements(family, "affine").into_values();
        let records = affine.map(|element| {
            let Value::Verdict(Verdict::Jump(chain)) = &element.value else { panic!("{element:?}") };
            let Some(Statement::Update { set, key, value, timeout }) =
                self.tables[&family].chains[chain].rules[0].statements.last()
            else {
                panic!("{chain}")
            };
            let pair = element.key.atoms(table_id(family).family, &types).unwrap();
            let bytes = |fields: &[Field]| {
                Bytes::concat(&fields.iter().map(|field| of_pair(field, &pair)).collect::<Vec<_>>())
            };
            assert_eq!(key[0], Field::Saddr);
            Record { map: set.clone(), frontend: bytes(&key[1..]), value: bytes(value), timeout: *timeout }
        });
        records.collect()
    }

    pub fn maps(&self, family: Family) -> Vec<Name> {
        self.tables.get(&family).iter().flat_map(|table| table.sets.keys().cloned()).collect()
    }

    pub fn commit(&mut self, family: Family, commands: &[Command]) -> Result<(), String> {
        let mut table = self.tables.get(&family).cloned();
        for command in commands {
            run(&mut table, command).map_err(|error| format!("{error} in {command:?}"))?;
        }
        if let Some(table) = &table {
            table.check()?;
        }
        match table {
            Some(table) => self.tables.insert(family, table),
            None => self.tables.remove(&family),
        };
        self.transactions += 1;
        Ok(())
    }

    pub fn observe(&self) -> KernelState {
        let dump = |family| self.tables.get(&family).map(|table| table.dump(family));
        KernelState { ipv4: dump(Family::Ipv4), ipv6: dump(Family::Ipv6) }
    }

    /// For the evaluator; None where the table is absent.
    pub fn table(&self, family: Family) -> Option<Table> {
        let loaded = self.tables.get(&family)?;
        let mut table = Table::new(table_id(family));
        table.sets = loaded.sets.clone();
        table.chains = loaded.chains.clone();
        let elements = loaded.elements.iter();
        table.elements =
            elements.map(|(name, set)| (name.clone(), set.values().cloned().collect())).collect();
        Some(table)
    }

    /// As packets would write them.
    pub fn set_elements(&mut self, family: Family, set: &str, elements: &[Element]) {
        let by_key = elements.iter().map(|element| (element.key.clone(), element.clone())).collect();
        self.tables.get_mut(&family).unwrap().elements.insert(set.into(), by_key);
    }

    pub fn elements(&self, family: Family, set: &str) -> BTreeMap<Bytes, Element> {
        self.tables.get(&family).and_then(|table| table.elements.get(set)).cloned().unwrap_or_default()
    }
}

/// The set that a statement names.
fn set(statement: &Statement) -> Option<&Name> {
    match statement {
        Statement::InSet { set, .. }
        | Statement::Vmap { map: set, .. }
        | Statement::Dnat { map: set, .. }
        | Statement::SetPriorityFrom { map: set, .. }
        | Statement::Update { set, .. } => Some(set),
        _ => None,
    }
}

/// A rule of the chain names the set.
pub fn names(chain: &Chain, name: &Name) -> bool {
    chain.rules.iter().flat_map(|rule| &rule.statements).any(|statement| set(statement) == Some(name))
}

fn run(slot: &mut Option<Loaded>, command: &Command) -> Result<(), String> {
    match command {
        Command::AddTable => {
            slot.get_or_insert_default();
            return Ok(());
        }
        Command::DeleteTable => return slot.take().map(|_| ()).ok_or("ENOENT".into()),
        _ => {}
    }
    let table = slot.as_mut().ok_or("ENOENT: no table")?;
    match command {
        Command::AddTable | Command::DeleteTable => Ok(()),
        Command::AddChain { chain, base } => {
            let known = table.chains.entry(chain.clone()).or_insert(Chain { base: *base, rules: Vec::new() });
            (known.base == *base).then_some(()).ok_or("EEXIST: another hook".into())
        }
        Command::DeleteChain { chain } => match table.chains.remove(chain) {
            Some(chain) if chain.rules.is_empty() => Ok(()),
            Some(_) => Err("EBUSY: it has rules".into()),
            None => Err("ENOENT".into()),
        },
        Command::FlushChain { chain } => table.chain(chain).map(|chain| chain.rules.clear()),
        Command::AddRule { chain, rule } => {
            table.check_rule(rule)?;
            table.chain(chain).map(|chain| chain.rules.push(rule.clone()))
        }
        Command::DeleteRule { .. } => Err("not written by the dataplane".into()),
        Command::AddSet { name, set } => {
            let known = table.sets.entry(name.clone()).or_insert(set.clone());
            table.elements.entry(name.clone()).or_default();
            (known == set).then_some(()).ok_or("EEXIST: another declaration".into())
        }
        Command::DeleteSet { name } => {
            table.elements.remove(name);
            let used = table.chains.values().any(|chain| names(chain, name));
            (!used).then_some(()).ok_or("EBUSY: a rule names it")?;
            table.sets.remove(name).map(|_| ()).ok_or("ENOENT".into())
        }
        Command::AddElements { set, elements } => elements.iter().try_for_each(|e| table.add(set, e)),
        Command::DeleteElements { set, elements } => elements.iter().try_for_each(|e| table.delete(set, e)),
        Command::FlushSet { set } => table.set(set).map(|set| set.clear()),
    }
}

impl Loaded {
    fn chain(&mut self, chain: &Name) -> Result<&mut Chain, String> {
        self.chains.get_mut(chain).ok_or(format!("ENOENT: chain {chain}"))
    }

    fn set(&mut self, set: &Name) -> Result<&mut BTreeMap<Bytes, Element>, String> {
        self.elements.get_mut(set).ok_or(format!("ENOENT: set {set}"))
    }

    fn add(&mut self, set: &Name, element: &Element) -> Result<(), String> {
        if let Value::Verdict(verdict) = &element.value {
            self.check_verdict(verdict)?;
        }
        match self.set(set)?.insert(element.key.clone(), element.clone()) {
            None => Ok(()),
            Some(_) => Err(format!("EEXIST: element {:?}", element.key)),
        }
    }

    fn delete(&mut self, set: &Name, element: &Element) -> Result<(), String> {
        self.set(set)?.remove(&element.key).map(|_| ()).ok_or(format!("ENOENT: element {:?}", element.key))
    }

    /// Nothing leads nowhere.
    fn check(&self) -> Result<(), String> {
        let rules = self.chains.values().flat_map(|chain| &chain.rules);
        rules.into_iter().try_for_each(|rule| self.check_rule(rule))?;
        self.elements.values().flat_map(BTreeMap::values).try_for_each(|element| match &element.value {
            Value::Verdict(verdict) => self.check_verdict(verdict),
            _ => Ok(()),
        })
    }

    fn check_rule(&self, rule: &portolan_nft::Rule) -> Result<(), String> {
        rule.statements.iter().try_for_each(|statement| match (statement, set(statement)) {
            (Statement::Verdict(verdict), _) => self.check_verdict(verdict),
            (_, Some(set)) => self.sets.contains_key(set).then_some(()).ok_or(format!("ENOENT: set {set}")),
            _ => Ok(()),
        })
    }

    fn check_verdict(&self, verdict: &Verdict) -> Result<(), String> {
        match verdict {
            Verdict::Jump(chain) | Verdict::Goto(chain) if !self.chains.contains_key(chain) => {
                Err(format!("EBUSY or ENOENT: chain {chain}"))
            }
            _ => Ok(()),
        }
    }

    fn dump(&self, family: Family) -> Dumped {
        let family = table_id(family).family;
        let rule = |rule: &portolan_nft::Rule| DumpedRule {
            handle: 1,
            exprs: rule.compile(family),
            packets: None,
            comment: rule.comment.clone(),
        };
        let chain = |(name, chain): (&Name, &Chain)| {
            (name.clone(), DumpedChain { base: chain.base, rules: chain.rules.iter().map(rule).collect() })
        };
        Dumped {
            sets: self.sets.clone(),
            // the kernel's order is a hash's, not ours
            elements: self
                .elements
                .iter()
                .map(|(n, set)| (n.clone(), set.values().rev().cloned().collect()))
                .collect(),
            chains: self.chains.iter().map(chain).collect(),
        }
    }
}
