//! What this node tells its peers, kept per Service so that a change costs what it touches.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use portolan_api as api;
use portolan_bgp::{PeerConfig, PeerName, Prefix};
use portolan_model::{Name, Problem, ServiceId, ServicePlan, Snapshot};
use portolan_plan::advertise::{self, Announcement, Announcements, Withheld};
use portolan_plan::{Classes, peers};

use crate::speaker::Intent;

/// The node's sessions and announcements.
pub struct Announcer {
    node: Name,
    asn: Option<u32>,
    classes: Classes,
    peers: BTreeMap<PeerName, PeerConfig>,
    context: Option<advertise::Context>,
    of_node: Vec<Announcement>,
    /// Only Services that have something to announce or to withhold.
    of_services: BTreeMap<ServiceId, Announcements>,
    generation: u64,
    /// What `of_services` withholds, until that changes.
    withheld: Option<Arc<Vec<api::Withheld>>>,
}

/// What comes of facts that no single Service decides.
pub struct Configured {
    /// Every Service must be [`announce`](Announcer::announce)d again, and the speaker be told.
    pub changed: bool,
    pub problems: Vec<Problem>,
}

impl Announcer {
    pub fn new(node: Name, asn: Option<u32>, classes: Classes) -> Announcer {
        Announcer {
            node,
            asn,
            classes,
            peers: BTreeMap::new(),
            context: None,
            of_node: Vec::new(),
            of_services: BTreeMap::new(),
            generation: 0,
            withheld: None,
        }
    }

    /// Takes over what no single Service decides.
    pub fn configure(&mut self, snapshot: &Snapshot) -> Configured {
        let (peers, problems) = peers::selected(snapshot, &self.node, self.asn);
        let context = advertise::Context::new(snapshot, &self.node, &self.classes, &peers);
        let of_node = advertise::node(&context, snapshot);
        let context = Some(context);
        let changed = (&self.peers, &self.of_node, &self.context) != (&peers, &of_node, &context);
        (self.peers, self.of_node, self.context) = (peers, of_node, context);
        Configured { changed, problems }
    }

    /// Decides anew for one Service; `programmed` is the plan of it that the kernel runs. Says whether anything changed.
    pub fn announce(
        &mut self,
        snapshot: &Snapshot,
        id: &ServiceId,
        programmed: Option<&ServicePlan>,
    ) -> bool {
        let Some(context) = &self.context else { return false };
        let service = snapshot.services.get(id);
        let announcements = service.map(|service| advertise::service(context, snapshot, service, programmed));
        let announcements = announcements.filter(|a| !a.routes.is_empty() || !a.withheld.is_empty());
        if announcements.as_ref() == self.of_services.get(id) {
            return false;
        }
        self.withheld = None;
        match announcements {
            Some(announcements) => self.of_services.insert(id.clone(), announcements),
            None => self.of_services.remove(id),
        };
        true
    }

    /// Everything the speaker should be doing now.
    pub fn intent(&mut self) -> Intent {
        let of_services = self.of_services.values().flat_map(|announcements| &announcements.routes);
        let routes = advertise::merge(self.of_node.iter().chain(of_services));
        self.generation += 1;
        Intent {
            generation: self.generation,
            shutdown: None,
            peers: self.peers.clone(),
            routes: routes.into_iter().map(|(peer, routes)| (peer, Arc::new(routes))).collect(),
        }
    }

    /// Addresses kept back, with the Service and the reason.
    pub fn withheld(&mut self) -> Arc<Vec<api::Withheld>> {
        let all = || {
            let of_services = self.of_services.iter();
            let entries = of_services.flat_map(|(id, of)| of.withheld.iter().map(|each| entry(id, each)));
            Arc::new(entries.collect())
        };
        self.withheld.get_or_insert_with(all).clone()
    }
}

fn entry(id: &ServiceId, withheld: &Withheld) -> api::Withheld {
    api::Withheld {
        ip: withheld.address.to_string(),
        service: Some(id.to_string()),
        reason: withheld.reason.to_string(),
        message: None,
    }
}

/// Prefixes that at least one peer is told.
#[derive(Clone, Debug, Default)]
pub struct Announced {
    /// In order.
    pub prefixes: Arc<Vec<Prefix>>,
    /// Those that `prefixes` have, of both families together.
    lengths: BTreeSet<u8>,
}

impl Announced {
    pub fn by(intent: &Intent) -> Announced {
        let all: BTreeSet<Prefix> =
            intent.routes.values().flat_map(|routes| routes.keys().copied()).collect();
        let lengths = all.iter().map(Prefix::prefix_len).collect();
        Announced { prefixes: Arc::new(all.into_iter().collect()), lengths }
    }

    /// Whether routers may be sending traffic for `ip` here.
    pub fn attracts(&self, ip: &IpAddr) -> bool {
        let covering = self.lengths.iter().filter_map(|length| Prefix::new(*ip, *length).ok());
        covering.into_iter().any(|prefix| self.prefixes.binary_search(&prefix.trunc()).is_ok())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_within_announced_prefixes_attract_traffic() {
        let prefix = |text: &str| text.parse::<Prefix>().unwrap();
        let told = ["192.0.2.16/28", "192.0.2.1/32", "2001:db8::/112"].map(prefix);
        let routes = told.into_iter().map(|prefix| (prefix, Default::default())).collect();
        let intent = Intent { routes: [("tor".into(), Arc::new(routes))].into(), ..Intent::default() };
        let announced = Announced::by(&intent);
        let attracts = |ip: &str| announced.attracts(&ip.parse().unwrap());
        assert!(["192.0.2.1", "192.0.2.16", "192.0.2.31", "2001:db8::ffff"].into_iter().all(attracts));
        assert!(!["192.0.2.2", "192.0.2.32", "2001:db8::1:0", "::"].into_iter().any(attracts));
    }
}
