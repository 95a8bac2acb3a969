//! The product's own parts without API server and process: from objects in memory to rules in the kernel, on one thread whose
//! CPU time is taken between the parts.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use portolan::dataplane::kernel::Kernel;
use portolan_dataplane::{Dataplane, Settings, Step};
use portolan_index::{Change, Index, Kind, Object};
use portolan_lab::netns::Namespace;
use portolan_model::Detector;
use portolan_plan::{NodeView, service};
use serde_json::Value;

use crate::objects::{self, NODE, PODS, Size, spare_endpoint};
use crate::pace::{self, Patience, Quickest};
use crate::usage::thread_cpu;

/// Changes of each kind.
const CHANGES: u32 = 200;
const MANY: u32 = 100;
/// So many restarts on a core of our own are enough.
const RESTARTS: usize = 7;
/// In between: the machine may have another pace then.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
const CALIBRATION: Duration = Duration::from_secs(5);
const RESTART_PATIENCE: Duration = Duration::from_secs(60);

/// CPU times, those of single changes one by one.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Plan, compare and write everything.
    pub load: Duration,
    pub longest_transaction: Duration,
    pub transactions: usize,
    /// Plan one changed Service and find what to write.
    pub plan_and_diff: Vec<Duration>,
    /// Write an endpoint in place of another.
    pub replace: Vec<Duration>,
    /// Write one endpoint more.
    pub add: Vec<Duration>,
    /// Write a replaced endpoint of each of 100 Services at once.
    pub replace_many: Vec<Duration>,
    /// Read the kernel, plan everything again and find nothing to write, several times.
    pub restart: Vec<Duration>,
    pub restart_writes: usize,
    /// What the changes were: Service, new endpoint, replaced one.
    pub changed: Vec<(u32, Ipv4Addr, Option<Ipv4Addr>)>,
    pub added: u32,
}

/// Leaves the rules in the node's kernel, to be checked.
pub async fn measure(node: &Namespace, size: Size, quick: bool) -> anyhow::Result<Outcome> {
    let node = node.clone();
    tokio::task::spawn_blocking(move || node.run(move || Pipeline::new(size, quick)?.measure())?).await?
}

struct Pipeline {
    size: Size,
    quick: bool,
    index: Index,
    view: NodeView,
    kernel: Kernel,
    dataplane: Dataplane,
}

impl Pipeline {
    fn new(size: Size, quick: bool) -> anyhow::Result<Pipeline> {
        let mut index = Index::new(&[Kind::Service, Kind::EndpointSlice]);
        let all = |make: &dyn Fn(u32) -> Value| (0..size.services).map(|n| object(make(n))).collect();
        index.apply(Change::Replace(Kind::Service, all(&objects::service)));
        let slice = |number| objects::slice(number, &objects::first_endpoints(number, size));
        index.apply(Change::Replace(Kind::EndpointSlice, all(&slice)));
        let view = NodeView {
            node: NODE.into(),
            pods: Detector::Ranges(vec![PODS.parse()?]),
            ..NodeView::default()
        };
        let settings = Settings { pods: view.pods.clone(), ..Settings::default() };
        let dataplane = Dataplane::new(settings);
        Ok(Pipeline { size, quick, index, view, kernel: Kernel::open()?, dataplane })
    }

    fn measure(mut self) -> anyhow::Result<Outcome> {
        let mut outcome = Outcome::default();
        self.load(&mut outcome)?;
        let (all, stride) = (self.size.services, self.size.services / (2 * CHANGES).min(self.size.services));
        for service in (0..all).step_by(2 * stride as usize).take(CHANGES as usize) {
            let (found, written) = self.change(&[self.replaced(service, 0)], &mut outcome)?;
            outcome.plan_and_diff.push(found);
            outcome.replace.push(written);
        }
        for service in (stride..all).step_by(2 * stride as usize).take(CHANGES as usize) {
            let mut endpoints = objects::first_endpoints(service, self.size);
            let new = spare_endpoint(service, self.size, 0);
            endpoints.push(new);
            let (_, written) = self.change(&[(service, endpoints, new, None)], &mut outcome)?;
            outcome.add.push(written);
            outcome.added += 1;
        }
        for round in 1..=5 {
            let many: Vec<_> =
                (0..MANY.min(all)).map(|n| self.replaced(2 * stride * n % all, round)).collect();
            let (_, written) = self.change(&many, &mut outcome)?;
            outcome.replace_many.push(written);
        }
        self.restarts(&mut outcome)?;
        Ok(outcome)
    }

