use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{is_false, schema};

/// Names for communities that everyone shares: RFC 1997, RFC 3765, RFC 7999, RFC 8326.
pub const WELL_KNOWN_COMMUNITIES: [(&str, u32); 6] = [
    ("graceful-shutdown", 0xffff_0000),
    ("blackhole", 0xffff_029a),
    ("no-export", 0xffff_ff01),
    ("no-advertise", 0xffff_ff02),
    ("no-export-subconfed", 0xffff_ff03),
    ("no-peer", 0xffff_ff04),
];

/// What is announced to the network, from which nodes, and how.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "Advertisement",
    plural = "advertisements",
    shortname = "advert",
    category = "portolan",
    status = "AdvertisementStatus",
    derive = "PartialEq",
    doc = "What is announced to the network, from which nodes, and how.",
    printcolumn(name = "Sources", type_ = "string", json_path = ".spec.sources"),
    printcolumn(name = "Peers", type_ = "string", json_path = ".spec.bgp.peers"),
    printcolumn(name = "Services", type_ = "integer", json_path = ".status.services"),
    printcolumn(name = "Nodes", type_ = "integer", json_path = ".status.nodes"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"ResolvedRefs\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.bgp)").message("spec.bgp must be given; {} takes every default"))]
#[x_kube(validation = Rule::new("!('ExternalIP' in self.sources) || (has(self.externalIPCIDRs) && self.externalIPCIDRs.size() > 0)")
    .message("spec.externalIPCIDRs must be given when spec.sources has ExternalIP"))]
#[x_kube(validation = Rule::new("!self.sources.exists(s, s in ['PodCIDR', 'ServiceCIDR']) || \
    !(has(self.serviceSelectors) || has(self.ipAddressPools) || has(self.ipAddressPoolSelectors))")
    .message("spec.sources has PodCIDR or ServiceCIDR, which belong to no service and no pool: announce them by an \
              Advertisement without serviceSelectors, ipAddressPools and ipAddressPoolSelectors"))]
#[x_kube(validation = Rule::new("!has(self.serviceSelectors) || self.serviceSelectors.size() == 0 || !has(self.bgp) || \
    (self.bgp.aggregationLength == 32 && self.bgp.aggregationLengthV6 == 128)")
    .message("spec.bgp.aggregationLength and aggregationLengthV6 must be 32 and 128 together with spec.serviceSelectors: \
              an aggregate covers other services too"))]
pub struct AdvertisementSpec {
    /// Names of IPAddressPools; addresses of every pool when neither this nor ipAddressPoolSelectors is given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names")]
    pub ip_address_pools: Vec<String>,
    /// Pools by their labels.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub ip_address_pool_selectors: Vec<LabelSelector>,
    /// Services by their labels; every Service when not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub service_selectors: Vec<LabelSelector>,
    /// Nodes that announce; every node when not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub node_selectors: Vec<LabelSelector>,
    /// Which addresses are announced.
    #[serde(default = "load_balancer_ip")]
    #[schemars(schema_with = "sources")]
    pub sources: Vec<Source>,
    /// Where external IPs must lie to be announced.
    #[serde(default, rename = "externalIPCIDRs", skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::cidrs")]
    pub external_ip_cidrs: Vec<String>,
    /// Announces nothing.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
    /// Announce to BGP peers; {} takes every default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpAdvertisement>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize)]
pub enum Source {
    LoadBalancerIP,
    ClusterIP,
    ExternalIP,
    ServiceCIDR,
    PodCIDR,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpAdvertisement {
    /// Names of BGPPeers; every peer when not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::names")]
    pub peers: Vec<String>,
    /// Announce the covering prefix of this length instead of each IPv4 address.
    #[serde(default = "host_v4")]
    #[schemars(schema_with = "schema::prefix_length_v4")]
    pub aggregation_length: u8,
    /// Announce the covering prefix of this length instead of each IPv6 address.
    #[serde(default = "host_v6", rename = "aggregationLengthV6")]
    #[schemars(schema_with = "schema::prefix_length_v6")]
    pub aggregation_length_v6: u8,
    /// LOCAL_PREF, for internal peers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uint32")]
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::uint32")]
    pub med: Option<u32>,
    /// How many times our AS number is put in front of the path once more.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(schema_with = "schema::prepend")]
    pub as_path_prepend: u8,
    /// 64500:100, large:64500:1:2, or a well-known name such as no-export.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::communities")]
    pub communities: Vec<String>,
    /// What happens to the address of a Service that has no usable endpoint anywhere.
    #[serde(default)]
    pub when_no_endpoints: WhenNoEndpoints,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum WhenNoEndpoints {
    #[default]
    Withdraw,
    Keep,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AdvertisementStatus {
    /// Accepted, ResolvedRefs, Conflict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub services: i64,
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub prefixes: i64,
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub nodes: i64,
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub peers: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

fn sources(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 5,
        "x-kubernetes-list-type": "set",
        "items": {
            "type": "string",
            "enum": ["LoadBalancerIP", "ClusterIP", "ExternalIP", "ServiceCIDR", "PodCIDR"],
        },
    })
}

fn load_balancer_ip() -> Vec<Source> {
    vec![Source::LoadBalancerIP]
}

fn host_v4() -> u8 {
    32
}

fn host_v6() -> u8 {
    128
}

fn is_zero(value: &u8) -> bool {
    *value == 0
}
