use super::*;
use crate::config::{Config, DetectLocalMode};

const HEAD: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";

/// The translated configuration and the notes, for a file without its first two lines.
fn translated(body: &str) -> (Value, Vec<String>) {
    let translated = translate(&format!("{HEAD}{body}")).unwrap();
    (translated.config, translated.notes)
}

#[track_caller]
fn check(body: &str, config: Value, notes: &[&str]) {
    assert_eq!(translated(body), (config, notes.iter().map(ToString::to_string).collect()));
}

#[track_caller]
fn refused(body: &str, sentence: &str) {
    let error = translate(&format!("{HEAD}{body}")).unwrap_err().to_string();
    assert!(error.contains(sentence), "{error}");
}

#[test]
fn s71_fields_with_a_meaning_become_ours() {
    check("mode: nftables", json!({}), &[]);
    check(
        "mode: nftables\nclusterCIDR: 10.244.0.0/16, fd44::/48",
        json!({ "proxy": { "clusterCIDRs": ["10.244.0.0/16", "fd44::/48"] } }),
        &[],
    );
    check(
        "mode: nftables\nnftables: { masqueradeAll: true, masqueradeBit: 15 }\niptables: { masqueradeAll: false }",
        json!({ "proxy": { "masqueradeAll": true, "masqueradeBit": 15 } }),
        &[],
    );
    check(
        "mode: nftables\nconntrack: { maxPerCore: 0, tcpEstablishedTimeout: 24h0m0s, min: null }",
        json!({ "proxy": { "conntrack": { "maxPerCore": 0, "tcpEstablishedTimeout": "24h0m0s" } } }),
        &[],
    );
}

#[test]
fn s71_other_modes_are_done_by_nftables_and_their_section_counts() {
    check(
        "mode: ipvs\niptables: { masqueradeAll: true }\nnftables: { masqueradeAll: false }\nipvs: { strictARP: true }",
        json!({ "proxy": { "masqueradeAll": true } }),
        &[
            "ipvs is not used: there is no IPVS here",
            "mode ipvs is done by nftables here, with the same meaning",
        ],
    );
    refused("mode: kernelspace", "mode: \"kernelspace\" is none of");
}

#[test]
fn s48_detect_local_modes() {
    check("mode: nftables\ndetectLocalMode: ClusterCIDR", json!({}), &[]);
    check(
        "mode: nftables\ndetectLocalMode: NodeCIDR",
        json!({ "proxy": { "detectLocalMode": "NodeCIDR" } }),
        &[],
    );
    check(
        "mode: nftables\ndetectLocalMode: BridgeInterface\ndetectLocal: { bridgeInterface: cbr0, interfaceNamePrefix: '' }",
        json!({ "proxy": { "detectLocalMode": "BridgeInterface", "detectLocal": { "bridgeInterface": "cbr0" } } }),
        &[],
    );
    check(
        "mode: nftables\ndetectLocalMode: InterfaceNamePrefix\ndetectLocal: { interfaceNamePrefix: veth }",
        json!({ "proxy": {
            "detectLocalMode": "InterfaceNamePrefix", "detectLocal": { "interfaceNamePrefix": "veth" },
        } }),
        &[],
    );
    refused("detectLocalMode: LocalCIDR", "detectLocalMode: \"LocalCIDR\" is none of ClusterCIDR, NodeCIDR,");
}

#[test]
fn s70_unknown_fields_and_duplicates_are_named_and_do_no_harm() {
    check(
        "mode: nftables\nnftables: { masqueradeAl: true }\nmood: calm",
        json!({}),
        &["mood is no known field and ignored", "nftables.masqueradeAl is no known field and ignored"],
    );
    let (config, notes) = translated("mode: nftables\nclusterCIDR: 10.0.0.0/8\nclusterCIDR: 10.1.0.0/16");
    assert_eq!(config, json!({ "proxy": { "clusterCIDRs": ["10.1.0.0/16"] } }));
    assert!(notes[0].contains("clusterCIDR"), "{notes:?}");
    assert!(translate("kind: Pod\napiVersion: v1").is_err());
    assert!(translate("- [").is_err());
}

#[test]
fn s70_a_file_as_kubeadm_writes_it() {
    let file = translate(include_str!("kubeadm.yaml")).unwrap();
    assert_eq!(
        file.config,
        json!({ "proxy": {
            "bindAddress": "0.0.0.0", "bindAddressHardFail": false, "clusterCIDRs": ["10.244.0.0/16"], "masqueradeAll": false,
        } })
    );
    let fields: Vec<&str> = file.notes.iter().filter_map(|note| note.split(' ').next()).collect();
    let expected = [
        "clientConnection",
        "configSyncPeriod",
        "enableProfiling",
        "iptables.minSyncPeriod",
        "iptables.syncPeriod",
        "ipvs",
        "logging",
        "nftables.minSyncPeriod",
        "nftables.syncPeriod",
        "winkernel",
        "mode",
    ];
    assert_eq!(fields, expected);
}

#[test]
fn s70_our_own_file_lies_over_it() {
    let body = "mode: nftables\nhostnameOverride: n7\nclusterCIDR: 10.244.0.0/16\ndetectLocalMode: NodeCIDR\n\
                nftables: { masqueradeAll: true, masqueradeBit: 3 }";
    let file = translate(&format!("{HEAD}{body}")).unwrap();
    assert_eq!(file.node_name.as_deref(), Some("n7"));
    let config = Config::over(file.config, "proxy: { masqueradeAll: false }\nbgp: { asn: 64512 }").unwrap();
    assert!(!config.proxy.masquerade_all);
    assert_eq!(config.proxy.cluster_cidrs, ["10.244.0.0/16".parse().unwrap()]);
    assert_eq!(config.proxy.detect_local_mode, DetectLocalMode::NodeCidr);
    assert_eq!((config.proxy.masquerade_bit.mark(), config.bgp.asn), (1 << 3, Some(64512)));
    assert!(Config::over(json!({}), "proxy: { masqueradeAl: false }").is_err());
}
