//! Kubernetes Events: said once per transition by whoever notices it, sent by a task of their own.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use portolan_model::ObjectId;
use tokio::sync::mpsc;
use tracing::{debug, warn};

/// Events that may wait to be sent; more are dropped, for an Event is news and not truth.
const WAITING_EVENTS: usize = 4096;

#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<(Event, ObjectReference)>,
}

impl Events {
    /// `component` is who speaks (`portolan-controller`), `instance` which of them.
    pub fn start(client: Client, component: &str, instance: &str) -> Events {
        let (queue, waiting) = mpsc::channel(WAITING_EVENTS);
        let reporter = Reporter { controller: component.into(), instance: Some(instance.into()) };
        tokio::spawn(send(Recorder::new(client, reporter), waiting));
        Events { queue }
    }

    /// Something went as it should.
    pub fn normal(&self, about: ObjectReference, reason: &str, note: &str) {
        self.put(EventType::Normal, about, reason, reason, note);
    }

    /// Something that a person should look at.
    pub fn warning(&self, about: ObjectReference, reason: &str, note: &str) {
        self.put(EventType::Warning, about, reason, reason, note);
    }

    /// `action` is what was being done.
    pub fn put(&self, type_: EventType, about: ObjectReference, reason: &str, action: &str, note: &str) {
        // The API takes at most 1 kB.
        let note = Some(note.chars().take(1000).collect());
        let event = Event { type_, reason: reason.into(), note, action: action.into(), secondary: None };
        if self.queue.try_send((event, about)).is_err() {
            debug!(reason, "too many Events wait: this one is dropped");
        }
    }
}

async fn send(recorder: Recorder, mut waiting: mpsc::Receiver<(Event, ObjectReference)>) {
    let mut failing = false;
    while let Some((event, about)) = waiting.recv().await {
        match recorder.publish(&event, &about).await {
            Ok(()) => failing = false,
            Err(error) if !failing => {
                warn!(%error, "an Event could not be sent");
                failing = true;
            }
            Err(_) => {}
        }
    }
}

/// What an Event is about. Our own kinds are of `portolan.dev/v1alpha1`, all others of `v1`.
pub fn about(object: &ObjectId, uid: &str) -> ObjectReference {
    let ours = matches!(
        &*object.kind,
        "IPAddressPool" | "Advertisement" | "BGPPeer" | "IPAllocation" | "NodeStatus"
    );
    ObjectReference {
        api_version: Some(if ours { "portolan.dev/v1alpha1".into() } else { "v1".into() }),
        kind: Some(object.kind.to_string()),
        namespace: object.namespace.as_ref().map(ToString::to_string),
        name: Some(object.name.to_string()),
        uid: Some(uid.to_owned()).filter(|uid| !uid.is_empty()),
        ..ObjectReference::default()
    }
}
