//! What this node tells its BGP peers, and for every address that it keeps to itself, why (A36–A50).
//!
//! Work per event is small: [`Context`] holds the facts of the node and of the configuration and is rebuilt when
//! those change; [`service`] depends on one Service alone; [`merge`] joins what all of them say.

mod context;
mod merge;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use portolan_bgp::{Prefix, Route};
use portolan_model::{
    Action, Address, AllocationPhase, Family, Frontend, IpMode, Name, Service, ServicePlan, ServiceType,
    Snapshot, Source, TrafficPolicy, WhenNoEndpoints,
};

pub use context::{Context, Counts, counts, problems};
pub use merge::{Routes, merge};

use crate::Classes;
use crate::endpoints::{self, Usable};
use crate::service::is_external_local;
use context::Offer;

/// How one Advertisement announces from this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Via {
    /// Most specific first (A45).
    pub specificity: Specificity,
    pub advertisement: Name,
    /// Peers that this node has a session with; never empty.
    pub peers: Vec<Name>,
    pub route: Route,
}

/// Whose scalar attributes win when several Advertisements announce one prefix (A45).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Specificity {
    Services,
    Pools,
    All,
}

/// A prefix announced on behalf of one Service, or of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Announcement {
    pub prefix: Prefix,
    pub via: Arc<Via>,
}

