//! Which measurements are made, in which order, and which bars they are held against.

use std::time::Duration;

use portolan_lab::binaries::Binaries;

use crate::Arguments;
use crate::facts::Facts;
use crate::listing::Listing;
use crate::measure::{Change, Run};
use crate::objects::Size;
use crate::packet_figures::Used;
use crate::pipeline::Outcome;
use crate::report::Report;
use crate::stats::{largest, median, percentile};
use crate::subject::{Kind, Settled, Subject};
use crate::world::{Node, Wires, World};
use crate::{ask, docs, packet_figures, packets, pipeline, watchers};

pub async fn run(arguments: &Arguments, prefix: &str, binaries: &Binaries) -> anyhow::Result<()> {
    let facts = Facts::gather(&binaries.kubernetes)?;
    eprintln!("{facts}");
    let mut report = Report::default();
    // A packet's way where there are no rules and no connection tracking.
    let plain = Wires::up(&format!("{prefix}-plain")).await?;
    let mut quickest = packets::calibrate(&plain, arguments.quick).await?;
    // Ours of the first size stay, for packets to be compared with those of later ones.
    let mut used: Vec<Used> = Vec::new();
    for size in &arguments.sizes {
        let world = World::up(prefix, *size, binaries).await?;
        for kind in &arguments.subjects {
            if arguments.measures(*kind, *size) {
                let session = Session {
                    world: &world,
                    kind: *kind,
                    arguments,
                    listed: 0,
                    used: &mut used,
                    report: &mut report,
                };
                session.run().await?;
            }
        }
        // What there is so far, should something fail that comes later.
        report.write_json(&arguments.output.join("results.json"))?;
        if arguments.wants(Part::Packets) {
            packet_figures::add(&mut report, *size, (&plain, &mut quickest), &used, arguments.quick).await?;
        }
        let stays = |of: &mut Used| of.kind == Kind::Portolan && Some(&of.size) == arguments.sizes.first();
        for gone in used.extract_if(.., |of| !stays(of)) {
            gone.wires.down().await?;
        }
        if Some(size) == arguments.sizes.first() && arguments.only.is_empty() {
            let cost = ms(watchers::measure(&world).await?) * 1e3;
            report.add(Kind::Portolan, "API server: CPU for one event to one watcher", cost, "µs", None);
        }
        world.down().await?;
    }
    for gone in used {
        gone.wires.down().await?;
    }
    plain.down().await?;
    report.write_json(&arguments.output.join("results.json"))?;
    std::fs::write(arguments.output.join("facts.json"), serde_json::to_string_pretty(&facts)? + "\n")?;
    std::fs::write(arguments.output.join("bench.svg"), docs::picture(&report))?;
    if let Some(folder) = &arguments.docs {
        docs::write(folder, &facts, &report)?;
    }
    println!("{facts}\n\n{}", report.table());
    Ok(())
}

/// What can be measured by itself, beside a subject's starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Part {
    Packets,
    /// Idle, single changes, a burst of them.
    Changes,
    Restart,
    Pipeline,
}

/// One subject at one size.
struct Session<'a> {
    world: &'a World,
    kind: Kind,
    arguments: &'a Arguments,
    /// Bytes from the API server during a start.
    listed: u64,
    /// Nodes that it served, for packets to be sent through.
    used: &'a mut Vec<Used>,
    report: &'a mut Report,
}

impl<'a> Session<'a> {
    async fn run(mut self) -> anyhow::Result<()> {
        eprintln!("{}, {}", self.kind.name(), self.world.size);
        let mut run = self.starts().await?;
        if self.arguments.wants(Part::Changes) {
            let idle = run.idle(if self.arguments.quick { 3 } else { 10 }).await?;
            self.add("idle: CPU in a second", ms(idle), "ms", self.at(None, Some(1.0), None));
            self.changes(&mut run, Change::Add, "one endpoint more").await?;
            self.changes(&mut run, Change::Replace, "one endpoint replaced").await?;
            self.burst(&mut run).await?;
        }
        if self.arguments.wants(Part::Restart) {
            run = self.restart(run).await?;
        }
        self.end(run).await?;
        // These parts run in this program: not as the product's own code would, in a build for debugging.
        if self.kind == Kind::Portolan && self.arguments.wants(Part::Pipeline) && !cfg!(debug_assertions) {
            self.pipeline().await?;
        }
        Ok(())
    }

