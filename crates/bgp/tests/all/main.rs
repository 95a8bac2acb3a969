//! One test binary for the crate:
//!
//! - `pair`: two speakers, one virtual clock, links that can be cut; used by
//! - `sessions`: how sessions come up, go down, and carry routes;
//! - `fsm`: one speaker and a hand-made peer: every state with every message;
//! - `codec`: (bytes, value) tables used both ways, and malformed messages with what becomes of them;
//! - `golden`: messages recorded from real routers;
//! - `oracle`: random values against two independent codecs;
//! - `feed`: a speaker and what a peer may say to it, shared with the fuzzer;
//! - `noise`: any bytes at all (invariant 10), and the fuzzer's seeds.

mod codec;
mod feed;
mod fsm;
mod golden;
mod noise;
mod oracle;
mod pair;
mod sessions;

use std::time::Instant;

/// Where virtual time starts; the only look at the real clock.
#[allow(clippy::disallowed_methods)]
fn start_of_time() -> Instant {
    Instant::now()
}

fn prefix(text: &str) -> portolan_bgp::Prefix {
    text.parse().unwrap()
}
