//! Kubernetes Services (services.md 1A, 1B).

use std::net::IpAddr;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Service as KubeService, ServicePort as KubePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use portolan_api::conditions::allocation::{REQUEST_AMBIGUOUS, REQUESTED_IP_INVALID};
use portolan_api::conditions::object::INVALID;
use portolan_api::service::{IPS, POOL};
use portolan_model::{
    Family, FamilyPolicy, IngressIp, IpMode, Labels, Name, Problem, Protocol, Service, ServicePort,
    ServiceType, TrafficPolicy,
};

use crate::change::Value;
use crate::problems::Problems;
use crate::{Key, Kind, Object, text};

/// `sessionAffinityConfig.clientIP.timeoutSeconds` where it is not given (S41).
const AFFINITY_TIMEOUT_SECS: i32 = 10_800;

impl From<KubeService> for Object {
    fn from(service: KubeService) -> Object {
        let key = Key::of(&service.metadata);
        let mut problems = Problems::new(Kind::Service, &key);
        let value = match parse(&service, &key, &mut problems) {
            Some(service) => Value::Service(Box::new(service)),
            None => Value::Ignored,
        };
        let problems = problems.into_vec();
        Object::new(Kind::Service, key, value, problems).seen_as(&service.metadata, our_conditions(&service))
    }
}

fn our_conditions(service: &KubeService) -> Vec<Condition> {
    let all = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
    all.filter(|condition| condition.type_.starts_with("portolan.dev/")).cloned().collect()
}

fn parse(service: &KubeService, key: &Key, problems: &mut Problems) -> Option<Service> {
    let metadata = &service.metadata;
    let spec = service.spec.as_ref()?;
    let kind = kind(spec)?;
    let cluster_ips = cluster_ips(spec, problems);
    if cluster_ips.is_empty() {
        return None;
    }
    let (requested_ips, request_problem) = match kind {
        ServiceType::LoadBalancer => requested_ips(metadata, spec, problems),
        ServiceType::ClusterIp | ServiceType::NodePort => (Vec::new(), None),
    };
    Some(Service {
        id: key.service(),
        uid: metadata.uid.as_deref().unwrap_or_default().into(),
        created: created(metadata),
        labels: labels(metadata),
        kind,
        families: families(spec, &cluster_ips),
        family_policy: family_policy(spec),
        cluster_ips,
        external_ips: addresses(spec.external_ips.as_deref(), "spec.externalIPs", problems).into(),
        ingress: ingress(service, problems).into(),
        ports: ports(spec.ports.as_deref().unwrap_or_default(), problems),
        internal_policy: policy(spec.internal_traffic_policy.as_deref()),
        external_policy: policy(spec.external_traffic_policy.as_deref()),
        affinity: affinity(spec),
        source_ranges: source_ranges(spec, problems),
        health_check_node_port: number_or_none(
            spec.health_check_node_port,
            "spec.healthCheckNodePort",
            problems,
        ),
        class: spec.load_balancer_class.as_deref().map(Name::from),
        requested_ips: requested_ips.into(),
        request_problem,
        requested_pools: requested_pools(metadata).into(),
        slices: Vec::new(),
    })
}

/// None for what the proxy does not serve (S2).
fn kind(spec: &ServiceSpec) -> Option<ServiceType> {
    match spec.type_.as_deref() {
        None | Some("" | "ClusterIP") => Some(ServiceType::ClusterIp),
        Some("NodePort") => Some(ServiceType::NodePort),
        Some("LoadBalancer") => Some(ServiceType::LoadBalancer),
        Some(_) => None,
    }
}

/// The first of each family (S6); none for headless Services (S2).
fn cluster_ips(spec: &ServiceSpec, problems: &mut Problems) -> Vec<IpAddr> {
    let single: Vec<String> = spec.cluster_ip.iter().cloned().collect();
    let listed = spec.cluster_ips.as_deref().filter(|list| !list.is_empty()).unwrap_or(&single);
    if listed.iter().any(|text| text == "None") {
        return Vec::new();
    }
    let mut ips: Vec<IpAddr> = Vec::with_capacity(listed.len());
    for (at, text) in listed.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        match text::ip(text) {
            Some(ip) if ips.iter().any(|other| Family::of(other) == Family::of(&ip)) => {}
            Some(ip) => ips.push(ip),
            None => {
                let message = format!("\"{text}\" is not an IP address");
                problems.add(format!("spec.clusterIPs[{at}]"), INVALID, message);
            }
        }
    }
    ips.shrink_to_fit();
    ips
}

