//! What one node does with the packets of one Service: all of Kubernetes' Service policy, decided once.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use portolan_model::{
    Action, Address, Backend, Balance, Detector, Family, Forwarding, Frontend, IpMode, Masquerade, Name,
    Scheduler, Service, ServicePlan, ServicePort, ServiceType, SortedMap, TrafficPolicy,
};

use crate::endpoints::{self, Usable};

/// The facts of this node that Service plans depend on; when one changes, every Service is planned again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    pub node: Name,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<Name>,
    /// Every address of this node's interfaces, VIPs that we put there not included (S28).
    pub addresses: BTreeSet<IpAddr>,
    /// The addresses that the node is known by (S76).
    pub node_ips: Vec<IpAddr>,
    /// The family that this node's kernel does not have: no Service exists in it (S77).
    pub lacks: Option<Family>,
    /// How pods are told from outside clients (S48).
    pub pods: Detector,
    /// Masquerade every connection to a ClusterIP (S16).
    pub masquerade_all: bool,
    /// Serve `spec.externalIPs` (S25).
    pub external_ips: bool,
}

/// The plan of a Service on a node. A family without a cluster IP has none (S6).
pub fn plan(service: &Service, node: &NodeView) -> ServicePlan {
    let mut plan = Draft::default();
    for family in Family::ALL.into_iter().filter(|family| node.lacks != Some(*family)) {
        let Some(cluster_ip) = service.cluster_ip(family) else { continue };
        let vips = Vips::of(service, family, cluster_ip, node);
        let closed = std::iter::once(&vips.cluster).chain(&vips.load_balancer);
        plan.vips.extend(closed.filter(|ip| !node.addresses.contains(ip))); // S17, S28
        for port in &service.ports {
            plan_port(&mut plan, &vips, service, port, node);
        }
    }
    ServicePlan {
        frontends: SortedMap::of_first(plan.frontends),
        vips: plan.vips.into_iter().collect(),
        hairpin: plan.hairpin.into_iter().collect(),
    }
}

/// A plan that is being made. Lists, for nearly all are of one or two.
#[derive(Default)]
struct Draft {
    /// Of a frontend that stands in two roles the first counts.
    frontends: Vec<(Frontend, Forwarding)>,
    vips: Vec<IpAddr>,
    hairpin: Vec<IpAddr>,
}

/// The (family, whether for clients inside) in which a policy Local finds nothing here though there is something elsewhere:
/// kube-proxy's `no_local_endpoints`.
pub fn lacks_local(plan: &ServicePlan) -> BTreeSet<(Family, bool)> {
    let lacking = plan.frontends.iter().filter_map(|(frontend, forwarding)| {
        // Only internalTrafficPolicy drops what comes from inside (S32, S39).
        let inside = forwarding.from_cluster == Action::Drop;
        (inside || forwarding.from_outside == Action::Drop).then(|| (frontend.family(), inside))
    });
    lacking.collect()
}

/// The addresses of a Service in one family. One that stands in two roles is served in the first.
struct Vips {
    family: Family,
    cluster: IpAddr,
    load_balancer: Vec<IpAddr>,
    external: Vec<IpAddr>,
}

impl Vips {
    fn of(service: &Service, family: Family, cluster_ip: IpAddr, node: &NodeView) -> Vips {
        let balanced = service.kind == ServiceType::LoadBalancer;
        // ipMode Proxy: traffic must reach the real balancer (S24).
        let ingress = service.ingress.iter().filter(|ingress| balanced && ingress.mode == IpMode::Vip);
        let external = service.external_ips.iter().filter(|_| node.external_ips); // S25
        let of_family = |ip: &IpAddr| Family::of(ip) == family;
        Vips {
            family,
            cluster: cluster_ip,
            load_balancer: ingress.map(|ingress| ingress.ip).filter(of_family).collect(),
            external: external.copied().filter(of_family).collect(),
        }
    }
}

