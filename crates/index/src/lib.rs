//! Folds Kubernetes objects into a [`model::Snapshot`](portolan_model::Snapshot).
//!
//! ```text
//!   Kubernetes object ──parse──> Object ──Change──> Index ──> Dirty: whom it touched
//!      (dropped here)            (model types)        │
//!                                                     └─────> Snapshot, once every kind was listed
//! ```
//!
//! Parsing happens at the door and cannot fail: what an object says wrong becomes a
//! [`Problem`](portolan_model::Problem) that names the object and the field, and costs nothing else. The snapshot is a
//! function of the objects that exist, whatever the order in which they came, with one exception that vips.md 2.0
//! asks for: an object of ours that turned invalid keeps meaning what it last validly said.
//!
//! No watches, no clients, no decisions: `src/watch.rs` feeds this, `plan` reads what comes out.

mod allocation;
mod change;
mod index;
mod manifest;
mod names;
mod node;
mod policy;
mod problems;
pub mod protobuf;
mod service;
mod slice;
mod slices;
mod text;

pub use change::{Change, Dirty, Key, Kind, Object, Seen};
pub use index::Index;
pub use manifest::ManifestError;
