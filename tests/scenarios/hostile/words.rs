use arbitrary::{Result, Unstructured};
use serde_json::{Map, Value, json};

/// What is right, by where it stands: few values, so that objects meet each other.
const CLUSTER_IPS: &[&str] = &["10.96.0.1", "10.96.0.2", "fd96::1"];
const EXTERNAL: &[&str] = &["198.51.100.1", "192.0.2.9", "172.30.0.1", "192.0.2.10", "2001:db8::9"];
const BALANCED: &[&str] = &["192.0.2.10", "192.0.2.11", "2001:db8::9", "192.0.2.9"];
const PODS: &[&str] = &["10.244.1.1", "10.244.1.2", "10.244.2.1"];
const PODS_V6: &[&str] = &["fd44:0:0:1::1", "fd44:0:0:2::1"];
const NODE_IPS: &[&str] = &["172.30.0.1", "172.30.0.2", "fd00::1"];
/// And what people and programs write instead.
const ADDRESSES: &[&str] = &[
    "10.96.0.1",
    "10.96.0.250",
    "010.096.000.001",
    " 10.96.0.2 ",
    "172.30.0.1",
    "192.0.2.9",
    "198.51.100.1",
    "10.244.1.1",
    "::ffff:10.96.0.1",
    "fe80::1",
    "127.0.0.1",
    "::1",
    "0.0.0.0",
    "::",
    "224.0.0.1",
    "ff02::1",
    "169.254.169.254",
    "255.255.255.255",
    "10.96.0.256",
    "10.96.0",
    "host.example",
    "None",
    "",
];
const RANGES: &[&str] = &["198.51.100.0/24", "10.244.0.0/16", "172.30.0.0/24", "2001:db8:9::/48"];
const WRONG_RANGES: &[&str] = &[
    " 198.51.100.0/25 ",
    "0.0.0.0/0",
    "::/0",
    "198.51.100.7/24",
    "10.96.0.0/24",
    "10.0.0.0/33",
    "10.0.0.0",
    "not a range",
    "",
];
const NAMES: &[&str] = &["", "", "", "web"];
const WRONG_NAMES: &[&str] = &["web.0", "Web", "a/b", "../x"];
const PORTS: &[i64] = &[80, 80, 30080, 8080];
const WRONG_PORTS: &[i64] = &[0, -1, 65535, 65536, 53];
const PROTOCOLS: &[&str] = &["TCP", "TCP", "TCP", "UDP"];
const WRONG_PROTOCOLS: &[&str] = &["SCTP", "ICMP", "", "tcp"];
const POLICIES: &[&str] = &["Cluster", "Local", "Local", "local"];
const NODES: &[&str] = &["n1", "n2"];
/// One value in so many is wrong.
const WRONG: u8 = 8;

/// One event of a watch.
pub fn event(u: &mut Unstructured) -> Result<Value> {
    let mut object = match u.int_in_range(0..=9)? {
        0..=3 => service(u)?,
        4..=7 => slice(u)?,
        8 => node(u)?,
        _ => service_cidr(u)?,
    };
    if u.ratio(1, WRONG)? {
        spoil(u, &mut object)?;
    }
    let kind = if u.ratio(1, 6)? { "DELETED" } else { "MODIFIED" };
    Ok(json!({ "type": kind, "object": object }))
}

fn one(u: &mut Unstructured, of: &[&str]) -> Result<Value> {
    Ok(json!(*u.choose(of)?))
}

fn mostly(u: &mut Unstructured, right: &[&str], wrong: &[&str]) -> Result<Value> {
    if u.ratio(1, WRONG)? { one(u, wrong) } else { one(u, right) }
}

fn port_number(u: &mut Unstructured) -> Result<Value> {
    Ok(json!(if u.ratio(1, WRONG)? { u.choose(WRONG_PORTS)? } else { u.choose(PORTS)? }))
}

