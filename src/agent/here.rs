//! This node's own facts: what plans and rules depend on besides Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_dataplane::Settings;
use portolan_model::{Name, ServiceId, ServicePlan, Snapshot};
use portolan_plan::{NodeView, node_ports};

use crate::config::Config;

pub struct Here {
    name: Name,
    pub view: NodeView,
    /// Service addresses that this node has on an interface, by Service (S21).
    own_vips: BTreeMap<ServiceId, BTreeSet<IpAddr>>,
}

impl Here {
    pub fn new(name: Name) -> Here {
        Here { name, view: NodeView::default(), own_vips: BTreeMap::new() }
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
            pods: config.proxy.detector(node.map_or(&[], |node| &node.pod_cidrs)),
            masquerade_all: config.proxy.masquerade_all,
            external_ips: config.proxy.external_ips,
        };
        let changed = view != self.view;
        self.view = view;
        changed
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
        let primary = snapshot.nodes.get(&self.name).map_or(&[][..], |node| &node.internal_ips);
        let vips = self.own_vips.values().flatten().copied().collect();
        let selectors = &config.proxy.node_port_addresses;
        let mut node_port_addresses = node_ports::addresses(selectors, primary, &self.view.addresses, &vips);
        node_port_addresses.extend(node_ports::loopback(selectors));
        let cidrs = snapshot.service_cidrs.values();
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
    use portolan_model::{Detector, Family};
    use serde_json::{Value, json};

    use super::*;

    fn snapshot(node: Value) -> Snapshot {
        let mut index = Index::new(&[Kind::Node]);
        let object = Object::from_manifest(node).expect("a Node");
        index.apply(Change::Replace(Kind::Node, vec![object]));
        index.snapshot().expect("all kinds were listed")
    }

    fn node(spec: Value) -> Snapshot {
        snapshot(json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" }, "spec": spec }))
    }

    fn config(text: &str) -> Config {
        Config::over(Value::Null, text).expect("a configuration")
    }

    #[test]
    fn s49_until_a_node_has_pod_cidrs_it_has_no_pods_to_tell_apart() {
        let (mut here, config) = (Here::new("n1".into()), config("proxy: { detectLocalMode: NodeCIDR }"));
        here.see(&node(json!({})), &config, []);
        assert!(Family::ALL.iter().all(|family| !here.view.pods.detects(*family)));
        let with = node(json!({ "podCIDRs": ["10.244.1.0/24"] }));
        assert!(here.see(&with, &config, []), "every Service is planned again");
        assert_eq!(here.view.pods, Detector::Ranges(vec!["10.244.1.0/24".parse().unwrap()]));
        assert_eq!(here.settings(&with, &config).pods, here.view.pods);
        assert!(!here.see(&with, &config, []));
    }
}
