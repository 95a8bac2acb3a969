//! Take-down order: what a Service no longer asks for stays in force while routers may still send to it (A61).
//!
//! A frontend that goes while its VIP is announced is kept for [`Linger::HOLD`] after the withdrawal was handed to the
//! speaker. The wanted plan stays a function of the snapshot; only the moment of removal is decided here.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_model::{Address, Forwarding, Frontend, ServiceId, ServicePlan};

/// Frontends that outlive the wish for them. Call [`plan`](Linger::plan) on each change of a Service's plan and program
/// what it returns besides the wanted plan, under a claim that gives way to every other; when
/// [`poll_timeout`](Linger::poll_timeout) has passed, plan the [`due`](Linger::due) Services again.
#[derive(Debug, Default)]
pub struct Linger {
    kept: BTreeMap<ServiceId, BTreeMap<Frontend, Kept>>,
}

#[derive(Debug)]
struct Kept {
    /// The plan that had the frontend.
    plan: Arc<ServicePlan>,
    until: Instant,
}

impl Kept {
    fn forwarding(&self, frontend: &Frontend) -> Option<Forwarding> {
        self.plan.frontends.get(frontend).cloned()
    }
}

impl Linger {
    /// Two seconds: longer than a router on the same network takes to act on a withdrawal (A61).
    pub const HOLD: Duration = Duration::from_secs(2);

    /// What lingers of a Service now: those frontends of `programmed` whose VIP `wanted` no longer has at all and that is
    /// `announced`, or was when they went.
    pub fn plan(
        &mut self,
        id: &ServiceId,
        programmed: Option<&Arc<ServicePlan>>,
        wanted: Option<&ServicePlan>,
        announced: impl Fn(&IpAddr) -> bool,
        now: Instant,
    ) -> Option<ServicePlan> {
        let has_vip =
            |plan: &ServicePlan, address| plan.frontends.keys().any(|frontend| frontend.address == address);
        let is_wanted = |address| wanted.is_some_and(|plan| has_vip(plan, address));
        let mut kept = self.kept.remove(id).unwrap_or_default();
        for (frontend, plan) in
            programmed.iter().flat_map(|plan| plan.frontends.keys().map(move |f| (f, plan)))
        {
            let Address::Vip(ip) = frontend.address else { continue };
            if !is_wanted(frontend.address) && announced(&ip) {
                let until = now + Self::HOLD;
                kept.entry(*frontend).or_insert_with(|| Kept { plan: Arc::clone(plan), until });
            }
        }
        kept.retain(|frontend, entry| entry.until > now && !is_wanted(frontend.address));
        let lingering = as_plan(&kept);
        if !kept.is_empty() {
            self.kept.insert(id.clone(), kept);
        }
        lingering
    }

    /// The Services that have a frontend whose time is up.
    pub fn due(&self, now: Instant) -> Vec<ServiceId> {
        let is_due = |kept: &BTreeMap<Frontend, Kept>| kept.values().any(|entry| entry.until <= now);
        self.kept.iter().filter(|(_, kept)| is_due(kept)).map(|(id, _)| id.clone()).collect()
    }

    /// When to ask for [`due`](Linger::due) Services next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.kept.values().flat_map(|kept| kept.values()).map(|entry| entry.until).min()
    }
}

/// The kept frontends with what belongs to them: their VIPs' other ports stay refused, their local pods masqueraded.
fn as_plan(kept: &BTreeMap<Frontend, Kept>) -> Option<ServicePlan> {
    let forwarding = |(frontend, entry): (&Frontend, &Kept)| Some((*frontend, entry.forwarding(frontend)?));
    let vips = kept.iter().flat_map(|(frontend, entry)| {
        entry.plan.vips.iter().filter(move |vip| frontend.address == Address::Vip(**vip))
    });
    let plan = ServicePlan {
        frontends: kept.iter().filter_map(forwarding).collect(),
        vips: vips.copied().collect(),
        hairpin: kept.values().flat_map(|entry| &entry.plan.hairpin).copied().collect(),
    };
    (!plan.frontends.is_empty()).then_some(plan)
}

#[cfg(test)]
mod tests {
    use super::*;
    use portolan_model::{Action, Protocol};

    fn frontend(ip: &str) -> Frontend {
        Frontend { address: Address::Vip(ip.parse().unwrap()), protocol: Protocol::Tcp, port: 80 }
    }

    fn plan(ips: &[&str]) -> ServicePlan {
        let forwarding =
            Forwarding { from_cluster: Action::Reject, from_outside: Action::Reject, allowed_sources: None };
        ServicePlan {
            frontends: ips.iter().map(|ip| (frontend(ip), forwarding.clone())).collect(),
            vips: ips.iter().map(|ip| ip.parse().unwrap()).collect(),
            hairpin: Default::default(),
        }
    }

    fn addresses(plan: Option<&ServicePlan>) -> Vec<String> {
        plan.iter().flat_map(|plan| plan.frontends.keys()).map(|frontend| frontend.to_string()).collect()
    }

    #[test]
    fn a61_an_announced_vip_outlives_its_service_and_then_goes() {
        let (id, mut linger) = (ServiceId::new("default", "web"), Linger::default());
        #[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
        let start = Instant::now();
        let old = Arc::new(plan(&["10.96.0.1", "192.0.2.1"]));
        let announced = |ip: &IpAddr| ip.to_string() == "192.0.2.1";

        let kept = linger.plan(&id, Some(&old), None, announced, start);
        assert_eq!(addresses(kept.as_ref()), ["192.0.2.1:80/tcp"]);
        assert_eq!(kept.as_ref().unwrap().vips.len(), 1);
        assert_eq!(linger.poll_timeout(), Some(start + Linger::HOLD));
        assert!(linger.due(start).is_empty());

        // Withdrawn meanwhile, and planned again for another reason: the deadline does not move.
        let later = start + Linger::HOLD / 2;
        assert_eq!(linger.plan(&id, None, None, |_| false, later), kept);
        assert_eq!(linger.poll_timeout(), Some(start + Linger::HOLD));

        let end = start + Linger::HOLD;
        assert_eq!(linger.due(end), std::slice::from_ref(&id));
        assert_eq!(linger.plan(&id, None, None, |_| false, end), None);
        assert_eq!(linger.poll_timeout(), None);
    }

    #[test]
    fn a61_a_vip_wanted_again_is_not_kept_apart() {
        let (id, mut linger) = (ServiceId::new("default", "web"), Linger::default());
        #[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
        let start = Instant::now();
        let old = Arc::new(plan(&["192.0.2.1"]));
        assert!(linger.plan(&id, Some(&old), None, |_| true, start).is_some());
        assert_eq!(linger.plan(&id, None, Some(&old), |_| true, start), None);
        assert_eq!(linger.poll_timeout(), None);
    }

    /// A port that goes while its VIP stays goes at once: routers go on sending for the others anyway.
    #[test]
    fn a61_a_port_of_a_vip_that_stays_does_not_linger() {
        let (id, mut linger) = (ServiceId::new("default", "web"), Linger::default());
        #[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
        let start = Instant::now();
        let mut old = plan(&["192.0.2.1"]);
        let of = |port| Frontend { port, ..frontend("192.0.2.1") };
        let forwarding = old.frontends.get(&of(80)).unwrap().clone();
        old.frontends = [(of(80), forwarding.clone()), (of(443), forwarding)].into();
        assert_eq!(
            linger.plan(&id, Some(&Arc::new(old)), Some(&plan(&["192.0.2.1"])), |_| true, start),
            None
        );
    }
}