fn several(
    u: &mut Unstructured,
    most: usize,
    of: impl Fn(&mut Unstructured) -> Result<Value>,
) -> Result<Value> {
    // None is only one thing of many that can be wrong.
    let many = if u.ratio(1, WRONG)? { 0 } else { u.int_in_range(1..=most)? };
    (0..many).map(|_| of(u)).collect::<Result<Vec<_>>>().map(Value::Array)
}

/// Adds fields that may be there or not.
fn maybe(
    u: &mut Unstructured,
    object: &mut Value,
    field: &str,
    of: impl Fn(&mut Unstructured) -> Result<Value>,
) -> Result<()> {
    if u.ratio(1, 3)? {
        object[field] = of(u)?;
    }
    Ok(())
}

fn metadata(u: &mut Unstructured, names: &[&str]) -> Result<Value> {
    let mut metadata = json!({ "name": one(u, names)?, "uid": one(u, &["u1", "u2"])? });
    maybe(u, &mut metadata, "creationTimestamp", |u| {
        one(u, &["2020-01-01T00:00:00Z", "2026-01-01T00:00:00Z"])
    })?;
    Ok(metadata)
}

fn service(u: &mut Unstructured) -> Result<Value> {
    let mut metadata = metadata(u, &["web", "web", "api"])?;
    metadata["namespace"] = json!("default");
    if u.ratio(1, 8)? {
        let label =
            one(u, &["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless", "app"])?;
        metadata["labels"] = json!({ label.as_str().unwrap_or_default(): "x" });
    }
    let port = |u: &mut Unstructured| {
        let mut port = json!({ "port": port_number(u)?, "protocol": mostly(u, PROTOCOLS, WRONG_PROTOCOLS)? });
        maybe(u, &mut port, "name", |u| mostly(u, NAMES, WRONG_NAMES))?;
        maybe(u, &mut port, "nodePort", port_number)?;
        Ok(port)
    };
    let mut spec = json!({
        "type": mostly(u, &["ClusterIP", "NodePort", "LoadBalancer", "LoadBalancer"], &["ExternalName", "Other"])?,
        "clusterIPs": several(u, 2, |u| mostly(u, CLUSTER_IPS, ADDRESSES))?,
        "ports": several(u, 3, port)?,
    });
    maybe(u, &mut spec, "clusterIP", |u| mostly(u, CLUSTER_IPS, ADDRESSES))?;
    maybe(u, &mut spec, "externalIPs", |u| several(u, 2, |u| mostly(u, EXTERNAL, ADDRESSES)))?;
    maybe(u, &mut spec, "loadBalancerSourceRanges", |u| several(u, 2, |u| mostly(u, RANGES, WRONG_RANGES)))?;
    maybe(u, &mut spec, "externalTrafficPolicy", |u| one(u, POLICIES))?;
    maybe(u, &mut spec, "internalTrafficPolicy", |u| one(u, POLICIES))?;
    maybe(u, &mut spec, "sessionAffinity", |u| one(u, &["ClientIP", "None"]))?;
    maybe(u, &mut spec, "sessionAffinityConfig", |u| {
        Ok(json!({ "clientIP": { "timeoutSeconds": port_number(u)? } }))
    })?;
    maybe(u, &mut spec, "healthCheckNodePort", port_number)?;
    let ingress = |u: &mut Unstructured| {
        let mut entry = json!({ "ip": mostly(u, BALANCED, ADDRESSES)? });
        maybe(u, &mut entry, "ipMode", |u| mostly(u, &["VIP"], &["Proxy", "vip"]))?;
        Ok(entry)
    };
    let ingress = several(u, 2, ingress)?;
    Ok(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec,
        "status": { "loadBalancer": { "ingress": ingress } },
    }))
}

