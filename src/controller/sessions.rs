//! How many nodes have a session with each peer, from the NodeStatus that every agent writes.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt};
use portolan_api::{NodeStatus, SessionState};
use tokio::sync::watch;
use tracing::debug;

/// Established sessions: peers by node.
type ByNode = BTreeMap<String, BTreeSet<String>>;

pub struct Sessions(watch::Receiver<ByNode>);

impl Sessions {
    pub fn watch(client: &Client) -> Sessions {
        let (sender, receiver) = watch::channel(ByNode::new());
        tokio::spawn(follow(client.clone(), sender));
        Sessions(receiver)
    }

    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending().await
        }
    }

    /// Nodes with an established session, by peer.
    pub fn established(&self) -> BTreeMap<String, i64> {
        let mut counts = BTreeMap::new();
        for peer in self.0.borrow().values().flatten() {
            *counts.entry(peer.clone()).or_default() += 1;
        }
        counts
    }
}

async fn follow(client: Client, sender: watch::Sender<ByNode>) {
    let api = Api::<DeserializeGuard<NodeStatus>>::all(client);
    let mut events = std::pin::pin!(watcher(api, watcher::Config::default()).default_backoff());
    let mut listed = ByNode::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(node)) => drop(listed.insert(node.name_any(), established(&node))),
            Ok(Event::InitDone) => change(&sender, |all| *all = listed.clone()),
            Ok(Event::Apply(node)) => {
                change(&sender, |all| drop(all.insert(node.name_any(), established(&node))))
            }
            Ok(Event::Delete(node)) => change(&sender, |all| drop(all.remove(&node.name_any()))),
            Err(error) => debug!(%error, "watching NodeStatus objects"),
        }
    }
}

fn change(sender: &watch::Sender<ByNode>, edit: impl FnOnce(&mut ByNode)) {
    sender.send_if_modified(|all| {
        let before = all.clone();
        edit(all);
        *all != before
    });
}

fn established(DeserializeGuard(node): &DeserializeGuard<NodeStatus>) -> BTreeSet<String> {
    let status = node.as_ref().ok().and_then(|node| node.status.as_ref());
    let sessions = status.and_then(|status| status.bgp.as_ref()).map_or(&[][..], |bgp| &bgp.sessions);
    let up = sessions.iter().filter(|session| session.state == SessionState::Established);
    up.map(|session| session.peer.clone()).collect()
}
