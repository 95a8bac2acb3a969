//! Our kernel interfaces against the real kernel, each test in a network namespace of its own (needs root), or in a guest kernel.
//!
//! - `ruleset`: one table with everything we can say; what we write, dump, render and nft(8) lists is the same
//! - `transactions`: all or nothing, and which command was refused
//! - `conntrack`: entries are read as the kernel has them, and deleted one by one
//! - `routes`: ours come, change and go; others stay
//! - `take_over`: a kube-proxy's leftovers go; others stay
//! - `guest`: what the host's kernel may lack, in one that has it: the leftovers of kube-proxy's IPVS mode

#[path = "kernel/conntrack.rs"]
mod conntrack;
#[path = "kernel/guest.rs"]
mod guest;
#[path = "kernel/namespace.rs"]
mod namespace;
#[path = "kernel/routes.rs"]
mod routes;
#[path = "kernel/ruleset.rs"]
mod ruleset;
#[path = "kernel/take_over.rs"]
mod take_over;
#[path = "kernel/transactions.rs"]
mod transactions;
