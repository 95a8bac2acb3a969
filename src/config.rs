//! The configuration file of the agent and the controller: what the chart renders into its ConfigMap.

use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use ipnet::IpNet;
use portolan_conntrack::sysctl::Tuning;
use portolan_model::{Detector, Name};
use portolan_plan::node_ports::Selector;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

pub mod kube_proxy;

const HEALTHZ_PORT: u16 = 10256;
const METRICS_PORT: u16 = 10249;

/// `config.yaml`. Unknown fields are errors, so that a typing mistake is named and not ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Config {
    /// How routes to other nodes' podCIDRs come about.
    pub node_routes: NodeRoutes,
    pub proxy: Proxy,
    pub bgp: Bgp,
    pub classes: Classes,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum NodeRoutes {
    /// Someone else's business (a CNI's).
    #[default]
    Off,
    /// From the Node objects, for nodes on the same subnet.
    Api,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Proxy {
    pub mode: Mode,
    /// The node's address in its family, in place of those of its Node object (S76); 0.0.0.0, :: and empty = the latter.
    #[serde(deserialize_with = "bind_address", serialize_with = "as_text")]
    pub bind_address: Option<IpAddr>,
    /// The cluster's pod ranges: how pods are told from outside clients (S48). Empty = no detection.
    #[serde(rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<IpNet>,
    /// How pods are told from outside clients.
    pub detect_local_mode: DetectLocalMode,
    /// Of which interface, for the modes that ask.
    pub detect_local: DetectLocal,
    /// Serve the Services whose label `service.kubernetes.io/service-proxy-name` has this value, and leave all others to another
    /// proxy (S3): nothing is taken over from it then, and unallocated cluster IPs may be its own. Empty = those without the label.
    #[serde(deserialize_with = "label_value", serialize_with = "as_text")]
    pub service_proxy_name: Option<Name>,
    /// Masquerade every connection to a ClusterIP (S16).
    pub masquerade_all: bool,
    /// Which bit of the packet mark says "masquerade" between our chains (S47): 0 to 31.
    pub masquerade_bit: MasqueradeBit,
    /// Which of the node's addresses answer node ports: CIDRs, `primary`, `localhost`, `all` (S20, S22). Empty = `primary`.
    #[serde(deserialize_with = "selectors", serialize_with = "as_texts")]
    pub node_port_addresses: Vec<Selector>,
    /// Serve `spec.externalIPs` (S25).
    #[serde(rename = "externalIPs")]
    pub external_ips: bool,
    /// Remove what a kube-proxy left, once our own rules serve (S74).
    pub take_over: bool,
    pub conntrack: Conntrack,
    /// /healthz and /livez as of kube-proxy (S58); empty = nowhere.
    #[serde(deserialize_with = "healthz_address", serialize_with = "as_text")]
    pub healthz_bind_address: Option<SocketAddr>,
    /// /metrics, /proxyMode and /healthz (S62); empty = nowhere.
    #[serde(deserialize_with = "metrics_address", serialize_with = "as_text")]
    pub metrics_bind_address: Option<SocketAddr>,
    /// End when one of the two addresses cannot be bound, instead of trying again.
    pub bind_address_hard_fail: bool,
}

/// As `conntrack` in a KubeProxyConfiguration, with its defaults; durations as `1h30m` (S55).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Conntrack {
    pub max_per_core: u32,
    pub min: u32,
    #[serde(deserialize_with = "duration", serialize_with = "as_go_duration")]
    pub tcp_established_timeout: Duration,
    #[serde(deserialize_with = "duration", serialize_with = "as_go_duration")]
    pub tcp_close_wait_timeout: Duration,
    pub tcp_be_liberal: bool,
    #[serde(deserialize_with = "duration", serialize_with = "as_go_duration")]
    pub udp_timeout: Duration,
    #[serde(deserialize_with = "duration", serialize_with = "as_go_duration")]
    pub udp_stream_timeout: Duration,
    /// Cut TCP connections to endpoints that went without having been terminating (S53). Ours, not kube-proxy's.
    pub cut_vanished_tcp: bool,
}

