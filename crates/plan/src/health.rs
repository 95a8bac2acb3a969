//! What the proxy's health servers answer (S58–S61).

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use portolan_model::{Endpoint, Family, Name, Service, ServiceId, ServiceType, TrafficPolicy};

use crate::NodeView;

/// kube-proxy's default: what was not applied for twice this time makes the proxy unhealthy.
pub const SYNC_PERIOD: Duration = Duration::from_secs(30);

/// What a node says of itself as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// How long the oldest change waits that the kernel does not have yet; None = it has all.
    pub waiting: Option<Duration>,
    /// The Node object is not about to go (S59).
    pub eligible: bool,
}

impl Node {
    /// /livez, and `serviceProxyHealthy`: before the first change all is well.
    pub fn is_live(&self) -> bool {
        self.waiting.is_none_or(|waiting| waiting <= 2 * SYNC_PERIOD)
    }

    /// /healthz: load balancers send nothing new to a node that is about to go.
    pub fn is_healthy(&self) -> bool {
        self.is_live() && self.eligible
    }
}

/// What one healthCheckNodePort knows of its Service (S60).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub service: ServiceId,
    pub uid: Name,
    /// Distinct IPs of this node's ready pods. A pod of two families counts once.
    pub local_endpoints: usize,
}

impl Port {
    /// S61: nothing here but terminating pods is nothing, although they still get traffic (S31).
    pub fn is_healthy(&self, node: Node) -> bool {
        self.local_endpoints > 0 && node.is_live()
    }
}

/// The Service's healthCheckNodePort, where it has one: type LoadBalancer with externalTrafficPolicy Local.
pub fn port(service: &Service, node: &NodeView) -> Option<(u16, Port)> {
    let applies =
        service.kind == ServiceType::LoadBalancer && service.external_policy == TrafficPolicy::Local;
    let number = service.health_check_node_port.filter(|_| applies)?;
    let local_endpoints = Family::ALL.map(|family| ready_here(service, family, node).len());
    let local_endpoints = local_endpoints.into_iter().max().unwrap_or_default();
    let (id, uid) = (service.id.clone(), service.uid.clone());
    Some((number, Port { service: id, uid, local_endpoints }))
}

fn ready_here(service: &Service, family: Family, node: &NodeView) -> BTreeSet<IpAddr> {
    let slices = service.slices.iter().filter(|slice| slice.family == family);
    let is_ready_here = |endpoint: &&Endpoint| {
        endpoint.is_ready() && !endpoint.terminating && endpoint.node.as_ref() == Some(&node.node)
    };
    slices.flat_map(|slice| &slice.endpoints).filter(is_ready_here).map(|endpoint| endpoint.address).collect()
}

/// The ports of every Service that has one, kept up Service by Service.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    ports: BTreeMap<u16, Port>,
    numbers: BTreeMap<ServiceId, u16>,
}

impl Ports {
    /// `service` as it is now, None when it was removed. Says whether anything changed.
    pub fn set(&mut self, id: &ServiceId, service: Option<&Service>, node: &NodeView) -> bool {
        let new = service.and_then(|service| port(service, node));
        let number = self.numbers.get(id).copied();
        let old = number.and_then(|number| self.ports.get(&number).map(|port| (number, port)));
        if old == new.as_ref().map(|(number, port)| (*number, port)) {
            return false;
        }
        if let Some(number) = self.numbers.remove(id) {
            self.ports.remove(&number);
        }
        if let Some((number, port)) = new {
            // The API server gives no number twice; should two Services have one, the later word counts.
            if let Some(other) = self.ports.insert(number, port) {
                self.numbers.remove(&other.service);
            }
            self.numbers.insert(id.clone(), number);
        }
        true
    }

    pub fn get(&self, number: u16) -> Option<&Port> {
        self.ports.get(&number)
    }

    pub fn iter(&self) -> impl Iterator<Item = (u16, &Port)> {
        self.ports.iter().map(|(number, port)| (*number, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{n1, slice, web, web_with};

    fn local(endpoints: &str) -> Service {
        let policy = TrafficPolicy::Local;
        Service { external_policy: policy, health_check_node_port: Some(32000), ..web_with(endpoints) }
    }

    fn counted(service: &Service) -> Option<usize> {
        port(service, &n1()).map(|(number, port)| {
            assert_eq!(number, 32000);
            port.local_endpoints
        })
    }

    #[test]
    fn s60_only_load_balancers_of_policy_local_have_a_port() {
        assert_eq!(counted(&local("10.1.1.1 n1")), Some(1));
        assert_eq!(counted(&Service { kind: ServiceType::NodePort, ..local("10.1.1.1 n1") }), None);
        let cluster = TrafficPolicy::Cluster;
        assert_eq!(counted(&Service { external_policy: cluster, ..local("10.1.1.1 n1") }), None);
        assert_eq!(counted(&Service { health_check_node_port: None, ..local("10.1.1.1 n1") }), None);
    }

    #[test]
    fn s60_distinct_ips_of_ready_pods_here() {
        assert_eq!(counted(&local("")), Some(0));
        assert_eq!(counted(&local("10.1.1.1 n1\n10.1.1.2 n1\n10.1.2.1 n2\n10.1.1.3 n1 unready")), Some(2));
        let mut twice = local("10.1.1.1 n1");
        twice.slices.push(slice("web-2", "10.1.1.1 n1")); // another port of the same pod
        twice.slices.push(slice("web-3", "fd01::1 n1")); // its other family
        assert_eq!(counted(&twice), Some(1));
    }

    #[test]
    fn s61_the_last_pod_terminates() {
        let (_, port) = port(&local("10.1.1.1 n1 terminating\n10.1.2.1 n2"), &n1()).unwrap();
        assert_eq!((port.local_endpoints, port.is_healthy(node(None, true))), (0, false));
    }

    fn node(waiting_secs: Option<u64>, eligible: bool) -> Node {
        Node { waiting: waiting_secs.map(Duration::from_secs), eligible }
    }

    #[test]
    fn s58_s59_healthz_and_livez() {
        let check =
            |node: Node, healthy, live| assert_eq!((node.is_healthy(), node.is_live()), (healthy, live));
        check(node(None, true), true, true);
        check(node(Some(60), true), true, true);
        check(node(Some(61), true), false, false);
        check(node(None, false), false, true);
        let (_, port) = port(&local("10.1.1.1 n1"), &n1()).unwrap();
        assert!(port.is_healthy(node(None, false)) && !port.is_healthy(node(Some(61), true)));
    }

    #[test]
    fn s60_ports_follow_their_services() {
        let (mut ports, id) = (Ports::default(), web().id);
        assert!(ports.set(&id, Some(&local("10.1.1.1 n1")), &n1()));
        assert!(!ports.set(&id, Some(&local("10.1.1.2 n1")), &n1()), "the count is the same");
        assert!(ports.set(&id, Some(&Service { health_check_node_port: Some(32001), ..local("") }), &n1()));
        assert_eq!(ports.iter().map(|(number, _)| number).collect::<Vec<_>>(), [32001]);
        assert!(ports.set(&id, Some(&web()), &n1()));
        assert!(!ports.set(&id, None, &n1()));
        assert_eq!(ports, Ports::default());
    }
}