fn slice(u: &mut Unstructured) -> Result<Value> {
    let mut metadata = metadata(u, &["web-1", "web-2", "api-1"])?;
    metadata["namespace"] = mostly(u, &["default"], &["other"])?;
    let mut labels = Map::new();
    labels.insert("kubernetes.io/service-name".into(), mostly(u, &["web", "web", "api"], &["db", ""])?);
    if u.ratio(1, 8)? {
        labels.insert("service.kubernetes.io/headless".into(), json!(""));
    }
    metadata["labels"] = labels.into();
    let port = |u: &mut Unstructured| {
        let mut port = json!({ "name": "" });
        maybe(u, &mut port, "name", |u| mostly(u, NAMES, WRONG_NAMES))?;
        maybe(u, &mut port, "protocol", |u| mostly(u, PROTOCOLS, WRONG_PROTOCOLS))?;
        if u.ratio(7, 8)? {
            port["port"] = port_number(u)?;
        }
        Ok(port)
    };
    let family = mostly(u, &["IPv4", "IPv4", "IPv6"], &["FQDN", "ipv4"])?;
    let pods = if family == "IPv6" { PODS_V6 } else { PODS };
    let endpoint = |u: &mut Unstructured| {
        let mut endpoint = json!({ "addresses": [mostly(u, pods, ADDRESSES)?, "10.244.1.9"] });
        if u.ratio(3, 4)? {
            endpoint["nodeName"] = one(u, NODES)?;
        }
        let mut conditions = json!({});
        for condition in ["ready", "serving", "terminating"] {
            maybe(u, &mut conditions, condition, |u| Ok(json!(u.arbitrary::<bool>()?)))?;
        }
        endpoint["conditions"] = conditions;
        let hint = |u: &mut Unstructured| Ok(json!({ "name": one(u, &["n1", "n2", "zone-a"])? }));
        let hints = |u: &mut Unstructured| {
            let (zones, nodes) = (several(u, 2, hint)?, several(u, 2, hint)?);
            Ok(json!({ "forZones": zones, "forNodes": nodes }))
        };
        maybe(u, &mut endpoint, "hints", hints)?;
        Ok(endpoint)
    };
    Ok(json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": metadata,
        "addressType": family,
        "ports": several(u, 3, port)?,
        "endpoints": several(u, 4, endpoint)?,
    }))
}

fn node(u: &mut Unstructured) -> Result<Value> {
    let mut metadata = metadata(u, &["n1", "n2"])?;
    metadata["labels"] = json!({ "topology.kubernetes.io/zone": one(u, &["zone-a", "zone-b", ""])? });
    let address = |u: &mut Unstructured| {
        Ok(
            json!({ "type": one(u, &["InternalIP", "ExternalIP", "Hostname"])?, "address": mostly(u, NODE_IPS, ADDRESSES)? }),
        )
    };
    Ok(json!({
        "apiVersion": "v1", "kind": "Node", "metadata": metadata,
        "spec": { "podCIDRs": several(u, 2, |u| mostly(u, RANGES, WRONG_RANGES))? },
        "status": { "addresses": several(u, 3, address)? },
    }))
}

fn service_cidr(u: &mut Unstructured) -> Result<Value> {
    let metadata = metadata(u, &["kubernetes", "more"])?;
    let cidrs = several(u, 2, |u| mostly(u, RANGES, WRONG_RANGES))?;
    Ok(
        json!({ "apiVersion": "networking.k8s.io/v1", "kind": "ServiceCIDR", "metadata": metadata, "spec": { "cidrs": cidrs } }),
    )
}

/// Puts something else in a place somewhere in the document.
fn spoil(u: &mut Unstructured, value: &mut Value) -> Result<()> {
    let inside: Vec<&mut Value> = match value {
        Value::Array(list) => list.iter_mut().collect(),
        Value::Object(fields) => fields.values_mut().collect(),
        _ => Vec::new(),
    };
    if inside.is_empty() || u.ratio(1, 4)? {
        *value = u
            .choose(&[
                json!(null),
                json!(-1),
                json!(1e300),
                json!("\u{0}"),
                json!([]),
                json!({}),
                json!(true),
            ])?
            .clone();
        return Ok(());
    }
    let at = u.choose_index(inside.len())?;
    match inside.into_iter().nth(at) {
        Some(chosen) => spoil(u, chosen),
        None => Ok(()),
    }
}
