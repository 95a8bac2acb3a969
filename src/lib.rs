//! Portolan: everything that does IO. Decisions live in `crates/`; see ARCHITECTURE.md.

pub mod agent;
pub mod allocator;
pub mod cli;
pub mod config;
pub mod controller;
pub mod crds;
pub mod dataplane;
pub mod events;
pub mod health;
pub mod http;
pub mod lease;
pub mod localhost;
pub mod metrics;
pub mod offline;
pub mod reporter;
pub mod speaker;
pub mod status;
pub mod trace;
pub mod watch;
