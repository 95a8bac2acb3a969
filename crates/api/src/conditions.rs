//! Types and reasons of conditions, and of Events, where more than one writer or reader shares the word (vips.md 2.7).

/// On Services.
pub const IP_ALLOCATED: &str = "portolan.dev/IPAllocated";
pub const ADVERTISED: &str = "portolan.dev/Advertised";

/// On our own kinds.
pub const READY: &str = "Ready";
pub const ACCEPTED: &str = "Accepted";
pub const RESOLVED_REFS: &str = "ResolvedRefs";
pub const CONFLICT: &str = "Conflict";
pub const EXHAUSTED: &str = "Exhausted";
pub const DATAPLANE_SYNCED: &str = "DataplaneSynced";
pub const BGP_DEGRADED: &str = "BGPDegraded";

/// Reasons of [`IP_ALLOCATED`].
pub mod allocation {
    pub const ALLOCATED: &str = "Allocated";
    pub const PENDING: &str = "Pending";
    pub const NO_POOL: &str = "NoPool";
    pub const NO_MATCHING_POOL: &str = "NoMatchingPool";
    pub const POOL_EXHAUSTED: &str = "PoolExhausted";
    pub const REQUESTED_IP_NOT_IN_POOL: &str = "RequestedIPNotInPool";
    pub const REQUESTED_IP_IN_USE: &str = "RequestedIPInUse";
    pub const REQUESTED_IP_INVALID: &str = "RequestedIPInvalid";
    pub const REQUEST_AMBIGUOUS: &str = "RequestAmbiguous";
    pub const SHARING_CONFLICT: &str = "SharingConflict";
    pub const FAMILY_UNAVAILABLE: &str = "FamilyUnavailable";
    /// Status True: the address stays although its pool no longer covers it (A22).
    pub const OUTSIDE_POOL: &str = "OutsidePool";
    pub const STATUS_CONFLICT: &str = "StatusConflict";
}

/// Reasons of [`ADVERTISED`].
pub mod advertised {
    pub const ADVERTISED: &str = "Advertised";
    pub const PARTIALLY_ADVERTISED: &str = "PartiallyAdvertised";
    pub const NO_ADVERTISEMENT: &str = "NoAdvertisement";
    pub const NO_PEER_ESTABLISHED: &str = "NoPeerEstablished";
    pub const NO_ENDPOINTS: &str = "NoEndpoints";
    pub const NO_LOCAL_ENDPOINTS: &str = "NoLocalEndpoints";
    pub const NODES_EXCLUDED: &str = "NodesExcluded";
    pub const DATAPLANE_NOT_READY: &str = "DataplaneNotReady";
    pub const CONFLICTING_ATTRIBUTES: &str = "ConflictingAttributes";
}

/// Reasons of [`READY`], [`ACCEPTED`] and [`RESOLVED_REFS`] on our own kinds, and of problems found in objects.
pub mod object {
    pub const ACCEPTED: &str = "Accepted";
    pub const READY: &str = "Ready";
    /// The object says something that cannot be; what it said before stays in force.
    pub const INVALID: &str = "Invalid";
    /// It names an object that does not exist.
    pub const REFERENCE_NOT_FOUND: &str = "ReferenceNotFound";
    pub const RESOLVED: &str = "Resolved";
    pub const NO_ASN: &str = "NoASN";
}

/// Reasons of Events on Services; MetalLB's words, so that existing alerts work.
pub mod event {
    pub const IP_ALLOCATED: &str = "IPAllocated";
    pub const ALLOCATION_FAILED: &str = "AllocationFailed";
    pub const CLEAR_ASSIGNMENT: &str = "ClearAssignment";
    pub const NODE_ASSIGNED: &str = "nodeAssigned";
}
