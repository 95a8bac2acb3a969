//! Any text as a stream of API objects: `tests/scenarios/hostile` says what must hold.

#![no_main]

use libfuzzer_sys::fuzz_target;

#[allow(dead_code)]
#[path = "../../scenarios/hostile/mod.rs"]
mod hostile;

fuzz_target!(|text: &[u8]| hostile::check_text(text));
