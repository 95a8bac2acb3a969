//! What is measured of a subject that runs. Nothing is returned that was not checked: each change by a packet that the changed
//! endpoint answered, each whole state by the kernel's listing.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use portolan_lab::wait_for;
use serde_json::json;

use crate::ask;
use crate::commits::Listener;
use crate::events::Events;
use crate::listing::Listing;
use crate::load;
use crate::objects::{self, NAMESPACE, spare_endpoint};
use crate::subject::{Kind, Settled, Subject};
use crate::wire::Wire;
use crate::world::{Node, Wires, World};

const PATIENCE: Duration = Duration::from_secs(120);
const START_PATIENCE: Duration = Duration::from_secs(900);
/// Answers asked for after a start, of Services over the whole range.
const PROBES: u32 = 20;
/// Of a burst, the Services that a packet is sent to; the rest are looked up in the kernel's listing.
const BURST_PROBES: usize = 20;

/// A running subject, and what was changed since the objects were as they are kept.
pub struct Run<'a> {
    pub world: &'a World,
    pub node: Node,
    pub subject: Subject,
    /// The present endpoints of Services that were changed, and how often that was.
    changed: BTreeMap<u32, (Vec<Ipv4Addr>, u32)>,
    /// Bytes from the API server when the subject started.
    received_before: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    /// One endpoint more.
    Add,
    /// One in place of another.
    Replace,
}

/// Changes one after the other.
#[derive(Debug)]
pub struct Changes {
    /// Event on the watch to commit, milliseconds each.
    pub latency_ms: Vec<f64>,
    /// CPU milliseconds for one.
    pub cpu_ms: f64,
    /// KiB that came from the API server for one.
    pub received_kib: f64,
}

/// Changes all at once.
#[derive(Debug)]
pub struct Burst {
    /// How long the API server took to take them.
    pub posted: Duration,
    /// From its last event to the last commit.
    pub behind: Duration,
    pub cpu: Duration,
    pub commits: usize,
}

