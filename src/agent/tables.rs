//! Our nftables tables: what they should hold, what they hold, and the writing from the one to the other.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use portolan_dataplane::{Dataplane, Settings};
use portolan_model::{Family, Frontend, ServiceId, ServicePlan};
use portolan_plan::linger::Linger;

use super::meter::Meter;
use super::sentry::Sentry;
use crate::config::Proxy;
use crate::dataplane::kernel::{Kernel, Measured};
use crate::reporter::Alarm;

/// Call [`plan`](Self::plan) for each Service that may need something else, then [`write`](Self::write) until it succeeds.
pub struct Tables {
    dataplane: Dataplane,
    kernel: Kernel,
    linger: Linger,
    pub sentry: Sentry,
    /// What the kernel still runs of each Service that it should run otherwise; of all others it runs what `dataplane` wants.
    pending: BTreeMap<ServiceId, Option<Arc<ServicePlan>>>,
    /// Of these Services something lingers.
    lingering: BTreeSet<ServiceId>,
    /// `dataplane` knows what the kernel holds.
    is_observed: bool,
    /// What the last observation found that nobody asks for any more.
    orphans: Vec<Frontend>,
    /// It does not, for somebody else changed that.
    is_repair: bool,
}

impl Tables {
    /// Fails when there is no nf_tables for us.
    pub fn open(proxy: &Proxy) -> anyhow::Result<Tables> {
        let sentry = Sentry::open(proxy.takes_over(), proxy.service_proxy_name.is_some());
        Ok(Tables {
            dataplane: Dataplane::new(Settings::default()),
            kernel: Kernel::open()?,
            linger: Linger::default(),
            sentry: sentry.context("nf_tables monitor")?,
            pending: BTreeMap::new(),
            lingering: BTreeSet::new(),
            is_observed: false,
            orphans: Vec::new(),
            is_repair: false,
        })
    }

    /// The family that the kernel does not have (S77).
    pub fn lacks(&self) -> Option<Family> {
        self.kernel.lacks()
    }

    /// When there is something to do although nothing changed.
    pub fn wake(&self) -> Option<Instant> {
        [self.linger.poll_timeout(), self.sentry.wake()].into_iter().flatten().min()
    }

    /// Where somebody else changed our tables, the next writing reads them again (S65).
    pub fn check(&mut self, now: Instant) {
        self.sentry.check(now);
        if self.sentry.is_repair_due(now) {
            (self.is_observed, self.is_repair) = (false, true);
        }
    }

    /// Services to be planned again although nothing changed about them.
    pub fn due(&self, now: Instant) -> impl Iterator<Item = ServiceId> {
        self.linger.due(now).into_iter().chain(self.pending.keys().cloned())
    }

    /// Every Service that the kernel runs something of.
    pub fn services(&self) -> impl Iterator<Item = &ServiceId> {
        let wanted =
            self.dataplane.services().filter(|id| !is_withdrawn(id) && !self.pending.contains_key(id));
        let pending = self.pending.iter().filter(|(_, plan)| plan.is_some());
        wanted.chain(pending.map(|(id, _)| id))
    }

    /// The plan of a Service that the kernel runs.
    pub fn programmed(&self, id: &ServiceId) -> Option<&Arc<ServicePlan>> {
        match self.pending.get(id) {
            Some(plan) => plan.as_ref(),
            None => self.dataplane.plan(id),
        }
    }

    /// The part of it that the kernel really serves: an older Service may claim one of its frontends.
    pub fn served(&self, id: &ServiceId) -> Option<Cow<'_, ServicePlan>> {
        let plan = self.programmed(id)?;
        let is_served = |frontend: &Frontend| self.dataplane.serves_for(id, frontend);
        if plan.frontends.keys().all(is_served) {
            return Some(Cow::Borrowed(plan));
        }
        let served = plan.frontends.iter().filter(|(frontend, _)| is_served(frontend));
        let frontends = served.map(|(frontend, forwarding)| (*frontend, forwarding.clone())).collect();
        Some(Cow::Owned(ServicePlan { frontends, ..(**plan).clone() }))
    }

    pub fn settings(&self) -> &Settings {
        self.dataplane.settings()
    }

    pub fn set_settings(&mut self, settings: Settings) {
        self.dataplane.set_settings(settings);
    }

    /// What a Service needs from now on, None = nothing. What goes while `announced` lingers. Returns the Services that the
    /// kernel may serve otherwise once this is written, for they claim the same.
    pub fn plan(
        &mut self,
        id: &ServiceId,
        created: i64,
        wanted: Option<Arc<ServicePlan>>,
        announced: impl Fn(&IpAddr) -> bool,
        now: Instant,
    ) -> BTreeSet<ServiceId> {
        let programmed = self.programmed(id).cloned();
        let lingering = self.linger.plan(id, programmed.as_ref(), wanted.as_deref(), announced, now);
        let mut rivals = self.set_lingering(id, lingering);
        // Deleted and made again, it is younger, though it asks for the same.
        let is_recreated = wanted.is_some() && self.dataplane.created(id) != Some(created);
        if wanted != programmed || is_recreated || self.pending.contains_key(id) {
            rivals.extend(self.dataplane.set_service(id, created, wanted));
            self.pending.entry(id.clone()).or_insert(programmed);
        }
        rivals
    }

    fn set_lingering(&mut self, id: &ServiceId, plan: Option<ServicePlan>) -> BTreeSet<ServiceId> {
        let lingered = match plan {
            Some(_) => !self.lingering.insert(id.clone()),
            None => self.lingering.remove(id),
        };
        if plan.is_none() && !lingered {
            return BTreeSet::new();
        }
        // Younger than all: it gives way to every other claim.
        self.dataplane.set_service(&withdrawn(id), i64::MAX, plan.map(Arc::new))
    }

    /// After much has come at once: takes no more memory than that needs.
    pub fn compact(&mut self) {
        self.dataplane.compact();
    }

    /// Frontends that went while no agent ran; each is told once.
    pub fn take_orphans(&mut self) -> Vec<Frontend> {
        std::mem::take(&mut self.orphans)
    }

    /// Brings the kernel to what is wanted. After an error the next attempt starts from what the kernel then holds.
    pub fn write(&mut self, meter: &mut Meter, alarm: &mut Alarm, now: Instant) -> anyhow::Result<()> {
        if !self.is_observed {
            self.dataplane.observed(&self.kernel.observe()?);
            self.orphans = self.dataplane.orphans();
            self.is_observed = true;
        }
        let mut measured = Measured::default();
        let written = self.sentry.write(&mut self.kernel, &mut self.dataplane, &mut measured);
        meter.measured(measured);
        self.is_observed = written.is_ok();
        let written = written?;
        meter.wrote(written);
        if std::mem::take(&mut self.is_repair) && written > 0 {
            tracing::warn!(transactions = written, "somebody changed our nftables tables: they are repaired");
            alarm.raise("TablesRepaired", "somebody changed our nftables tables: they are repaired", now);
        }
        self.pending.clear();
        self.sentry.take_over(alarm, now);
        Ok(())
    }
}

const WITHDRAWN: &str = " (withdrawn)";

/// What lingers of a Service goes by a name that no Service can have.
fn withdrawn(id: &ServiceId) -> ServiceId {
    ServiceId::new(id.namespace.clone(), format!("{}{WITHDRAWN}", id.name))
}

fn is_withdrawn(id: &ServiceId) -> bool {
    id.name.ends_with(WITHDRAWN)
}
