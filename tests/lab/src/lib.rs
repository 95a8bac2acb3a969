//! The lab: a whole cluster on one machine, in network namespaces, of real parts.
//!
//! ```text
//!   client ── router (BIRD or FRR) ── fabric ─┬─ cp   etcd, kube-apiserver, controller-manager, scheduler, controllers
//!                                             ├─ n1   agent, pods
//!                                             ├─ n2   agent, pods
//!                                             └─ n3   agent, pods
//! ```
//!
//! [`Lab::up`] brings it up in this process, [`testing::in_lab`] shares one among the tests of a test binary, and the program
//! `portolan-lab` holds one for a person. Only the kubelet is a stand-in ([`kubelet`]); nothing is mocked. The host's own
//! network is not touched: the API server is reached through a relay on its loopback, and everything else is inside. When the
//! process that holds a lab ends, in whatever way, a guard removes what is left.

mod apt;
pub mod binaries;
pub mod cache;
pub mod control_plane;
pub mod demo;
pub mod guest;
pub mod held;
pub mod kube_proxy;
pub mod kubelet;
pub mod lab;
pub mod monitor;
pub mod netns;
pub mod nft;
pub mod pki;
pub mod pod_server;
pub mod probe;
pub mod process;
pub mod product;
mod relay;
pub mod router;
pub mod site;
pub mod testing;
pub mod topology;
pub mod wait;

pub use lab::{Lab, Options};
pub use pod_server::Answer;
pub use router::{Router, RouterKind};
pub use site::Site;
pub use wait::wait_for;
