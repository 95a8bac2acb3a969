//! What follows from two OPENs (RFC 4271 6.2, RFC 5492, RFC 6286).

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::wire::{Capability, Format, Message, Notification, Open};
use crate::{Family, PeerConfig};

/// What the two ends agreed on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Negotiated {
    pub(crate) peer_asn: u32,
    pub(crate) peer_router_id: Ipv4Addr,
    /// Zero: no hold timer and no KEEPALIVEs.
    pub(crate) hold_time: Duration,
    pub(crate) keepalive: Duration,
    pub(crate) families: Vec<Family>,
    pub(crate) route_refresh: bool,
    pub(crate) format: Format,
}

/// Until there is an agreement; nothing but an UPDATE depends on it.
pub(crate) const BEFORE_OPEN: Format = Format { four_octet_as: true, internal: false };

pub(crate) fn our_open(config: &PeerConfig) -> Message {
    Message::Open(Open::new(config.local_asn, hold_time_secs(config), config.router_id, &config.families))
}

/// The NOTIFICATION says why there can be no session with a peer that says this.
pub(crate) fn negotiate(config: &PeerConfig, open: &Open) -> Result<Negotiated, Notification> {
    let peer_asn = open.asn();
    if !config.peer_asn.accepts(peer_asn, config.local_asn) {
        return Err(Notification::BAD_PEER_AS);
    }
    let internal = peer_asn == config.local_asn;
    // RFC 6286 2.1, 2.2: unique within an AS, and not zero.
    if open.router_id.is_unspecified() || (internal && open.router_id == config.router_id) {
        return Err(Notification::BAD_BGP_IDENTIFIER);
    }
    if matches!(open.hold_time_secs, 1 | 2) {
        return Err(Notification::UNACCEPTABLE_HOLD_TIME);
    }
    let families: Vec<_> = config.families.iter().copied().filter(|family| open.carries(*family)).collect();
    if families.is_empty() {
        let missing = config.families.iter().copied().map(Capability::Multiprotocol).collect::<Vec<_>>();
        return Err(Notification::unsupported_capability(Capability::encode_all(&missing)));
    }
    let hold_time = Duration::from_secs(hold_time_secs(config).min(open.hold_time_secs).into());
    Ok(Negotiated {
        peer_asn,
        peer_router_id: open.router_id,
        hold_time,
        keepalive: keepalive(config, hold_time),
        families,
        route_refresh: open.route_refresh(),
        format: Format { four_octet_as: open.four_octet_as().is_some(), internal },
    })
}

/// A third of the hold time (RFC 4271 4.4), and not more often than once a second.
fn keepalive(config: &PeerConfig, hold_time: Duration) -> Duration {
    let third = hold_time / 3;
    config.keepalive.map_or(third, |keepalive| keepalive.max(Duration::from_secs(1)).min(third))
}

/// RFC 4271 4.2: zero, or at least three seconds.
fn hold_time_secs(config: &PeerConfig) -> u16 {
    let secs = u16::try_from(config.hold_time.as_secs()).unwrap_or(u16::MAX);
    if config.hold_time.is_zero() { 0 } else { secs.max(3) }
}
