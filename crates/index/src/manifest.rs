//! Objects as `kubectl get -o json` and manifests show them, for `portolan plan` and for tests.

use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use portolan_api::{Advertisement, BGPPeer, IPAddressPool, IPAllocation};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{Key, Kind, Object};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    #[error("a manifest without apiVersion and kind")]
    NoKind,
    #[error("{kind} of {api_version} is not a kind that Portolan reads")]
    OtherKind { api_version: String, kind: String },
    #[error("a {0} without metadata.name")]
    NoName(Kind),
}

impl Object {
    /// One object (not a List). What is wrong within it becomes its problem, as with a watch.
    pub fn from_manifest(mut manifest: Value) -> Result<Object, ManifestError> {
        let text = |pointer: &str| manifest.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (api_version, kind) = (text("/apiVersion"), text("/kind"));
        if api_version.is_empty() || kind.is_empty() {
            return Err(ManifestError::NoKind);
        }
        let Some((kind, decode)) = decoder(api_version, kind) else {
            return Err(ManifestError::OtherKind { api_version: api_version.into(), kind: kind.into() });
        };
        let namespace = match (kind, text("/metadata/namespace")) {
            // As for `kubectl apply`.
            (Kind::Service | Kind::EndpointSlice, "") => Some("default".to_owned()),
            (Kind::Service | Kind::EndpointSlice, namespace) => Some(namespace.to_owned()),
            _ => None,
        };
        let key = match text("/metadata/name") {
            "" => return Err(ManifestError::NoName(kind)),
            name => Key { namespace: namespace.as_deref().map(Into::into), name: name.into() },
        };
        manifest["metadata"]["namespace"] = namespace.into();
        Ok(decode(manifest).unwrap_or_else(|error| Object::unreadable(kind, key, &error.to_string())))
    }
}

type Decode = fn(Value) -> Result<Object, serde_json::Error>;

fn decoder(api_version: &str, kind: &str) -> Option<(Kind, Decode)> {
    Some(match (api_version, kind) {
        ("v1", "Service") => (Kind::Service, decode::<Service>),
        ("v1", "Node") => (Kind::Node, decode::<Node>),
        ("discovery.k8s.io/v1", "EndpointSlice") => (Kind::EndpointSlice, decode::<EndpointSlice>),
        ("networking.k8s.io/v1", "ServiceCIDR") => (Kind::ServiceCidr, decode::<ServiceCIDR>),
        ("portolan.dev/v1alpha1", "IPAddressPool") => (Kind::Pool, decode::<IPAddressPool>),
        ("portolan.dev/v1alpha1", "Advertisement") => (Kind::Advertisement, decode::<Advertisement>),
        ("portolan.dev/v1alpha1", "BGPPeer") => (Kind::Peer, decode::<BGPPeer>),
        ("portolan.dev/v1alpha1", "IPAllocation") => (Kind::Allocation, decode::<IPAllocation>),
        _ => return None,
    })
}

fn decode<K: DeserializeOwned + Into<Object>>(manifest: Value) -> Result<Object, serde_json::Error> {
    serde_json::from_value::<K>(manifest).map(Into::into)
}
