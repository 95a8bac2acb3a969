//! The facts that announcements depend on and that no single Service changes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_bgp::{PeerConfig, PeerName, Prefix, Route};
use portolan_model::{
    Advertisement, BgpAdvertisement, LabelSelector, Name, Node, ObjectId, Problem, Service, Snapshot, Source,
    TrafficPolicy, WhenNoEndpoints,
};

use super::{Reason, Specificity, Via};
use crate::{Classes, NodeView};

/// Withdraws every Service address of a node (A49).
const EXCLUDE_LABEL: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// Of one node: rebuild it when a node, a pool, a peer or an Advertisement changes. While it comes out equal, no Service is
/// announced otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Context {
    /// None when the Node object is gone: nothing is announced (A54).
    pub(super) node: Option<Arc<Node>>,
    pub(super) view: NodeView,
    pub(super) classes: Classes,
    pub(super) offers: Vec<Offer>,
    /// Why this node announces no Service address at all.
    pub(super) excluded: Option<Reason>,
}

/// One Advertisement, as this node sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Offer {
    advertisement: Arc<Advertisement>,
    /// None = any pool, even one that is gone (A22).
    pools: Option<BTreeSet<Name>>,
    pub selects_node: bool,
    pub sources: BTreeSet<Source>,
    external_ip_cidrs: Vec<IpNet>,
    pub when_no_endpoints: WhenNoEndpoints,
    aggregation: (u8, u8),
    /// None when no peer of this node is meant.
    pub via: Option<Arc<Via>>,
}

impl Context {
    /// `peers` are the sessions of this node ([`crate::peers::selected`]).
    pub fn new(
        snapshot: &Snapshot,
        me: &Name,
        classes: &Classes,
        peers: &BTreeMap<PeerName, PeerConfig>,
    ) -> Context {
        let node = snapshot.nodes.get(me).cloned();
        let peers: Vec<Name> = peers.keys().cloned().collect();
        let offer =
            |advertisement: Arc<Advertisement>| Offer::new(snapshot, node.as_deref(), &peers, advertisement);
        let offers = advertisements(snapshot).into_iter().filter_map(offer).collect();
        let excluded = node.as_deref().and_then(|node| excluded(snapshot, node));
        let view = NodeView { node: me.clone(), ..NodeView::default() };
        Context { node, view, classes: classes.clone(), offers, excluded }
    }

    pub(super) fn asks_for(&self, source: Source) -> bool {
        self.offers.iter().any(|offer| offer.sources.contains(&source))
    }

    /// The Advertisements that speak of this Service's addresses of one kind. `pool` is a load-balancer IP's.
    pub(super) fn matching(&self, service: &Service, source: Source, pool: Option<&Name>) -> Vec<&Offer> {
        let with_source = self.offers.iter().filter(|offer| offer.sources.contains(&source));
        with_source.filter(|offer| offer.matches(service, pool)).collect()
    }
}

impl Offer {
    /// None when nothing is to be announced by BGP.
    fn new(
        snapshot: &Snapshot,
        node: Option<&Node>,
        peers: &[Name],
        advertisement: Arc<Advertisement>,
    ) -> Option<Offer> {
        let bgp = advertisement.bgp.as_ref().filter(|_| !advertisement.disabled)?;
        let meant = |name: &&Name| bgp.peers.is_empty() || bgp.peers.contains(name);
        let peers: Vec<Name> = peers.iter().filter(meant).cloned().collect();
        let via = Via {
            specificity: specificity(&advertisement),
            advertisement: advertisement.name.clone(),
            peers,
            route: route(bgp),
        };
        Some(Offer {
            pools: pools(snapshot, &advertisement),
            selects_node: node
                .is_some_and(|node| LabelSelector::any(&advertisement.node_selectors, &node.labels)),
            sources: advertisement.sources.iter().copied().collect(),
            external_ip_cidrs: advertisement.external_ip_cidrs.clone(),
            when_no_endpoints: bgp.when_no_endpoints,
            aggregation: (bgp.aggregation_length, bgp.aggregation_length_v6),
            via: (!via.peers.is_empty()).then(|| Arc::new(via)),
            advertisement,
        })
    }

