//! Names that Services carry: our annotations and the ones of others that we honour (vips.md 2.7), and Kubernetes'
//! labels that decide which objects the proxy sees.

/// Requested addresses, comma-separated, at most one per family. Ours first: the first one present counts.
pub const IPS: [&str; 3] =
    ["portolan.dev/ips", "metallb.io/loadBalancerIPs", "metallb.universe.tf/loadBalancerIPs"];

/// Requested pools, comma-separated in order of preference.
pub const POOL: [&str; 3] =
    ["portolan.dev/pool", "metallb.io/address-pool", "metallb.universe.tf/address-pool"];

/// A Service or slice that belongs to another proxy, whatever the value (S3).
pub const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// A slice that no proxy serves (S4).
pub const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// The Service that a slice belongs to (S7).
pub const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// On what the controller creates from the chart's values: only these does it prune.
pub const MANAGED_BY_LABEL: &str = "app.kubernetes.io/managed-by";
