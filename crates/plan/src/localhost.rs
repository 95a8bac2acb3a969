//! Node ports on loopback addresses: where a relay listens, and whom it asks (S22, KEP-6032).
//!
//! Rules cannot do it: a packet from a loopback address leaves the node in no other way than by `route_localnet`, which
//! opens the node's own services to its network.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_model::{
    Action, Address, Backend, Balance, Family, Name, Protocol, Service, ServiceId, ServicePlan,
};

/// What one listener serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    pub service: ServiceId,
    pub uid: Name,
    /// Never empty: without endpoints there is no listener.
    pub backends: Vec<Backend>,
    /// ClientIP affinity timeout (S41).
    pub affinity: Option<Duration>,
}

/// Which clients get the same endpoint again: all of one listener, since each of them is this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory(Option<(Backend, Instant)>);

impl Memory {
    /// The endpoint of a new connection; `draw` is any number, as good as random.
    pub fn choose(&mut self, listener: &Listener, draw: u64, now: Instant) -> Option<Backend> {
        let backends = &listener.backends;
        let remembers = |(_, at): &(Backend, Instant)| {
            listener.affinity.is_some_and(|timeout| now.saturating_duration_since(*at) < timeout)
        };
        let last = self.0.filter(remembers).map(|(backend, _)| backend);
        let any = || backends.get((draw % backends.len().max(1) as u64) as usize).copied();
        let chosen = last.filter(|last| backends.contains(last)).or_else(any);
        self.0 = chosen.map(|backend| (backend, now));
        chosen
    }
}

/// The listeners of all Services, kept up Service by Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listeners {
    /// The oldest Service that asks for an address has it.
    claims: BTreeMap<SocketAddr, BTreeMap<(i64, ServiceId), Arc<Listener>>>,
    /// Where each Service stands in `claims`.
    places: BTreeMap<ServiceId, (i64, Vec<SocketAddr>)>,
}

impl Listeners {
    /// A Service and its plan as they are now, None when it was removed. Says whether anything changed.
    pub fn set(
        &mut self,
        id: &ServiceId,
        now: Option<(&Service, &ServicePlan)>,
        loopback: &BTreeSet<IpAddr>,
    ) -> bool {
        let created = now.map_or(0, |(service, _)| service.created);
        let new: BTreeMap<SocketAddr, Arc<Listener>> = match now.filter(|_| !loopback.is_empty()) {
            Some((service, plan)) => listeners(service, plan, loopback).collect(),
            None => BTreeMap::new(),
        };
        let old = self.take(id);
        let changed = old != new.iter().map(|(at, listener)| (*at, (created, listener.clone()))).collect();
        if !new.is_empty() {
            self.places.insert(id.clone(), (created, new.keys().copied().collect()));
        }
        for (at, listener) in new {
            self.claims.entry(at).or_default().insert((created, id.clone()), listener);
        }
        changed
    }

    fn take(&mut self, id: &ServiceId) -> BTreeMap<SocketAddr, (i64, Arc<Listener>)> {
        let Some((created, places)) = self.places.remove(id) else { return BTreeMap::new() };
        let mut taken = BTreeMap::new();
        for at in places {
            let Some(claims) = self.claims.get_mut(&at) else { continue };
            taken.extend(claims.remove(&(created, id.clone())).map(|listener| (at, (created, listener))));
            if claims.is_empty() {
                self.claims.remove(&at);
            }
        }
        taken
    }

    /// What is to be listened on, in order.
    pub fn iter(&self) -> impl Iterator<Item = (SocketAddr, &Arc<Listener>)> {
        self.claims.iter().filter_map(|(at, claims)| Some((*at, claims.values().next()?)))
    }

    pub fn get(&self, at: &SocketAddr) -> Option<&Arc<Listener>> {
        self.claims.get(at)?.values().next()
    }
}

/// A node port on a loopback address follows externalTrafficPolicy as if the client were outside: policy Local means
/// endpoints of this node, although the node itself is short-circuited elsewhere (S45).
fn listeners(
    service: &Service,
    plan: &ServicePlan,
    loopback: &BTreeSet<IpAddr>,
) -> impl Iterator<Item = (SocketAddr, Arc<Listener>)> {
    let node_ports = plan.frontends.iter().filter_map(|(frontend, forwarding)| {
        let Address::NodePort(family) = frontend.address else { return None };
        let Action::Balance(balance) = &forwarding.from_outside else { return None };
        (frontend.protocol == Protocol::Tcp).then_some((family, frontend.port, balance))
    });
    node_ports.flat_map(move |(family, port, balance)| {
        let addresses = loopback.iter().filter(move |ip| Family::of(ip) == family);
        addresses.map(move |ip| (SocketAddr::new(*ip, port), Arc::new(listener(service, balance))))
    })
}

fn listener(service: &Service, balance: &Balance) -> Listener {
    let (backends, affinity) = (balance.backends.to_vec(), balance.affinity);
    Listener { service: service.id.clone(), uid: service.uid.clone(), backends, affinity }
}

#[cfg(test)]
mod tests;
