//! This node's own facts: what plans and rules depend on besides Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_dataplane::Settings;
use portolan_model::{Family, Name, Problem, ServiceId, ServicePlan, Snapshot};
use portolan_plan::{NodeView, node_ips, node_ports};

use crate::config::{Config, DetectLocalMode};

pub struct Here {
    name: Name,
    lacks: Option<Family>,
    pub view: NodeView,
    /// Service addresses that this node has on an interface, by Service (S21).
    own_vips: BTreeMap<ServiceId, BTreeSet<IpAddr>>,
}

impl Here {
    /// `lacks`: the family that the kernel does not have.
    pub fn new(name: Name, lacks: Option<Family>) -> Here {
        Here { name, lacks, view: NodeView::default(), own_vips: BTreeMap::new() }
    }

    /// Takes over what the Node object, the configuration and this node's `interfaces` (their addresses) say. True: every
    /// Service must be planned again.
    pub fn see(
        &mut self,
        snapshot: &Snapshot,
        config: &Config,
        interfaces: impl IntoIterator<Item = IpAddr>,
    ) -> bool {
        let node = snapshot.nodes.get(&self.name);
        let internal_ips = node.iter().flat_map(|node| &node.internal_ips).copied();
        let view = NodeView {
            node: self.name.clone(),
            zone: node.and_then(|node| node.zone.clone()),
            addresses: internal_ips.chain(interfaces).collect(),
            node_ips: node_ips::node_ips(config.proxy.bind_address, node.map(|node| &**node)),
            lacks: self.lacks,
            pods: config.proxy.detector(node.map_or(&[], |node| &node.pod_cidrs)),
            masquerade_all: config.proxy.masquerade_all,
            external_ips: config.proxy.external_ips,
        };
        let changed = view != self.view;
        self.view = view;
        changed
    }

    /// Settings that do not fit this node (S77).
    pub fn problems(&self, snapshot: &Snapshot, config: &Config) -> Vec<Problem> {
        let proxy = &config.proxy;
        let by_cluster_cidr = proxy.detect_local_mode == DetectLocalMode::ClusterCidr;
        let given = node_ips::Given {
            cluster_cidrs: by_cluster_cidr.then_some(&proxy.cluster_cidrs),
            by_node_cidr: proxy.detect_local_mode == DetectLocalMode::NodeCidr,
            node_port_addresses: &proxy.node_port_addresses,
        };
        let node = snapshot.nodes.get(&self.name).into_iter();
        node.flat_map(|node| node_ips::mismatches(node, &self.view.node_ips, given)).collect()
    }

    /// Takes note of a plan's addresses that are on this node's interfaces. True: the settings are others.
    pub fn see_vips(&mut self, id: &ServiceId, plan: Option<&ServicePlan>) -> bool {
        let vips = plan.into_iter().flat_map(ServicePlan::addresses);
        let own: BTreeSet<IpAddr> = vips.filter(|ip| self.view.addresses.contains(ip)).collect();
        let before = match own.is_empty() {
            true => self.own_vips.remove(id),
            false => self.own_vips.insert(id.clone(), own.clone()),
        };
        before.unwrap_or_default() != own
    }

    /// What the rules depend on besides Services.
    pub fn settings(&self, snapshot: &Snapshot, config: &Config) -> Settings {
        let primary = &self.view.node_ips;
        let vips = self.own_vips.values().flatten().copied().collect();
        let selectors = &config.proxy.node_port_addresses;
        let mut node_port_addresses = node_ports::addresses(selectors, primary, &self.view.addresses, &vips);
        node_port_addresses.extend(node_ports::loopback(selectors));
        // What nobody has whom we know of may be a Service of the other proxy (S3).
        let alone = config.proxy.service_proxy_name.is_none();
        let cidrs = snapshot.service_cidrs.values().filter(|_| alone);
        Settings {
            pods: self.view.pods.clone(),
            node_port_addresses,
            service_cidrs: cidrs.flat_map(|object| &object.cidrs).copied().collect(),
            mark: config.proxy.masquerade_bit.mark(),
        }
    }
}

#[cfg(test)]
mod tests {
    use portolan_index::{Change, Index, Kind, Object};
    use portolan_model::Detector;
    use serde_json::{Value, json};

