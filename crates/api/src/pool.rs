use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{is_false, schema};

/// Addresses on offer to Services of type LoadBalancer.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "IPAddressPool",
    plural = "ipaddresspools",
    shortname = "ippool",
    shortname = "lbpool",
    category = "portolan",
    status = "IPAddressPoolStatus",
    derive = "PartialEq",
    doc = "Addresses on offer to Services of type LoadBalancer.",
    printcolumn(name = "Addresses", type_ = "string", json_path = ".spec.addresses"),
    printcolumn(name = "Auto", type_ = "boolean", json_path = ".spec.autoAssign"),
    printcolumn(name = "Used4", type_ = "integer", json_path = ".status.ipv4.assigned"),
    printcolumn(name = "Free4", type_ = "integer", json_path = ".status.ipv4.available"),
    printcolumn(name = "Used6", type_ = "integer", json_path = ".status.ipv6.assigned"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.reuseDelay) || duration(self.reuseDelay) <= duration('24h')")
    .message("spec.reuseDelay must be from 0s to 24h"))]
pub struct IPAddressPoolSpec {
    /// CIDRs (192.0.2.0/24) and ranges (192.0.2.10-192.0.2.20, both ends included).
    #[schemars(schema_with = "schema::ranges")]
    pub addresses: Vec<String>,
    /// CIDRs and ranges within `addresses` that are never given out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::optional_ranges")]
    pub exclude: Vec<String>,
    /// Whether Services that ask for no pool and no address may get one from here.
    #[serde(default = "yes")]
    pub auto_assign: bool,
    /// Addresses to leave out: Dot0Dot255 skips those that end in .0 or .255.
    #[serde(default)]
    pub avoid: Avoid,
    /// Which Services the pool is for, and its rank among pools.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_allocation: Option<ServiceAllocation>,
    /// How long an address rests after its Service is gone, for example 60s.
    #[serde(default = "minute")]
    #[schemars(schema_with = "schema::duration")]
    pub reuse_delay: String,
    /// No new allocations; what was given out stays.
    #[serde(default, skip_serializing_if = "is_false")]
    pub disabled: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum Avoid {
    #[default]
    None,
    Dot0Dot255,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAllocation {
    /// Pools with lower numbers are taken first; pools without one come last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::priority")]
    pub priority: Option<u32>,
    /// Only Services in these namespaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::namespaces")]
    pub namespaces: Vec<String>,
    /// Only Services that any of these selectors matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::selectors")]
    pub service_selectors: Vec<LabelSelector>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPAddressPoolStatus {
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<FamilyUse>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<FamilyUse>,
    /// Services whose address the pool no longer covers (A22).
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub services_outside: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

/// Counts of one family; IPv6 counts stop at the largest 64-bit integer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct FamilyUse {
    #[schemars(schema_with = "schema::count")]
    pub total: i64,
    #[schemars(schema_with = "schema::count")]
    pub assigned: i64,
    #[schemars(schema_with = "schema::count")]
    pub available: i64,
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub quarantined: i64,
    #[serde(default)]
    #[schemars(schema_with = "schema::count")]
    pub reserved: i64,
}

fn yes() -> bool {
    true
}

fn minute() -> String {
    "60s".into()
}
