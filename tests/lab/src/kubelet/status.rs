//! The Node and Pod objects a kubelet would write.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use serde_json::{Value, json};

/// A Node that is ready from the start, in one of three zones: z1, z2, z3, z1, …
pub fn node(name: &str, number: u8, addresses: &[IpAddr]) -> Node {
    let now = now();
    let condition = |kind: &str, status: &str| {
        json!({
            "type": kind, "status": status, "reason": "Lab", "message": "stand-in kubelet",
            "lastHeartbeatTime": now, "lastTransitionTime": now,
        })
    };
    let room = json!({"cpu": "64", "memory": "256Gi", "pods": "250", "ephemeral-storage": "100Gi"});
    let internal = addresses.iter().map(|address| json!({"type": "InternalIP", "address": address}));
    let node = json!({
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "topology.kubernetes.io/zone": format!("z{}", (number - 1) % 3 + 1),
            },
        },
        "status": {
            "addresses": internal.chain([json!({"type": "Hostname", "address": name})]).collect::<Vec<_>>(),
            "capacity": room,
            "allocatable": room,
            "conditions": [
                condition("MemoryPressure", "False"),
                condition("DiskPressure", "False"),
                condition("PIDPressure", "False"),
                condition("Ready", "True"),
            ],
        },
    });
    serde_json::from_value(node).expect("a Node as written above")
}

/// The status of a pod whose containers run.
pub fn running(pod: &Pod, node: &[IpAddr], addresses: &[IpAddr], ready: bool, since: &str) -> Value {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default().iter().map(|container| {
        json!({
            "name": container.name, "image": container.image, "imageID": "lab", "containerID": "lab://1",
            "ready": ready, "started": true, "restartCount": 0, "state": {"running": {"startedAt": since}},
        })
    });
    let condition = |kind: &str, status: bool, at: &str| json!({"type": kind, "status": if status { "True" } else { "False" }, "lastTransitionTime": at});
    let now = now();
    let ip = |address: &IpAddr| json!({"ip": address});
    json!({"status": {
        "phase": "Running",
        "startTime": since,
        "hostIP": node.first(),
        "hostIPs": node.iter().map(ip).collect::<Vec<_>>(),
        "podIP": addresses.first(),
        "podIPs": addresses.iter().map(ip).collect::<Vec<_>>(),
        "containerStatuses": containers.collect::<Vec<_>>(),
        "conditions": [
            condition("PodScheduled", true, since),
            condition("Initialized", true, since),
            condition("ContainersReady", ready, &now),
            condition("Ready", ready, &now),
        ],
    }})
}

/// The present time as Kubernetes writes it, in seconds.
pub fn now() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The present time as a Kubernetes MicroTime.
pub fn micro_time() -> String {
    Timestamp::now().strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string()
}
