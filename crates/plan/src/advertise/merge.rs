//! Many reasons to announce a prefix, one route per peer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portolan_bgp::{Prefix, Route};
use portolan_model::Name;

use super::{Announcement, Via};

/// What each peer is told.
pub type Routes = BTreeMap<Name, BTreeMap<Prefix, Route>>;

/// Joins announcements: a prefix stays as long as one of them names it (A44).
pub fn merge<'a>(announcements: impl IntoIterator<Item = &'a Announcement>) -> Routes {
    let mut vias: BTreeMap<Prefix, BTreeSet<&Arc<Via>>> = BTreeMap::new();
    for announcement in announcements {
        vias.entry(announcement.prefix).or_default().insert(&announcement.via);
    }
    let mut routes = Routes::new();
    for (prefix, vias) in vias {
        let peers: BTreeSet<&Name> = vias.iter().flat_map(|via| &via.peers).collect();
        for peer in peers {
            let towards = vias.iter().filter(|via| via.peers.contains(peer)).map(|via| &via.route);
            let told = routes.entry(peer.clone()).or_default();
            told.extend(join(towards).map(|route| (prefix, route)));
        }
    }
    routes
}

/// Communities are united; of every other attribute the most specific Advertisement's value holds (A45). The
/// routes come most specific first.
fn join<'a>(mut routes: impl Iterator<Item = &'a Route>) -> Option<Route> {
    let mut joined = routes.next()?.clone();
    for route in routes {
        joined.med = joined.med.or(route.med);
        joined.local_pref = joined.local_pref.or(route.local_pref);
        if joined.prepend == 0 {
            joined.prepend = route.prepend;
        }
        joined.communities.extend(&route.communities);
    }
    joined.communities.sort();
    joined.communities.dedup();
    Some(joined)
}
