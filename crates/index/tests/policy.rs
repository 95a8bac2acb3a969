//! Our own kinds: what is wrong in one is said with object and field, and costs that object alone (vips.md 2.0, 7).

use expect_test::{Expect, expect};
use portolan_index::{Change, Index, Key, Kind, Object};
use serde_json::{Value, json};

fn object(kind: &str, name: &str, spec: Value) -> Object {
    let manifest = json!({ "apiVersion": "portolan.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec });
    Object::from_manifest(manifest).expect("a manifest")
}

fn problems(index: &Index) -> String {
    index.problems().map(|problem| format!("{problem}\n")).collect()
}

fn check(kind: &str, spec: Value, expected: Expect) {
    let mut index = Index::new(&[]);
    let dirty = index.apply(Change::Apply(object(kind, "x", spec)));
    assert!(dirty.problems && !dirty.policy);
    expected.assert_eq(&problems(&index));
}

#[test]
fn pools() {
    check(
        "IPAddressPool",
        json!({
            "addresses": ["192.0.2.300-192.0.2.310", "192.0.2.9-192.0.2.1"],
            "exclude": ["192.0.2.1/24"],
            "reuseDelay": "25h",
            "serviceAllocation": { "serviceSelectors": [{ "matchExpressions": [{ "key": "a", "operator": "Like" }, { "key": "a", "operator": "In" }] }] },
        }),
        expect![[r#"
            IPAddressPool x: spec.reuseDelay: must be from 0s to 24h
            IPAddressPool x: spec.addresses[0]: "192.0.2.300-192.0.2.310" is not a CIDR or a range a-b
            IPAddressPool x: spec.addresses[1]: "192.0.2.9-192.0.2.1" ends before it begins
            IPAddressPool x: spec.exclude[0]: "192.0.2.1/24" has host bits set: write 192.0.2.0/24
            IPAddressPool x: spec.serviceAllocation.serviceSelectors[0].matchExpressions[0].operator: "Like" is not an operator
            IPAddressPool x: spec.serviceAllocation.serviceSelectors[0].matchExpressions[1].values: must be given with In and NotIn, and only with them
        "#]],
    );
}

#[test]
fn advertisements() {
    check(
        "Advertisement",
        json!({ "sources": ["ExternalIP"], "bgp": { "aggregationLength": 0, "communities": ["70000:1"], "asPathPrepend": 11 } }),
        expect![[r#"
            Advertisement x: spec.externalIPCIDRs: must be given when spec.sources has ExternalIP
            Advertisement x: spec.bgp.aggregationLength: must be from 1 to 32
            Advertisement x: spec.bgp.asPathPrepend: must be at most 10
            Advertisement x: spec.bgp.communities[0]: "70000:1" is not a community: write 64500:100, large:64500:1:2 or a name such as no-export
        "#]],
    );
}

#[test]
fn peers() {
    check(
        "BGPPeer",
        json!({ "peerAddress": "192.0.2.300", "peerASN": 0, "myASN": 0, "holdTime": "2s", "keepaliveTime": "1m", "connectTime": "x" }),
        expect![[r#"
            BGPPeer x: spec.peerAddress: "192.0.2.300" is not an IP address
            BGPPeer x: spec.peerASN: 0 is not an AS number
            BGPPeer x: spec.myASN: 0 is not an AS number
            BGPPeer x: spec.holdTime: must be 0s, or from 3s to 65535s
            BGPPeer x: spec.keepaliveTime: must be at most a third of spec.holdTime
            BGPPeer x: spec.connectTime: "x" is not a duration such as 90s or 1m30s
            BGPPeer x: spec.connectTime: must be from 1s to 65535s
        "#]],
    );
}

#[test]
fn an_object_that_does_not_decode() {
    check(
        "BGPPeer",
        json!({ "peerAddress": "192.0.2.1", "peerASN": 64500, "peerPort": 70000 }),
        expect![[r#"
            BGPPeer x: spec: invalid value: integer `70000`, expected u16
        "#]],
    );
}

#[test]
fn an_allocation_is_named_after_its_address() {
    check(
        "IPAllocation",
        json!({ "address": "192.0.2.1", "pool": "p" }),
        expect![[r#"
            IPAllocation x: metadata.name: the allocation of 192.0.2.1 must be named 192-0-2-1
        "#]],
    );
}

/// vips.md 2.0, 7: the last accepted spec stays in force while the object is invalid, and only the object's own.
#[test]
fn an_invalid_change_leaves_the_last_valid_one_in_force() {
    let pool = |name: &str, range: &str| object("IPAddressPool", name, json!({ "addresses": [range] }));
    let mut index = Index::new(&[Kind::Pool]);
    index.apply(Change::Replace(Kind::Pool, vec![pool("a", "192.0.2.0/24"), pool("b", "bad")]));
    let names = |index: &Index| {
        let snapshot = index.snapshot().expect("every kind was listed");
        snapshot
            .pools
            .values()
            .map(|pool| format!("{} {}", pool.name, pool.addresses[0].first))
            .collect::<Vec<_>>()
    };
    assert_eq!(names(&index), ["a 192.0.2.0"]);

    let dirty = index.apply(Change::Apply(pool("a", "192.0.2.0/99")));
    assert!(dirty.problems && !dirty.policy);
    assert_eq!(names(&index), ["a 192.0.2.0"]);
    assert_eq!(index.problems_of(Kind::Pool, &Key::cluster("a")).len(), 1);

    index.apply(Change::Apply(pool("a", "198.51.100.0/24")));
    assert_eq!(names(&index), ["a 198.51.100.0"]);
    assert!(index.problems_of(Kind::Pool, &Key::cluster("a")).is_empty());

    index.apply(Change::Apply(pool("a", "bad")));
    index.apply(Change::Delete(Kind::Pool, Key::cluster("a")));
    index.apply(Change::Delete(Kind::Pool, Key::cluster("b")));
    assert!(names(&index).is_empty() && problems(&index).is_empty());
}
