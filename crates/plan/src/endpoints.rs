//! The endpoint predicate: which endpoints of a Service port take new connections on this node (S29–S37).

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use portolan_model::{Backend, Endpoint, Family, Service, ServicePort};

use crate::NodeView;

/// What one Service port can send to, in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usable {
    /// For policy Cluster (S30, S33–S37). Empty only when nothing is usable anywhere (S38).
    pub cluster: Arc<[Backend]>,
    /// For policy Local (S31).
    pub local: Arc<[Backend]>,
    /// Addresses of this node's own endpoints in either list (S46).
    pub here: Vec<IpAddr>,
    /// There are endpoints and none is on any node: policy Local cannot mean anything (A39).
    pub nodeless: bool,
}

/// Decides for one port and one family; every list is sorted and free of duplicates.
pub fn usable(service: &Service, port: &ServicePort, family: Family, node: &NodeView) -> Usable {
    let all = merge_slices(service, port, family, node);
    let nodeless = !all.is_empty() && !all.iter().any(|candidate| candidate.placed);
    let local: Vec<_> = all.iter().filter(|candidate| candidate.local).copied().collect();
    let here = local.iter().filter(|c| c.is_ready() || c.is_fallback()).map(|c| c.backend.ip()).collect();
    Usable {
        cluster: addresses(&nearest(ready_or_fallback(all), node)),
        local: addresses(&ready_or_fallback(local)),
        here,
        nodeless,
    }
}

#[derive(Clone, Copy)]
struct Candidate<'a> {
    backend: Backend,
    endpoint: &'a Endpoint,
    local: bool,
    /// A copy of it names a node.
    placed: bool,
}

impl<'a> Candidate<'a> {
    /// Takes over what a later copy of the same endpoint says. Always true.
    fn join(&mut self, copy: Candidate<'a>) -> bool {
        let (local, placed) = (self.local || copy.local, self.placed || copy.placed);
        if copy.rank() > self.rank() {
            *self = copy;
        }
        (self.local, self.placed) = (local, placed);
        true
    }

    fn is_ready(&self) -> bool {
        self.endpoint.is_ready()
    }

    fn is_fallback(&self) -> bool {
        self.endpoint.is_fallback()
    }

    /// Of two copies of one endpoint the more usable one speaks.
    fn rank(&self) -> u8 {
        match (self.is_ready(), self.is_fallback()) {
            (true, _) => 2,
            (false, true) => 1,
            (false, false) => 0,
        }
    }
}

/// One candidate per address and port, whichever slices it stands in (S10); ports match by name and protocol (S8).
fn merge_slices<'a>(
    service: &'a Service,
    port: &ServicePort,
    family: Family,
    node: &NodeView,
) -> Vec<Candidate<'a>> {
    let mut all = Vec::new();
    for slice in service.slices.iter().filter(|slice| slice.family == family) {
        let numbers =
            slice.ports.iter().filter(|(name, protocol, _)| *name == port.name && *protocol == port.protocol);
        for (_, _, number) in numbers {
            for endpoint in slice.endpoints.iter().filter(|endpoint| Family::of(&endpoint.address) == family)
            {
                let local = endpoint.node.as_ref() == Some(&node.node); // S11
                let backend = SocketAddr::new(endpoint.address, *number);
                let placed = endpoint.node.is_some();
                all.push(Candidate { backend, endpoint, local, placed });
            }
        }
    }
    all.sort_by_key(|candidate| candidate.backend);
    all.dedup_by(|copy, first| copy.backend == first.backend && first.join(*copy));
    all
}

/// All that are ready; when none is, all that still serve while terminating (S30, S31).
fn ready_or_fallback(mut candidates: Vec<Candidate<'_>>) -> Vec<Candidate<'_>> {
    match candidates.iter().any(Candidate::is_ready) {
        true => candidates.retain(Candidate::is_ready),
        false => candidates.retain(Candidate::is_fallback),
    }
    candidates
}

/// Keeps the endpoints that hints give to this node (S33), else to its zone (S34), else all (S35).
fn nearest<'a>(candidates: Vec<Candidate<'a>>, node: &NodeView) -> Vec<Candidate<'a>> {
    if !candidates.iter().all(Candidate::is_ready) {
        return candidates; // the terminating fallback ignores hints (S35)
    }
    let by_node = hinted(&candidates, Endpoint::node_hints, Some(&node.node));
    let by_zone = || hinted(&candidates, Endpoint::zone_hints, node.zone.as_ref());
    by_node.or_else(by_zone).unwrap_or(candidates)
}

/// The candidates whose hints name `here`; None when one has no hints or none names it.
fn hinted<'a, T: PartialEq + 'a>(
    candidates: &[Candidate<'a>],
    hints: impl Fn(&'a Endpoint) -> Option<&'a [T]>,
    here: Option<&T>,
) -> Option<Vec<Candidate<'a>>> {
    let here = here?;
    let mut chosen = Vec::new();
    for candidate in candidates {
        let names = hints(candidate.endpoint).filter(|names| !names.is_empty())?;
        if names.contains(here) {
            chosen.push(*candidate);
        }
    }
    (!chosen.is_empty()).then_some(chosen)
}

fn addresses(candidates: &[Candidate<'_>]) -> Arc<[Backend]> {
    candidates.iter().map(|candidate| candidate.backend).collect()
}
