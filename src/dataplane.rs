//! The kernel's side of the dataplane: one small file per kernel interface.

pub mod addresses;
pub mod nft;
pub mod routes;