impl Default for Conntrack {
    fn default() -> Self {
        let tuning = Tuning::default();
        Conntrack {
            max_per_core: tuning.max_per_core,
            min: tuning.min,
            tcp_established_timeout: tuning.tcp_established_timeout,
            tcp_close_wait_timeout: tuning.tcp_close_wait_timeout,
            tcp_be_liberal: tuning.tcp_be_liberal,
            udp_timeout: tuning.udp_timeout,
            udp_stream_timeout: tuning.udp_stream_timeout,
            cut_vanished_tcp: false,
        }
    }
}

impl From<&Conntrack> for Tuning {
    fn from(conntrack: &Conntrack) -> Tuning {
        Tuning {
            max_per_core: conntrack.max_per_core,
            min: conntrack.min,
            tcp_established_timeout: conntrack.tcp_established_timeout,
            tcp_close_wait_timeout: conntrack.tcp_close_wait_timeout,
            tcp_be_liberal: conntrack.tcp_be_liberal,
            udp_timeout: conntrack.udp_timeout,
            udp_stream_timeout: conntrack.udp_stream_timeout,
        }
    }
}

fn healthz_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer, HEALTHZ_PORT)
}

fn metrics_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SocketAddr>, D::Error> {
    address(deserializer, METRICS_PORT)
}

/// `ADDRESS:PORT`, or only the address; empty for none.
fn address<'de, D: Deserializer<'de>>(deserializer: D, port: u16) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let without_port = || text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
    match text.is_empty() {
        true => Ok(None),
        false => text.parse().or_else(|_| without_port()).map(Some).map_err(de::Error::custom),
    }
}

fn bind_address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    let text = String::deserialize(deserializer)?;
    if text.is_empty() {
        return Ok(None);
    }
    let ip: IpAddr = text.parse().map_err(de::Error::custom)?;
    Ok(Some(ip).filter(|ip| !ip.is_unspecified()))
}

fn selectors<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<Selector>, D::Error> {
    let texts = Vec::<String>::deserialize(deserializer)?;
    texts.iter().map(|text| text.parse().map_err(de::Error::custom)).collect()
}

fn interface<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_name = |c: char| c.is_ascii_graphic() && !"/*\"".contains(c);
    match text.len() <= 15 && text.chars().all(is_name) {
        true => Ok(Some(text.into()).filter(|name: &Name| !name.is_empty())),
        false => {
            Err(de::Error::custom(format!("{text:?} cannot be an interface's name, or the beginning of one")))
        }
    }
}

fn label_value<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Name>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let is_inner = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let ends = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    let is_value = text.len() <= 63 && text.chars().all(is_inner);
    match is_value && ends(text.chars().next()) && ends(text.chars().last()) {
        true => Ok(Some(text.into()).filter(|name: &Name| !name.is_empty())),
        false => Err(de::Error::custom(format!("{text:?} cannot be the value of a label"))),
    }
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = text.parse::<jiff::SignedDuration>().map_err(de::Error::custom)?;
    parsed.try_into().map_err(|_| de::Error::custom(format!("{text} is negative")))
}

fn as_texts<S: Serializer>(selectors: &[Selector], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(selectors.iter().map(Selector::to_string))
}

/// Empty for none.
fn as_text<T: Display, S: Serializer>(value: &Option<T>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&value.as_ref().map(T::to_string).unwrap_or_default())
}

/// `24h0m0s`.
fn as_go_duration<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    let secs = duration.as_secs();
    let (hours, minutes, secs) = (secs / 3600, secs / 60 % 60, secs % 60);
    serializer.collect_str(&match (hours, minutes) {
        (0, 0) => format!("{secs}s"),
        (0, _) => format!("{minutes}m{secs}s"),
        (_, _) => format!("{hours}h{minutes}m{secs}s"),
    })
}

