//! Tracked connections that new rules do not reach (S51–S53), deleted once the kernel has those rules.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Instant;

use portolan_model::{Family, Frontend, ServiceId, Snapshot};
use portolan_plan::flows::Flows;

use super::tables::Tables;
use crate::dataplane::conntrack::{Cleaned, Conntrack};

pub struct Connections {
    conntrack: Conntrack,
    flows: Flows,
    /// Services whose endpoints may have changed since `flows` saw them.
    unseen: BTreeSet<ServiceId>,
}

impl Connections {
    /// `cut_vanished_tcp`: those of TCP as well (S53).
    pub fn open(cut_vanished_tcp: bool) -> anyhow::Result<Connections> {
        let flows = Flows::new(cut_vanished_tcp);
        Ok(Connections { conntrack: Conntrack::open()?, flows, unseen: BTreeSet::new() })
    }

    /// These Services may have other endpoints now.
    pub fn touch(&mut self, services: &BTreeSet<ServiceId>) {
        self.unseen.extend(services.iter().cloned());
    }

    /// Nothing is behind these any more.
    pub fn orphaned(&mut self, frontends: Vec<Frontend>) {
        self.flows.orphaned(frontends);
    }

    /// To be called when the kernel has what `tables` wants; says what was deleted.
    pub fn clean(
        &mut self,
        snapshot: &Snapshot,
        tables: &Tables,
        now: Instant,
    ) -> anyhow::Result<BTreeMap<Family, Cleaned>> {
        for id in std::mem::take(&mut self.unseen) {
            let service = snapshot.services.get(&id).map(|service| &**service);
            self.flows.set(&id, tables.programmed(&id).map(|plan| &**plan), service, now);
        }
        self.delete(&tables.settings().node_port_addresses, now)
    }

    /// When there is something to delete although nothing changed.
    pub fn wake(&self) -> Option<Instant> {
        self.flows.poll_timeout()
    }

    fn delete(
        &mut self,
        node_ports: &BTreeSet<IpAddr>,
        now: Instant,
    ) -> anyhow::Result<BTreeMap<Family, Cleaned>> {
        let stale = self.flows.stale(now);
        if stale.is_empty() {
            return Ok(BTreeMap::new());
        }
        let cleaned = self.conntrack.clean(&stale, node_ports)?;
        self.flows.cleaned();
        tracing::debug!(?cleaned, "tracked connections that led nowhere are deleted");
        Ok(cleaned)
    }
}
