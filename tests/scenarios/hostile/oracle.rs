use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node as KubeNode, Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use portolan_dataplane::{Candidate, Outcome, Packet, evaluate};
use portolan_index::{Key, Kind, Object};
use portolan_model::{Family, Protocol};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::node::{INTERFACES, NAME, Node, PODS};

/// The namespace of the Service that is left alone.
pub const CANARY: &str = "canary";
pub const CANARY_IP: &str = "10.96.0.250";
/// 2000-01-01, as its objects say.
const CANARY_CREATED: i64 = 946_684_800;
const CANARY_OBJECTS: usize = 3;

/// The objects that exist, as the API has them.
#[derive(Default)]
pub struct World {
    objects: BTreeMap<(Kind, Key), (Object, Api)>,
}

enum Api {
    Service(Box<Service>),
    Slice(Box<EndpointSlice>),
    Node(Box<KubeNode>),
    Other,
}

impl World {
    /// What the index is to be told of an event; None where it is no object of the kinds that proxies read. One that does
    /// not decode is told, and changes nothing.
    pub fn take(&mut self, object: &Value, is_deleted: bool) -> Option<Object> {
        let seen = Object::from_manifest(object.clone()).ok()?;
        let mut object = object.clone();
        object["metadata"]["namespace"] = seen.key().namespace.as_deref().into();
        let api = match seen.kind() {
            Kind::Service => decoded(object).map(Api::Service),
            Kind::EndpointSlice => decoded(object).map(Api::Slice),
            Kind::Node => decoded(object).map(Api::Node),
            Kind::ServiceCidr => decoded::<ServiceCIDR>(object).map(|_| Api::Other),
            _ => return None,
        };
        let is_canary = seen.key().namespace.as_deref() == Some(CANARY);
        if is_canary && self.objects.len() >= CANARY_OBJECTS {
            return None;
        }
        let id = (seen.kind(), seen.key().clone());
        match api {
            _ if is_deleted => drop(self.objects.remove(&id)),
            Some(api) => drop(self.objects.insert(id, (seen.clone(), api))),
            None => {}
        }
        Some(seen)
    }

    pub fn objects(&self) -> impl Iterator<Item = Object> {
        self.objects.values().map(|(object, _)| object.clone())
    }

