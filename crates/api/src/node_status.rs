use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Family, is_false, schema};

/// What one node's agent does at present; named as its Node, written by that agent alone.
///
/// It has no spec and no status subresource: the agent writes `status` as a whole.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "NodeStatus",
    plural = "nodestatuses",
    category = "portolan",
    no_spec,
    status = "NodeStatusFields",
    derive = "PartialEq",
    doc = "What one node's agent does at present.",
    printcolumn(name = "Mode", type_ = "string", json_path = ".status.agent.dataplane.mode"),
    printcolumn(name = "Synced", type_ = "boolean", json_path = ".status.agent.dataplane.synced"),
    printcolumn(name = "Up", type_ = "integer", json_path = ".status.bgp.established"),
    printcolumn(name = "Of", type_ = "integer", json_path = ".status.bgp.configured"),
    printcolumn(name = "VIPs", type_ = "integer", json_path = ".status.vips.announced"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Version", type_ = "string", json_path = ".status.agent.version", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct NodeStatusSpec {}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct NodeStatusFields {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<Agent>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpStatus>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vips: Option<Vips>,
    /// Ready, DataplaneSynced, BGPDegraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    pub version: String,
    pub started_at: Time,
    pub dataplane: Dataplane,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Dataplane {
    pub mode: DataplaneMode,
    /// The kernel holds what the last snapshot asks for.
    pub synced: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum DataplaneMode {
    Nftables,
    Ipvs,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct BgpStatus {
    #[serde(default, rename = "localASN", skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::asn")]
    pub local_asn: Option<u32>,
    #[serde(default, rename = "routerID", skip_serializing_if = "Option::is_none")]
    pub router_id: Option<String>,
    /// Sessions that are established.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub established: i64,
    /// Sessions that this node should hold.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub configured: i64,
    #[serde(default)]
    pub sessions: Vec<Session>,
}

#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Name of the BGPPeer.
    pub peer: String,
    pub address: String,
    pub state: SessionState,
    /// When the state was entered.
    pub since: Time,
    /// How often an established session has ended since the agent started.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub flaps: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_error: Option<SessionError>,
    /// Negotiated, in seconds; absent while the session is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub hold_time_secs: Option<i64>,
    /// Negotiated.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub families: Vec<Family>,
    #[serde(default)]
    pub routes: Routes,
}

/// The states of RFC 4271, section 8.2.2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum SessionState {
    Idle,
    Connect,
    Active,
    OpenSent,
    OpenConfirm,
    Established,
}

/// Why the session last went down.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct SessionError {
    /// Codes of the NOTIFICATION sent or received, where there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub code: Option<u8>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::count")]
    pub subcode: Option<u8>,
    pub text: String,
    pub at: Time,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Routes {
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub advertised: i64,
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub received: i64,
}

/// The node's announcements; both lists hold at most 64 entries.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
pub struct Vips {
    /// How many prefixes are announced.
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub announced: i64,
    /// The first of them, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub prefixes: Vec<String>,
    /// Addresses that policy selects but this node does not announce, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub withheld: Vec<Withheld>,
    /// A list was cut.
    #[serde(default, skip_serializing_if = "is_false")]
    pub truncated: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Withheld {
    pub ip: String,
    /// namespace/name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<String>,
    pub reason: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}
