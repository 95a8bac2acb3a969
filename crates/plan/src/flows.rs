//! Which tracked connections no longer lead where their Service does (S51–S53).
//!
//! An established flow runs no rule, so a UDP client that never pauses would go on to a pod that is gone. Here only the
//! flows are named; policies and topology count for nothing, because a flow that was let through stays.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use portolan_model::{
    Action, Address, Backend, Endpoint, Family, Frontend, Protocol, Service, ServiceId, ServicePlan,
    ServicePort,
};

/// Remembers where flows of each programmed frontend may lead. Call [`set`](Flows::set) when a Service was programmed
/// (or may have other endpoints now), delete what [`stale`](Flows::stale) condemns, then call [`cleaned`](Flows::cleaned).
///
/// UDP ends that go without notice are spared for [`GRACE`](Flows::GRACE): a request may have reached one that serves on (its
/// pod became unready, say), and without its flow the answer would not find back. When
/// [`poll_timeout`](Flows::poll_timeout) has passed, [`stale`](Flows::stale) condemns them too.
///
/// A new one knows nothing, so that the first cleaning looks at every UDP frontend: endpoints may have changed while
/// no agent ran.
#[derive(Debug, Default)]
pub struct Flows {
    /// S53: flows of TCP as well.
    tcp: bool,
    services: BTreeMap<ServiceId, BTreeMap<Frontend, Ends>>,
    /// Services may claim one frontend together: a flow to an endpoint of any of them stays.
    claimed: BTreeMap<Frontend, BTreeSet<ServiceId>>,
    due: BTreeMap<Frontend, BTreeSet<Backend>>,
    /// Until when UDP flows to ends that went without notice are spared.
    spared: BTreeMap<Frontend, BTreeMap<Backend, Instant>>,
}

/// The far ends that a frontend's flows may have, each with whether it may go without notice: an endpoint that was not
/// terminating.
type Ends = BTreeMap<Backend, bool>;

/// The flows that are to be deleted, by their frontend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stale(BTreeMap<Frontend, Fate>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Fate {
    /// All but those to these ends. `served`: there is a rule for new flows, so one that was never translated goes too (S52).
    AllBut { ends: BTreeSet<Backend>, served: bool },
    /// Those to these ends.
    Only(BTreeSet<Backend>),
}

impl Flows {
    /// Longer than even a busy pod takes to answer; little beside the time in which a cluster notices that a node is gone.
    pub const GRACE: Duration = Duration::from_secs(2);

    /// `tcp`: also condemn TCP flows to endpoints that went without having been terminating (S53).
    pub fn new(tcp: bool) -> Flows {
        Flows { tcp, ..Flows::default() }
    }

    /// `programmed` is what the kernel runs of the Service; `service` the Service as it is, None when it was removed.
    pub fn set(
        &mut self,
        id: &ServiceId,
        programmed: Option<&ServicePlan>,
        service: Option<&Service>,
        now: Instant,
    ) {
        let new = programmed.map(|plan| self.ends(plan, service)).unwrap_or_default();
        let old = self.services.remove(id).unwrap_or_default();
        for (frontend, ends) in &old {
            self.note(*frontend, Some(ends), new.get(frontend), now);
            if !new.contains_key(frontend) {
                self.unclaim(frontend, id);
            }
        }
        for (frontend, ends) in &new {
            if !old.contains_key(frontend) {
                self.note(*frontend, None, Some(ends), now);
                self.claimed.entry(*frontend).or_default().insert(id.clone());
            }
        }
        if !new.is_empty() {
            self.services.insert(id.clone(), new);
        }
    }

    /// Frontends that the kernel served for Services that went while nobody looked: their flows lead nowhere, too (S51).
    pub fn orphaned(&mut self, frontends: impl IntoIterator<Item = Frontend>) {
        for frontend in frontends {
            if frontend.protocol == Protocol::Udp && !self.claimed.contains_key(&frontend) {
                self.due.entry(frontend).or_default();
            }
        }
    }

    /// Empty most of the time.
    pub fn stale(&mut self, now: Instant) -> Stale {
        self.spared.retain(|frontend, ends| {
            let before = ends.len();
            ends.retain(|_, until| now < *until);
            if ends.len() < before {
                self.due.entry(*frontend).or_default();
            }
            !ends.is_empty()
        });
        Stale(self.due.iter().map(|(frontend, gone)| (*frontend, self.fate(frontend, gone))).collect())
    }