    fn apis<'a, T>(
        &'a self,
        of: impl Fn(&'a Api) -> Option<T> + 'a,
    ) -> impl Iterator<Item = (&'a Key, T)> + 'a {
        self.objects.iter().filter_map(move |((_, key), (_, api))| Some((key, of(api)?)))
    }

    /// Those that a proxy serves (S2, S3).
    fn services(&self) -> impl Iterator<Item = (&Key, &Service, &ServiceSpec)> {
        let all = self.apis(|api| match api {
            Api::Service(service) => Some(&**service),
            _ => None,
        });
        all.filter_map(|(key, service)| {
            let labels = service.metadata.labels.as_ref();
            let is_foreign =
                labels.is_some_and(|l| l.contains_key("service.kubernetes.io/service-proxy-name"));
            let spec = service.spec.as_ref()?;
            let kinds = ["ClusterIP", "NodePort", "LoadBalancer", ""];
            let is_served = kinds.contains(&spec.type_.as_deref().unwrap_or_default());
            (is_served && !is_foreign && !is_headless(spec)).then_some((key, service, spec))
        })
    }

    /// This node's addresses, by its Node object.
    fn primary(&self) -> Vec<IpAddr> {
        let nodes = self.apis(|api| match api {
            Api::Node(node) => Some(node),
            _ => None,
        });
        let own = nodes.filter(|(key, _)| &*key.name == NAME).filter_map(|(_, node)| node.status.as_ref());
        let addresses = own.flat_map(|status| status.addresses.iter().flatten());
        addresses.filter(|entry| entry.type_ == "InternalIP").filter_map(|entry| ip(&entry.address)).collect()
    }

    fn node_addresses(&self) -> BTreeSet<IpAddr> {
        self.primary().into_iter().chain(INTERFACES.iter().filter_map(|text| ip(text))).collect()
    }

    /// Packets to everything that anyone mentions, from everywhere.
    fn packets(&self) -> Vec<Packet> {
        let mut to: BTreeSet<IpAddr> = self.node_addresses();
        to.extend(["10.96.0.77", "fd96::77"].iter().filter_map(|text| ip(text)));
        let mut ports = BTreeSet::from([(6, Protocol::Tcp, 9)]);
        for (_, service, spec) in self.services() {
            to.extend(cluster_ips(spec).into_iter().chain(external_ips(spec)).chain(ingress(service)));
            for port in spec.ports.iter().flatten() {
                let numbers = [Some(port.port), port.node_port].into_iter().flatten();
                let protocol = protocol(port.protocol.as_deref());
                let number = |n| u16::try_from(n).ok();
                ports.extend(
                    numbers.filter_map(number).filter_map(|n| Some((protocol?.number(), protocol?, n))),
                );
            }
        }
        let sources = [
            ("203.0.113.9", false),
            ("198.51.100.7", false),
            ("10.244.3.3", false),
            ("172.30.0.1", true),
            ("2001:db8:9::9", false),
            ("fd44:0:0:3::3", false),
            ("fd00::1", true),
        ];
        let mut packets = Vec::new();
        for ip_to in to.into_iter().take(16) {
            for (_, protocol, port) in ports.iter().take(8) {
                for (text, from_node) in sources {
                    let Some(from) = ip(text).filter(|from| from.is_ipv4() == ip_to.is_ipv4()) else {
                        continue;
                    };
                    packets.push(Packet {
                        source: SocketAddr::new(from, 40000),
                        destination: SocketAddr::new(ip_to, *port),
                        protocol: *protocol,
                        from_node,
                        interface: None,
                    });
                }
            }
        }
        packets
    }

    /// What the node's rules let through is asked for by some object, and what is closed stays so. Returns what became of
    /// each packet.
    pub fn check(&self, node: &Node) -> Vec<(Packet, Outcome)> {
        let mut outcomes = Vec::new();
        let tables = Family::ALL.map(|family| (family, node.table(family)));
        let own = self.node_addresses();
        let closed: BTreeSet<IpAddr> = self.services().flat_map(|(_, _, spec)| cluster_ips(spec)).collect();
        for packet in self.packets() {
            let family = Family::of(&packet.source.ip());
            let Some((_, table)) = tables.iter().find(|(of, _)| *of == family) else { continue };
            let trace = evaluate(table, &packet);
            match &trace.outcome {
                Outcome::Dnat(to) => {
                    let is_asked_for = self.reasons(&packet).iter().any(|reason| reason.allows(to, family));
                    assert!(is_asked_for, "{packet:?} is let through to {to:?}: {:#?}", trace.reasons);
                }
                // S17: what nobody serves of a ClusterIP goes nowhere.
                Outcome::Pass => {
                    let to = packet.destination.ip();
                    assert!(
                        !closed.contains(&to) || own.contains(&to),
                        "{packet:?} goes on: {:#?}",
                        trace.reasons
                    );
                }
                Outcome::Reject | Outcome::Reset | Outcome::Drop => {}
            }
            outcomes.push((packet, trace.outcome));
        }
        self.check_canary(node);
        let named = node.problems();
        assert!(named.iter().all(|sentence| sentence.contains(": ")), "{named:?}");
        assert!(!named.iter().any(|sentence| sentence.contains(CANARY)), "{named:?}");
        outcomes
    }

    /// Whatever else there is, unless an older object claims the canary's address for itself.
    fn check_canary(&self, node: &Node) {
        let (Some(vip), Some(client)) = (ip(CANARY_IP), ip("10.244.3.3")) else { return };
        let is_claimed = self.services().any(|(key, service, spec)| {
            let mut all = cluster_ips(spec).into_iter().chain(external_ips(spec)).chain(ingress(service));
            let created = service.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
            key.namespace.as_deref() != Some(CANARY) && created < CANARY_CREATED && all.any(|ip| ip == vip)
        });
        if is_claimed || self.node_addresses().contains(&vip) {
            return;
        }
        let packet = Packet {
            source: SocketAddr::new(client, 40000),
            destination: SocketAddr::new(vip, 80),
            protocol: Protocol::Tcp,
            from_node: false,
            interface: None,
        };
        let trace = evaluate(&node.table(Family::Ipv4), &packet);
        let backend = SocketAddr::from(([10, 244, 1, 250], 8080));
        let to_backend = Outcome::Dnat(vec![Candidate { backend, masquerade: false }]);
        assert_eq!(trace.outcome, to_backend, "{:#?}", trace.reasons);
    }

    /// Every ground on which a packet may be translated.
    fn reasons(&self, packet: &Packet) -> Vec<Reason<'_>> {
        let (to, number) = (packet.destination.ip(), i32::from(packet.destination.port()));
        let from = packet.source.ip();
        let is_inside =
            packet.from_node || PODS.iter().any(|range| net(range).is_some_and(|net| net.contains(&from)));
        let own = self.node_addresses();
        let mut reasons = Vec::new();
        for (key, service, spec) in self.services() {
            // S6: a family without a ClusterIP has nothing.
            if !cluster_ips(spec).iter().any(|ip| ip.is_ipv4() == to.is_ipv4()) {
                continue;
            }
            let is_balanced = spec.type_.as_deref() == Some("LoadBalancer");
            let has_node_port = is_balanced || spec.type_.as_deref() == Some("NodePort");
            let is_in_range = || {
                source_ranges(spec).is_none_or(|ranges| {
                    let is_self =
                        from == to && own.iter().any(|ip| ranges.iter().any(|range| range.contains(ip)));
                    is_self || ranges.iter().any(|range| range.contains(&from))
                })
            };
            for port in spec.ports.iter().flatten() {
                if protocol(port.protocol.as_deref()) != Some(packet.protocol) {
                    continue;
                }
                let mut allow = |policy: &Option<String>, is_short: bool| {
                    let is_local = policy.as_deref() == Some("Local") && !is_short;
                    reasons.push(Reason { slices: self.slices(key), port, is_local });
                };
                let outside = &spec.external_traffic_policy;
                if number == port.port && number != 0 {
                    if cluster_ips(spec).contains(&to) {
                        allow(&spec.internal_traffic_policy, false);
                    }
                    if external_ips(spec).contains(&to)
                        || (is_balanced && ingress(service).contains(&to) && is_in_range())
                    {
                        allow(outside, is_inside);
                    }
                }
                if has_node_port
                    && port.node_port == Some(number)
                    && number != 0
                    && own.contains(&to)
                    && !to.is_loopback()
                {
                    allow(outside, is_inside);
                }
            }
        }
        reasons
    }

