//! What the service proxy is told: the fields of a KubeProxyConfiguration that mean something here, and ours beside them.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ipnet::IpNet;
use portolan_conntrack::sysctl::Tuning;
use portolan_model::{Detector, Name};
use portolan_plan::node_ports::Selector;
use serde::{Deserialize, Serialize};

use super::text::{self, HEALTHZ_PORT, METRICS_PORT};

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Proxy {
    pub mode: Mode,
    /// The node's address in its family, in place of those of its Node object (S76); 0.0.0.0, :: and empty = the latter.
    #[serde(deserialize_with = "text::bind_address", serialize_with = "text::as_text")]
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
    #[serde(deserialize_with = "text::label_value", serialize_with = "text::as_text")]
    pub service_proxy_name: Option<Name>,
    /// Masquerade every connection to a ClusterIP (S16).
    pub masquerade_all: bool,
    /// Which bit of the packet mark says "masquerade" between our chains (S47): 0 to 31.
    pub masquerade_bit: MasqueradeBit,
    /// Which of the node's addresses answer node ports: CIDRs, `primary`, `localhost`, `all` (S20, S22). Empty = `primary`.
    #[serde(deserialize_with = "text::selectors", serialize_with = "text::as_texts")]
    pub node_port_addresses: Vec<Selector>,
    /// Serve `spec.externalIPs` (S25).
    #[serde(rename = "externalIPs")]
    pub external_ips: bool,
    /// Remove what a kube-proxy left, once our own rules serve (S74).
    pub take_over: bool,
    pub conntrack: Conntrack,
    /// /healthz and /livez as of kube-proxy (S58); empty = nowhere.
    #[serde(deserialize_with = "text::healthz_address", serialize_with = "text::as_text")]
    pub healthz_bind_address: Option<SocketAddr>,
    /// /metrics, /proxyMode and /healthz (S62); empty = nowhere.
    #[serde(deserialize_with = "text::metrics_address", serialize_with = "text::as_text")]
    pub metrics_bind_address: Option<SocketAddr>,
    /// End when one of the two addresses cannot be bound, instead of trying again.
    pub bind_address_hard_fail: bool,
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

/// As `conntrack` in a KubeProxyConfiguration, with its defaults; durations as `1h30m` (S55).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub struct Conntrack {
    pub max_per_core: u32,
    pub min: u32,
    #[serde(deserialize_with = "text::duration", serialize_with = "text::as_go_duration")]
    pub tcp_established_timeout: Duration,
    #[serde(deserialize_with = "text::duration", serialize_with = "text::as_go_duration")]
    pub tcp_close_wait_timeout: Duration,
    pub tcp_be_liberal: bool,
    #[serde(deserialize_with = "text::duration", serialize_with = "text::as_go_duration")]
    pub udp_timeout: Duration,
    #[serde(deserialize_with = "text::duration", serialize_with = "text::as_go_duration")]
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
    #[serde(deserialize_with = "text::interface", serialize_with = "text::as_text")]
    pub bridge_interface: Option<Name>,
    #[serde(deserialize_with = "text::interface", serialize_with = "text::as_text")]
    pub interface_name_prefix: Option<Name>,
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