impl<'a> Run<'a> {
    pub fn new(world: &'a World, node: Node, subject: Subject) -> Run<'a> {
        Run { world, node, subject, changed: BTreeMap::new(), received_before: 0 }
    }

    /// Waits until the subject has received so many bytes, has nothing left to do, and kernel and packets agree with the objects.
    /// One that only waits for an answer rests, too, and what an earlier one wrote may agree already.
    pub async fn settle(&mut self, bytes: u64) -> anyhow::Result<Settled> {
        let deadline = Instant::now() + START_PATIENCE;
        loop {
            let settled = self.subject.settle().await?;
            let received = self.received().await?;
            let checked = if received >= bytes {
                self.check_all().await
            } else {
                Err(anyhow::anyhow!("{received} bytes"))
            };
            match checked {
                Ok(()) => return Ok(settled),
                Err(error) if Instant::now() > deadline => {
                    return Err(error.context("it does not come so far"));
                }
                Err(_) => {}
            }
        }
    }

    /// Bytes from the API server since the subject started.
    pub async fn received(&self) -> anyhow::Result<u64> {
        Ok(self.node.received().await? - self.received_before)
    }

    /// Fails unless kernel and packets agree with the objects.
    pub async fn check_all(&self) -> anyhow::Result<()> {
        let size = self.world.size;
        let listing = Listing::read(self.subject.kind, &self.node).await?;
        let more: u32 = self.changed.values().map(|(now, _)| now.len() as u32 - size.endpoints).sum();
        listing.check(size.services, size.services * size.endpoints + more)?;
        for probe in 0..PROBES.min(size.services) {
            let service = probe * (size.services - 1) / PROBES.saturating_sub(1).max(1);
            let known: Vec<Ipv4Addr> = (0..64).map(|slot| objects::endpoint(service, slot)).collect();
            ask::is_answered(&self.node.client, service, &known).await?;
        }
        Ok(())
    }

    /// CPU in a second of nothing.
    pub async fn idle(&self, seconds: u32) -> anyhow::Result<Duration> {
        let before = self.subject.cpu()?;
        tokio::time::sleep(Duration::from_secs(seconds.into())).await;
        Ok((self.subject.cpu()? - before) / seconds)
    }

    /// Changes `services`, one after the other.
    pub async fn change(
        &mut self,
        change: Change,
        services: impl Iterator<Item = u32>,
    ) -> anyhow::Result<Changes> {
        let commits = Listener::start(&self.node.node)?;
        let wire = Wire::tap(&self.node.node)?;
        let (before, received) = (self.subject.cpu()?, self.node.received().await?);
        let mut latency_ms = Vec::new();
        for service in services {
            let (new, gone) = self.next(change, service);
            commits.take()?;
            wire.take()?;
            set_endpoints(&self.world.client, service, &self.changed[&service].0).await?;
            self.at_rest(&commits).await?;
            let committed = *commits.take()?.last().context("no commit")?;
            let event = *wire.take()?.first().context("no event on the wire")?;
            latency_ms.push(committed.saturating_duration_since(event).as_secs_f64() * 1e3);
            ask::reaches(&self.node.client, service, new, gone).await?;
        }
        let cpu = self.subject.cpu()? - before;
        let received = self.node.received().await? - received;
        drop(commits);
        self.check_all().await?;
        let each = latency_ms.len() as f64;
        let cpu_ms = cpu.as_secs_f64() * 1e3 / each;
        Ok(Changes { latency_ms, cpu_ms, received_kib: received as f64 / 1024.0 / each })
    }

    /// Replaces one endpoint of each of the first `count` Services, as fast as the API server takes it.
    pub async fn burst(&mut self, count: u32) -> anyhow::Result<Burst> {
        let swaps: Vec<_> = (0..count).map(|service| self.next(Change::Replace, service)).collect();
        let commits = Listener::start(&self.node.node)?;
        let (events, wire) = (Events::watch(&self.world.client).await?, Wire::tap(&self.node.node)?);
        let before = self.subject.cpu()?;
        let start = Instant::now();
        let (client, changed) = (&self.world.client, &self.changed);
        load::each(count, async |service| set_endpoints(client, service, &changed[&service].0).await).await?;
        let posted = Instant::now();
        let told = wait_for("every event came", PATIENCE, async || {
            let (last, seen) = events.last()?;
            Ok(if seen >= count as usize { last.ok_or_else(String::new) } else { Err(format!("{seen}")) })
        })
        .await?;
        self.at_rest(&commits).await?;
        let cpu = self.subject.cpu()? - before;
        let commits = commits.take()?;
        let last = *commits.last().context("no commit")?;
        let arrived =
            wire.take()?.into_iter().rev().find(|at| *at <= last).context("no event on the wire")?;
        self.check_burst(&swaps).await?;
        // Whoever saw the last event first.
        let behind = last.saturating_duration_since(told.min(posted).min(arrived));
        Ok(Burst { posted: posted - start, behind, cpu, commits: commits.len() })
    }

    async fn check_burst(&self, swaps: &[(Ipv4Addr, Option<Ipv4Addr>)]) -> anyhow::Result<()> {
        self.check_all().await?;
        let listing = Listing::read(self.subject.kind, &self.node).await?;
        for (service, (new, gone)) in swaps.iter().enumerate() {
            let is_done = listing.has(*new) && gone.is_none_or(|gone| !listing.has(gone));
            ensure!(is_done, "Service {service}: {new} is not there, or {gone:?} still is");
        }
        for (service, (new, gone)) in swaps.iter().enumerate().step_by(swaps.len() / BURST_PROBES) {
            ask::reaches(&self.node.client, service as u32, *new, *gone).await?;
        }
        Ok(())
    }

    /// Takes note of a change of the Service: the endpoint that is new, with an address it never had, and the one that is gone.
    fn next(&mut self, change: Change, service: u32) -> (Ipv4Addr, Option<Ipv4Addr>) {
        let size = self.world.size;
        let first = || (objects::first_endpoints(service, size), 0);
        let (now, changes) = self.changed.entry(service).or_insert_with(first);
        let new = spare_endpoint(service, size, *changes);
        *changes += 1;
        let gone = match change {
            Change::Add => {
                now.push(new);
                None
            }
            Change::Replace => Some(std::mem::replace(&mut now[0], new)),
        };
        (new, gone)
    }

    /// Returns once something was committed and no more will be for what happened so far.
    async fn at_rest(&mut self, commits: &Listener) -> anyhow::Result<()> {
        let quiet = match self.subject.kind {
            Kind::Portolan => Duration::from_millis(20),
            // It syncs once a second at most.
            Kind::Nftables | Kind::Iptables => Duration::from_millis(1500),
        };
        let (mut seen, mut since, mut cpu) = (0, Instant::now(), self.subject.cpu()?);
        wait_for("the change is committed", PATIENCE, async || {
            self.subject.check()?;
            let (count, now) = (commits.count(), self.subject.cpu()?);
            // More than an idle process takes in this time.
            if count != seen || now - cpu > Duration::from_millis(20) {
                (seen, since, cpu) = (count, Instant::now(), now);
            }
            let rests = seen > 0 && since.elapsed() >= quiet;
            Ok(if rests { Ok(()) } else { Err(format!("{seen} commits")) })
        })
        .await
    }

    /// Ends the subject, whose rules stay in the node's kernel, and brings the objects back to what is kept.
    pub async fn end(self) -> anyhow::Result<Wires> {
        let Run { world, node, subject, changed, .. } = self;
        subject.kill().await?;
        let wires = node.retire().await?;
        let changed: Vec<u32> = changed.into_keys().collect();
        load::each(changed.len() as u32, async |index| {
            let service = changed[index as usize];
            let endpoints = objects::first_endpoints(service, world.size);
            set_endpoints(&world.client, service, &endpoints).await
        })
        .await?;
        Ok(wires)
    }

    /// The same kernel and the same objects under a new process.
    pub async fn restart(self) -> anyhow::Result<Run<'a>> {
        let Run { world, node, subject, changed, .. } = self;
        let kind = subject.kind;
        subject.kill().await?;
        let received_before = node.received().await?;
        let subject = Subject::start(kind, world, &node)?;
        Ok(Run { world, node, subject, changed, received_before })
    }
}

/// Writes the Service's EndpointSlice.
pub async fn set_endpoints(client: &Client, service: u32, endpoints: &[Ipv4Addr]) -> anyhow::Result<()> {
    let slices = Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE);
    let whole = objects::slice(service, endpoints);
    let patch = Patch::Merge(json!({ "endpoints": whole["endpoints"] }));
    slices.patch_metadata(&objects::slice_name(service), &PatchParams::default(), &patch).await?;
    Ok(())
}