    /// The EndpointSlices of a Service (S4, S7).
    fn slices(&self, service: &Key) -> Vec<&EndpointSlice> {
        let slices = self.apis(|api| match api {
            Api::Slice(slice) => Some(&**slice),
            _ => None,
        });
        let of_service = slices.filter(|(key, slice)| {
            let labels = slice.metadata.labels.as_ref();
            let owner = labels.and_then(|labels| labels.get("kubernetes.io/service-name"));
            key.namespace == service.namespace
                && owner.is_some_and(|name| **name == *service.name)
                && labels.is_none_or(|labels| !labels.contains_key("service.kubernetes.io/headless"))
        });
        of_service.map(|(_, slice)| slice).collect()
    }
}

/// One Service's word for a packet.
struct Reason<'a> {
    slices: Vec<&'a EndpointSlice>,
    port: &'a ServicePort,
    /// Only endpoints of this node.
    is_local: bool,
}

impl Reason<'_> {
    fn allows(&self, to: &[Candidate], family: Family) -> bool {
        let all = self.endpoints(family);
        // A39: with no endpoint on any node, policy Local cannot mean anything.
        let is_local = self.is_local && all.iter().any(|(_, endpoint)| endpoint.node_name.is_some());
        let is_here = |at: &SocketAddr| {
            all.iter().any(|(other, e)| other == at && e.node_name.as_deref() == Some(NAME))
        };
        let considered: Vec<_> = all.iter().filter(|(at, _)| !is_local || is_here(at)).collect();
        let any_ready = considered.iter().any(|(_, endpoint)| is_ready(endpoint));
        to.iter().all(|candidate| {
            let mut copies = considered.iter().filter(|(at, _)| *at == candidate.backend);
            copies.any(|(_, endpoint)| if any_ready { is_ready(endpoint) } else { is_fallback(endpoint) })
        })
    }

    /// By name and protocol of the port (S8).
    fn endpoints(&self, family: Family) -> Vec<(SocketAddr, &Endpoint)> {
        let mut endpoints = Vec::new();
        let of_family = self.slices.iter().filter(|slice| match family {
            Family::Ipv4 => slice.address_type == "IPv4",
            Family::Ipv6 => slice.address_type == "IPv6",
        });
        for slice in of_family {
            for port in slice.ports.iter().flatten() {
                let is_named = port.name.as_deref() == Some(self.port.name.as_deref().unwrap_or_default());
                let is_same = protocol(port.protocol.as_deref()) == protocol(self.port.protocol.as_deref());
                let number =
                    port.port.and_then(|number| u16::try_from(number).ok()).filter(|number| *number > 0);
                let Some(number) = number.filter(|_| is_named && is_same) else { continue };
                for endpoint in &slice.endpoints {
                    let address =
                        endpoint.addresses.first().and_then(|text| ip(text)).filter(|ip| !is_special(ip));
                    endpoints.extend(address.map(|ip| (SocketAddr::new(ip, number), endpoint)));
                }
            }
        }
        endpoints
    }
}