    use super::*;

    fn snapshot(node: Value) -> Snapshot {
        let mut index = Index::new(&[Kind::Node]);
        let object = Object::from_manifest(node).expect("a Node");
        index.apply(Change::Replace(Kind::Node, vec![object]));
        index.snapshot().expect("all kinds were listed")
    }

    fn node(spec: Value) -> Snapshot {
        let status = json!({ "addresses": [{ "type": "InternalIP", "address": "172.18.0.2" }] });
        let metadata = json!({ "name": "n1" });
        snapshot(json!({
            "apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": spec, "status": status,
        }))
    }

    fn config(text: &str) -> Config {
        Config::over(Value::Null, text).expect("a configuration")
    }

    #[test]
    fn s49_until_a_node_has_pod_cidrs_it_has_no_pods_to_tell_apart() {
        let (mut here, config) =
            (Here::new("n1".into(), None), config("proxy: { detectLocalMode: NodeCIDR }"));
        here.see(&node(json!({})), &config, []);
        assert!(Family::ALL.iter().all(|family| !here.view.pods.detects(*family)));
        let said = |here: &Here, snapshot: &Snapshot| here.problems(snapshot, &config).len();
        assert_eq!(said(&here, &node(json!({}))), 1, "S77: and that is said");
        let with = node(json!({ "podCIDRs": ["10.244.1.0/24"] }));
        assert!(here.see(&with, &config, []), "every Service is planned again");
        assert_eq!(here.view.pods, Detector::Ranges(vec!["10.244.1.0/24".parse().unwrap()]));
        assert_eq!(here.settings(&with, &config).pods, here.view.pods);
        assert_eq!(said(&here, &with), 0);
        assert!(!here.see(&with, &config, []));
    }

    /// kube-proxy exits on each of these.
    #[test]
    fn s73_the_own_node_goes_comes_back_and_changes() {
        let config = config("proxy: { detectLocalMode: NodeCIDR }");
        let with = |address: &str, cidr: &str, zone: &str| {
            snapshot(json!({
                "apiVersion": "v1", "kind": "Node",
                "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": zone } },
                "spec": { "podCIDRs": [cidr] },
                "status": { "addresses": [{ "type": "InternalIP", "address": address }] },
            }))
        };
        let gone = {
            let mut index = Index::new(&[Kind::Node]);
            index.apply(Change::Replace(Kind::Node, Vec::new()));
            index.snapshot().expect("all kinds were listed")
        };
        let first = with("172.18.0.2", "10.244.1.0/24", "a");
        // The nodes' zone, the address of node ports, the range of pods, as texts.
        let rows = [
            (&first, "a 172.18.0.2 10.244.1.0/24"),
            (&gone, "-  "), // no address of its own (S76), and no pods to tell apart
            (&first, "a 172.18.0.2 10.244.1.0/24"),
            (&with("172.18.0.9", "10.244.1.0/24", "a"), "a 172.18.0.9 10.244.1.0/24"),
            (&with("172.18.0.9", "10.244.7.0/24", "a"), "a 172.18.0.9 10.244.7.0/24"),
            (&with("172.18.0.9", "10.244.7.0/24", "b"), "b 172.18.0.9 10.244.7.0/24"),
        ];
        let interfaces = ["172.18.0.2", "172.18.0.9"].map(|ip| ip.parse().expect("an address"));
        let mut here = Here::new("n1".into(), None);
        for (snapshot, expected) in rows {
            assert!(here.see(snapshot, &config, interfaces), "{expected}: every Service is planned again");
            assert!(!here.see(snapshot, &config, interfaces), "{expected}: and once only");
            let settings = here.settings(snapshot, &config);
            let Detector::Ranges(pods) = &settings.pods else { panic!("{:?}", settings.pods) };
            let own = settings.node_port_addresses.iter().filter(|ip| ip.is_ipv4());
            let texts = |nets: Vec<String>| nets.join(",");
            let zone = here.view.zone.as_deref().unwrap_or("-");
            let own = texts(own.map(ToString::to_string).collect());
            assert_eq!(
                format!("{zone} {own} {}", texts(pods.iter().map(ToString::to_string).collect())),
                expected
            );
        }
    }
}
