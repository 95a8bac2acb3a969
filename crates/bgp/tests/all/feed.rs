//! A speaker and what a peer may say to it; shared with the fuzz target `bgp_speaker`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_bgp::wire::{Format, Message, Open};
use portolan_bgp::{Action, ConnId, Family, PeerAsn, PeerConfig, Route, Routes, Speaker};

pub const FORMAT: Format = Format { four_octet_as: true, internal: false };

/// A passive speaker with routes to tell, on a connection that says `input`, and then nothing for long.
pub fn feed(input: &[&[u8]], now: Instant) {
    let remote = ([10, 0, 0, 2], 40000).into();
    let mut config = PeerConfig::new("peer", remote, 64512, PeerAsn::Number(64513), [10, 0, 0, 1].into());
    config.passive = true;
    let routes: Routes =
        ["192.0.2.10/32", "10.244.1.0/24"].map(|prefix| (prefix.parse().unwrap(), Route::default())).into();
    let mut speaker = Speaker::new();
    speaker.set_routes(BTreeMap::from([(config.name.clone(), Arc::new(routes))]), now);
    speaker.set_peers(BTreeMap::from([(config.name.clone(), config)]), now);
    let conn = ConnId::Accepted(1);
    speaker.handle_connected(conn, ([10, 0, 0, 1], 179).into(), remote, now);
    for bytes in input {
        speaker.handle_input(conn, bytes, now);
        act(&mut speaker, now);
    }
    let later = now + Duration::from_secs(1000);
    speaker.handle_timeout(later);
    act(&mut speaker, later);
    speaker.sessions();
}

fn act(speaker: &mut Speaker, now: Instant) {
    while let Some(action) = speaker.poll_action() {
        if let Action::Send { conn, .. } = action {
            speaker.handle_sent(conn, now);
            speaker.handle_timeout(now);
        }
    }
}

/// What brings the session up.
pub fn greeting() -> Vec<u8> {
    let open = Open::new(64513, 90, [10, 0, 0, 2].into(), &Family::ALL);
    [Message::Open(open), Message::Keepalive].map(|message| message.encode(FORMAT)).concat()
}
