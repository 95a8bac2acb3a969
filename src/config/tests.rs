use std::net::Ipv6Addr;
use std::time::Duration;

use portolan_model::Detector;
use portolan_plan::node_ports::Selector;

use super::*;

#[test]
fn s58_healthz_bind_address() {
    let check = |text: &str, expected: Option<&str>| {
        let config: Config =
            serde_saphyr::from_str(&format!("proxy: {{ healthzBindAddress: {text:?} }}")).unwrap();
        assert_eq!(config.proxy.healthz_bind_address.map(|at| at.to_string()).as_deref(), expected);
    };
    check("", None);
    check("127.0.0.1", Some("127.0.0.1:10256"));
    check("[::]:10300", Some("[::]:10300"));
    assert_eq!(Config::default().proxy.healthz_bind_address, Some((Ipv6Addr::UNSPECIFIED, 10256).into()));
}

/// What /configz shows can be read again, and means the same.
#[test]
fn s62_the_configuration_in_force_as_text() {
    let text = "{ nodeRoutes: api, bgp: { asn: 1, listen: ['[::]:179'] }, proxy: { clusterCIDRs: [10.0.0.0/8], \
                nodePortAddresses: [10.1.0.0/16, localhost], masqueradeBit: 7, healthzBindAddress: '', \
                conntrack: { tcpEstablishedTimeout: 2h30m, udpTimeout: 90s, udpStreamTimeout: 5s } } }";
    let config: Config = serde_saphyr::from_str(text).unwrap();
    let shown = serde_json::to_value(&config).unwrap();
    assert_eq!(shown["proxy"]["conntrack"]["tcpEstablishedTimeout"], "2h30m0s");
    assert_eq!(shown["proxy"]["healthzBindAddress"], "");
    assert_eq!(serde_json::from_value::<Config>(shown).unwrap(), config);
    let default = serde_json::to_value(Config::default()).unwrap();
    assert_eq!(serde_json::from_value::<Config>(default).unwrap(), Config::default());
}

#[test]
fn s20_node_port_addresses() {
    let read = |list: &str| {
        let text = format!("proxy: {{ nodePortAddresses: {list} }}");
        serde_saphyr::from_str::<Config>(&text).map(|config| config.proxy.node_port_addresses)
    };
    let net = Selector::Within("10.1.0.0/16".parse().unwrap());
    assert_eq!(read("[10.1.0.0/16, localhost]").unwrap(), [net, Selector::Localhost]);
    assert!(read("[eth0]").unwrap_err().to_string().contains("primary, localhost, all"));
    assert_eq!(Proxy::default().node_port_addresses, [Selector::Primary]);
}

#[test]
fn s3_service_proxy_name() {
    let read = |name: &str| {
        Config::over(serde_json::Value::Null, &format!("proxy: {{ serviceProxyName: {name:?} }}"))
    };
    let proxy = read("mine.v1").unwrap().proxy;
    assert_eq!((proxy.service_proxy_name.as_deref(), proxy.takes_over()), (Some("mine.v1"), false));
    let proxy = read("").unwrap().proxy;
    assert_eq!((proxy.service_proxy_name.as_deref(), proxy.takes_over()), (None, true));
    for wrong in ["a b", "-a", "a,b=c", &"a".repeat(64)] {
        assert!(format!("{:#}", read(wrong).unwrap_err()).contains("cannot be the value of a label"));
    }
}

#[test]
fn s48_detect_local() {
    let read = |text: &str| Config::over(serde_json::Value::Null, text).map(|config| config.proxy);
    let detector = |text: &str| read(text).unwrap().detector(&["10.244.1.0/24".parse().unwrap()]);
    let ranges = |range: &str| Detector::Ranges(vec![range.parse().unwrap()]);
    assert_eq!(detector("proxy: { clusterCIDRs: [10.244.0.0/16] }"), ranges("10.244.0.0/16"));
    assert_eq!(detector("proxy: { detectLocalMode: NodeCIDR }"), ranges("10.244.1.0/24"));
    let bridge = "proxy: { detectLocalMode: BridgeInterface, detectLocal: { bridgeInterface: cbr0 } }";
    assert_eq!(detector(bridge), Detector::Interface("cbr0".into()));
    let prefix =
        "proxy: { detectLocalMode: InterfaceNamePrefix, detectLocal: { interfaceNamePrefix: veth } }";
    assert_eq!(detector(prefix), Detector::InterfacePrefix("veth".into()));
    let refused = |text: &str| format!("{:#}", read(text).unwrap_err());
    let error = refused("proxy: { detectLocalMode: BridgeInterface, detectLocal: { bridgeInterface: '' } }");
    assert!(error.contains("proxy.detectLocal.bridgeInterface is empty"), "{error}");
    for name in ["a-name-of-16-byte", "a b", "eth*", "é"] {
        let error = refused(&format!("proxy: {{ detectLocal: {{ bridgeInterface: '{name}' }} }}"));
        assert!(error.contains("cannot be an interface's name"), "{error}");
    }
}

#[test]
fn s55_conntrack_as_kube_proxy_writes_it() {
    let text = "proxy: { conntrack: { maxPerCore: 0, tcpEstablishedTimeout: 2h30m0s, udpTimeout: 0s } }";
    let conntrack = serde_saphyr::from_str::<Config>(text).unwrap().proxy.conntrack;
    assert_eq!((conntrack.max_per_core, conntrack.min), (0, 131_072));
    assert_eq!(conntrack.tcp_established_timeout, Duration::from_secs(9000));
    assert_eq!(conntrack.tcp_close_wait_timeout, Duration::from_secs(3600));
    assert_eq!(conntrack.udp_timeout, Duration::ZERO);
    assert!(!conntrack.cut_vanished_tcp);
}
