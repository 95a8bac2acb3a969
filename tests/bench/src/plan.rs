//! Which measurements are made, in which order, and which bars they are held against.

use portolan_lab::binaries::Binaries;

use crate::Arguments;
use crate::measure::{Change, Run};
use crate::objects::Size;
use crate::report::Report;
use crate::stats::{largest, median, percentile};
use crate::subject::{Kind, Settled, Subject};
use crate::world::{Node, World};

pub async fn run(arguments: &Arguments, prefix: &str, binaries: &Binaries) -> anyhow::Result<()> {
    let mut report = Report::default();
    for size in &arguments.sizes {
        let world = World::up(prefix, *size, binaries).await?;
        for kind in &arguments.subjects {
            if *kind == Kind::Portolan || size.services <= arguments.rivals_up_to {
                Session { world: &world, kind: *kind, quick: arguments.quick, report: &mut report }
                    .run()
                    .await?;
            }
        }
        world.down().await?;
        report.write_json(&arguments.output.join("results.json"))?;
    }
    print!("{}", report.table());
    Ok(())
}

/// One subject at one size.
struct Session<'a> {
    world: &'a World,
    kind: Kind,
    quick: bool,
    report: &'a mut Report,
}

impl<'a> Session<'a> {
    async fn run(&mut self) -> anyhow::Result<()> {
        eprintln!("{}, {}", self.kind.name(), self.world.size);
        let mut run = self.starts().await?;
        let idle = run.idle(if self.quick { 3 } else { 10 }).await?;
        self.add("idle: CPU in a second", idle.as_secs_f64() * 1e3, "ms", self.at(None, Some(1.0), None));
        self.changes(&mut run, Change::Add, "one endpoint more").await?;
        self.changes(&mut run, Change::Replace, "one endpoint replaced").await?;
        self.burst(&mut run).await?;
        self.restart(run).await?.end().await
    }

    /// Cold starts, each on a new node; the last one stays.
    async fn starts(&mut self) -> anyhow::Result<Run<'a>> {
        let repetitions = match (self.kind, self.world.size.services) {
            (Kind::Portolan, ..=10_000) if !self.quick => 5,
            (Kind::Portolan, _) | (_, ..=1_000) => 3,
            _ => 1,
        };
        let mut settled = Vec::new();
        loop {
            let node = Node::up(&self.world.prefix).await?;
            let mut subject = Subject::start(self.kind, self.world, &node)?;
            settled.push(subject.settle().await?);
            let memory = subject.resident_kib()?;
            let run = Run::new(self.world, node, subject);
            run.check_all().await?;
            if settled.len() == repetitions {
                self.report_starts(&settled, memory);
                return Ok(run);
            }
            run.end().await?;
        }
    }

    fn report_starts(&mut self, settled: &[Settled], (resident, peak): (u64, u64)) {
        let of = |f: fn(&Settled) -> f64| median(&settled.iter().map(f).collect::<Vec<_>>());
        let (cpu, wall) = (of(|s| s.cpu.as_secs_f64()), of(|s| s.active.as_secs_f64()));
        self.add("start: CPU", cpu, "s", self.at(None, Some(0.6), Some(2.5)));
        self.add("start: of that in the kernel", of(|s| s.system.as_secs_f64()), "s", None);
        self.add("start: until all rules are active", wall, "s", self.at(None, Some(2.0), None));
        self.add("start: transactions", of(|s| s.commits.into()), "", None);
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
        let count = match (self.kind, self.quick) {
            (Kind::Portolan, false) => 200,
            (Kind::Portolan, true) => 50,
            (_, _) => 5,
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
        Ok(())
    }

    async fn burst(&mut self, run: &mut Run<'_>) -> anyhow::Result<()> {
        let count = 1000.min(self.world.size.services);
        let burst = run.burst(count).await?;
        let name = |what: &str| format!("{count} changes: {what}");
        self.add(&name("the API server takes them in"), burst.posted.as_secs_f64(), "s", None);
        let behind = burst.behind.as_secs_f64() * 1e3;
        self.add(&name("last event to last commit"), behind, "ms", self.at(None, Some(100.0), None));
        self.add(&name("CPU"), burst.cpu.as_secs_f64(), "s", self.at(None, Some(0.3), None));
        self.add(&name("transactions"), burst.commits as f64, "", None);
        Ok(())
    }

    async fn restart(&mut self, run: Run<'a>) -> anyhow::Result<Run<'a>> {
        let mut run = run.restart().await?;
        let settled = run.subject.settle().await?;
        run.check_all().await?;
        let cpu = settled.cpu.as_secs_f64();
        self.add("restart, nothing changed: CPU", cpu, "s", self.at(None, Some(0.6), None));
        let writes = settled.commits.into();
        self.add("restart, nothing changed: transactions", writes, "", Some(0.0));
        Ok(run)
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