fn decoded<T: DeserializeOwned>(object: Value) -> Option<Box<T>> {
    serde_json::from_value(object).ok().map(Box::new)
}

fn is_headless(spec: &ServiceSpec) -> bool {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let first = spec.cluster_ip.as_deref().unwrap_or_default();
    listed.iter().any(|text| text == "None") || (listed.is_empty() && (first.is_empty() || first == "None"))
}

fn cluster_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let texts: Vec<&String> =
        if listed.is_empty() { spec.cluster_ip.iter().collect() } else { listed.iter().collect() };
    let all: Vec<IpAddr> = texts.into_iter().filter_map(|text| ip(text)).collect();
    // S6: the first of each family.
    let mut first = Vec::new();
    all.iter().for_each(|ip| {
        if !first.iter().any(|other: &IpAddr| other.is_ipv4() == ip.is_ipv4()) {
            first.push(*ip);
        }
    });
    first
}

fn external_ips(spec: &ServiceSpec) -> Vec<IpAddr> {
    let listed = spec.external_ips.iter().flatten();
    listed.filter_map(|text| ip(text)).filter(|ip| !is_special(ip)).collect()
}

/// Those of mode VIP (S24).
fn ingress(service: &Service) -> Vec<IpAddr> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = balancer.and_then(|balancer| balancer.ingress.as_ref()).into_iter().flatten();
    let vips = entries.filter(|entry| entry.ip_mode.as_deref().is_none_or(|mode| mode == "VIP"));
    vips.filter_map(|entry| ip(entry.ip.as_ref()?)).filter(|ip| !is_special(ip)).collect()
}

/// None where none are given (S27).
fn source_ranges(spec: &ServiceSpec) -> Option<Vec<IpNet>> {
    let listed = spec.load_balancer_source_ranges.as_ref().filter(|list| !list.is_empty())?;
    Some(listed.iter().filter_map(|text| net(text)).collect())
}

fn is_ready(endpoint: &Endpoint) -> bool {
    endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true)
}

fn is_fallback(endpoint: &Endpoint) -> bool {
    let conditions = endpoint.conditions.as_ref();
    let serving = conditions.and_then(|conditions| conditions.serving).unwrap_or(true);
    serving && conditions.and_then(|conditions| conditions.terminating).unwrap_or(false)
}

fn protocol(word: Option<&str>) -> Option<Protocol> {
    match word.unwrap_or_default() {
        "" | "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// Addresses that no Service and no endpoint can have: they mean something else on every machine.
fn is_special(ip: &IpAddr) -> bool {
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    is_link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast()
}

/// Old API servers stored leading zeros, and meant decimals (S14).
fn ip(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    if text.contains(':') {
        return Some(text.parse::<IpAddr>().ok()?.to_canonical());
    }
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let octets: Option<Vec<u8>> =
        text.split('.').map(|part| if is_number(part) { part.parse().ok() } else { None }).collect();
    Some(Ipv4Addr::from(<[u8; 4]>::try_from(octets?).ok()?).into())
}

fn net(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    IpNet::new(ip(address)?, length.parse().ok()?).ok()
}