fn families(spec: &ServiceSpec, cluster_ips: &[IpAddr]) -> Vec<Family> {
    let family = |word: &String| match word.as_str() {
        "IPv4" => Some(Family::Ipv4),
        "IPv6" => Some(Family::Ipv6),
        _ => None,
    };
    let mut listed: Vec<Family> = spec.ip_families.iter().flatten().filter_map(family).collect();
    listed.shrink_to_fit();
    if listed.is_empty() { cluster_ips.iter().map(Family::of).collect() } else { listed }
}

fn family_policy(spec: &ServiceSpec) -> FamilyPolicy {
    match spec.ip_family_policy.as_deref() {
        Some("PreferDualStack") => FamilyPolicy::PreferDualStack,
        Some("RequireDualStack") => FamilyPolicy::RequireDualStack,
        _ => FamilyPolicy::SingleStack,
    }
}

fn policy(word: Option<&str>) -> TrafficPolicy {
    match word {
        Some("Local") => TrafficPolicy::Local,
        _ => TrafficPolicy::Cluster,
    }
}

fn affinity(spec: &ServiceSpec) -> Option<Duration> {
    if spec.session_affinity.as_deref() != Some("ClientIP") {
        return None;
    }
    let config = spec.session_affinity_config.as_ref().and_then(|config| config.client_ip.as_ref());
    let secs = config.and_then(|config| config.timeout_seconds).unwrap_or(AFFINITY_TIMEOUT_SECS);
    Some(Duration::from_secs(u64::try_from(secs).unwrap_or_default()))
}

/// Entries with only a host name are nothing to us, and an unknown mode is not VIP (S23, S24).
fn ingress(service: &KubeService, problems: &mut Problems) -> Vec<IngressIp> {
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let entries = status.and_then(|status| status.ingress.as_deref()).unwrap_or_default();
    let mut ingress = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let Some(text) = entry.ip.as_deref().filter(|text| !text.is_empty()) else { continue };
        let mode = match entry.ip_mode.as_deref() {
            None | Some("VIP") => IpMode::Vip,
            Some(_) => IpMode::Proxy,
        };
        match text::reachable(text) {
            Ok(ip) => ingress.push(IngressIp { ip, mode }),
            Err(message) => problems.add(format!("status.loadBalancer.ingress[{at}].ip"), INVALID, message),
        }
    }
    ingress
}

fn ports(listed: &[KubePort], problems: &mut Problems) -> Vec<ServicePort> {
    let mut ports = Vec::with_capacity(listed.len());
    for (at, port) in listed.iter().enumerate() {
        let Some(number) = port_number(port.port) else {
            problems.add(format!("spec.ports[{at}].port"), INVALID, format!("{} is not a port", port.port));
            continue;
        };
        let Some(protocol) = protocol(port.protocol.as_deref()) else {
            let word = port.protocol.as_deref().unwrap_or_default();
            problems.add(
                format!("spec.ports[{at}].protocol"),
                INVALID,
                format!("\"{word}\" is not a protocol"),
            );
            continue;
        };
        ports.push(ServicePort {
            name: port.name.as_deref().unwrap_or_default().into(),
            protocol,
            port: number,
            node_port: number_or_none(port.node_port, &format!("spec.ports[{at}].nodePort"), problems),
        });
    }
    ports
}

