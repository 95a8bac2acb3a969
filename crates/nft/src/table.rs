use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::{Element, Expr, KeyType, Statement};

/// A name of a table, chain, set or interface: cheap to clone.
pub type Name = Arc<str>;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TableFamily {
    Ip,
    Ip6,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TableId {
    pub family: TableFamily,
    pub name: Name,
}

/// A whole table, as wanted. Its [`Display`](fmt::Display) is `nft -f` text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    pub id: TableId,
    pub sets: BTreeMap<Name, Set>,
    /// Elements by set, in any order; sets without elements may be absent.
    pub elements: BTreeMap<Name, Vec<Element>>,
    pub chains: BTreeMap<Name, Chain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Chain {
    /// None: reached by jump or goto only.
    pub base: Option<Base>,
    pub rules: Vec<Rule>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub kind: ChainKind,
    pub hook: Hook,
    pub priority: i32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainKind {
    Filter,
    Nat,
    Route,
    /// Read from a dump, never written: a type, a hook or a policy that we do not use.
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
}

/// The declaration of a set (no value) or a map.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Set {
    pub key: Vec<KeyType>,
    pub value: Option<ValueType>,
    pub interval: bool,
    /// Rules add elements ([`Statement::Update`]). Give it a `size`.
    pub dynamic: bool,
    /// Elements may bring timeouts although the set has none (with `timeout` they always may).
    pub timeouts: bool,
    /// Of elements that bring none, in whole seconds.
    pub timeout: Option<Duration>,
    pub size: Option<u32>,
    /// At most 128 bytes, without double quotes and control characters.
    pub comment: Option<Name>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ValueType {
    Verdict,
    Concat(Vec<KeyType>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    pub statements: Vec<Statement>,
    /// At most 128 bytes, without double quotes and control characters.
    pub comment: Option<Name>,
}

/// A table as the kernel has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dumped {
    pub sets: BTreeMap<Name, Set>,
    /// By set, in the kernel's order.
    pub elements: BTreeMap<Name, Vec<Element>>,
    pub chains: BTreeMap<Name, DumpedChain>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DumpedChain {
    pub base: Option<Base>,
    pub rules: Vec<DumpedRule>,
}

/// Equals a wanted rule when `exprs == rule.compile(family)` and the comments are the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DumpedRule {
    pub handle: u64,
    pub exprs: Vec<Expr>,
    /// What its counter has counted; None where it has none.
    pub packets: Option<u64>,
    pub comment: Option<Name>,
}

impl TableFamily {
    pub fn address_len(self) -> usize {
        match self {
            TableFamily::Ip => 4,
            TableFamily::Ip6 => 16,
        }
    }
}

impl TableId {
    pub fn new(family: TableFamily, name: impl Into<Name>) -> Self {
        TableId { family, name: name.into() }
    }
}

impl Table {
    pub fn new(id: TableId) -> Self {
        Table { id, sets: BTreeMap::new(), elements: BTreeMap::new(), chains: BTreeMap::new() }
    }
}

impl Rule {
    pub fn new(statements: Vec<Statement>) -> Self {
        Rule { statements, comment: None }
    }

    pub fn commented(statements: Vec<Statement>, comment: impl Into<Name>) -> Self {
        Rule { statements, comment: Some(comment.into()) }
    }
}

impl DumpedRule {
    pub fn is(&self, rule: &Rule, family: TableFamily) -> bool {
        self.comment == rule.comment && self.exprs == rule.compile(family)
    }
}

impl fmt::Display for TableFamily {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TableFamily::Ip => "ip",
            TableFamily::Ip6 => "ip6",
        })
    }
}

impl fmt::Display for TableId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.family, self.name)
    }
}
