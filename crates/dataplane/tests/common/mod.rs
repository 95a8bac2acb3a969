//! What the tests share: `kernel` is nf_tables as far as we use it; `cluster` generates plans and events.

pub mod cluster;
pub mod kernel;