/// None where none were given; those that do not parse are left out, which closes and never opens (S27).
fn source_ranges(spec: &ServiceSpec, problems: &mut Problems) -> Option<Vec<ipnet::IpNet>> {
    let listed = spec.load_balancer_source_ranges.as_deref().filter(|list| !list.is_empty())?;
    let mut ranges = Vec::with_capacity(listed.len());
    for (at, text) in listed.iter().enumerate() {
        match text::cidr(text) {
            Some(range) => ranges.push(range),
            None => {
                let field = format!("spec.loadBalancerSourceRanges[{at}]");
                problems.add(field, INVALID, format!("\"{text}\" is not a CIDR"));
            }
        }
    }
    Some(ranges)
}

/// The annotation and `spec.loadBalancerIP`, which must agree in a family that both speak of (vips.md 2.7).
fn requested_ips(
    metadata: &ObjectMeta,
    spec: &ServiceSpec,
    problems: &mut Problems,
) -> (Vec<IpAddr>, Option<Box<Problem>>) {
    let annotated = annotation(metadata, &IPS);
    let in_annotation = annotated.into_iter().flat_map(|(name, value)| {
        list(value).map(move |text| (format!("metadata.annotations[{name}]"), text))
    });
    let in_spec = spec.load_balancer_ip.as_deref().filter(|text| !text.is_empty());
    let in_spec = in_spec.map(|text| ("spec.loadBalancerIP".to_owned(), text));
    let mut ips: Vec<IpAddr> = Vec::new();
    let mut wrong = None;
    for (field, text) in in_annotation.chain(in_spec) {
        let (reason, message) = match text::ip(text) {
            None => (REQUESTED_IP_INVALID, format!("\"{text}\" is not an IP address")),
            Some(ip) => match ips.iter().find(|other| Family::of(other) == Family::of(&ip)) {
                None => {
                    ips.push(ip);
                    continue;
                }
                Some(other) if *other == ip => continue,
                Some(other) => (REQUEST_AMBIGUOUS, format!("{ip} is requested here, and {other} as well")),
            },
        };
        problems.add(field, reason, message);
        wrong = wrong.or_else(|| problems.last().cloned().map(Box::new));
    }
    (ips, wrong)
}

fn requested_pools(metadata: &ObjectMeta) -> Vec<Name> {
    annotation(metadata, &POOL).into_iter().flat_map(|(_, value)| list(value)).map(Name::from).collect()
}

/// The first of several names that is present.
fn annotation<'a>(metadata: &'a ObjectMeta, names: &[&'a str]) -> Option<(&'a str, &'a str)> {
    let annotations = metadata.annotations.as_ref()?;
    names.iter().find_map(|name| annotations.get(*name).map(|value| (*name, value.as_str())))
}

fn list(value: &str) -> impl Iterator<Item = &str> {
    value.split(',').map(str::trim).filter(|item| !item.is_empty())
}

fn addresses(listed: Option<&[String]>, field: &str, problems: &mut Problems) -> Vec<IpAddr> {
    let mut ips = Vec::new();
    for (at, text) in listed.unwrap_or_default().iter().enumerate() {
        match text::reachable(text) {
            Ok(ip) => ips.push(ip),
            Err(message) => problems.add(format!("{field}[{at}]"), INVALID, message),
        }
    }
    ips
}

/// TCP where nothing is said.
pub fn protocol(word: Option<&str>) -> Option<Protocol> {
    match word {
        None | Some("" | "TCP") => Some(Protocol::Tcp),
        Some("UDP") => Some(Protocol::Udp),
        Some("SCTP") => Some(Protocol::Sctp),
        Some(_) => None,
    }
}

/// 0 is Kubernetes' word for none.
fn port_number(number: i32) -> Option<u16> {
    u16::try_from(number).ok().filter(|number| *number != 0)
}

/// None where no number is given, and where what is given is no port.
pub fn number_or_none(number: Option<i32>, field: &str, problems: &mut Problems) -> Option<u16> {
    let given = number.filter(|number| *number != 0)?;
    let number = port_number(given);
    if number.is_none() {
        problems.add(field, INVALID, format!("{given} is not a port"));
    }
    number
}

pub fn labels(metadata: &ObjectMeta) -> Labels {
    let labels = metadata.labels.iter().flatten();
    labels.map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect()
}

/// Seconds since the epoch.
pub fn created(metadata: &ObjectMeta) -> i64 {
    metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}
