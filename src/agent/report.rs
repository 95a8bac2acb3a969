//! The node's NodeStatus object: written by this node's agent alone, when something changed and at most once a second.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time};
use kube::api::{Api, Patch, PatchParams};
use portolan_api::{self as api, NodeStatus, NodeStatusFields, SessionState, conditions};
use portolan_bgp::{Family, PeerName, Prefix, SessionError, SessionStatus, State};
use portolan_model::Name;
use tokio::sync::watch;

use crate::speaker::SpeakerStatus;

/// Entries of a list in the object; the rest is only counted (vips.md 2.5).
const MOST: usize = 64;
/// The least time between two writes.
const PAUSE: Duration = Duration::from_secs(1);
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(5);
/// How long to wait for more of the same burst before the first write.
const COALESCE: Duration = Duration::from_millis(100);

/// What the node's line says of itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LineReport {
    pub node_uid: Option<Name>,
    /// The kernel holds what the last snapshot asks for.
    pub synced: bool,
    /// Why not, where it does not.
    pub error: Option<String>,
    pub local_asn: Option<u32>,
    pub router_id: Option<Ipv4Addr>,
    /// Prefixes announced to at least one peer.
    pub announced: Arc<Vec<Prefix>>,
    pub withheld: Arc<Vec<api::Withheld>>,
}

/// Keeps the NodeStatus object of `node` equal to what `line` and `speaker` say; ends when one of them is gone.
pub async fn run(
    client: kube::Client,
    node: String,
    mut line: watch::Receiver<LineReport>,
    mut speaker: watch::Receiver<Arc<SpeakerStatus>>,
) {
    let api: Api<NodeStatus> = Api::all(client);
    let mut writer = Writer::new(node);
    let mut failed = false;
    loop {
        let changed = tokio::select! {
            changed = line.changed() => changed,
            changed = speaker.changed() => changed,
            () = tokio::time::sleep(RETRY), if failed => Ok(()),
        };
        if changed.is_err() {
            return;
        }
        tokio::time::sleep(COALESCE).await;
        let (line, speaker) = (line.borrow_and_update().clone(), speaker.borrow_and_update().clone());
        failed = !writer.write(&api, &line, &speaker).await;
        tokio::time::sleep(PAUSE).await;
    }
}

struct Writer {
    node: String,
    clock: Clock,
    flaps: BTreeMap<PeerName, Flaps>,
    /// With the UID of the Node that owns the object.
    written: Option<(Name, NodeStatusFields)>,
}

/// Ties the monotonic clock of the speaker to the calendar.
struct Clock {
    instant: Instant,
    timestamp: Timestamp,
}

impl Clock {
    fn time(&self, at: Instant) -> Time {
        let offset = at.saturating_duration_since(self.instant);
        let time = self.timestamp.checked_add(offset).unwrap_or(self.timestamp);
        Time(time.round(jiff::Unit::Second).unwrap_or(time))
    }
}

#[derive(Default)]
struct Flaps {
    count: i64,
    established_since: Option<Instant>,
}

impl Writer {
    fn new(node: String) -> Writer {
        let clock = Clock { instant: Instant::now(), timestamp: Timestamp::now() };
        Writer { node, clock, flaps: BTreeMap::new(), written: None }
    }

    /// Says whether the object is now as it should be.
    async fn write(&mut self, api: &Api<NodeStatus>, line: &LineReport, speaker: &SpeakerStatus) -> bool {
        // Before the Node is known the object would have no owner.
        let Some(node_uid) = &line.node_uid else { return true };
        let fields = self.fields(line, speaker);
        if self.written.as_ref().is_some_and(|(uid, written)| (uid, written) == (node_uid, &fields)) {
            return true;
        }
        let object = self.object(node_uid, &fields);
        let parameters = PatchParams::apply("portolan-agent").force();
        match api.patch(&self.node, &parameters, &Patch::Apply(&object)).await {
            Ok(_) => {
                self.written = Some((node_uid.clone(), fields));
                true
            }
            Err(error) => {
                tracing::warn!(node = self.node, %error, "cannot write the NodeStatus");
                false
            }
        }
    }

    fn object(&self, node_uid: &Name, fields: &NodeStatusFields) -> NodeStatus {
        let mut object = NodeStatus::new(&self.node, Default::default());
        object.metadata.owner_references = Some(vec![owner(&self.node, node_uid)]);
        object.status = Some(fields.clone());
        object
    }

    fn fields(&mut self, line: &LineReport, speaker: &SpeakerStatus) -> NodeStatusFields {
        let sessions: Vec<api::Session> =
            speaker.sessions.iter().map(|(peer, status)| self.session(peer, status)).collect();
        let bgp = api::BgpStatus {
            local_asn: line.local_asn,
            router_id: line.router_id.map(|id| id.to_string()),
            established: sessions.iter().filter(|s| s.state == SessionState::Established).count() as i64,
            configured: sessions.len() as i64,
            sessions,
        };
        NodeStatusFields {
            agent: Some(api::Agent {
                version: env!("CARGO_PKG_VERSION").into(),
                started_at: self.clock.time(self.clock.instant),
                dataplane: api::Dataplane { mode: api::DataplaneMode::Nftables, synced: line.synced },
            }),
            conditions: self.conditions(line, &bgp),
            bgp: Some(bgp),
            vips: Some(vips(line)),
        }
    }