fn plan_port(plan: &mut Draft, vips: &Vips, service: &Service, port: &ServicePort, node: &NodeView) {
    let usable = endpoints::usable(service, port, vips.family, node);
    let mut serve = |address, number, forwarding: &Forwarding| {
        let frontend = Frontend { address, protocol: port.protocol, port: number };
        plan.frontends.push((frontend, forwarding.clone()));
    };
    let internal = internal(service, &usable, vips.family, node);
    serve(Address::Vip(vips.cluster), port.port, &internal);
    let external = external(service, &usable, vips.family, node);
    let guarded = Forwarding { allowed_sources: allowed_sources(service, vips, node), ..external.clone() };
    for ip in &vips.load_balancer {
        serve(Address::Vip(*ip), port.port, &guarded);
    }
    for ip in &vips.external {
        serve(Address::Vip(*ip), port.port, &external);
    }
    if let Some(number) = port.node_port.filter(|_| service.kind != ServiceType::ClusterIp) {
        serve(Address::NodePort(vips.family), number, &external); // S19, S26
    }
    plan.hairpin.extend(usable.here);
}

/// Connections to the ClusterIP follow internalTrafficPolicy (S32).
fn internal(service: &Service, usable: &Usable, family: Family, node: &NodeView) -> Forwarding {
    let masquerade = match (node.masquerade_all, node.pods.detects(family)) {
        (true, _) => Masquerade::Always,
        (false, true) => Masquerade::NonPods, // S16
        (false, false) => Masquerade::Never,
    };
    let action = match service.internal_policy {
        TrafficPolicy::Cluster => to_cluster(service, usable, masquerade),
        TrafficPolicy::Local => to_local(service, usable, masquerade),
    };
    Forwarding { from_cluster: action.clone(), from_outside: action, allowed_sources: None }
}

/// Connections to NodePorts, load-balancer and external IPs follow externalTrafficPolicy (S32).
fn external(service: &Service, usable: &Usable, family: Family, node: &NodeView) -> Forwarding {
    if is_external_local(service, usable) {
        // Short circuit (S45): pods keep their address, the node itself is masqueraded. Without a detector only
        // the node itself is known to be of the cluster.
        let masquerade = match node.pods.detects(family) {
            true => Masquerade::NonPods,
            false => Masquerade::Always,
        };
        return Forwarding {
            from_cluster: to_cluster(service, usable, masquerade),
            from_outside: to_local(service, usable, Masquerade::Never), // S44
            allowed_sources: None,
        };
    }
    let action = to_cluster(service, usable, Masquerade::Always); // S43
    Forwarding { from_cluster: action.clone(), from_outside: action, allowed_sources: None }
}

/// externalTrafficPolicy Local, unless no endpoint is on any node: then it is treated as Cluster (A39).
pub(crate) fn is_external_local(service: &Service, usable: &Usable) -> bool {
    service.external_policy == TrafficPolicy::Local && !usable.nodeless
}

fn to_cluster(service: &Service, usable: &Usable, masquerade: Masquerade) -> Action {
    match usable.cluster.is_empty() {
        true => Action::Reject, // S38
        false => balance(service, &usable.cluster, masquerade),
    }
}

fn to_local(service: &Service, usable: &Usable, masquerade: Masquerade) -> Action {
    match (usable.local.is_empty(), usable.cluster.is_empty()) {
        (false, _) => balance(service, &usable.local, masquerade),
        (true, false) => Action::Drop,  // S39
        (true, true) => Action::Reject, // S38
    }
}

fn balance(service: &Service, backends: &Arc<[Backend]>, masquerade: Masquerade) -> Action {
    let affinity = service.affinity;
    Action::Balance(Balance {
        backends: backends.clone(),
        affinity,
        masquerade,
        scheduler: Scheduler::Random,
    })
}

/// Source ranges guard load-balancer IPs only; a family for which none is given is closed (S27).
fn allowed_sources(service: &Service, vips: &Vips, node: &NodeView) -> Option<Arc<[IpNet]>> {
    let ranges = service.source_ranges.as_ref()?;
    let of_family = ranges.iter().filter(|range| Family::of(&range.addr()) == vips.family);
    let mut allowed: Vec<IpNet> = of_family.map(IpNet::trunc).collect();
    // This node may have such a VIP on an interface, and then connects to it from it.
    if node.node_ips.iter().any(|ip| allowed.iter().any(|range| range.contains(ip))) {
        allowed.extend(vips.load_balancer.iter().copied().map(IpNet::from));
    }
    allowed.sort();
    allowed.dedup();
    Some(allowed.into())
}

#[cfg(test)]
mod tests;
