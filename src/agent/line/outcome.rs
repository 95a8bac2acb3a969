//! What others learn of a turn: the log what is wrong, load balancers whether to come here, the NodeStatus what is announced.

use std::collections::BTreeSet;

use portolan_model::{Problem, ServiceId, Snapshot};
use portolan_plan::{node_ports, peers};

use super::Line;
use crate::agent::report::LineReport;

impl Line {
    /// Each problem is said once, when it appears.
    pub(super) fn say(&mut self, snapshot: &Snapshot) {
        let unheard =
            snapshot.peers.values().filter(|peer| peer.passive && self.config.bgp.listen.is_empty());
        let unheard = unheard.map(|peer| Problem {
            object: peer.object(),
            field: "spec.passive".into(),
            reason: "NotListening",
            message: "waits for the peer to connect, but bgp.listen in the agent's configuration is empty"
                .into(),
        });
        let of_node = self.here.problems(snapshot, &self.config);
        let problems = self.of_peers.iter().chain(self.index.problems()).cloned().chain(of_node);
        let problems: BTreeSet<Problem> = problems.chain(unheard).collect();
        for (reason, sentence) in self.complaints.about(problems.iter()) {
            tracing::warn!(reason, "{sentence}");
        }
    }

    /// What the health servers answer from now on (S58–S61).
    pub(super) fn check_up(&mut self, snapshot: &Snapshot, services: &BTreeSet<ServiceId>) {
        let mut ports_changed = false;
        for id in services {
            let service = snapshot.services.get(id).map(|service| &**service);
            ports_changed |= self.health_ports.set(id, service, &self.here.view);
        }
        let node = snapshot.nodes.get(&self.node);
        let unwritten = self.programmer.is_unwritten();
        let addresses = node_ports::health_addresses(
            &self.config.proxy.node_port_addresses,
            &self.programmer.tables.settings().node_port_addresses,
        );
        self.health.send_modify(|health| {
            health.eligible = node.is_none_or(|node| !node.leaving);
            health.node_uid = node.map(|node| node.uid.clone());
            if !unwritten {
                health.applied();
            }
            health.addresses = addresses;
            if ports_changed {
                health.ports = self.health_ports.clone();
            }
        });
    }

    pub(super) fn tell(&mut self, snapshot: &Snapshot) {
        let node = snapshot.nodes.get(&self.node);
        let unwritten = self.programmer.is_unwritten();
        let report = LineReport {
            node_uid: node.map(|node| node.uid.clone()),
            synced: !unwritten,
            error: self.programmer.error().map(str::to_owned),
            local_asn: self.config.bgp.asn,
            router_id: node.map(|node| peers::router_id(node)),
            announced: self.announced.prefixes.clone(),
            withheld: self.announcer.withheld(),
        };
        self.report.send_if_modified(|last| {
            let changed = *last != report;
            *last = report;
            changed
        });
        let state = unwritten.then_some("the kernel refused a change");
        self.ready.send_if_modified(|last| std::mem::replace(last, state) != state);
    }
}