/// S48. Pods are known by their addresses, or by the interface that they come in by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub enum DetectLocalMode {
    /// Those of `clusterCIDRs`.
    #[default]
    #[serde(rename = "ClusterCIDR")]
    ClusterCidr,
    /// Those of the podCIDRs of this node: only its own pods are pods.
    #[serde(rename = "NodeCIDR")]
    NodeCidr,
    /// By the interface `detectLocal.bridgeInterface`.
    BridgeInterface,
    /// By interfaces whose names begin with `detectLocal.interfaceNamePrefix`.
    InterfaceNamePrefix,
}

/// As `detectLocal` in a KubeProxyConfiguration; empty = not given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct DetectLocal {
    #[serde(deserialize_with = "interface", serialize_with = "as_text")]
    pub bridge_interface: Option<Name>,
    #[serde(deserialize_with = "interface", serialize_with = "as_text")]
    pub interface_name_prefix: Option<Name>,
}

impl Proxy {
    /// What a kube-proxy left goes, unless it is there beside us (S3, S74).
    pub fn takes_over(&self) -> bool {
        self.take_over && self.service_proxy_name.is_none()
    }

    /// How pods are told from others on a node with these podCIDRs (S48).
    pub fn detector(&self, pod_cidrs: &[IpNet]) -> Detector {
        let (local, none) = (&self.detect_local, Detector::default);
        match self.detect_local_mode {
            DetectLocalMode::ClusterCidr => Detector::Ranges(self.cluster_cidrs.clone()),
            // A node that has none yet has no pods yet (S49).
            DetectLocalMode::NodeCidr => Detector::Ranges(pod_cidrs.to_vec()),
            DetectLocalMode::BridgeInterface => {
                local.bridge_interface.clone().map_or_else(none, Detector::Interface)
            }
            DetectLocalMode::InterfaceNamePrefix => {
                local.interface_name_prefix.clone().map_or_else(none, Detector::InterfacePrefix)
            }
        }
    }
}

/// Below 32, which is checked where it is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(try_from = "u8", into = "u8")]
pub struct MasqueradeBit(u8);

impl MasqueradeBit {
    pub fn mark(self) -> u32 {
        1 << self.0
    }
}

impl Default for MasqueradeBit {
    fn default() -> Self {
        MasqueradeBit(14)
    }
}

impl From<MasqueradeBit> for u8 {
    fn from(bit: MasqueradeBit) -> u8 {
        bit.0
    }
}

impl TryFrom<u8> for MasqueradeBit {
    type Error = String;

    fn try_from(bit: u8) -> Result<Self, String> {
        if bit < 32 { Ok(MasqueradeBit(bit)) } else { Err(format!("masqueradeBit {bit} is not below 32")) }
    }
}

/// What the agent programs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Mode {
    #[default]
    Nftables,
}

