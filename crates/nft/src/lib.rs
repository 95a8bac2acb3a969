//! The nftables language: typed tables, chains, sets, maps and rules; encoded to netlink messages, rendered as
//! `nft -f` text, and decoded from the kernel's dumps.
//!
//! ```text
//!   Table ── Rule::compile ──> Expr ──> Command ── Batch ──> bytes of one transaction
//!     │                         │
//!     └── Display: nft text     └── compared with <── Dumped <── dump messages
//!                                                     └── Dumped::table ──> Table
//! ```
//!
//! Knows neither Kubernetes nor sockets. Writing and reading are inverse: what [`Batch`] writes, [`Dumped`] reads back
//! equal, and whatever cannot be read faithfully is [`Expr::Unknown`], which equals nothing we would write.

mod batch;
mod bytes;
mod command;
mod compile;
mod declaration;
mod decompile;
mod dump;
mod element;
mod expr;
mod netlink;
mod statement;
mod table;
mod text;
mod userdata;
mod wire;

pub use batch::Batch;
pub use bytes::{Atom, Bytes, KeyType};
pub use command::Command;
pub use dump::{Malformed, Request, Subject, generation};
pub use element::{Element, Extra, Range, Value, Verdict};
pub use expr::{CmpOp, CtKey, Expr, MetaKey, PayloadBase, Reg};
pub use netlink::{Content, Message, messages};
pub use statement::{Field, Statement};
pub use table::{
    Base, Chain, ChainKind, Dumped, DumpedChain, DumpedRule, Hook, Name, Rule, Set, Table, TableFamily,
    TableId, ValueType,
};

#[cfg(test)]
mod tests;
