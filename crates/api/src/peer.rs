use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{is_false, schema};

/// A router that nodes hold a BGP session with.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "BGPPeer",
    plural = "bgppeers",
    category = "portolan",
    status = "BGPPeerStatus",
    derive = "PartialEq",
    doc = "A router that nodes hold a BGP session with.",
    printcolumn(name = "Peer", type_ = "string", json_path = ".spec.peerAddress"),
    printcolumn(name = "ASN", type_ = "string", json_path = ".spec.peerASN"),
    printcolumn(name = "Up", type_ = "integer", json_path = ".status.sessions.established"),
    printcolumn(name = "Of", type_ = "integer", json_path = ".status.sessions.selected"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("duration(self.holdTime) == duration('0s') || \
    (duration(self.holdTime) >= duration('3s') && duration(self.holdTime) <= duration('65535s'))")
    .message("spec.holdTime must be 0s, or from 3s to 65535s"))]
#[x_kube(validation = Rule::new("!has(self.keepaliveTime) || \
    duration(self.keepaliveTime) + duration(self.keepaliveTime) + duration(self.keepaliveTime) <= duration(self.holdTime)")
    .message("spec.keepaliveTime must be at most a third of spec.holdTime"))]
#[x_kube(validation = Rule::new("duration(self.connectTime) >= duration('1s') && duration(self.connectTime) <= duration('65535s')")
    .message("spec.connectTime must be from 1s to 65535s"))]
#[x_kube(validation = Rule::new("!has(self.sourceAddress) || !isIP(self.sourceAddress) || !isIP(self.peerAddress) || \
    ip(self.sourceAddress).family() == ip(self.peerAddress).family()")
    .message("spec.sourceAddress must be of the same family as spec.peerAddress"))]
pub struct BGPPeerSpec {
    /// The router's IP address.
    #[schemars(schema_with = "schema::ip")]
    pub peer_address: String,
    /// The router's TCP port.
    #[serde(default = "bgp_port")]
    #[schemars(schema_with = "schema::port")]
    pub peer_port: u16,
    /// The router's AS number; or external (any but ours), internal (ours), any.
    #[serde(rename = "peerASN")]
    #[schemars(schema_with = "schema::peer_asn")]
    pub peer_asn: PeerAsn,
    /// Our AS number in this session; the agent's (bgp.asn of the chart) when not given.
    #[serde(default, rename = "myASN", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::asn")]
    pub my_asn: Option<u32>,
    /// Never dial; wait for the router to. The agents must listen: `bgp.listen` in their configuration.
    #[serde(default, skip_serializing_if = "is_false")]
    pub passive: bool,
    /// The local address of the session; the kernel's choice when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ip")]
    pub source_address: Option<String>,
    /// Hold time that we offer: 0s (never), or 3s to 65535s.
    #[serde(default = "hold_time")]
    #[schemars(schema_with = "schema::duration")]
    pub hold_time: String,
    /// Time between KEEPALIVEs; a third of the negotiated hold time when not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub keepalive_time: Option<String>,
    /// Time between attempts to connect.
    #[serde(default = "connect_time")]
    #[schemars(schema_with = "schema::duration")]
    pub connect_time: String,
    /// Address families to offer.
    #[serde(default = "both_families")]
    #[schemars(schema_with = "families")]
    pub families: Vec<Family>,
    /// TTL of packets to an external router; more than 1 when it is not on the node's own link.
    #[serde(default, rename = "multihopTTL", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::ttl")]
    pub multihop_ttl: Option<u8>,
    /// Nodes that hold the session; every node when not given.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub node_selectors: Vec<LabelSelector>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum PeerAsn {
    Number(u32),
    Relation(AsnRelation),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum AsnRelation {
    External,
    Internal,
    Any,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Family {
    Ipv4Unicast,
    Ipv6Unicast,
}

/// Aggregates only, and the controller alone writes them: per-session truth is in NodeStatus.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BGPPeerStatus {
    /// Accepted, Conflict.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sessions: Option<Sessions>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_flap: Option<Time>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Sessions {
    /// Nodes that should hold a session.
    #[schemars(schema_with = "schema::count")]
    pub selected: i64,
    /// Nodes that do.
    #[schemars(schema_with = "schema::count")]
    pub established: i64,
}

fn families(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "x-kubernetes-list-type": "set",
        "items": { "type": "string", "enum": ["ipv4Unicast", "ipv6Unicast"] },
    })
}

fn bgp_port() -> u16 {
    179
}

fn hold_time() -> String {
    "90s".into()
}

fn connect_time() -> String {
    "10s".into()
}

fn both_families() -> Vec<Family> {
    vec![Family::Ipv4Unicast, Family::Ipv6Unicast]
}
