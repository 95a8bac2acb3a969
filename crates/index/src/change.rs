use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use portolan_api::conditions::object::INVALID;
use portolan_model::{
    Advertisement, Allocation, EndpointSlice, Family, Name, Node, ObjectId, Peer, Pool, Problem, Service,
    ServiceCidr, ServiceId,
};

/// What the index folds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
    Pool,
    Advertisement,
    Peer,
    Allocation,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Service,
        Kind::EndpointSlice,
        Kind::Node,
        Kind::ServiceCidr,
        Kind::Pool,
        Kind::Advertisement,
        Kind::Peer,
        Kind::Allocation,
    ];

    /// As Kubernetes calls it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Service => "Service",
            Kind::EndpointSlice => "EndpointSlice",
            Kind::Node => "Node",
            Kind::ServiceCidr => "ServiceCIDR",
            Kind::Pool => "IPAddressPool",
            Kind::Advertisement => "Advertisement",
            Kind::Peer => "BGPPeer",
            Kind::Allocation => "IPAllocation",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which object of a kind.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// None for cluster-scoped objects.
    pub namespace: Option<Name>,
    pub name: Name,
}

impl Key {
    pub fn cluster(name: impl Into<Name>) -> Key {
        Key { namespace: None, name: name.into() }
    }

    pub fn namespaced(namespace: impl Into<Name>, name: impl Into<Name>) -> Key {
        Key { namespace: Some(namespace.into()), name: name.into() }
    }

    pub fn of(metadata: &ObjectMeta) -> Key {
        Key {
            namespace: metadata.namespace.as_deref().map(Name::from),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        }
    }

    pub fn object(&self, kind: Kind) -> ObjectId {
        ObjectId { kind: kind.name().into(), namespace: self.namespace.clone(), name: self.name.clone() }
    }

    pub(crate) fn service(&self) -> ServiceId {
        ServiceId { namespace: self.namespace.clone().unwrap_or_else(|| "".into()), name: self.name.clone() }
    }
}

/// A Kubernetes object as we keep it: parsed into model types, the original dropped. Made `From` the Kubernetes
/// type or our custom resource, or by [`Object::from_manifest`].
#[derive(Clone, Debug)]
pub struct Object {
    pub(crate) kind: Kind,
    pub(crate) key: Key,
    pub(crate) value: Value,
    pub(crate) problems: Vec<Problem>,
    pub(crate) seen: Seen,
}

/// What a writer must know of the original, besides its meaning: which version it saw, and what its status said. The
/// index does not keep it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Seen {
    pub uid: String,
    pub resource_version: String,
    pub generation: Option<i64>,
    /// Of EndpointSlices: when what they tell of happened (S67).
    pub triggered_at: Option<Timestamp>,
    /// Of Services only those of portolan.dev.
    pub conditions: Vec<Condition>,
}

#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Without its slices.
    Service(Box<Service>),
    EndpointSlice(ServiceId, Arc<EndpointSlice>),
    Node(Arc<Node>),
    ServiceCidr(Arc<ServiceCidr>),
    Pool(Arc<Pool>),
    Advertisement(Arc<Advertisement>),
    Peer(Arc<Peer>),
    Allocation(Arc<Allocation>),
    /// It exists, but is not for us (S2, S3, S4, S7).
    Ignored,
    /// One of ours that says what cannot be: what it said before stays in force (vips.md 2.0, 7).
    Invalid,
}

impl Object {
    /// An object that did not even decode: `error` says why.
    pub fn unreadable(kind: Kind, key: Key, error: &str) -> Object {
        let object = key.object(kind);
        let problem = Problem { object, field: "spec".into(), reason: INVALID, message: error.to_owned() };
        Object::new(kind, key, Value::Invalid, vec![problem])
    }

    pub(crate) fn new(kind: Kind, key: Key, value: Value, problems: Vec<Problem>) -> Object {
        Object { kind, key, value, problems, seen: Seen::default() }
    }

    pub(crate) fn seen_as(self, metadata: &ObjectMeta, conditions: Vec<Condition>) -> Object {
        let seen = Seen {
            uid: metadata.uid.clone().unwrap_or_default(),
            resource_version: metadata.resource_version.clone().unwrap_or_default(),
            generation: metadata.generation,
            triggered_at: None,
            conditions,
        };
        Object { seen, ..self }
    }

    pub fn seen(&self) -> &Seen {
        &self.seen
    }

    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Of an EndpointSlice that counts.
    pub fn family(&self) -> Option<Family> {
        match &self.value {
            Value::EndpointSlice(_, slice) => Some(slice.family),
            _ => None,
        }
    }

    pub fn key(&self) -> &Key {
        &self.key
    }
}

/// What a watch says.
#[derive(Clone, Debug)]
pub enum Change {
    /// Added or modified.
    Apply(Object),
    Delete(Kind, Key),
    /// A complete list: objects of this kind that it lacks are gone.
    Replace(Kind, Vec<Object>),
}

/// Whom changes touched since the consumer last looked: what must be planned anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services that appeared, changed (they, their slices or the allocations they own) or went.
    pub services: BTreeSet<ServiceId>,
    pub nodes: BTreeSet<Name>,
    /// Pools, advertisements or peers.
    pub policy: bool,
    /// Allocations that appeared, changed or went; their owners are among `services`.
    pub allocations: BTreeSet<IpAddr>,
    pub service_cidrs: bool,
    /// [`Index::problems`](crate::Index::problems) says something else.
    pub problems: bool,
    /// The last kind was listed: there is a snapshot from now on.
    pub synced: bool,
}

impl Dirty {
    pub fn is_empty(&self) -> bool {
        *self == Dirty::default()
    }

    pub fn merge(&mut self, other: Dirty) {
        let Dirty { services, nodes, policy, allocations, service_cidrs, problems, synced } = other;
        self.services.extend(services);
        self.nodes.extend(nodes);
        self.policy |= policy;
        self.allocations.extend(allocations);
        self.service_cidrs |= service_cidrs;
        self.problems |= problems;
        self.synced |= synced;
    }
}