    /// When there is more to condemn although nothing changed.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.spared.values().flat_map(BTreeMap::values).min().copied()
    }

    /// What [`stale`](Flows::stale) condemned is deleted.
    pub fn cleaned(&mut self) {
        self.due.clear();
    }

    fn ends(&self, plan: &ServicePlan, service: Option<&Service>) -> BTreeMap<Frontend, Ends> {
        let is_ours = |frontend: &Frontend| match frontend.protocol {
            Protocol::Udp => true,
            Protocol::Tcp => self.tcp,
            Protocol::Sctp => false,
        };
        let frontends = plan.frontends.iter().filter(|(frontend, _)| is_ours(frontend));
        let ends = frontends.map(|(frontend, forwarding)| {
            let mut ends = Ends::new();
            for backend in backends(&forwarding.from_cluster).iter().chain(backends(&forwarding.from_outside))
            {
                ends.insert(*backend, true);
            }
            if let Some(service) = service {
                add_endpoints(&mut ends, service, frontend);
            }
            (*frontend, ends)
        });
        ends.collect()
    }

    /// Takes down whether one Service's change can have left flows behind.
    fn note(&mut self, frontend: Frontend, old: Option<&Ends>, new: Option<&Ends>, now: Instant) {
        let none = Ends::new();
        let (before, after) = (old.unwrap_or(&none), new.unwrap_or(&none));
        let gone = before.iter().filter(|(end, _)| !after.contains_key(end));
        match frontend.protocol {
            Protocol::Udp => {
                let (sudden, noticed): (Vec<_>, Vec<_>) = gone.partition(|(_, sudden)| **sudden);
                for (end, _) in &sudden {
                    self.spared.entry(frontend).or_default().insert(**end, now + Self::GRACE);
                }
                // S52, #105657: while there was no rule, or none that led anywhere, packets may have passed untranslated.
                let is_new = old.is_none() || (before.is_empty() && !after.is_empty());
                if !noticed.is_empty() || is_new || new.is_none() {
                    self.due.entry(frontend).or_default();
                }
            }
            Protocol::Tcp => {
                let sudden: BTreeSet<Backend> = gone.filter(|(_, s)| **s).map(|(end, _)| *end).collect();
                if !sudden.is_empty() {
                    self.due.entry(frontend).or_default().extend(sudden);
                }
            }
            Protocol::Sctp => {}
        }
    }

    fn unclaim(&mut self, frontend: &Frontend, id: &ServiceId) {
        if let Some(services) = self.claimed.get_mut(frontend) {
            services.remove(id);
            if services.is_empty() {
                self.claimed.remove(frontend);
            }
        }
    }

    fn fate(&self, frontend: &Frontend, gone: &BTreeSet<Backend>) -> Fate {
        let claims = self.claimed.get(frontend);
        let services = claims.into_iter().flatten().filter_map(|id| self.services.get(id));
        let ends: BTreeSet<Backend> = services
            .filter_map(|service| service.get(frontend))
            .flat_map(|ends| ends.keys().copied())
            .collect();
        match frontend.protocol {
            Protocol::Udp => {
                let spared = self.spared.get(frontend).into_iter().flat_map(BTreeMap::keys);
                let ends = ends.into_iter().chain(spared.copied()).collect();
                Fate::AllBut { ends, served: claims.is_some() }
            }
            Protocol::Tcp | Protocol::Sctp => Fate::Only(gone.difference(&ends).copied().collect()),
        }
    }
}

fn backends(action: &Action) -> &[Backend] {
    match action {
        Action::Balance(balance) => &balance.backends,
        Action::Reject | Action::Drop => &[],
    }
}

/// The Service's own endpoints behind the frontend: of UDP those that serve, ready or terminating; of TCP all there are,
/// because an open connection is the pod's to end.
fn add_endpoints(ends: &mut Ends, service: &Service, frontend: &Frontend) {
    let Some(port) = service.ports.iter().find(|port| is_behind(port, frontend)) else { return };
    let may_end_here = |endpoint: &&Endpoint| match frontend.protocol {
        Protocol::Udp => endpoint.is_ready() || endpoint.serving,
        Protocol::Tcp | Protocol::Sctp => true,
    };
    for slice in service.slices.iter().filter(|slice| slice.family == frontend.family()) {
        let numbers = slice.ports.iter().filter(|(name, protocol, _)| {
            (name, protocol) == (&port.name, &port.protocol) // S8
        });
        for (_, _, number) in numbers {
            for endpoint in slice.endpoints.iter().filter(may_end_here) {
                ends.insert(SocketAddr::new(endpoint.address, *number), !endpoint.terminating);
            }
        }
    }
}

fn is_behind(port: &ServicePort, frontend: &Frontend) -> bool {
    let number = match frontend.address {
        Address::Vip(_) => Some(port.port),
        Address::NodePort(_) => port.node_port,
    };
    port.protocol == frontend.protocol && number == Some(frontend.port)
}

impl Stale {
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Which parts of the kernel's table are to be looked at.
    pub fn tables(&self) -> BTreeSet<(Family, Protocol)> {
        self.0.keys().map(|frontend| (frontend.family(), frontend.protocol)).collect()
    }

    /// Whether the flow that a client opened to `dst`, and whose answers come from `end`, is to be deleted. `node_ports` are
    /// the addresses at which this node serves node ports.
    pub fn condemns(
        &self,
        protocol: Protocol,
        dst: SocketAddr,
        end: SocketAddr,
        node_ports: &BTreeSet<IpAddr>,
    ) -> bool {
        let at = |address| Frontend { address, protocol, port: dst.port() };
        let vip = self.0.get(&at(Address::Vip(dst.ip())));
        let node_port = || {
            let family = Family::of(&dst.ip());
            node_ports.contains(&dst.ip()).then(|| self.0.get(&at(Address::NodePort(family)))).flatten()
        };
        match vip.or_else(node_port) {
            Some(Fate::AllBut { ends, served }) => !ends.contains(&end) && (*served || end != dst),
            Some(Fate::Only(gone)) => gone.contains(&end),
            None => false,
        }
    }
}

#[cfg(test)]
mod tests;
