//! One task that owns a [`portolan_bgp::Speaker`], its sockets and its clock.

use std::collections::BTreeMap;
use std::sync::Arc;

use portolan_bgp::{PeerConfig, PeerName, Prefix, Route, SessionStatus};

/// Everything the speaker should be doing; a newer one replaces it as a whole.
#[derive(Clone, Debug, Default)]
pub struct Intent {
    /// The writer's own count, echoed in [`SpeakerStatus::generation`].
    pub generation: u64,
    pub peers: BTreeMap<PeerName, PeerConfig>,
    /// Routes per peer; peers that are told the same share one map.
    pub routes: BTreeMap<PeerName, Arc<BTreeMap<Prefix, Route>>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct SpeakerStatus {
    /// The newest [`Intent`] all of whose updates and withdraws were written to the sockets of the sessions that
    /// are Established.
    pub generation: u64,
    pub sessions: BTreeMap<PeerName, SessionStatus>,
}
