//! Identities: cheap to clone, ordered, printable the way `kubectl` prints them.

use std::cmp::Ordering;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

/// A Kubernetes name (of a node, a zone, a namespace, a port ...).
pub type Name = Arc<str>;

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ServiceId {
    pub namespace: Name,
    pub name: Name,
}

/// By namespace, then name, as if derived; but namespaces are few and nearly always one string in memory.
impl Ord for ServiceId {
    fn cmp(&self, other: &Self) -> Ordering {
        let namespaces = match Arc::ptr_eq(&self.namespace, &other.namespace) {
            true => Ordering::Equal,
            false => self.namespace.cmp(&other.namespace),
        };
        namespaces.then_with(|| self.name.cmp(&other.name))
    }
}

impl PartialOrd for ServiceId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl ServiceId {
    pub fn new(namespace: impl Into<Name>, name: impl Into<Name>) -> Self {
        ServiceId { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Any Kubernetes object, as `Kind namespace/name` (`Kind name` when cluster-scoped).
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectId {
    /// The Kubernetes kind, for example `Service` or `IPAddressPool`.
    pub kind: Name,
    /// None for cluster-scoped objects.
    pub namespace: Option<Name>,
    pub name: Name,
}

impl ObjectId {
    pub fn cluster(kind: &str, name: impl Into<Name>) -> Self {
        ObjectId { kind: kind.into(), namespace: None, name: name.into() }
    }

    pub fn service(id: &ServiceId) -> Self {
        ObjectId { kind: "Service".into(), namespace: Some(id.namespace.clone()), name: id.name.clone() }
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// IPv4 and IPv6 are two independent proxies that share one input (S6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const ALL: [Family; 2] = [Family::Ipv4, Family::Ipv6];

    pub fn of(address: &IpAddr) -> Family {
        match address {
            IpAddr::V4(_) => Family::Ipv4,
            IpAddr::V6(_) => Family::Ipv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Family::Ipv4 => "IPv4",
            Family::Ipv6 => "IPv6",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn services_are_ordered_by_namespace_then_name() {
        let namespace: Name = "b".into();
        let shared = ServiceId::new(namespace.clone(), "y");
        let ids = ["a/z", "b/x", "b/y", "b/z", "c/a"].map(|id| id.split_once('/').expect("two parts"));
        for (index, (of, name)) in ids.into_iter().enumerate() {
            let own = ServiceId::new(of, name);
            assert_eq!(own.cmp(&shared), index.cmp(&2), "{own}");
            let as_shared = ServiceId::new(if of == "b" { namespace.clone() } else { of.into() }, name);
            assert_eq!(as_shared.cmp(&shared), index.cmp(&2), "{own}, one string");
        }
    }
}
