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
        }
    }

    /// Takes over what no single Service decides; every Service must be [`announce`](Self::announce)d after it.
    pub fn configure(&mut self, snapshot: &Snapshot) -> Vec<Problem> {
        let (peers, problems) = peers::selected(snapshot, &self.node, self.asn);
        let context = advertise::Context::new(snapshot, &self.node, &self.classes, &peers);
        self.of_node = advertise::node(&context, snapshot);
        self.peers = peers;
        self.context = Some(context);
        problems
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
    pub fn withheld(&self) -> Vec<api::Withheld> {
        let of_service = |(id, announcements): (&ServiceId, &Announcements)| -> Vec<api::Withheld> {
            announcements.withheld.iter().map(|withheld| entry(id, withheld)).collect()
        };
        self.of_services.iter().flat_map(of_service).collect()
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

/// Prefixes that at least one peer is told, in order.
pub fn prefixes(intent: &Intent) -> Vec<Prefix> {
    let all: BTreeSet<Prefix> = intent.routes.values().flat_map(|routes| routes.keys().copied()).collect();
    all.into_iter().collect()
}

/// Whether routers may be sending traffic for `ip` here because of one of `prefixes` (sorted or not).
pub fn attracts(prefixes: &[Prefix], ip: &IpAddr) -> bool {
    prefixes.iter().any(|prefix| prefix.contains(ip))
}
