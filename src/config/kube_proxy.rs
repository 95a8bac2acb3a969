//! A `KubeProxyConfiguration` of kubeproxy.config.k8s.io/v1alpha1, read as it is (S70, S71): it becomes values of our own
//! configuration, under which our own file lies. Every field has a fate here; those without a meaning for us are said once.

use anyhow::{Context, bail};
use serde_json::{Map, Value, json};

const VERSION: &str = "kubeproxy.config.k8s.io/v1alpha1";
const KIND: &str = "KubeProxyConfiguration";

/// What the file says, in our words.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Translated {
    /// In the shape of our own configuration file.
    pub config: Value,
    /// `hostnameOverride`.
    pub node_name: Option<String>,
    /// Sentences for the log, each about one field: unknown ones, and those that have no meaning here.
    pub notes: Vec<String>,
}

/// What becomes of a field that is set.
enum Fate {
    /// A field of ours at this path takes the value as it is.
    Ours(&'static str),
    /// Seen to below, with others.
    Read,
    /// Nothing, because …
    Unused(&'static str),
}

use Fate::{Ours, Read, Unused};

const SYNC: &str = "every change is programmed at once";
const IPVS: &str = "there is no IPVS here";
const FIELDS: &[(&str, Fate)] = &[
    ("apiVersion", Read),
    ("kind", Read),
    ("mode", Read),
    ("hostnameOverride", Read),
    ("clusterCIDR", Read),
    ("detectLocalMode", Read),
    ("nftables.masqueradeAll", Read),
    ("nftables.masqueradeBit", Read),
    ("iptables.masqueradeAll", Read),
    ("iptables.masqueradeBit", Read),
    ("conntrack.maxPerCore", Ours("proxy.conntrack.maxPerCore")),
    ("conntrack.min", Ours("proxy.conntrack.min")),
    ("conntrack.tcpEstablishedTimeout", Ours("proxy.conntrack.tcpEstablishedTimeout")),
    ("conntrack.tcpCloseWaitTimeout", Ours("proxy.conntrack.tcpCloseWaitTimeout")),
    ("conntrack.tcpBeLiberal", Ours("proxy.conntrack.tcpBeLiberal")),
    ("conntrack.udpTimeout", Ours("proxy.conntrack.udpTimeout")),
    ("conntrack.udpStreamTimeout", Ours("proxy.conntrack.udpStreamTimeout")),
    ("nodePortAddresses", Ours("proxy.nodePortAddresses")),
    ("detectLocal.bridgeInterface", Ours("proxy.detectLocal.bridgeInterface")),
    ("detectLocal.interfaceNamePrefix", Ours("proxy.detectLocal.interfaceNamePrefix")),
    ("bindAddress", Ours("proxy.bindAddress")),
    ("bindAddressHardFail", Ours("proxy.bindAddressHardFail")),
    ("healthzBindAddress", Ours("proxy.healthzBindAddress")),
    ("metricsBindAddress", Ours("proxy.metricsBindAddress")),
    ("enableProfiling", Unused("there is no profiling server: perf looks at the process from outside")),
    ("showHiddenMetricsForVersion", Unused("no metric is hidden")),
    (
        "clientConnection",
        Unused("the agent reads more kinds than kube-proxy may: give it credentials of its own"),
    ),
    ("iptables.localhostNodePorts", Unused("it is a matter of iptables")),
    ("iptables.syncPeriod", Unused(SYNC)),
    ("iptables.minSyncPeriod", Unused(SYNC)),
    ("nftables.syncPeriod", Unused(SYNC)),
    ("nftables.minSyncPeriod", Unused(SYNC)),
    ("ipvs", Unused(IPVS)),
    ("configSyncPeriod", Unused("objects are watched")),
    ("oomScoreAdj", Unused("it is set by the pod's priority")),
    ("portRange", Unused("it has had no meaning in kube-proxy for years")),
    ("featureGates", Unused("they are kube-proxy's own")),
    ("logging", Unused("RUST_LOG and --log-json set the log")),
    ("winkernel", Unused("this is Linux")),
    ("windowsRunAsService", Unused("this is Linux")),
];

/// Fails on text that is no such object, and on values that we cannot do what they ask for; an unknown field is only named.
pub fn translate(text: &str) -> anyhow::Result<Translated> {
    let mut notes = Vec::new();
    let file = parse(text, &mut notes)?;
    let said = |field: &str| at(&file, field).and_then(Value::as_str).unwrap_or_default();
    if said("apiVersion") != VERSION || said("kind") != KIND {
        bail!("not a {KIND} of {VERSION}: apiVersion {:?}, kind {:?}", said("apiVersion"), said("kind"));
    }
    let mut config = json!({});
    walk(&file, "", &mut config, &mut notes);
    let section = mode(said("mode"), &mut notes)?;
    for field in ["masqueradeAll", "masqueradeBit"] {
        if let Some(value) = at(&file, &format!("{section}.{field}")) {
            set(&mut config, &format!("proxy.{field}"), value.clone());
        }
    }
    detect_local(&file, &mut config)?;
    let node_name = Some(said("hostnameOverride")).filter(|name| !name.is_empty()).map(str::to_owned);
    Ok(Translated { config, node_name, notes })
}

/// Lays `over` on `under`, object by object.
pub fn lay(under: Value, over: Value) -> Value {
    match (under, over) {
        (Value::Object(mut under), Value::Object(over)) => {
            for (key, value) in over {
                let below = under.remove(&key).unwrap_or(Value::Null);
                under.insert(key, lay(below, value));
            }
            Value::Object(under)
        }
        (under, Value::Null) => under,
        (_, over) => over,
    }
}

/// Strict, then lenient: of a key that is there twice the last one counts, as in kube-proxy.
fn parse(text: &str, notes: &mut Vec<String>) -> anyhow::Result<Value> {
    let error = match serde_saphyr::from_str::<Value>(text) {
        Ok(file) => return Ok(file),
        Err(error) => error,
    };
    let lenient = serde_saphyr::options! { duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins };
    let file = serde_saphyr::from_str_with_options(text, lenient).context("not YAML")?;
    notes.push(format!("the last of two fields of one name counts: {}", one_line(&error.to_string())));
    Ok(file)
}

fn one_line(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

/// Gives every field that is set its fate.
fn walk(object: &Value, path: &str, config: &mut Value, notes: &mut Vec<String>) {
    let fields: Option<&Map<String, Value>> = object.as_object();
    for (name, value) in fields.into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        if is_unset(value) {
            continue;
        }
        match FIELDS.iter().find(|(field, _)| *field == path) {
            Some((_, Ours(ours))) => set(config, ours, value.clone()),
            Some((_, Read)) => {}
            Some((_, Unused(why))) => notes.push(format!("{path} is not used: {why}")),
            None if FIELDS.iter().any(|(field, _)| is_below(field, &path)) => {
                walk(value, &path, config, notes)
            }
            None => notes.push(format!("{path} is no known field and ignored")),
        }
    }
}

fn is_below(field: &str, path: &str) -> bool {
    field.strip_prefix(path).is_some_and(|rest| rest.starts_with('.'))
}

/// As kube-proxy's own defaulting sees it: files that kubeadm wrote name every field.
fn is_unset(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.values().all(is_unset),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// The section that holds the mode's masquerade settings: IPVS has them in that of iptables.
fn mode(mode: &str, notes: &mut Vec<String>) -> anyhow::Result<&'static str> {
    match mode {
        "nftables" => Ok("nftables"),
        "" | "iptables" | "ipvs" => {
            let named = if mode.is_empty() { "iptables" } else { mode };
            notes.push(format!("mode {named} is done by nftables here, with the same meaning"));
            Ok("iptables")
        }
        other => bail!("mode: {other:?} is none of nftables, iptables, ipvs"),
    }
}

/// S48.
fn detect_local(file: &Value, config: &mut Value) -> anyhow::Result<()> {
    let mode = at(file, "detectLocalMode").and_then(Value::as_str).unwrap_or_default();
    match mode {
        "" | "ClusterCIDR" => {}
        "NodeCIDR" | "BridgeInterface" | "InterfaceNamePrefix" => {
            set(config, "proxy.detectLocalMode", json!(mode));
        }
        other => bail!(
            "detectLocalMode: {other:?} is none of ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix"
        ),
    }
    if let Some(value) = at(file, "clusterCIDR").filter(|value| !is_unset(value)) {
        let list = value.as_str().context("clusterCIDR: not a text")?;
        set(config, "proxy.clusterCIDRs", list.split(',').map(str::trim).collect());
    }
    Ok(())
}

fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.').try_fold(value, |value, name| value.get(name)).filter(|value| !value.is_null())
}

fn set(config: &mut Value, path: &str, value: Value) {
    let nested = path.rsplit('.').fold(value, |inner, name| json!({ name: inner }));
    *config = lay(config.take(), nested);
}

/// Every field that means something to us.
#[cfg(test)]
pub(crate) fn followed_fields() -> impl Iterator<Item = &'static str> {
    FIELDS.iter().filter(|(_, fate)| !matches!(fate, Unused(_))).map(|(field, _)| *field)
}

#[cfg(test)]
mod tests;