    pub fn matches(&self, service: &Service, pool: Option<&Name>) -> bool {
        let namespaces = &self.advertisement.namespaces;
        pool.is_none_or(|pool| self.pools.as_ref().is_none_or(|pools| pools.contains(pool)))
            && LabelSelector::any(&self.advertisement.service_selectors, &service.labels)
            && (namespaces.is_empty() || namespaces.contains(&service.id.namespace))
    }

    fn counts(&self, snapshot: &Snapshot, classes: &Classes) -> Counts {
        let selected =
            |node: &&Arc<Node>| LabelSelector::any(&self.advertisement.node_selectors, &node.labels);
        let nodes: Vec<_> = snapshot.nodes.values().filter(selected).collect();
        let mut prefixes = BTreeSet::new();
        let mut services = 0;
        for service in snapshot.services.values() {
            let before = prefixes.len();
            prefixes.extend(self.prefixes_of(snapshot, classes, service));
            services += usize::from(prefixes.len() > before);
        }
        if self.sources.contains(&Source::PodCidr) {
            prefixes.extend(nodes.iter().flat_map(|node| &node.pod_cidrs).copied());
        }
        if self.sources.contains(&Source::ServiceCidr) {
            prefixes.extend(snapshot.service_cidrs.values().flat_map(|object| &object.cidrs).copied());
        }
        let peers = self.via.as_ref().map_or(0, |via| via.peers.len());
        Counts { services, prefixes: prefixes.len(), nodes: nodes.len(), peers }
    }

    fn prefixes_of(&self, snapshot: &Snapshot, classes: &Classes, service: &Service) -> Vec<Prefix> {
        let spoken_of = |(source, address): &(Source, IpAddr)| {
            let pool = super::pool(classes, snapshot, service, *address);
            let ours = *source != Source::LoadBalancerIp || pool.is_some();
            let allowed = *source != Source::ExternalIp || self.allows(*address);
            self.sources.contains(source) && ours && allowed && self.matches(service, pool.as_ref())
        };
        let local = service.external_policy == TrafficPolicy::Local;
        super::addresses(service)
            .into_iter()
            .filter(spoken_of)
            .map(|(_, ip)| self.prefix(ip, local))
            .collect()
    }

    /// External IPs go out only where an administrator allowed them (A42, CVE-2020-8554).
    pub fn allows(&self, external_ip: IpAddr) -> bool {
        self.external_ip_cidrs.iter().any(|cidr| cidr.contains(&external_ip))
    }

    /// The aggregate that covers the address; policy Local needs the address itself to stand out (A46).
    pub fn prefix(&self, address: IpAddr, local: bool) -> Prefix {
        let host = IpNet::from(address);
        let length = match address {
            IpAddr::V4(_) => self.aggregation.0,
            IpAddr::V6(_) => self.aggregation.1,
        };
        if local { host } else { IpNet::new(address, length).map_or(host, |net| net.trunc()) }
    }
}

/// All Advertisements; where there is none, one that announces every load-balancer IP to every peer (vips.md 2.2).
fn advertisements(snapshot: &Snapshot) -> Vec<Arc<Advertisement>> {
    if snapshot.advertisements.is_empty() && !snapshot.peers.is_empty() {
        return vec![Arc::new(implicit())];
    }
    snapshot.advertisements.values().cloned().collect()
}

pub(super) fn implicit() -> Advertisement {
    Advertisement {
        name: "default".into(),
        pools: vec![],
        pool_selectors: vec![],
        service_selectors: vec![],
        namespaces: vec![],
        node_selectors: vec![],
        sources: vec![Source::LoadBalancerIp],
        external_ip_cidrs: vec![],
        disabled: false,
        bgp: Some(BgpAdvertisement::default()),
    }
}

