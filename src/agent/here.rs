//! This node's own facts: what plans and rules depend on besides Services.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use portolan_dataplane::Settings;
use portolan_model::{Name, ServiceId, ServicePlan, Snapshot};
use portolan_plan::{NodeView, node_ports};

use crate::config::{Config, DetectLocalMode};

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
            cluster_cidrs: match config.proxy.detect_local_mode {
                DetectLocalMode::ClusterCidr => config.proxy.cluster_cidrs.clone(),
                // A node that has none yet has no pods yet (S49).
                DetectLocalMode::NodeCidr => node.iter().flat_map(|node| &node.pod_cidrs).copied().collect(),
            },
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
            cluster_cidrs: self.view.cluster_cidrs.clone(),
            node_port_addresses,
            service_cidrs: cidrs.flat_map(|object| &object.cidrs).copied().collect(),
            mark: config.proxy.masquerade_bit.mark(),
        }
    }
}
