//! The kernel's connection tracking, as far as a Service proxy touches it: entries read and deleted over ctnetlink, and the
//! settings that a node gets; and IPVS with its sets, whose leftovers a take-over removes.
//!
//! ```text
//!   dump(family, protocol) ──> bytes ... bytes ──answers──> Flow ──delete(flow)──> bytes
//!   Tuning + cores ──> sysctl::wanted ──> files and numbers
//!   ipvs::servers ──> bytes ... bytes ──ipvs::answers──> Server ──ipvs::delete──> bytes
//! ```
//!
//! Knows neither Kubernetes nor sockets. Which entries are to go is decided elsewhere.

mod answer;
mod flow;
pub mod ipvs;
pub mod sysctl;

pub use answer::{Answer, Content, answers};
pub use flow::{Flow, Tuple, delete, dump};
