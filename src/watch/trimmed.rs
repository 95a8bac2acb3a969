//! Objects without the parts that nobody here reads and that would cost more to decode than all others together.

use std::borrow::Cow;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use portolan_index::Object;
use serde::de::value::CowStrDeserializer;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

/// An object of any kind; `metadata.managedFields`, a Node's `status.images` and the `targetRef` of endpoints are skipped unread.
#[derive(Clone, Debug)]
pub struct Trimmed<K>(pub K);

/// Fields of fields, or of each of a list of them, that are left out.
const LEFT_OUT: [(&str, &str); 3] =
    [("metadata", "managedFields"), ("status", "images"), ("endpoints", "targetRef")];

impl<'de, K: Deserialize<'de>> Deserialize<'de> for Trimmed<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        K::deserialize(Trim { inner: deserializer, place: Place::Object }).map(Trimmed)
    }
}

impl<K: Into<Object>> From<Trimmed<K>> for Object {
    fn from(trimmed: Trimmed<K>) -> Object {
        trimmed.0.into()
    }
}

impl<K: Resource> Resource for Trimmed<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[derive(Clone, Copy)]
enum Place {
    Object,
    /// The value of this field of the object.
    In(&'static str),
}

impl Place {
    fn leaves_out(self, key: &str) -> bool {
        matches!(self, Place::In(field) if LEFT_OUT.contains(&(field, key)))
    }

    /// Where the value of `key` is, if something in it is left out.
    fn enter(self, key: &str) -> Option<Place> {
        let known = LEFT_OUT.iter().find(|(field, _)| matches!(self, Place::Object) && *field == key);
        known.map(|(field, _)| Place::In(field))
    }
}

/// Stands between a type and the text that it is decoded from: as a deserializer, visitor, list and seed.
struct Trim<T> {
    inner: T,
    place: Place,
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Trim<D> {
    type Error = D::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_any(Trim { inner: visitor, place: self.place })
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, D::Error> {
        self.inner.deserialize_option(Trim { inner: visitor, place: self.place })
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct newtype_struct
        seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

/// Of what a field's value can be: null, objects and lists of them; anything else is wrong.
impl<'de, V: Visitor<'de>> Visitor<'de> for Trim<V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        self.inner.expecting(f)
    }

    fn visit_none<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_none()
    }

    fn visit_unit<E: Error>(self) -> Result<V::Value, E> {
        self.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> Result<V::Value, D::Error> {
        self.inner.visit_some(Trim { inner, place: self.place })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_seq(Trim { inner, place: self.place })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> Result<V::Value, A::Error> {
        self.inner.visit_map(Fields { inner, place: self.place, next: None })
    }
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for Trim<A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        self.inner.next_element_seed(Trim { inner: seed, place: self.place })
    }

    fn size_hint(&self) -> Option<usize> {
        self.inner.size_hint()
    }
}

struct Fields<A> {
    inner: A,
    place: Place,
    /// Where the value is that comes next, if something in it is left out.
    next: Option<Place>,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for Fields<A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>, A::Error> {
        while let Some(Key(key)) = self.inner.next_key()? {
            if self.place.leaves_out(&key) {
                self.inner.next_value::<IgnoredAny>()?;
                continue;
            }
            self.next = self.place.enter(&key);
            return seed.deserialize(CowStrDeserializer::new(key)).map(Some);
        }
        Ok(None)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, A::Error> {
        match self.next.take() {
            Some(place) => self.inner.next_value_seed(Trim { inner: seed, place }),
            None => self.inner.next_value_seed(seed),
        }
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Trim<S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> Result<S::Value, D::Error> {
        self.inner.deserialize(Trim { inner, place: self.place })
    }
}

/// Borrowed where the text allows it.
#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::Node;
    use k8s_openapi::api::discovery::v1::EndpointSlice;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_nobody_reads_is_skipped_and_nothing_else_is_lost() {
        let full = json!({
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {
                "name": "n1",
                "labels": { "managedFields": "a label", "im\"ages": "another" },
                "managedFields": [{ "manager": "kubelet", "fieldsV1": { "f:status": {} } }],
            },
            "spec": { "podCIDR": "10.244.1.0/24" },
            "status": {
                "images": [{ "names": ["a", "b"], "sizeBytes": 1 }],
                "addresses": [{ "type": "InternalIP", "address": "172.30.0.11" }],
            },
        });
        let mut expected: Node = serde_json::from_value(full.clone()).unwrap();
        expected.metadata.managed_fields = None;
        expected.status.as_mut().unwrap().images = None;
        let text = full.to_string();
        assert_eq!(serde_json::from_str::<Trimmed<Node>>(&text).unwrap().0, expected);
        assert_eq!(serde_json::from_value::<Trimmed<Node>>(full).unwrap().0, expected);
        assert_eq!(serde_json::from_reader::<_, Trimmed<Node>>(text.as_bytes()).unwrap().0, expected);
    }

    #[test]
    fn the_pods_of_endpoints_are_skipped() {
        let full = json!({
            "metadata": { "name": "web-1" },
            "addressType": "IPv4",
            "endpoints": [
                { "addresses": ["10.244.1.5"], "targetRef": { "kind": "Pod", "name": "web-a" }, "nodeName": "n1" },
                { "addresses": ["10.244.2.5"], "conditions": { "ready": false } },
            ],
            "ports": [{ "name": "http", "port": 8080 }],
        });
        let mut expected: EndpointSlice = serde_json::from_value(full.clone()).unwrap();
        expected.endpoints[0].target_ref = None;
        assert_eq!(serde_json::from_value::<Trimmed<EndpointSlice>>(full).unwrap().0, expected);
    }

    #[test]
    fn null_is_null_and_nonsense_is_an_error() {
        let node = |status: &str| {
            let text = format!(r#"{{"metadata":{{"name":"n1"}},"status":{status}}}"#);
            serde_json::from_str::<Trimmed<Node>>(&text)
        };
        assert_eq!(node("null").unwrap().0.status, None);
        assert!(node("7").is_err());
        assert!(node("{").is_err());
    }
}