    fn session(&mut self, peer: &PeerName, status: &SessionStatus) -> api::Session {
        let established = status.established.as_ref();
        api::Session {
            peer: peer.to_string(),
            address: status.remote.ip().to_string(),
            state: state(status.state),
            since: self.clock.time(status.since),
            flaps: self.flaps(peer, status),
            last_error: status
                .last_error
                .as_ref()
                .map(|last| session_error(&last.error, self.clock.time(last.at))),
            hold_time_secs: established.map(|established| established.hold_time.as_secs() as i64),
            families: established
                .map(|e| e.families.iter().map(|f| family(*f)).collect())
                .unwrap_or_default(),
            routes: api::Routes {
                advertised: established
                    .map(|e| e.advertised.values().sum::<usize>() as i64)
                    .unwrap_or_default(),
                received: established.map(|e| e.received.announced as i64).unwrap_or_default(),
            },
        }
    }

    /// A session that was seen up and is now down, or up since another time, has flapped.
    fn flaps(&mut self, peer: &PeerName, status: &SessionStatus) -> i64 {
        let flaps = self.flaps.entry(peer.clone()).or_default();
        let up_since = (status.state == State::Established).then_some(status.since);
        if flaps.established_since.is_some() && flaps.established_since != up_since {
            flaps.count += 1;
        }
        flaps.established_since = up_since;
        flaps.count
    }

    fn conditions(&self, line: &LineReport, bgp: &api::BgpStatus) -> Vec<Condition> {
        let down: Vec<&str> =
            bgp.sessions.iter().filter(|s| s.state != SessionState::Established).map(|s| &*s.peer).collect();
        let error = line.error.clone().unwrap_or("waiting for the first complete lists".into());
        let synced = match line.synced {
            true => (true, "Synced", line.error.clone().unwrap_or_default()),
            false => (false, "NotSynced", error),
        };
        let degraded = match down.is_empty() {
            true => (false, "SessionsEstablished", String::new()),
            false => (true, "SessionsDown", format!("not established: {}", down.join(", "))),
        };
        let ready = match (line.synced, down.len() < bgp.sessions.len() || bgp.sessions.is_empty()) {
            (true, true) => (true, "Ready", String::new()),
            (true, false) => (false, "NoPeerEstablished", "no BGP session is established".into()),
            (false, _) => {
                (false, "NotSynced", "the kernel does not hold what the cluster asks for yet".into())
            }
        };
        [
            (conditions::READY, ready),
            (conditions::DATAPLANE_SYNCED, synced),
            (conditions::BGP_DEGRADED, degraded),
        ]
        .into_iter()
        .map(|(kind, (status, reason, message))| self.condition(kind, status, reason, message))
        .collect()
    }

    /// With the time of the last transition, not of the last write.
    fn condition(&self, kind: &str, status: bool, reason: &str, message: String) -> Condition {
        let status = if status { "True" } else { "False" };
        let before = self.written.iter().flat_map(|(_, fields)| &fields.conditions).find(|c| c.type_ == kind);
        let since =
            before.filter(|condition| condition.status == status).map(|c| c.last_transition_time.clone());
        Condition {
            type_: kind.into(),
            status: status.into(),
            reason: reason.into(),
            message,
            last_transition_time: since.unwrap_or_else(|| self.clock.time(Instant::now())),
            observed_generation: None,
        }
    }
}

fn owner(node: &str, uid: &str) -> OwnerReference {
    OwnerReference {
        api_version: "v1".into(),
        kind: "Node".into(),
        name: node.into(),
        uid: uid.into(),
        ..Default::default()
    }
}

fn vips(line: &LineReport) -> api::Vips {
    api::Vips {
        announced: line.announced.len() as i64,
        prefixes: line.announced.iter().take(MOST).map(|prefix| prefix.to_string()).collect(),
        withheld: line.withheld.iter().take(MOST).cloned().collect(),
        truncated: line.announced.len() > MOST || line.withheld.len() > MOST,
    }
}

fn session_error(error: &SessionError, at: Time) -> api::SessionError {
    let notification = match error {
        SessionError::Sent(notification) | SessionError::Received(notification) => Some(notification),
        SessionError::Connection(_) | SessionError::SendHoldTimerExpired => None,
    };
    api::SessionError {
        code: notification.map(|n| n.code),
        subcode: notification.map(|n| n.subcode),
        text: error.to_string(),
        at,
    }
}

fn state(state: State) -> SessionState {
    match state {
        State::Idle => SessionState::Idle,
        State::Connect => SessionState::Connect,
        State::Active => SessionState::Active,
        State::OpenSent => SessionState::OpenSent,
        State::OpenConfirm => SessionState::OpenConfirm,
        State::Established => SessionState::Established,
    }
}

fn family(family: Family) -> api::Family {
    match family {
        Family::Ipv4Unicast => api::Family::Ipv4Unicast,
        Family::Ipv6Unicast => api::Family::Ipv6Unicast,
    }
}
