//! Everything of ours in this node's kernel, written in the order in which it is safe: tables, then the tracked connections
//! and routes that follow them. What fails is tried again, from what the kernel then holds and with growing pauses.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use ipnet::IpNet;
use portolan_model::Snapshot;

use super::connections::Connections;
use super::meter::Meter;
use super::node_routes::NodeRoutes;
use super::tables::Tables;
use crate::dataplane::kernel::joined;
use crate::reporter::Alarm;

/// Between two attempts after the kernel refused something: doubles up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(30);

pub struct Programmer {
    pub tables: Tables,
    pub connections: Connections,
    pub node_routes: NodeRoutes,
    /// The routes to other nodes are to be compared with the kernel's.
    pub routes_due: bool,
    /// What the kernel last refused, until it is overcome.
    trouble: Option<Trouble>,
    pub alarm: Alarm,
}

struct Trouble {
    error: String,
    /// The tables are not as they should be; otherwise it is connections or routes, and the tables go on.
    of_tables: bool,
    pause: Duration,
    retry_at: Instant,
}

impl Programmer {
    pub fn new(
        tables: Tables,
        connections: Connections,
        node_routes: NodeRoutes,
        alarm: Alarm,
    ) -> Programmer {
        Programmer { tables, connections, node_routes, routes_due: true, trouble: None, alarm }
    }

    /// When there is something to do although nothing changed.
    pub fn wake(&self) -> Option<Instant> {
        // In trouble, connections wait for the next attempt too.
        let next = match &self.trouble {
            Some(trouble) => Some(trouble.retry_at),
            None => self.connections.wake(),
        };
        [next, self.tables.wake()].into_iter().flatten().min()
    }

    /// What the kernel refuses now.
    pub fn error(&self) -> Option<&str> {
        self.trouble.as_ref().map(|trouble| &*trouble.error)
    }

    /// The tables are not what they should be; until they are, nothing new is announced.
    pub fn is_unwritten(&self) -> bool {
        self.trouble.as_ref().is_some_and(|trouble| trouble.of_tables)
    }

    /// Brings the kernel to what is wanted: `routes` are those to the other nodes' pods.
    pub async fn write(
        &mut self,
        snapshot: &Snapshot,
        routes: impl FnOnce() -> BTreeMap<IpNet, IpAddr>,
        meter: &mut Meter,
        now: Instant,
    ) {
        let pausing = self.trouble.as_ref().filter(|trouble| now < trouble.retry_at);
        if pausing.is_some_and(|trouble| trouble.of_tables) {
            return;
        }
        let is_pausing = pausing.is_some();
        let tables = self.tables.write(meter, &mut self.alarm, now);
        let of_tables = tables.is_err();
        let others = match of_tables || is_pausing {
            true => Vec::new(),
            false => self.write_others(snapshot, routes, meter, now).await,
        };
        let errors: Vec<anyhow::Error> = tables.err().into_iter().chain(others).collect();
        if !errors.is_empty() {
            self.postpone(format!("{:#}", joined(errors.into_iter())), of_tables, now);
        } else if !is_pausing && self.trouble.take().is_some() {
            tracing::info!("the kernel took everything");
            self.alarm.tell("KernelRulesWritten", "the kernel takes changes again and holds all of them");
        }
    }

    /// What follows the tables; what went wrong.
    async fn write_others(
        &mut self,
        snapshot: &Snapshot,
        routes: impl FnOnce() -> BTreeMap<IpNet, IpAddr>,
        meter: &Meter,
        now: Instant,
    ) -> Vec<anyhow::Error> {
        self.connections.orphaned(self.tables.take_orphans());
        let cleaned = self.connections.clean(snapshot, &self.tables, now);
        let cleaned = cleaned.map(|cleaned| meter.cleaned(&cleaned));
        let routed = match self.routes_due {
            true => self.node_routes.apply(&routes()).await.context("routes to other nodes"),
            false => Ok(()),
        };
        self.routes_due = routed.is_err();
        [cleaned, routed].into_iter().filter_map(Result::err).collect()
    }

    fn postpone(&mut self, error: String, of_tables: bool, now: Instant) {
        let last = self.trouble.take();
        if last.as_ref().is_none_or(|last| last.error != error) {
            tracing::error!(error, "the kernel refused a change; trying again");
        }
        let note = format!(
            "the kernel refused a change, and what it held before stays in force; trying again: {error}"
        );
        self.alarm.raise("KernelRefused", &note, now);
        let pause = last.map_or(RETRY_FIRST, |last| (last.pause * 2).min(RETRY_LONGEST));
        self.trouble = Some(Trouble { error, of_tables, pause, retry_at: now + pause });
    }
}
