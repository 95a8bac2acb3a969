use std::fmt;

use crate::{Base, Element, Name, Rule, Set};

/// One change to one table. A transaction is a list of them for one [`TableId`](crate::TableId), applied whole or not at all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    /// No error when it is there.
    AddTable,
    /// With everything in it. Fails when it is not there: put `AddTable` before it.
    DeleteTable,
    /// No error when it is there and the same.
    AddChain {
        chain: Name,
        base: Option<Base>,
    },
    /// Must be empty and unused.
    DeleteChain {
        chain: Name,
    },
    /// Deletes the chain's rules.
    FlushChain {
        chain: Name,
    },
    /// At the end of the chain.
    AddRule {
        chain: Name,
        rule: Rule,
    },
    DeleteRule {
        chain: Name,
        handle: u64,
    },
    /// No error when it is there and the same.
    AddSet {
        name: Name,
        set: Set,
    },
    DeleteSet {
        name: Name,
    },
    /// Fails (EEXIST) when an element is there.
    AddElements {
        set: Name,
        elements: Vec<Element>,
    },
    /// Fails (ENOENT) when an element is missing. Values and timeouts are not looked at.
    DeleteElements {
        set: Name,
        elements: Vec<Element>,
    },
    /// Deletes all elements.
    FlushSet {
        set: Name,
    },
}

impl fmt::Display for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Command::AddTable => write!(f, "add table"),
            Command::DeleteTable => write!(f, "delete table"),
            Command::AddChain { chain, .. } => write!(f, "add chain {chain}"),
            Command::DeleteChain { chain } => write!(f, "delete chain {chain}"),
            Command::FlushChain { chain } => write!(f, "flush chain {chain}"),
            Command::AddRule { chain, .. } => write!(f, "add rule to chain {chain}"),
            Command::DeleteRule { chain, handle } => write!(f, "delete rule {handle} of chain {chain}"),
            Command::AddSet { name, .. } => write!(f, "add set {name}"),
            Command::DeleteSet { name } => write!(f, "delete set {name}"),
            Command::AddElements { set, elements } => {
                write!(f, "add {} elements to set {set}", elements.len())
            }
            Command::DeleteElements { set, elements } => {
                write!(f, "delete {} elements of set {set}", elements.len())
            }
            Command::FlushSet { set } => write!(f, "flush set {set}"),
        }
    }
}
