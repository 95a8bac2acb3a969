//! Any stream of API objects, from JSON to what becomes of packets: no panic, nothing let through that was closed, one bad
//! object costs no other (invariant 9), and the way to a cluster leaves no trace in its rules (invariant 2).
//!
//! The property below runs in the ordinary test suite; the targets `services_json` and `services_events` of tests/fuzz run
//! the same [`check`] for as long as one likes.

use portolan_index::Change;
use serde_json::{Value, json};

/// An interpreter of nf_tables transactions; other tests of it do more.
#[allow(dead_code)]
#[path = "../../../crates/dataplane/tests/dataplane/kernel.rs"]
pub mod kernel;
/// One node from changes to its kernel, as the agent wires it up.
mod node;
/// Reads the objects by itself, and says which packets they allow where.
mod oracle;
/// Documents that are wrong in the ways that people and programs are.
pub mod words;

use node::Node;
use oracle::World;

/// More would only be slow.
const MOST: usize = 48;

/// Lives through `{"type": "ADDED" | "MODIFIED" | "DELETED", "object": …}` events; a bare object is an ADDED one.
pub fn check(events: &[Value]) {
    let (mut node, mut world) = (Node::default(), World::default());
    for event in canary().iter().chain(events).take(MOST) {
        let (is_deleted, object) = match event.get("object") {
            Some(object) => (event["type"] == "DELETED", object),
            None => (false, event),
        };
        let Some(seen) = world.take(object, is_deleted) else { continue };
        node.take(if is_deleted {
            Change::Delete(seen.kind(), seen.key().clone())
        } else {
            Change::Apply(seen)
        });
        node.write();
    }
    let scratch = Node::from_lists(world.objects());
    let outcomes = world.check(&node);
    node.assert_same_as(&scratch);
    scratch.assert_outcomes(&outcomes);
    node.assert_settled();
}

/// Text with JSON values one after the other; the first that is none ends it.
pub fn check_text(text: &[u8]) {
    let values = serde_json::Deserializer::from_slice(text).into_iter::<Value>();
    check(&values.map_while(Result::ok).take(MOST).collect::<Vec<_>>());
}

/// A sound Service that goes on whatever else there is, and the node that serves it.
fn canary() -> [Value; 3] {
    let metadata = |name: &str| json!({ "name": name, "namespace": oracle::CANARY, "creationTimestamp": "2000-01-01T00:00:00Z" });
    let mut slice = metadata("web-1");
    slice["labels"] = json!({ "kubernetes.io/service-name": "web" });
    [
        json!({
            "apiVersion": "v1", "kind": "Node", "metadata": { "name": node::NAME },
            "spec": { "podCIDRs": ["10.244.1.0/24"] },
            "status": { "addresses": [
                { "type": "InternalIP", "address": "172.30.0.1" }, { "type": "InternalIP", "address": "fd00::1" },
            ] },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": metadata("web"),
            "spec": { "clusterIPs": [oracle::CANARY_IP], "ports": [{ "port": 80 }] },
        }),
        json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": slice, "addressType": "IPv4",
            "ports": [{ "name": "", "port": 8080 }], "endpoints": [{ "addresses": ["10.244.1.250"], "nodeName": node::NAME }],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Issue 4, "bad input".
    #[test]
    fn s14_hostile_objects_open_nothing_and_cost_no_other() {
        arbtest::arbtest(|u| {
            let mut events = Vec::new();
            while !u.is_empty() && events.len() < 12 {
                events.push(words::event(u)?);
            }
            check(&events);
            Ok(())
        })
        .budget_ms(8_000);
    }

    /// Seeds of the fuzz targets are readable documents, and each passes.
    #[test]
    fn s14_what_fuzzing_starts_from() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/seeds/services_json");
        let seeds: Vec<_> =
            folder.read_dir().expect("the seeds").map(|entry| entry.expect("a seed").path()).collect();
        assert!(seeds.len() >= 5, "{seeds:?}");
        for path in seeds {
            let text = std::fs::read(&path).expect("a seed");
            let read = serde_json::Deserializer::from_slice(&text).into_iter::<Value>();
            let read: Result<Vec<Value>, _> = read.collect();
            assert!(read.is_ok_and(|values| !values.is_empty()), "{}", path.display());
            check_text(&text);
        }
    }
}
