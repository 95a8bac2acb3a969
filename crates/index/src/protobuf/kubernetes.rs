//! From messages to the types that JSON is decoded into, so that both mean the same. Go's protobuf writes empty texts and zeros
//! that its JSON leaves out: they are nothing here, too.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1 as discovery;
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::jiff::Timestamp;

use super::messages::*;

fn given(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn number<T: Default + PartialEq>(number: T) -> Option<T> {
    Some(number).filter(|number| *number != T::default())
}

fn list<T, K>(listed: Vec<T>) -> Option<Vec<K>>
where
    K: From<T>,
{
    (!listed.is_empty()).then(|| listed.into_iter().map(K::from).collect())
}

/// As Go's JSON shows it.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Whole seconds, as JSON has it; Go's zero time is none.
fn time(time: Option<Time>) -> Option<meta::Time> {
    let seconds = time?.seconds;
    let timestamp = Timestamp::from_second(seconds).ok().filter(|_| seconds != 0)?;
    Some(meta::Time(timestamp))
}

impl From<ObjectMeta> for meta::ObjectMeta {
    fn from(from: ObjectMeta) -> Self {
        let annotations = from.annotations.into_iter().map(|(key, value)| (key, text(value)));
        meta::ObjectMeta {
            name: given(from.name),
            namespace: given(from.namespace),
            uid: given(from.uid),
            resource_version: given(from.resource_version),
            generation: number(from.generation),
            creation_timestamp: time(from.creation_timestamp),
            // Its presence is what is asked for.
            deletion_timestamp: from
                .deletion_timestamp
                .map(|at| time(Some(at)).unwrap_or(meta::Time(Timestamp::UNIX_EPOCH))),
            labels: Some(from.labels).filter(|labels| !labels.is_empty()),
            annotations: Some(annotations.collect())
                .filter(|all: &std::collections::BTreeMap<_, _>| !all.is_empty()),
            ..Default::default()
        }
    }
}

impl From<Condition> for meta::Condition {
    fn from(from: Condition) -> Self {
        meta::Condition {
            type_: from.kind,
            status: from.status,
            observed_generation: number(from.observed_generation),
            last_transition_time: time(from.last_transition_time)
                .unwrap_or(meta::Time(Timestamp::UNIX_EPOCH)),
            reason: from.reason,
            message: text(from.message),
        }
    }
}

impl From<Service> for core::Service {
    fn from(from: Service) -> Self {
        core::Service {
            metadata: from.metadata.unwrap_or_default().into(),
            spec: from.spec.map(Into::into),
            status: from.status.map(Into::into),
        }
    }
}

impl From<ServiceSpec> for core::ServiceSpec {
    fn from(from: ServiceSpec) -> Self {
        core::ServiceSpec {
            ports: list(from.ports),
            cluster_ip: given(from.cluster_ip),
            cluster_ips: list(from.cluster_ips),
            type_: given(from.kind),
            external_ips: list(from.external_ips),
            session_affinity: given(from.session_affinity),
            session_affinity_config: from.session_affinity_config.map(Into::into),
            load_balancer_ip: given(from.load_balancer_ip),
            load_balancer_source_ranges: list(from.load_balancer_source_ranges),
            external_traffic_policy: given(from.external_traffic_policy),
            internal_traffic_policy: from.internal_traffic_policy,
            health_check_node_port: number(from.health_check_node_port),
            ip_family_policy: from.ip_family_policy,
            ip_families: list(from.ip_families),
            load_balancer_class: from.load_balancer_class,
            ..Default::default()
        }
    }
}

impl From<ServicePort> for core::ServicePort {
    fn from(from: ServicePort) -> Self {
        core::ServicePort {
            name: given(from.name),
            protocol: given(from.protocol),
            port: from.port,
            node_port: number(from.node_port),
            ..Default::default()
        }
    }
}

impl From<SessionAffinityConfig> for core::SessionAffinityConfig {
    fn from(from: SessionAffinityConfig) -> Self {
        let client_ip = from.client_ip.map(|of| core::ClientIPConfig { timeout_seconds: of.timeout_seconds });
        core::SessionAffinityConfig { client_ip }
    }
}

impl From<ServiceStatus> for core::ServiceStatus {
    fn from(from: ServiceStatus) -> Self {
        let ingress = |of: LoadBalancerStatus| core::LoadBalancerStatus { ingress: list(of.ingress) };
        core::ServiceStatus {
            load_balancer: from.load_balancer.map(ingress),
            conditions: list(from.conditions),
        }
    }
}

impl From<LoadBalancerIngress> for core::LoadBalancerIngress {
    fn from(from: LoadBalancerIngress) -> Self {
        core::LoadBalancerIngress { ip: given(from.ip), ip_mode: from.ip_mode, ..Default::default() }
    }
}

impl From<Node> for core::Node {
    fn from(from: Node) -> Self {
        core::Node {
            metadata: from.metadata.unwrap_or_default().into(),
            spec: from.spec.map(Into::into),
            status: from.status.map(Into::into),
        }
    }
}

impl From<NodeSpec> for core::NodeSpec {
    fn from(from: NodeSpec) -> Self {
        core::NodeSpec {
            pod_cidr: given(from.pod_cidr),
            pod_cidrs: list(from.pod_cidrs),
            taints: list(from.taints),
            ..Default::default()
        }
    }
}

impl From<Taint> for core::Taint {
    fn from(from: Taint) -> Self {
        core::Taint { key: from.key, ..Default::default() }
    }
}

impl From<NodeStatus> for core::NodeStatus {
    fn from(from: NodeStatus) -> Self {
        core::NodeStatus {
            conditions: list(from.conditions),
            addresses: list(from.addresses),
            ..Default::default()
        }
    }
}

impl From<NodeCondition> for core::NodeCondition {
    fn from(from: NodeCondition) -> Self {
        core::NodeCondition { type_: from.kind, status: from.status, ..Default::default() }
    }
}

impl From<NodeAddress> for core::NodeAddress {
    fn from(from: NodeAddress) -> Self {
        core::NodeAddress { type_: from.kind, address: from.address }
    }
}

impl From<EndpointSlice> for discovery::EndpointSlice {
    fn from(from: EndpointSlice) -> Self {
        discovery::EndpointSlice {
            metadata: from.metadata.unwrap_or_default().into(),
            address_type: from.address_type,
            endpoints: from.endpoints.into_iter().map(Into::into).collect(),
            ports: list(from.ports),
        }
    }
}

impl From<Endpoint> for discovery::Endpoint {
    fn from(from: Endpoint) -> Self {
        discovery::Endpoint {
            addresses: from.addresses,
            conditions: from.conditions.map(Into::into),
            node_name: from.node_name,
            zone: from.zone,
            hints: from.hints.map(Into::into),
            ..Default::default()
        }
    }
}

impl From<EndpointConditions> for discovery::EndpointConditions {
    fn from(from: EndpointConditions) -> Self {
        let EndpointConditions { ready, serving, terminating } = from;
        discovery::EndpointConditions { ready, serving, terminating }
    }
}

impl From<EndpointHints> for discovery::EndpointHints {
    fn from(from: EndpointHints) -> Self {
        discovery::EndpointHints { for_zones: list(from.for_zones), for_nodes: list(from.for_nodes) }
    }
}

impl From<Named> for discovery::ForZone {
    fn from(from: Named) -> Self {
        discovery::ForZone { name: from.name }
    }
}

impl From<Named> for discovery::ForNode {
    fn from(from: Named) -> Self {
        discovery::ForNode { name: from.name }
    }
}

impl From<EndpointPort> for discovery::EndpointPort {
    fn from(from: EndpointPort) -> Self {
        discovery::EndpointPort {
            name: from.name,
            protocol: from.protocol,
            port: from.port,
            ..Default::default()
        }
    }
}
