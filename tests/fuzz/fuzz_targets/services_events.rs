//! Streams of API objects that are nearly right: `tests/scenarios/hostile` says what must hold.

#![no_main]

use arbitrary::Unstructured;
use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../scenarios/hostile/mod.rs"]
mod hostile;

fuzz_target!(|bytes: &[u8]| {
    let mut u = Unstructured::new(bytes);
    let mut events = Vec::new();
    while let (false, Ok(event)) = (u.is_empty() || events.len() >= 12, hostile::words::event(&mut u)) {
        events.push(event);
    }
    hostile::check(&events);
});
