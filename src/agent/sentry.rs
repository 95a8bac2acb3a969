//! Who else writes to nf_tables: our tables are repaired at once (S65), a kube-proxy's leftovers are removed once ours serve, and
//! one that comes back is named and not fought (S74).

use std::collections::BTreeSet;
use std::io;
use std::time::{Duration, Instant};

use portolan_conntrack::ipvs::Server;
use portolan_dataplane::Dataplane;

use crate::dataplane::kernel::{Kernel, Measured};
use crate::dataplane::take_over;
use crate::dataplane::take_over::ipvs::{self, Pass};
use crate::dataplane::watchtower::{Seen, Watchtower};
use crate::reporter::Alarm;

/// From one repair to the next: somebody who keeps changing our tables costs one observation in this time.
const BETWEEN_REPAIRS: Duration = Duration::from_secs(1);
/// From one look at IPVS's connections to the next, while some are left.
const BETWEEN_DRAINS: Duration = Duration::from_secs(5);

pub struct Sentry {
    tower: Watchtower,
    /// Leftovers of a kube-proxy are still to be removed.
    take_over: bool,
    /// A kube-proxy that runs was named, or need not be.
    is_warned: bool,
    /// When our tables are to be compared again.
    repair_at: Option<Instant>,
    repaired_at: Option<Instant>,
    /// Old connections still run through what kube-proxy's IPVS mode left.
    drain: Option<Drain>,
}

struct Drain {
    servers: BTreeSet<Server>,
    /// None = it is due, and done with the next writing.
    look_at: Option<Instant>,
}

impl Sentry {
    /// `beside`: another proxy is meant to run on this node (S3).
    pub fn open(take_over: bool, beside: bool) -> io::Result<Sentry> {
        let tower = Watchtower::open()?;
        Ok(Sentry { tower, take_over, is_warned: beside, repair_at: None, repaired_at: None, drain: None })
    }

    /// When there is something to do although nothing happened.
    pub fn wake(&self) -> Option<Instant> {
        let look_at = self.drain.as_ref().and_then(|drain| drain.look_at);
        [self.repair_at, look_at].into_iter().flatten().min()
    }

    /// Waits for changes that others make; hand them to [`Sentry::heed`].
    pub async fn changed(&mut self) -> io::Result<Seen> {
        self.tower.changed().await
    }

    pub fn heed(&mut self, seen: Seen, now: Instant) {
        if seen.ours && self.repair_at.is_none() {
            let pause_ends = self.repaired_at.map_or(now, |at| at + BETWEEN_REPAIRS);
            self.repair_at = Some(now.max(pause_ends));
        }
        // Before the take-over it may well run.
        if seen.kube_proxy && !self.take_over {
            // What it finds it takes for its own again.
            self.drain = None;
        }
        if seen.kube_proxy && !self.take_over && !self.is_warned {
            tracing::warn!("a kube-proxy runs on this node and writes its own rules beside ours: stop it");
            self.is_warned = true;
        }
    }

    /// Whether our tables must be read again now.
    pub fn is_repair_due(&mut self, now: Instant) -> bool {
        let is_due = self.repair_at.is_some_and(|at| at <= now);
        if is_due {
            (self.repair_at, self.repaired_at) = (None, Some(now));
        }
        is_due
    }

    /// To be called whenever [`Sentry::wake`] may have passed.
    pub fn check(&mut self, now: Instant) {
        if let Some(drain) = &mut self.drain {
            drain.look_at = drain.look_at.filter(|at| *at > now);
        }
    }

    /// Writes what is left to write, and returns the number of transactions.
    pub fn write(
        &mut self,
        kernel: &mut Kernel,
        dataplane: &mut Dataplane,
        measured: &mut Measured,
    ) -> anyhow::Result<usize> {
        self.tower.shut()?;
        let before = kernel.generation()?;
        let written = kernel.write_measured(dataplane, measured);
        // First the ears, then the count: what comes after the count is heard.
        self.tower.listen()?;
        let written = written?;
        if kernel.generation()?.wrapping_sub(before) != written as u32 {
            self.heed(Seen { ours: true, kube_proxy: false }, Instant::now());
        }
        Ok(written)
    }

    /// To be called while our rules serve everything: from then on connections that stand do not depend on the old ones.
    pub fn take_over(&mut self, alarm: &mut Alarm, now: Instant) {
        if !std::mem::take(&mut self.take_over) {
            if let Some(drain) = self.drain.take_if(|drain| drain.look_at.is_none()) {
                self.take_over_ipvs(Some(drain.servers), alarm, now);
            }
            return;
        }
        let outcome = take_over::remove();
        outcome.removed.iter().for_each(|what| tracing::info!(what, "took over from kube-proxy: removed"));
        if !outcome.removed.is_empty() {
            let note = format!("our rules serve; removed of kube-proxy: {}", outcome.removed.join("; "));
            alarm.tell("TookOverFromKubeProxy", &note);
        }
        for error in outcome.failed {
            let error = format!("{error:#}");
            alarm.raise("TakeOverIncomplete", &error, now);
            tracing::warn!(
                error,
                "of kube-proxy could not be removed; `portolan cleanup --kube-proxy` tries again"
            );
        }
        self.take_over_ipvs(None, alarm, now);
        // What is queued was written before.
        match self.tower.drain() {
            Ok(seen) => self.heed(Seen { kube_proxy: false, ..seen }, Instant::now()),
            Err(error) => tracing::error!(%error, "nf_tables monitor"),
        }
    }

    /// One pass over what the IPVS mode left; `known` is what the last one left draining. Our rules are asked before IPVS is, so no
    /// new connection comes to it.
    fn take_over_ipvs(&mut self, known: Option<BTreeSet<Server>>, alarm: &mut Alarm, now: Instant) {
        let pass = match ipvs::remove(ipvs::Connections::Drain, known.as_ref()) {
            Ok(pass) => pass,
            Err(error) => {
                let error = format!("{error:#}");
                alarm.raise("TakeOverIncomplete", &error, now);
                let note = "of kube-proxy's IPVS mode could not be removed; `portolan cleanup --kube-proxy` tries again";
                return tracing::warn!(error, "{note}");
            }
        };
        if pass.returned {
            return tracing::warn!("a kube-proxy runs on this node and writes IPVS servers: stop it");
        }
        say(&pass, known.is_none(), alarm);
        self.drain = (!pass.draining.is_empty())
            .then(|| Drain { servers: pass.draining, look_at: Some(now + BETWEEN_DRAINS) });
    }
}

fn say(pass: &Pass, is_first: bool, alarm: &mut Alarm) {
    if let Some(what) = &pass.removed {
        tracing::info!(what, "took over from kube-proxy: removed");
    }
    let (servers, connections) = (pass.draining.len(), pass.connections);
    if is_first && servers > 0 {
        tracing::info!(
            servers,
            connections,
            "old connections run through kube-proxy's IPVS servers, which go with them"
        );
    }
    if !is_first && servers == 0 {
        alarm.tell(
            "TookOverFromKubeProxy",
            "the last connection through kube-proxy's IPVS servers ended; they are removed",
        );
    }
    if let Some(what) = pass.foreign.as_ref().filter(|_| is_first) {
        tracing::info!(what, "IPVS virtual servers of others stay");
    }
}
