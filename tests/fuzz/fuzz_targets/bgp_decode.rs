//! Any bytes as a message, in each format that two ends can agree on; and what decodes, encodes.

#![no_main]

use libfuzzer_sys::fuzz_target;
use portolan_bgp::wire::{Format, Message, frame};

fuzz_target!(|bytes: &[u8]| {
    let _ = frame(bytes);
    for (four_octet_as, internal) in [(true, false), (true, true), (false, false), (false, true)] {
        let format = Format { four_octet_as, internal };
        if let Ok(message) = Message::decode(bytes, format) {
            message.encode(format);
        }
    }
});