    fn load(&mut self, outcome: &mut Outcome) -> anyhow::Result<()> {
        self.dataplane.observed(&self.kernel.observe()?);
        let start = thread_cpu();
        self.plan_all()?;
        let steps = self.dataplane.steps();
        outcome.transactions = steps.len();
        outcome.longest_transaction = self.write(&steps)?;
        outcome.load = thread_cpu() - start;
        Ok(())
    }

    fn restarts(&mut self, outcome: &mut Outcome) -> anyhow::Result<()> {
        let (mut rounds, mut quickest) = (Vec::new(), Quickest::default());
        let calibration = Patience::of(CALIBRATION, self.quick);
        while !calibration.is_over() {
            quickest.note(pace::reference());
        }
        let patience = Patience::of(RESTART_PATIENCE, self.quick);
        outcome.restart = loop {
            let before = pace::reference();
            let took = self.restart(outcome)?;
            let slower = before.max(pace::reference());
            quickest.note(before);
            rounds.push((slower, took));
            if let Some(alone) = pace::alone(&rounds, quickest, RESTARTS) {
                break alone;
            }
            if patience.is_over() {
                pace::was_never_alone();
                break pace::quickest(&rounds, RESTARTS);
            }
            std::thread::sleep(RESTART_PAUSE);
        };
        Ok(())
    }

    fn restart(&mut self, outcome: &mut Outcome) -> anyhow::Result<Duration> {
        self.dataplane = Dataplane::new(self.dataplane.settings().clone());
        let start = thread_cpu();
        self.dataplane.observed(&self.kernel.observe()?);
        self.plan_all()?;
        outcome.restart_writes += self.dataplane.steps().len();
        Ok(thread_cpu() - start)
    }

    fn plan_all(&mut self) -> anyhow::Result<()> {
        let snapshot = self.index.snapshot().context("not in sync")?;
        for (id, service) in snapshot.services.iter() {
            let plan = Arc::new(service::plan(service, &self.view));
            self.dataplane.set_service(id, service.created, Some(plan));
        }
        Ok(())
    }

    /// Puts the next spare address in place of the first one.
    fn replaced(&self, service: u32, round: u32) -> Changed {
        let mut endpoints = objects::first_endpoints(service, self.size);
        let of = |round: u32| spare_endpoint(service, self.size, round + 1);
        let gone = if round == 0 { endpoints[0] } else { of(round - 1) };
        endpoints[0] = of(round);
        (service, endpoints, of(round), Some(gone))
    }

    /// What planning and comparing took, and what writing did.
    fn change(&mut self, all: &[Changed], outcome: &mut Outcome) -> anyhow::Result<(Duration, Duration)> {
        let mut touched = Vec::new();
        for (service, endpoints, new, gone) in all {
            let slice = object(objects::slice(*service, endpoints));
            touched.extend(self.index.apply(Change::Apply(slice)).services);
            outcome.changed.retain(|(of, _, before)| of != service || before.is_none());
            outcome.changed.push((*service, *new, *gone));
        }
        let snapshot = self.index.snapshot().context("not in sync")?;
        let start = thread_cpu();
        for id in &touched {
            let service = snapshot.services.get(id).context("no such Service")?;
            let plan = Arc::new(service::plan(service, &self.view));
            self.dataplane.set_service(id, service.created, Some(plan));
        }
        let steps = self.dataplane.steps();
        let found = thread_cpu();
        self.write(&steps)?;
        Ok((found - start, thread_cpu() - found))
    }

    /// The longest transaction.
    fn write(&mut self, steps: &[Step]) -> anyhow::Result<Duration> {
        let mut longest = Duration::ZERO;
        for step in steps {
            let start = thread_cpu();
            self.kernel.apply(step)?;
            longest = longest.max(thread_cpu() - start);
            self.dataplane.applied(step);
        }
        Ok(longest)
    }
}

/// Service, its endpoints, the new one, the one that goes.
type Changed = (u32, Vec<Ipv4Addr>, Ipv4Addr, Option<Ipv4Addr>);

fn object(manifest: Value) -> Object {
    Object::from_manifest(manifest).expect("the objects that are written here are sound")
}
