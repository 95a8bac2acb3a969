//! Any bytes on a connection of a speaker, from its first message on, and once the session stands.

#![no_main]

use std::time::Instant;

use libfuzzer_sys::fuzz_target;

#[path = "../../../crates/bgp/tests/all/feed.rs"]
mod feed;

fuzz_target!(|bytes: &[u8]| {
    let now = Instant::now();
    feed::feed(&[bytes], now);
    feed::feed(&[&feed::greeting(), bytes], now);
});
