//! What a node must do with packets, in the kernel's words: ServicePlans in, transactions of nftables out.
//!
//! ```text
//!   ServicePlan ──> Claims ──> Wanted ──┐
//!                                       ├── diff ──> Change.. ──> Step.. ──> (the kernel)
//!   KernelState ──> Actual ─────────────┘                                        │
//!                     └──────────────── applied ─────────────────────────────────┘
//! ```
//!
//! Knows no Kubernetes policy (that is decided in ServicePlans) and no sockets. The cost of a change follows the change:
//! only keys that a Service touched are compared, and nothing is ever listed from the kernel for it.

mod actual;
mod chains;
mod change;
mod changes;
mod claims;
mod code;
mod dataplane;
mod entry;
mod evaluate;
mod gate;
mod key;
mod layout;
mod ledger;
pub mod localhost;
mod observe;
mod proxy;
mod shard;
mod step;
pub mod take_over;
mod target;

pub use dataplane::{Dataplane, KernelState, render};
pub use evaluate::{Candidate, Outcome, Packet, Trace, evaluate};
pub use layout::{Settings, table_id};
pub use step::{Limits, Step};

/// A map that was filled from one end has nodes that are half empty; made at once, they are full.
fn compact<K: Ord, V>(map: &mut std::collections::BTreeMap<K, V>) {
    *map = std::mem::take(map).into_iter().collect();
}