/// Why an address is not announced from here; in the order in which reasons are looked for (A36).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reason {
    /// The load-balancer IP is not one that we allocated to this Service.
    NotOurs,
    AdvertisementMissing,
    /// Outside every Advertisement's externalIPCIDRs (A42).
    ExternalIpNotAllowed,
    NodeNotSelected,
    /// Label node.kubernetes.io/exclude-from-external-load-balancers (A49).
    NodeExcluded,
    /// A50.
    NetworkUnavailable,
    PolicyLocalNoEndpoint,
    NoEndpoints,
    /// The kernel does not serve it yet (invariant 7).
    DataplaneNotReady,
    NoPeerSelected,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::ExternalIpNotAllowed => f.write_str("ExternalIPNotAllowed"),
            reason => fmt::Debug::fmt(reason, f),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Withheld {
    pub address: IpAddr,
    pub reason: Reason,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Announcements {
    pub routes: Vec<Announcement>,
    /// Load-balancer IPs that are not announced, and ClusterIPs and external IPs that an Advertisement asks for.
    pub withheld: Vec<Withheld>,
}

/// What this node announces for one Service. `programmed` is the plan of the Service that the kernel runs now, None
/// when it runs none: an address goes out only while the kernel balances at least one of its usable ports
/// (invariant 7, A61), so that a port added to a live Service does not take its address away.
pub fn service(
    context: &Context,
    snapshot: &Snapshot,
    service: &Service,
    programmed: Option<&ServicePlan>,
) -> Announcements {
    let mut out = Announcements::default();
    for (source, address) in addresses(service) {
        if source != Source::LoadBalancerIp && !context.asks_for(source) {
            continue;
        }
        match announce(context, snapshot, service, source, address, programmed) {
            Ok(routes) => out.routes.extend(routes),
            Err(reason) => out.withheld.push(Withheld { address, reason }),
        }
    }
    out
}

/// The routes that do not depend on any Service: podCIDRs (A43) and ServiceCIDRs (A41).
pub fn node(context: &Context, snapshot: &Snapshot) -> Vec<Announcement> {
    let Some(me) = &context.node else { return Vec::new() };
    let mut routes = Vec::new();
    for offer in context.offers.iter().filter(|offer| offer.selects_node) {
        let Some(via) = &offer.via else { continue };
        let mut announce =
            |prefix: &Prefix| routes.push(Announcement { prefix: prefix.trunc(), via: via.clone() });
        if offer.sources.contains(&Source::PodCidr) {
            me.pod_cidrs.iter().for_each(&mut announce);
        }
        if offer.sources.contains(&Source::ServiceCidr) && context.excluded.is_none() {
            snapshot.service_cidrs.values().flat_map(|cidr| &cidr.cidrs).for_each(&mut announce);
        }
    }
    routes
}

/// Every address of a Service that an Advertisement can speak of; those of ipMode Proxy are not ours (A37).
fn addresses(service: &Service) -> Vec<(Source, IpAddr)> {
    let balanced = service.kind == ServiceType::LoadBalancer;
    let ingress = service.ingress.iter().filter(|ingress| balanced && ingress.mode == IpMode::Vip);
    let load_balancer = ingress.map(|ingress| (Source::LoadBalancerIp, ingress.ip));
    let cluster = service.cluster_ips.iter().map(|ip| (Source::ClusterIp, *ip));
    let external = service.external_ips.iter().map(|ip| (Source::ExternalIp, *ip));
    load_balancer.chain(cluster).chain(external).collect()
}

fn announce(
    context: &Context,
    snapshot: &Snapshot,
    service: &Service,
    source: Source,
    address: IpAddr,
    programmed: Option<&ServicePlan>,
) -> Result<Vec<Announcement>, Reason> {
    let pool = match source {
        Source::LoadBalancerIp => {
            Some(pool(&context.classes, snapshot, service, address).ok_or(Reason::NotOurs)?)
        }
        _ => None,
    };
    let offers = context.matching(service, source, pool.as_ref());
    let offers = some(offers, Reason::AdvertisementMissing)?;
    let offers = some(allowed(offers, source, address), Reason::ExternalIpNotAllowed)?;
    let offers = some(offers.into_iter().filter(|o| o.selects_node).collect(), Reason::NodeNotSelected)?;
    if let Some(reason) = context.excluded {
        return Err(reason);
    }
    let reach = Reach::of(context, service, source, address, programmed);
    let offers = reach.filter(offers)?;
    let vias: Vec<_> = offers.iter().filter_map(|offer| Some((*offer, offer.via.as_ref()?))).collect();
    let vias = some(vias, Reason::NoPeerSelected)?;
    let announcement = |(offer, via): (&Offer, &Arc<Via>)| Announcement {
        prefix: offer.prefix(address, reach.local),
        via: via.clone(),
    };
    Ok(vias.into_iter().map(announcement).collect())
}

fn some<T>(values: Vec<T>, otherwise: Reason) -> Result<Vec<T>, Reason> {
    if values.is_empty() { Err(otherwise) } else { Ok(values) }
}

/// The pool of an address that is allocated to this Service, of our class and by its uid.
fn pool(classes: &Classes, snapshot: &Snapshot, service: &Service, address: IpAddr) -> Option<Name> {
    let allocation = snapshot.allocations.get(&address)?;
    let owned = allocation.owners.iter().any(|owner| owner.service == service.id && owner.uid == service.uid);
    let ours = classes.own(service) && owned && allocation.phase == AllocationPhase::Bound;
    ours.then(|| allocation.pool.clone())
}

fn allowed(offers: Vec<&Offer>, source: Source, address: IpAddr) -> Vec<&Offer> {
    match source {
        Source::ExternalIp => offers.into_iter().filter(|offer| offer.allows(address)).collect(),
        _ => offers,
    }
}

/// What a packet to one address would meet on this node.
struct Reach {
    /// The deciding policy is Local.
    local: bool,
    /// An endpoint is usable in the policy's scope.
    usable: bool,
    /// An endpoint is usable anywhere.
    anywhere: bool,
    /// The kernel sends outside clients to a backend, on a port whose endpoints are usable.
    balanced: bool,
    /// The kernel knows a port of the address, if only to refuse.
    known: bool,
}

impl Reach {
    fn of(
        context: &Context,
        service: &Service,
        source: Source,
        address: IpAddr,
        programmed: Option<&ServicePlan>,
    ) -> Reach {
        let mut reach = Reach { local: false, usable: false, anywhere: false, balanced: false, known: false };
        for port in &service.ports {
            let usable = endpoints::usable(service, port, Family::of(&address), &context.view);
            let local = is_local(service, source, &usable);
            let here = if local { !usable.local.is_empty() } else { !usable.cluster.is_empty() };
            let frontend =
                Frontend { address: Address::Vip(address), protocol: port.protocol, port: port.port };
            let forwarding = programmed.and_then(|plan| plan.frontends.get(&frontend));
            let balances = forwarding.is_some_and(|f| matches!(f.from_outside, Action::Balance(_)));
            reach.local |= local;
            reach.usable |= here;
            reach.anywhere |= !usable.cluster.is_empty();
            reach.balanced |= here && balances;
            reach.known |= forwarding.is_some();
        }
        reach
    }

    /// The offers that hold for this reach; an Advertisement may keep an address without endpoints (A40).
    fn filter<'a>(&self, offers: Vec<&'a Offer>) -> Result<Vec<&'a Offer>, Reason> {
        match (self.usable, self.anywhere) {
            (true, _) if self.balanced => Ok(offers),
            (true, _) => Err(Reason::DataplaneNotReady),
            (false, true) => Err(Reason::PolicyLocalNoEndpoint), // A39
            (false, false) => {
                let keep = |offer: &&Offer| offer.when_no_endpoints == WhenNoEndpoints::Keep;
                let kept = some(offers.into_iter().filter(keep).collect(), Reason::NoEndpoints)?;
                if self.known { Ok(kept) } else { Err(Reason::DataplaneNotReady) }
            }
        }
    }
}

/// ClusterIPs follow internalTrafficPolicy (A41), all else externalTrafficPolicy (A39).
fn is_local(service: &Service, source: Source, usable: &Usable) -> bool {
    match source {
        Source::ClusterIp => service.internal_policy == TrafficPolicy::Local,
        _ => is_external_local(service, usable),
    }
}
