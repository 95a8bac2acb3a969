//! EndpointSlices (S4, S7–S11).

use std::sync::Arc;

use k8s_openapi::api::discovery::v1::{Endpoint as KubeEndpoint, EndpointPort, EndpointSlice as KubeSlice};
use k8s_openapi::jiff::Timestamp;
use portolan_api::conditions::object::INVALID;
use portolan_api::service::{HEADLESS_LABEL, SERVICE_NAME_LABEL};
use portolan_model::{Endpoint, EndpointSlice, Family, Hints, Name, Protocol, ServiceId};

use crate::change::{Seen, Value};
use crate::problems::Problems;
use crate::service::{number_or_none, protocol};
use crate::{Key, Kind, Object, text};

impl From<KubeSlice> for Object {
    fn from(slice: KubeSlice) -> Object {
        let key = Key::of(&slice.metadata);
        let mut problems = Problems::new(Kind::EndpointSlice, &key);
        let value = parse(&slice, &key, &mut problems).unwrap_or(Value::Ignored);
        let problems = problems.into_vec();
        let triggered_at = triggered_at(&slice);
        let object = Object::new(Kind::EndpointSlice, key, value, problems);
        Object { seen: Seen { triggered_at, ..Seen::default() }, ..object }
    }
}

/// Set by the endpoint slice controller to the time of the first pod or Service change behind this version (S67).
fn triggered_at(slice: &KubeSlice) -> Option<Timestamp> {
    let annotations = slice.metadata.annotations.as_ref()?;
    annotations.get("endpoints.kubernetes.io/last-change-trigger-time")?.parse().ok()
}

fn parse(slice: &KubeSlice, key: &Key, problems: &mut Problems) -> Option<Value> {
    let labels = slice.metadata.labels.as_ref()?;
    if labels.contains_key(HEADLESS_LABEL) {
        return None;
    }
    let service = labels.get(SERVICE_NAME_LABEL).filter(|name| !name.is_empty())?;
    let service = ServiceId { namespace: key.service().namespace, name: service.as_str().into() };
    let family = match slice.address_type.as_str() {
        "IPv4" => Family::Ipv4,
        "IPv6" => Family::Ipv6,
        _ => return None,
    };
    let (ports, endpoints) = (slice.ports.iter().flatten().enumerate(), slice.endpoints.iter().enumerate());
    let slice = EndpointSlice {
        name: key.name.clone(),
        family,
        ports: fitting(
            slice.ports.as_deref().unwrap_or_default().len(),
            ports.filter_map(|(at, each)| port(at, each, problems)),
        ),
        endpoints: fitting(
            slice.endpoints.len(),
            endpoints.filter_map(|(at, each)| endpoint(at, each, family, problems)),
        ),
    };
    Some(Value::EndpointSlice(service, Arc::new(slice)))
}

/// Without room to grow: there are many of these, and none ever does. `most` is nearly always how many there are: room given
/// back afterwards would be holes in the heap.
fn fitting<T>(most: usize, values: impl Iterator<Item = T>) -> Vec<T> {
    let mut fitting = Vec::with_capacity(most);
    fitting.extend(values);
    fitting.shrink_to_fit();
    fitting
}

/// Ports without a name or a number are no ports (S8).
fn port(at: usize, port: &EndpointPort, problems: &mut Problems) -> Option<(Name, Protocol, u16)> {
    let number = number_or_none(port.port, &format!("ports[{at}].port"), problems)?;
    let name = port.name.as_deref()?.into();
    let Some(protocol) = protocol(port.protocol.as_deref()) else {
        let word = port.protocol.as_deref().unwrap_or_default();
        problems.add(format!("ports[{at}].protocol"), INVALID, format!("\"{word}\" is not a protocol"));
        return None;
    };
    Some((name, protocol, number))
}

fn endpoint(at: usize, endpoint: &KubeEndpoint, family: Family, problems: &mut Problems) -> Option<Endpoint> {
    // S7: only the first address counts.
    let text = endpoint.addresses.first()?;
    let of_family = |ip| match Family::of(&ip) == family {
        true => Ok(ip),
        false => Err(format!("\"{text}\" is not an {family} address")),
    };
    let address = match text::reachable(text).and_then(of_family) {
        Ok(address) => address,
        Err(message) => {
            problems.add(format!("endpoints[{at}].addresses[0]"), INVALID, message);
            return None;
        }
    };
    let conditions = endpoint.conditions.as_ref();
    let hints = endpoint.hints.as_ref();
    let zones = hints.and_then(|hints| hints.for_zones.as_ref());
    let nodes = hints.and_then(|hints| hints.for_nodes.as_ref());
    let hints = Hints {
        zones: zones.map(|zones| zones.iter().map(|zone| zone.name.as_str().into()).collect()),
        nodes: nodes.map(|nodes| nodes.iter().map(|node| node.name.as_str().into()).collect()),
    };
    Some(Endpoint {
        address,
        // S9: what is not said of a condition.
        ready: conditions.and_then(|conditions| conditions.ready).unwrap_or(true),
        serving: conditions.and_then(|conditions| conditions.serving).unwrap_or(true),
        terminating: conditions.and_then(|conditions| conditions.terminating).unwrap_or(false),
        node: endpoint.node_name.as_deref().map(Name::from),
        zone: endpoint.zone.as_deref().map(Name::from),
        hints: (hints != Hints::default()).then(|| Box::new(hints)),
    })
}