fn specificity(advertisement: &Advertisement) -> Specificity {
    if !advertisement.service_selectors.is_empty() {
        Specificity::Services
    } else if !advertisement.pools.is_empty() || !advertisement.pool_selectors.is_empty() {
        Specificity::Pools
    } else {
        Specificity::All
    }
}

fn route(bgp: &BgpAdvertisement) -> Route {
    let communities: BTreeSet<_> = bgp.communities.iter().copied().collect();
    Route {
        med: bgp.med,
        local_pref: bgp.local_pref,
        prepend: bgp.as_path_prepend,
        communities: communities.into_iter().collect(),
        ..Route::default()
    }
}

/// Pools by name, and those that a selector matches.
fn pools(snapshot: &Snapshot, advertisement: &Advertisement) -> Option<BTreeSet<Name>> {
    if advertisement.pools.is_empty() && advertisement.pool_selectors.is_empty() {
        return None;
    }
    let selected = |labels| advertisement.pool_selectors.iter().any(|selector| selector.matches(labels));
    let by_label =
        snapshot.pools.values().filter(|pool| selected(&pool.labels)).map(|pool| pool.name.clone());
    Some(advertisement.pools.iter().cloned().chain(by_label).collect())
}

fn excluded(snapshot: &Snapshot, node: &Node) -> Option<Reason> {
    if node.network_unavailable {
        return Some(Reason::NetworkUnavailable); // A50
    }
    let labelled = |node: &Node| node.labels.at(EXCLUDE_LABEL).is_some();
    // Where every node is labelled the label would silence the cluster; it is ignored (A49).
    let all = || snapshot.nodes.values().all(|node| labelled(node));
    (labelled(node) && !all()).then_some(Reason::NodeExcluded)
}

/// What an Advertisement comes to in the whole cluster, for its status.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Services with an address that it speaks of.
    pub services: usize,
    pub prefixes: usize,
    /// Nodes that it selects.
    pub nodes: usize,
    pub peers: usize,
}

/// Counts of every Advertisement that announces by BGP, whether endpoints and kernels are ready or not.
pub fn counts(snapshot: &Snapshot, classes: &Classes) -> BTreeMap<Name, Counts> {
    let peers: Vec<Name> = snapshot.peers.keys().cloned().collect();
    let offers =
        snapshot.advertisements.values().filter_map(|a| Offer::new(snapshot, None, &peers, a.clone()));
    offers.map(|offer| (offer.advertisement.name.clone(), offer.counts(snapshot, classes))).collect()
}

/// Names in Advertisements that nothing bears; everything else in them holds.
pub fn problems(snapshot: &Snapshot) -> Vec<Problem> {
    snapshot.advertisements.values().flat_map(|advertisement| unresolved(snapshot, advertisement)).collect()
}

fn unresolved(snapshot: &Snapshot, advertisement: &Advertisement) -> Vec<Problem> {
    let problem = |field: String, kind: &str, name: &Name| Problem {
        object: ObjectId::cluster("Advertisement", advertisement.name.clone()),
        field,
        reason: "ReferenceNotFound",
        message: format!("there is no {kind} named {name:?}"),
    };
    let peers = advertisement.bgp.iter().flat_map(|bgp| bgp.peers.iter().enumerate());
    let peers = peers.filter(|(_, name)| !snapshot.peers.contains_key(*name));
    let peers = peers.map(|(i, name)| problem(format!("spec.bgp.peers[{i}]"), "BGPPeer", name));
    let pools =
        advertisement.pools.iter().enumerate().filter(|(_, name)| !snapshot.pools.contains_key(*name));
    let pools = pools.map(|(i, name)| problem(format!("spec.ipAddressPools[{i}]"), "IPAddressPool", name));
    peers.chain(pools).collect()
}
