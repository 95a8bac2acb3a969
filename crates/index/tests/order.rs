//! Invariant 2: the snapshot is a function of the objects that exist, whatever the way to them; and what `Dirty` names is
//! what changed.

use std::collections::{BTreeMap, BTreeSet};

use arbitrary::{Result, Unstructured};
use portolan_index::{Change, Dirty, Index, Key, Kind, Object};
use portolan_model::{ServiceId, Snapshot};
use serde_json::{Value, json};

/// The objects that exist, each in one of a few versions.
type World = BTreeMap<(Kind, u8), u8>;

/// Version `version` of the object `number` of a kind. Services and slices meet each other; some are not for us (S2, S4,
/// S7), some have something wrong. Ours are always valid: an invalid one has a history by design (vips.md 2.0, 7).
fn manifest(kind: Kind, number: u8, version: u8) -> Value {
    let name = format!("x{number}");
    let pick = |words: [&'static str; 4]| words[usize::from(version % 4)];
    let meta = json!({ "name": name, "resourceVersion": version.to_string() });
    match kind {
        Kind::Service => json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": { "name": name, "namespace": "ns", "uid": format!("u{}", version % 3) },
            "spec": { "clusterIP": pick(["10.96.0.1", "10.96.0.2", "None", "bad"]), "ports": [{ "port": 80 }] },
        }),
        Kind::EndpointSlice => json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": { "name": name, "namespace": "ns", "labels": { "kubernetes.io/service-name": format!("x{}", version % 3) } },
            "addressType": pick(["IPv4", "IPv4", "IPv4", "FQDN"]),
            "endpoints": [{ "addresses": [(["10.0.0.1", "10.0.0.2", "bad"][usize::from(version / 8 % 3)])] }],
        }),
        Kind::Node => {
            json!({ "apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": { "podCIDRs": [pick(["10.1.0.0/24", "10.2.0.0/24", "bad", "10.1.0.0/24"])] } })
        }
        Kind::ServiceCidr => json!({
            "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": meta,
            "spec": { "cidrs": [format!("10.{}.0.0/16", version % 3)] },
        }),
        Kind::Pool => json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "IPAddressPool", "metadata": meta,
            "spec": { "addresses": [format!("10.{}.0.0/16", version % 3)] },
        }),
        Kind::Advertisement => json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "Advertisement", "metadata": meta,
            "spec": { "bgp": { "med": version % 3 } },
        }),
        Kind::Peer => json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "BGPPeer", "metadata": meta,
            "spec": { "peerAddress": format!("10.0.0.{}", version % 3), "peerASN": "any" },
        }),
        Kind::Allocation => json!({
            "apiVersion": "portolan.dev/v1alpha1", "kind": "IPAllocation", "metadata": { "name": format!("192-0-2-{number}") },
            "spec": {
                "address": format!("192.0.2.{number}"), "pool": "p",
                "owners": [{ "namespace": "ns", "name": format!("x{}", version % 3), "uid": "u" }],
            },
        }),
    }
}

fn object((kind, number): (Kind, u8), version: u8) -> Object {
    Object::from_manifest(manifest(kind, number, version)).expect("a manifest")
}

fn listed(world: &World, kind: Kind) -> Change {
    let of_kind = world.iter().filter(|((of, _), _)| *of == kind);
    Change::Replace(kind, of_kind.map(|(id, version)| object(*id, *version)).collect())
}

/// One event of a watch, or a relist after the world moved unseen.
fn step(world: &mut World, u: &mut Unstructured<'_>) -> Result<Change> {
    let id = (*u.choose(&Kind::ALL)?, u.int_in_range(0..=2)?);
    let version = u.arbitrary()?;
    Ok(match u.int_in_range(0..=3)? {
        0 => {
            world.remove(&id);
            Change::Delete(id.0, object(id, 0).key().clone())
        }
        1 => {
            world.insert(id, version);
            world.remove(&(id.0, u.int_in_range(0..=2)?));
            listed(world, id.0)
        }
        _ => {
            world.insert(id, version);
            Change::Apply(object(id, version))
        }
    })
}

#[test]
fn any_way_to_a_world_gives_its_snapshot() {
    arbtest::arbtest(|u| {
        let (mut index, mut world) = (Index::new(&[]), World::new());
        for _ in 0..u.int_in_range(0..=40)? {
            let before = (snapshot(&index), problems(&index));
            let change = step(&mut world, u)?;
            let dirty = index.apply(change.clone());
            check_dirty(&before, &index, &dirty);
            assert!(index.apply(change).is_empty(), "the same again changes nothing");
        }
        let mut fresh = Index::new(&Kind::ALL);
        for kind in Kind::ALL {
            assert!(fresh.snapshot().is_none(), "no snapshot before every kind was listed (S63)");
            fresh.apply(listed(&world, kind));
        }
        assert_eq!(index.snapshot(), fresh.snapshot());
        assert_eq!(problems(&index), problems(&fresh));
        Ok(())
    });
}

fn snapshot(index: &Index) -> Snapshot {
    index.snapshot().expect("nothing to wait for")
}

fn problems(index: &Index) -> Vec<String> {
    index.problems().map(ToString::to_string).collect()
}

/// Exactly what changed is named.
fn check_dirty((before, problems_before): &(Snapshot, Vec<String>), index: &Index, dirty: &Dirty) {
    let after = snapshot(index);
    let ids: BTreeSet<&ServiceId> = before.services.keys().chain(after.services.keys()).collect();
    for id in ids {
        let changed = before.services.get(id) != after.services.get(id);
        let owner = dirty.allocations.iter().any(|address| {
            let allocations = [before.allocations.get(address), after.allocations.get(address)];
            allocations
                .into_iter()
                .flatten()
                .any(|allocation| allocation.owners.iter().any(|owner| owner.service == *id))
        });
        assert_eq!(dirty.services.contains(id), changed || owner, "{id}");
    }
    let nodes = before.nodes.keys().chain(after.nodes.keys());
    let changed: BTreeSet<_> =
        nodes.filter(|name| before.nodes.get(*name) != after.nodes.get(*name)).cloned().collect();
    assert_eq!(dirty.nodes, changed);
    let policy = |s: &Snapshot| (s.pools.clone(), s.advertisements.clone(), s.peers.clone());
    assert_eq!(dirty.policy, policy(before) != policy(&after));
    assert_eq!(dirty.allocations.is_empty(), before.allocations == after.allocations);
    assert_eq!(dirty.service_cidrs, before.service_cidrs != after.service_cidrs);
    assert_eq!(dirty.problems, *problems_before != problems(index));
}

#[test]
fn s64_what_the_api_server_keeps_for_itself_is_no_change() {
    let mut index = Index::new(&[]);
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "a", "namespace": "ns" },
        "spec": { "clusterIP": "10.96.0.1" },
    });
    let first = index.apply(Change::Apply(Object::from_manifest(service.clone()).expect("a manifest")));
    assert_eq!(first.services.len(), 1);
    service["metadata"]["resourceVersion"] = json!("7");
    service["metadata"]["managedFields"] = json!([{ "manager": "x" }]);
    service["status"] = json!({ "conditions": [{
        "type": "portolan.dev/Advertised", "status": "True", "reason": "Advertised", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }] });
    assert!(index.apply(Change::Apply(Object::from_manifest(service).expect("a manifest"))).is_empty());
}

#[test]
fn a_deletion_of_what_was_never_seen_is_no_change() {
    let mut index = Index::new(&[]);
    for kind in Kind::ALL {
        assert!(index.apply(Change::Delete(kind, Key::namespaced("ns", "x"))).is_empty());
    }
}
