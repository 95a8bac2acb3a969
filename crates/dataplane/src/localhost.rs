//! Node ports at loopback addresses that no relay serves (S22): where the kernel counts what it refused of them.

use portolan_model::Protocol;
use portolan_nft::{DumpedRule, Name};

use crate::layout;

/// A relay speaks TCP.
pub(crate) const PROTOCOLS: [Protocol; 2] = [Protocol::Udp, Protocol::Sctp];

/// The chain that counts.
pub fn chain() -> Name {
    layout::REFUSE_ON_LOCALHOST.into()
}

/// How many packets each protocol was refused, since the chain was last written.
pub fn refused(rules: &[DumpedRule]) -> impl Iterator<Item = (Protocol, u64)> {
    PROTOCOLS.into_iter().zip(rules.iter().map(|rule| rule.packets.unwrap_or_default()))
}