impl Default for Proxy {
    fn default() -> Self {
        Proxy {
            mode: Mode::Nftables,
            bind_address: None,
            cluster_cidrs: Vec::new(),
            detect_local_mode: DetectLocalMode::default(),
            detect_local: DetectLocal::default(),
            service_proxy_name: None,
            masquerade_all: false,
            masquerade_bit: MasqueradeBit::default(),
            node_port_addresses: vec![Selector::Primary],
            external_ips: true,
            take_over: true,
            conntrack: Conntrack::default(),
            // Of both families: in a cluster of IPv6 alone the kubelet and load balancers have no other way.
            healthz_bind_address: Some((Ipv6Addr::UNSPECIFIED, HEALTHZ_PORT).into()),
            metrics_bind_address: Some(([127, 0, 0, 1], METRICS_PORT).into()),
            bind_address_hard_fail: false,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Bgp {
    /// Our AS number, where a BGPPeer gives no `myASN`.
    pub asn: Option<u32>,
    /// Where to accept connections, for peers with `spec.passive`: `0.0.0.0:179`, `[::]:179`. Empty = nowhere.
    pub listen: Vec<std::net::SocketAddr>,
}

/// Which `spec.loadBalancerClass` values are ours (A1).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Classes {
    pub own: String,
    /// Services without a class are ours too.
    pub default: bool,
    /// Foreign class strings to serve as well.
    pub accept: Vec<String>,
}

impl Default for Classes {
    fn default() -> Self {
        Classes { own: "portolan.dev/lb".into(), default: true, accept: Vec::new() }
    }
}

impl Config {
    /// Reads a YAML file; an error names the file and the field.
    pub fn read(path: &Path) -> anyhow::Result<Config> {
        let read =
            || -> anyhow::Result<Config> { serde_saphyr::from_str::<Config>(&text_of(path)?)?.checked() };
        read().with_context(|| format!("config file {}", path.display()))
    }

    /// `text` is a file of ours; what it does not say comes from `under`, which has the same shape.
    pub fn over(under: serde_json::Value, text: &str) -> anyhow::Result<Config> {
        let own =
            if text.trim().is_empty() { serde_json::Value::Null } else { serde_saphyr::from_str(text)? };
        serde_json::from_value::<Config>(kube_proxy::lay(under, own))?.checked()
    }

    /// What fields say together.
    fn checked(self) -> anyhow::Result<Config> {
        let (mode, local) = (self.proxy.detect_local_mode, &self.proxy.detect_local);
        let lacks = match mode {
            DetectLocalMode::BridgeInterface => local.bridge_interface.is_none().then_some("bridgeInterface"),
            DetectLocalMode::InterfaceNamePrefix => {
                local.interface_name_prefix.is_none().then_some("interfaceNamePrefix")
            }
            DetectLocalMode::ClusterCidr | DetectLocalMode::NodeCidr => None,
        };
        match lacks {
            Some(field) => {
                anyhow::bail!("proxy.detectLocal.{field} is empty, and detectLocalMode {mode:?} needs it")
            }
            None => Ok(self),
        }
    }
}

/// Where an agent's configuration is read from, at its start and again when a file changes.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Our own file.
    pub own: Option<PathBuf>,
    /// A KubeProxyConfiguration, which our own file lies over (S70).
    pub kube_proxy: Option<PathBuf>,
}

/// What the [`Sources`] say.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub config: Config,
    /// `hostnameOverride` of a KubeProxyConfiguration.
    pub node_name: Option<String>,
    /// To be logged: fields of a KubeProxyConfiguration that are unknown or have no meaning here.
    pub notes: Vec<String>,
}

impl Sources {
    pub fn read(&self) -> anyhow::Result<Given> {
        let Some(path) = &self.kube_proxy else {
            let config = self.own.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
            return Ok(Given { config, ..Given::default() });
        };
        let named = || format!("KubeProxyConfiguration {}", path.display());
        let file = kube_proxy::translate(&text_of(path)?).with_context(named)?;
        let own = self.own.as_deref().map_or_else(|| Ok(String::new()), text_of)?;
        let config = Config::over(file.config, &own).with_context(|| match &self.own {
            Some(own) => format!("config file {} over {}", own.display(), named()),
            None => named(),
        })?;
        Ok(Given { config, node_name: file.node_name, notes: file.notes })
    }

    /// The files' bytes: what a change is noticed by.
    pub fn texts(&self) -> anyhow::Result<Vec<String>> {
        self.own.iter().chain(&self.kube_proxy).map(|path| text_of(path)).collect()
    }
}

fn text_of(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("config file {}", path.display()))
}

impl From<&Classes> for portolan_plan::Classes {
    fn from(classes: &Classes) -> Self {
        let names = std::iter::once(&classes.own).chain(&classes.accept);
        portolan_plan::Classes {
            names: names.map(|name| name.as_str().into()).collect(),
            default: classes.default,
        }
    }
}

#[cfg(test)]
mod tests {
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
        let error =
            refused("proxy: { detectLocalMode: BridgeInterface, detectLocal: { bridgeInterface: '' } }");
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
}
