//! From a [`Route`] to what one peer reads of it.

use std::net::IpAddr;

use crate::negotiate::Negotiated;
use crate::wire::{self, Origin, PathAttributes};
use crate::{Family, NextHop, PeerConfig, Route, Withheld};

/// Everything an UPDATE says of its prefixes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Outgoing {
    pub(crate) next_hop: IpAddr,
    pub(crate) attributes: PathAttributes,
}

/// The session a route goes out on.
pub(crate) struct Export<'a> {
    pub(crate) config: &'a PeerConfig,
    pub(crate) negotiated: &'a Negotiated,
    /// Our end of the connection.
    pub(crate) local: IpAddr,
}

impl Export<'_> {
    pub(crate) fn resolve(&self, family: Family, route: &Route) -> Result<Outgoing, Withheld> {
        if !self.negotiated.families.contains(&family) {
            return Err(Withheld::FamilyNotNegotiated);
        }
        let next_hop = self.next_hop(family, route.next_hop)?;
        let attributes = self.attributes(route);
        match wire::fits(&attributes, next_hop, self.negotiated.format) {
            true => Ok(Outgoing { next_hop, attributes }),
            false => Err(Withheld::TooLarge),
        }
    }

    fn next_hop(&self, family: Family, next_hop: NextHop) -> Result<IpAddr, Withheld> {
        match next_hop {
            NextHop::Address(address) if Family::of_address(&address) == family => Ok(address),
            NextHop::Address(_) => Err(Withheld::NextHopOfOtherFamily),
            NextHop::SelfAddress => self.self_address(family).ok_or(Withheld::NoNextHop),
        }
    }

    /// K13. A link-local end has no meaning beyond the link (RFC 2545 2), so it is the configured address then.
    fn self_address(&self, family: Family) -> Option<IpAddr> {
        let local = Some(self.local).filter(|ip| Family::of_address(ip) == family && !is_link_local(ip));
        let configured = match family {
            Family::Ipv4Unicast => self.config.local_v4.map(IpAddr::V4),
            Family::Ipv6Unicast => self.config.local_v6.map(IpAddr::V6),
        };
        local.or(configured)
    }

    /// RFC 4271 5.1.2, 5.1.5: our AS in front and no LOCAL_PREF for an external peer, the other way for an internal one.
    fn attributes(&self, route: &Route) -> PathAttributes {
        let mut communities = route.communities.clone();
        communities.sort_unstable();
        communities.dedup();
        let internal = self.negotiated.format.internal;
        PathAttributes {
            origin: Origin::Igp,
            as_path: if internal {
                Vec::new()
            } else {
                vec![self.config.local_asn; 1 + usize::from(route.prepend)]
            },
            med: route.med,
            local_pref: internal.then(|| route.local_pref.unwrap_or(100)),
            communities,
        }
    }
}

fn is_link_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}
