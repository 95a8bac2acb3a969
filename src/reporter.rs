//! Events about this node's own Node object (services.md 1I).

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use kube::runtime::events::EventType;
use portolan_model::ObjectId;
use tokio::sync::watch;

use crate::events::{self, Events};
use crate::health::Health;

/// What kube-proxy calls its own start.
pub const START: &str = "StartKubeProxy";
/// Between two Events of one reason about something that goes on.
const PAUSE: Duration = Duration::from_secs(300);

#[derive(Clone)]
pub struct Reporter {
    node: String,
    events: Events,
    health: watch::Receiver<Health>,
}

impl Reporter {
    pub fn new(node: &str, events: Events, health: watch::Receiver<Health>) -> Reporter {
        Reporter { node: node.into(), events, health }
    }

    /// Logged as well.
    pub fn warn(&self, reason: &str, action: &str, note: &str) {
        tracing::warn!(reason, "{note}");
        self.put(EventType::Warning, reason, action, note);
    }

    pub fn put(&self, type_: EventType, reason: &str, action: &str, note: &str) {
        let uid = self.health.borrow().node_uid.clone();
        let about =
            events::about(&ObjectId::cluster("Node", &*self.node), uid.as_deref().unwrap_or_default());
        self.events.put(type_, about, reason, action, note);
    }

    /// Says that the agent runs, once the Node object is known: kubectl finds Events by its UID.
    pub async fn birth_cry(mut self) {
        if self.health.wait_for(|health| health.node_uid.is_some()).await.is_ok() {
            let note = format!("portolan agent {}", env!("CARGO_PKG_VERSION"));
            self.put(EventType::Normal, "Starting", START, &note);
        }
    }
}

/// Events about what goes on and comes back: at once, then at most one of each reason in five minutes.
pub struct Alarm {
    reporter: Reporter,
    raised: BTreeMap<&'static str, Instant>,
}

impl Alarm {
    pub fn new(reporter: Reporter) -> Alarm {
        Alarm { reporter, raised: BTreeMap::new() }
    }

    /// The log is the caller's.
    pub fn raise(&mut self, reason: &'static str, note: &str, now: Instant) {
        if is_due(&mut self.raised, reason, now) {
            self.reporter.put(EventType::Warning, reason, reason, note);
        }
    }

    pub fn tell(&self, reason: &'static str, note: &str) {
        self.reporter.put(EventType::Normal, reason, reason, note);
    }
}

fn is_due(raised: &mut BTreeMap<&'static str, Instant>, reason: &'static str, now: Instant) -> bool {
    let is_due = raised.get(reason).is_none_or(|at| now.saturating_duration_since(*at) >= PAUSE);
    if is_due {
        raised.insert(reason, now);
    }
    is_due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_event_of_a_reason_in_five_minutes() {
        let (start, mut raised) = (Instant::now(), Vec::new());
        let mut alarm = BTreeMap::new();
        for second in 0..1_200u64 {
            if is_due(&mut alarm, "a", start + Duration::from_secs(second)) {
                raised.push(second);
            }
        }
        assert_eq!(raised, [0, 300, 600, 900]);
        assert!(is_due(&mut alarm, "b", start));
    }
}