    /// The node stays as long as it is of use.
    async fn end(&mut self, run: Run<'a>) -> anyhow::Result<()> {
        let wires = run.end().await?;
        match self.arguments.wants(Part::Packets) {
            true => self.used.push(Used { kind: self.kind, size: self.world.size, wires }),
            false => wires.down().await?,
        }
        Ok(())
    }

    /// Cold starts, each on a new node; the last one stays.
    async fn starts(&mut self) -> anyhow::Result<Run<'a>> {
        let repetitions = match (self.kind, self.world.size.services) {
            // Each is a load of its own for the packets, too: as many of those that are compared.
            (Kind::Portolan | Kind::Nftables, ..=10_000) if !self.arguments.quick => 5,
            (Kind::Portolan, _) => 3,
            (_, ..=1_000) if !self.arguments.quick => 3,
            _ => 1,
        };
        let (mut settled, mut received) = (Vec::new(), Vec::new());
        loop {
            let node = Node::up(&self.world.prefix).await?;
            let subject = Subject::start(self.kind, self.world, &node)?;
            let mut run = Run::new(self.world, node, subject);
            settled.push(run.settle(0).await?);
            let (memory, kernel) = (run.subject.resident_kib()?, run.subject.cgroup.kernel_kib());
            self.listed = run.received().await?;
            received.push(self.listed as f64 / f64::from(1 << 20));
            if settled.len() == repetitions {
                self.report_starts(&settled, memory);
                if let Some(kib) = kernel {
                    let bar = self.at(None, Some(6.0), Some(40.0));
                    self.add("memory: in the kernel", kib as f64 / 1024.0, "MiB", bar);
                }
                self.add("start: received from the API server", median(&received), "MiB", None);
                return Ok(run);
            }
            self.end(run).await?;
        }
    }

    fn report_starts(&mut self, settled: &[Settled], (resident, peak): (u64, u64)) {
        let of = |f: fn(&Settled) -> f64| median(&settled.iter().map(f).collect::<Vec<_>>());
        let (cpu, wall) = (of(|s| ms(s.cpu)), of(|s| s.active.as_secs_f64()));
        self.add("start: CPU", cpu, "ms", self.at(None, Some(600.0), Some(2_500.0)));
        self.add("start: of that in the kernel", of(|s| ms(s.system)), "ms", None);
        self.add("start: until all rules are active", wall, "s", self.at(None, Some(2.0), None));
        if self.kind == Kind::Portolan {
            self.add("start: transactions", of(|s| s.commits.into()), "", None);
        }
        let (resident, peak) = (resident as f64 / 1024.0, peak as f64 / 1024.0);
        self.add("memory: resident", resident, "MiB", self.at(None, Some(40.0), Some(200.0)));
        self.add(
            "memory: peak at start",
            peak,
            "MiB",
            self.at(None, Some(1.5 * resident), Some(1.5 * resident)),
        );
    }

    async fn changes(&mut self, run: &mut Run<'_>, change: Change, name: &str) -> anyhow::Result<()> {
        let count = match (self.kind, self.arguments.quick) {
            (Kind::Portolan, false) => 200,
            (Kind::Portolan, true) => 50,
            (_, false) => 5,
            (_, true) => 3,
        };
        // Spread over all Services, and others for each kind of change.
        let (all, kinds) = (self.world.size.services, 2);
        let offset = u32::from(change == Change::Replace);
        let services = (0..count).map(|number| (kinds * number + offset) * all / (kinds * count));
        let measured = run.change(change, services).await?;
        let (middle, high) = (median(&measured.latency_ms), percentile(&measured.latency_ms, 0.99));
        let bar = |bar| self.at(None, Some(bar), Some(bar));
        let bars = (bar(2.0), bar(10.0), bar(2.0));
        self.add(&format!("{name}: event to commit, median"), middle, "ms", bars.0);
        let last = if count < 100 { "largest" } else { "99 %" };
        let high = if count < 100 { largest(&measured.latency_ms) } else { high };
        if self.kind == Kind::Portolan {
            self.add(&format!("{name}: event to commit, {last}"), high, "ms", bars.1);
        }
        self.add(&format!("{name}: CPU"), measured.cpu_ms, "ms", bars.2);
        self.add(&format!("{name}: received"), measured.received_kib, "KiB", None);
        Ok(())
    }

    async fn burst(&mut self, run: &mut Run<'_>) -> anyhow::Result<()> {
        let count = 1000.min(self.world.size.services);
        let burst = run.burst(count).await?;
        let name = |what: &str| format!("{count} changes: {what}");
        let behind = ms(burst.behind);
        self.add(&name("last event to last commit"), behind, "ms", self.at(None, Some(100.0), None));
        self.add(&name("CPU"), ms(burst.cpu), "ms", self.at(None, Some(300.0), None));
        if self.kind == Kind::Portolan {
            self.add(&name("the API server takes them in"), burst.posted.as_secs_f64(), "s", None);
            self.add(&name("transactions"), burst.commits as f64, "", None);
        }
        Ok(())
    }

    async fn restart(&mut self, run: Run<'a>) -> anyhow::Result<Run<'a>> {
        let mut run = run.restart().await?;
        // Changes made the objects a little larger or smaller.
        let settled = run.settle(self.listed / 10 * 9).await?;
        self.add("restart, nothing changed: CPU", ms(settled.cpu), "ms", self.at(None, Some(600.0), None));
        let writes = settled.commits.into();
        self.add("restart, nothing changed: transactions", writes, "", Some(0.0));
        Ok(run)
    }

    /// Without API server and process.
    async fn pipeline(&mut self) -> anyhow::Result<()> {
        let size = self.world.size;
        let node = Node::up(&self.world.prefix).await?;
        let outcome = pipeline::measure(&node.node, size, self.arguments.quick).await?;
        check_pipeline(&node, size, &outcome).await?;
        node.down().await?;
        let middle = |times: &[Duration]| median(&times.iter().copied().map(ms).collect::<Vec<_>>());
        self.add(
            "pipeline: objects to rules",
            ms(outcome.load),
            "ms",
            self.at(Some(20.0), Some(300.0), Some(1_600.0)),
        );
        self.add("pipeline: longest transaction", ms(outcome.longest_transaction), "ms", Some(20.0));
        self.add(
            "pipeline: plan and diff of one Service",
            middle(&outcome.plan_and_diff) * 1e3,
            "µs",
            Some(50.0),
        );
        self.add("pipeline: write one replaced", middle(&outcome.replace), "ms", Some(0.1));
        let one_more = self.at(Some(2.0), Some(2.0), Some(8.0));
        self.add("pipeline: write one more", middle(&outcome.add), "ms", one_more);
        self.add("pipeline: write 100 replaced", middle(&outcome.replace_many), "ms", Some(1.0));
        let restart = middle(&outcome.restart);
        self.add("pipeline: restart", restart, "ms", self.at(None, Some(60.0), None));
        self.add("pipeline: restart, transactions", outcome.restart_writes as f64, "", Some(0.0));
        Ok(())
    }

    fn add(&mut self, what: &str, value: f64, unit: &'static str, bar: Option<f64>) {
        let name = format!("{}, {what}", self.world.size);
        self.report.add(self.kind, &name, value, unit, bar);
    }

    /// The bar of this size: for 1k × 3, 10k × 3 and 30k × 10.
    fn at(&self, small: Option<f64>, middle: Option<f64>, large: Option<f64>) -> Option<f64> {
        match self.world.size {
            Size { services: 1_000, endpoints: 3 } => small,
            Size { services: 10_000, endpoints: 3 } => middle,
            Size { services: 30_000, endpoints: 10 } => large,
            _ => None,
        }
    }
}

/// The kernel's listing has everything, and packets reach what was changed.
async fn check_pipeline(node: &Node, size: Size, outcome: &Outcome) -> anyhow::Result<()> {
    let listing = Listing::read(Kind::Portolan, node).await?;
    listing.check(size.services, size.services * size.endpoints + outcome.added)?;
    for (service, new, gone) in &outcome.changed {
        anyhow::ensure!(listing.has(*new), "Service {service}: {new} is not there");
        let is_left = gone.is_some_and(|gone| listing.has(gone));
        anyhow::ensure!(!is_left, "Service {service}: {gone:?} is still there");
    }
    for (service, new, gone) in outcome.changed.iter().step_by(10) {
        ask::reaches(&node.client, *service, *new, *gone).await?;
    }
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
