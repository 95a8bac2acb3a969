use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema;

/// One address given to one Service: the only truth of allocation.
///
/// Named after its address ([`allocation_name`]), so that creating one is a compare-and-swap: two controllers can
/// never give an address out twice. It has no status subresource: `status` is written together with `spec`.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Deserialize, Serialize)]
#[kube(
    group = "portolan.dev",
    version = "v1alpha1",
    kind = "IPAllocation",
    plural = "ipallocations",
    shortname = "ipalloc",
    category = "portolan",
    status = "IPAllocationStatus",
    derive = "PartialEq",
    doc = "One address given to one Service: the only truth of allocation.",
    printcolumn(name = "Address", type_ = "string", json_path = ".spec.address"),
    printcolumn(name = "Pool", type_ = "string", json_path = ".spec.pool"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.owners[0].namespace"),
    printcolumn(name = "Service", type_ = "string", json_path = ".spec.owners[0].name"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.address == oldSelf.address")
    .message("spec.address cannot change: the object's name says it too"))]
pub struct IPAllocationSpec {
    #[schemars(schema_with = "schema::ip")]
    pub address: String,
    /// The IPAddressPool that the address came from.
    #[schemars(length(max = 253))]
    pub pool: String,
    /// The Services that hold it; none while it is only reserved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub owners: Vec<Owner>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub struct Owner {
    #[schemars(length(max = 63))]
    pub namespace: String,
    #[schemars(length(max = 253))]
    pub name: String,
    #[schemars(length(max = 64))]
    pub uid: String,
}

/// Where absent, an allocation with owners counts as Bound and one without as Reserved, since its creation.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IPAllocationStatus {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<AllocationPhase>,
    /// When the phase was entered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<Time>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
pub enum AllocationPhase {
    /// Held for nobody in particular yet.
    Reserved,
    /// Its owners use it.
    Bound,
    /// Its owners are gone; it rests for the pool's reuseDelay.
    Quarantined,
}

/// The only name an address's IPAllocation may have: `192-0-2-10`, and IPv6 in full, `2001-0db8-0000-…-0001`.
pub fn allocation_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.octets().map(|octet| octet.to_string()).join("-"),
        IpAddr::V6(v6) => v6.segments().map(|segment| format!("{segment:04x}")).join("-"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_dns_safe_and_unique_per_address() {
        let name = |text: &str| allocation_name(text.parse().expect("an address"));
        assert_eq!(name("192.0.2.10"), "192-0-2-10");
        assert_eq!(name("2001:db8::1"), "2001-0db8-0000-0000-0000-0000-0000-0001");
    }
}
