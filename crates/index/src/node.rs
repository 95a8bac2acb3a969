//! Nodes and ServiceCIDRs.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node as KubeNode, NodeStatus};
use k8s_openapi::api::networking::v1::ServiceCIDR as KubeServiceCidr;
use portolan_api::conditions::object::INVALID;
use portolan_model::{Name, Node, ServiceCidr};

use crate::change::Value;
use crate::problems::Problems;
use crate::service::labels;
use crate::{Key, Kind, Object, text};

/// Put on by the cluster autoscaler before it deletes a node.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

impl From<KubeNode> for Object {
    fn from(node: KubeNode) -> Object {
        let key = Key::of(&node.metadata);
        let mut problems = Problems::new(Kind::Node, &key);
        let labels = labels(&node.metadata);
        let status = node.status.as_ref();
        let parsed = Node {
            name: key.name.clone(),
            uid: node.metadata.uid.as_deref().unwrap_or_default().into(),
            zone: labels.at(ZONE_LABEL).cloned(),
            labels,
            internal_ips: addresses(status, "InternalIP", &mut problems),
            external_ips: addresses(status, "ExternalIP", &mut problems),
            pod_cidrs: pod_cidrs(&node, &mut problems),
            network_unavailable: network_unavailable(status),
            leaving: leaving(&node),
        };
        let problems = problems.into_vec();
        Object::new(Kind::Node, key, Value::Node(Arc::new(parsed)), problems)
    }
}

fn addresses(status: Option<&NodeStatus>, of: &str, problems: &mut Problems) -> Vec<IpAddr> {
    let listed = status.and_then(|status| status.addresses.as_deref()).unwrap_or_default();
    let mut ips = Vec::new();
    for (at, entry) in listed.iter().enumerate().filter(|(_, entry)| entry.type_ == of) {
        match text::ip(&entry.address) {
            Some(ip) => ips.push(ip),
            None => {
                let message = format!("\"{}\" is not an IP address", entry.address);
                problems.add(format!("status.addresses[{at}].address"), INVALID, message);
            }
        }
    }
    ips
}

fn pod_cidrs(node: &KubeNode, problems: &mut Problems) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let single: Vec<String> = spec.pod_cidr.iter().cloned().collect();
    let listed = spec.pod_cidrs.as_deref().filter(|list| !list.is_empty()).unwrap_or(&single);
    cidrs(listed, "spec.podCIDRs", problems)
}

/// S59 (KEP-3836).
fn leaving(node: &KubeNode) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    node.metadata.deletion_timestamp.is_some() || taints.iter().any(|taint| taint.key == LEAVING_TAINT)
}

fn network_unavailable(status: Option<&NodeStatus>) -> bool {
    let mut conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    conditions.any(|condition| condition.type_ == "NetworkUnavailable" && condition.status == "True")
}

impl From<KubeServiceCidr> for Object {
    fn from(service_cidr: KubeServiceCidr) -> Object {
        let key = Key::of(&service_cidr.metadata);
        let mut problems = Problems::new(Kind::ServiceCidr, &key);
        let listed = service_cidr.spec.and_then(|spec| spec.cidrs).unwrap_or_default();
        let cidrs = cidrs(&listed, "spec.cidrs", &mut problems);
        let name: Name = key.name.clone();
        let value = Value::ServiceCidr(Arc::new(ServiceCidr { name, cidrs }));
        let problems = problems.into_vec();
        Object::new(Kind::ServiceCidr, key, value, problems)
    }
}

fn cidrs(listed: &[String], field: &str, problems: &mut Problems) -> Vec<IpNet> {
    let mut cidrs = Vec::with_capacity(listed.len());
    for (at, text) in listed.iter().enumerate().filter(|(_, text)| !text.is_empty()) {
        match text::cidr(text) {
            Some(cidr) => cidrs.push(cidr),
            None => problems.add(format!("{field}[{at}]"), INVALID, format!("\"{text}\" is not a CIDR")),
        }
    }
    cidrs
}
