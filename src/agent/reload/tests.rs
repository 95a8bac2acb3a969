use std::collections::BTreeSet;

use portolan_conntrack::sysctl::Tuning;
use portolan_index::{Change, Index, Kind, Object};
use portolan_model::Snapshot;
use portolan_plan::node_ports;
use serde_json::json;

use super::*;
use crate::agent::Here;
use crate::config::kube_proxy;

#[test]
fn s72_settings_that_need_a_restart_are_named() {
    let with = |text: &str| Config::over(serde_json::Value::Null, text).unwrap();
    let fields = |text: &str| restart_fields(&Config::default(), &with(text));
    assert_eq!(fields("proxy: { takeOver: false, masqueradeAll: true }"), ["proxy.takeOver"]);
    assert!(fields("bgp: { asn: 64512 }\nproxy: { clusterCIDRs: [10.0.0.0/8] }").is_empty());
}

#[tokio::test]
async fn s72_a_changed_file_is_handed_on_and_a_broken_one_is_not() {
    let path = std::env::temp_dir().join(format!("portolan-reload-{}.yaml", std::process::id()));
    std::fs::write(&path, "bgp: { asn: 1 }").unwrap();
    let sources = Sources { own: Some(path.clone()), kube_proxy: None };
    let (sender, mut config) = watch::channel(sources.read().unwrap().config);
    let task = tokio::spawn(run(sources, None, sender));
    for (text, asn) in [("bgp: { asn: 2 }", 2), ("bgp: { asn: 3 }", 3)] {
        std::fs::write(&path, "bgp: { asn").unwrap();
        std::fs::write(&path, text).unwrap();
        config.wait_for(|config| config.bgp.asn == Some(asn)).await.unwrap();
    }
    task.abort();
    std::fs::remove_file(&path).unwrap();
}

/// What of the running agent follows a changed field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Follows {
    /// Every Service is planned again.
    Plans,
    /// The rules that no Service decides.
    Settings,
    /// The node ports that are relayed on loopback addresses.
    Loopback,
    /// The addresses of health-check node ports.
    HealthAddresses,
    /// The kernel's settings of connection tracking.
    Conntrack,
    /// Nothing before a restart, which is said.
    Restart,
}

use Follows::{Conntrack, HealthAddresses, Loopback, Plans, Restart, Settings};

/// Field, the file before and after its change, and what follows. The mode is nftables where nothing else is said.
#[rustfmt::skip]
const TABLE: &[(&str, &str, &str, &[Follows])] = &[
    ("mode", "mode: nftables\niptables: { masqueradeAll: true }", "mode: iptables\niptables: { masqueradeAll: true }", &[Plans]),
    ("hostnameOverride", "hostnameOverride: n1", "hostnameOverride: n2", &[Restart]),
    ("hostnameOverride", "hostnameOverride: n1", "", &[Restart]),
    ("clusterCIDR", "", "clusterCIDR: 10.244.0.0/16", &[Plans, Settings]),
    ("detectLocalMode", "", "detectLocalMode: NodeCIDR", &[Plans, Settings]),
    ("nftables.masqueradeAll", "", "nftables: { masqueradeAll: true }", &[Plans]),
    ("nftables.masqueradeBit", "", "nftables: { masqueradeBit: 15 }", &[Settings]),
    ("iptables.masqueradeAll", "mode: iptables", "mode: iptables\niptables: { masqueradeAll: true }", &[Plans]),
    ("iptables.masqueradeBit", "mode: iptables", "mode: iptables\niptables: { masqueradeBit: 0 }", &[Settings]),
    ("conntrack.maxPerCore", "", "conntrack: { maxPerCore: 1 }", &[Conntrack]),
    ("conntrack.min", "", "conntrack: { min: 1 }", &[Conntrack]),
    ("conntrack.tcpEstablishedTimeout", "", "conntrack: { tcpEstablishedTimeout: 1h }", &[Conntrack]),
    ("conntrack.tcpCloseWaitTimeout", "", "conntrack: { tcpCloseWaitTimeout: 2h }", &[Conntrack]),
    ("conntrack.tcpBeLiberal", "", "conntrack: { tcpBeLiberal: true }", &[Conntrack]),
    ("conntrack.udpTimeout", "", "conntrack: { udpTimeout: 3s }", &[Conntrack]),
    ("conntrack.udpStreamTimeout", "", "conntrack: { udpStreamTimeout: 4s }", &[Conntrack]),
    ("nodePortAddresses", "", "nodePortAddresses: [10.1.0.0/16]", &[Settings, HealthAddresses]),
    ("nodePortAddresses", "", "nodePortAddresses: [primary, localhost]", &[Settings, Loopback, HealthAddresses]),
    ("detectLocal.bridgeInterface", "detectLocalMode: BridgeInterface\ndetectLocal: { bridgeInterface: a }",
        "detectLocalMode: BridgeInterface\ndetectLocal: { bridgeInterface: b }", &[Plans, Settings]),
    ("detectLocal.interfaceNamePrefix", "detectLocalMode: InterfaceNamePrefix\ndetectLocal: { interfaceNamePrefix: a }",
        "detectLocalMode: InterfaceNamePrefix\ndetectLocal: { interfaceNamePrefix: b }", &[Plans, Settings]),
    ("bindAddress", "", "bindAddress: 10.1.0.9", &[Plans, Settings, HealthAddresses]),
    ("bindAddressHardFail", "", "bindAddressHardFail: true", &[Restart]),
    ("healthzBindAddress", "", "healthzBindAddress: 127.0.0.1:10300", &[Restart]),
    ("metricsBindAddress", "", "metricsBindAddress: 127.0.0.1:10301", &[Restart]),
];

/// Each in its own file, so that what follows is of this one field.
#[test]
fn s72_every_field_that_we_follow_applies_in_place_or_asks_for_a_restart() {
    for (field, before, after, follows) in TABLE {
        let both = [before, after].map(|body| given(body));
        assert_eq!(following(&both), follows.iter().copied().collect(), "{field}: {before:?} to {after:?}");
    }
    // The two that every file must have cannot change.
    let in_table: BTreeSet<&str> = TABLE.iter().map(|row| row.0).chain(["apiVersion", "kind"]).collect();
    assert_eq!(in_table, kube_proxy::followed_fields().collect());
}

#[test]
fn s72_a_field_that_has_no_meaning_here_changes_nothing() {
    let both = [given(""), given("configSyncPeriod: 1h\nipvs: { scheduler: rr }\noomScoreAdj: 7")];
    assert!(following(&both).is_empty());
}

fn given(body: &str) -> Given {
    let mode = if body.contains("mode:") { "" } else { "mode: nftables\n" };
    let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
    let file = kube_proxy::translate(&format!("{head}{mode}{body}\n")).unwrap();
    let config = Config::over(file.config, "").unwrap();
    Given { config, node_name: file.node_name, notes: file.notes }
}

/// The agent of n1 under the one, then under the other.
fn following([before, after]: &[Given; 2]) -> BTreeSet<Follows> {
    let (snapshot, interfaces) = (snapshot(), ["10.1.0.1", "172.18.0.2"].map(|ip| ip.parse().unwrap()));
    let (mut here, mut follows) = (Here::new("n1".into(), None), BTreeSet::new());
    let mut add = |what: Follows, differs: bool| differs.then(|| follows.insert(what));
    here.see(&snapshot, &before.config, interfaces);
    let settings = here.settings(&snapshot, &before.config);
    add(Plans, here.see(&snapshot, &after.config, interfaces));
    let settings = [settings, here.settings(&snapshot, &after.config)];
    add(Settings, settings[0] != settings[1]);
    let [old, new] = [&before.config, &after.config];
    let selectors = [old, new].map(|config| &config.proxy.node_port_addresses);
    add(Loopback, node_ports::loopback(selectors[0]) != node_ports::loopback(selectors[1]));
    let health = |i: usize| node_ports::health_addresses(selectors[i], &settings[i].node_port_addresses);
    add(HealthAddresses, health(0) != health(1));
    let tuning = |config: &Config| Tuning::from(&config.proxy.conntrack);
    add(Conntrack, tuning(old) != tuning(new));
    let renamed = is_renamed(before.node_name.as_deref(), after);
    add(Restart, renamed || !restart_fields(old, new).is_empty());
    follows
}

fn snapshot() -> Snapshot {
    let address = json!({ "type": "InternalIP", "address": "172.18.0.2" });
    let node = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": { "name": "n1" },
        "spec": { "podCIDRs": ["10.244.1.0/24"] }, "status": { "addresses": [address] },
    });
    let mut index = Index::new(&[Kind::Node]);
    index.apply(Change::Replace(Kind::Node, vec![Object::from_manifest(node).unwrap()]));
    index.snapshot().unwrap()
}
