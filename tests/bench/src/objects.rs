//! The cluster that is measured: Services of one port with one EndpointSlice each, as Kubernetes' own controllers would have
//! written them, every address a function of numbers.

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};

use serde_json::{Value, json};

/// Goes into the name of the cache: raise it when what is written here changes.
pub const VERSION: u32 = 1;

/// The Kubernetes namespace of everything.
pub const NAMESPACE: &str = "bench";
/// The node that is measured.
pub const NODE: &str = "n1";
/// All pods, the client too: nothing is masqueraded.
pub const PODS: &str = "10.128.0.0/9";
/// Of them the endpoints.
pub const ENDPOINTS: &str = "10.128.0.0/10";
pub const PORT: u16 = 80;
pub const TARGET_PORT: u16 = 8080;
const FIRST_VIP: u32 = u32::from_be_bytes([10, 96, 1, 0]);
const FIRST_ENDPOINT: u32 = u32::from_be_bytes([10, 128, 0, 0]);
/// Addresses kept for the endpoints of one Service, over all generations.
const ROOM: u32 = 64;

/// How many Services, of how many endpoints each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    pub services: u32,
    pub endpoints: u32,
}

impl Size {
    pub const fn new(services: u32, endpoints: u32) -> Size {
        Size { services, endpoints }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.services {
            many if many % 1000 == 0 => write!(f, "{}k × {}", many / 1000, self.endpoints),
            few => write!(f, "{few} × {}", self.endpoints),
        }
    }
}

impl std::str::FromStr for Size {
    type Err = String;

    /// `10000x3`.
    fn from_str(text: &str) -> Result<Size, String> {
        let wrong = || format!("{text:?} is not of the form 10000x3");
        let (services, endpoints) = text.split_once('x').ok_or_else(wrong)?;
        let number = |text: &str| text.parse().map_err(|_| wrong());
        let size = Size::new(number(services)?, number(endpoints)?);
        let fits = (1..=60_000).contains(&size.services) && (1..=ROOM / 2).contains(&size.endpoints);
        if fits { Ok(size) } else { Err(wrong()) }
    }
}

pub fn name(service: u32) -> String {
    format!("s{service:05}")
}

pub fn slice_name(service: u32) -> String {
    format!("{}-7x2kq", name(service))
}

pub fn vip(service: u32) -> Ipv4Addr {
    (FIRST_VIP + service).into()
}

/// What a client of the Service asks.
pub fn frontend(service: u32) -> SocketAddr {
    SocketAddr::new(vip(service).into(), PORT)
}

/// The address that is number `slot` of all that the Service ever has.
pub fn endpoint(service: u32, slot: u32) -> Ipv4Addr {
    (FIRST_ENDPOINT + service * ROOM + slot % ROOM).into()
}

/// The endpoints that the Service begins with.
pub fn first_endpoints(service: u32, size: Size) -> Vec<Ipv4Addr> {
    (0..size.endpoints).map(|slot| endpoint(service, slot)).collect()
}

/// An address that the Service does not begin with.
pub fn spare_endpoint(service: u32, size: Size, number: u32) -> Ipv4Addr {
    endpoint(service, size.endpoints + number % (ROOM - size.endpoints))
}

pub fn service(service: u32) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": name(service), "namespace": NAMESPACE,
            "labels": { "app.kubernetes.io/name": name(service), "app.kubernetes.io/part-of": "bench" },
        },
        "spec": {
            "clusterIP": vip(service), "clusterIPs": [vip(service)], "ipFamilies": ["IPv4"],
            "ipFamilyPolicy": "SingleStack",
            "ports": [{ "name": "http", "port": PORT, "protocol": "TCP", "targetPort": TARGET_PORT }],
        },
    })
}

pub fn slice(service: u32, endpoints: &[Ipv4Addr]) -> Value {
    let uid = |kind: u32, number: u32| format!("5d0c7a10-{kind:04x}-4000-8000-{number:012x}");
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {
            "name": slice_name(service), "namespace": NAMESPACE, "generateName": format!("{}-", name(service)),
            "labels": {
                "app.kubernetes.io/name": name(service),
                "endpointslice.kubernetes.io/managed-by": "endpointslice-controller.k8s.io",
                "kubernetes.io/service-name": name(service),
            },
            "ownerReferences": [{
                "apiVersion": "v1", "kind": "Service", "name": name(service), "uid": uid(1, service),
                "controller": true, "blockOwnerDeletion": true,
            }],
        },
        "ports": [{ "name": "http", "port": TARGET_PORT, "protocol": "TCP" }],
        "endpoints": endpoints.iter().map(|ip| {
            let number = u32::from(*ip) - FIRST_ENDPOINT;
            json!({
                "addresses": [ip],
                "conditions": { "ready": true, "serving": true, "terminating": false },
                "nodeName": format!("worker-{:04}", number % 5000),
                "zone": format!("zone-{}", number % 3),
                "targetRef": {
                    "kind": "Pod", "namespace": NAMESPACE, "uid": uid(2, number),
                    "name": format!("{}-7c9d5bff7c-{number:07x}", name(service)),
                },
            })
        }).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_distinct_and_in_their_ranges() {
        let size = Size::new(60_000, 3);
        assert_eq!(vip(0).to_string(), "10.96.1.0");
        assert!(vip(size.services - 1) < Ipv4Addr::new(10, 97, 0, 0));
        assert!(endpoint(size.services - 1, 63) < Ipv4Addr::new(10, 192, 0, 0));
        assert_eq!(spare_endpoint(7, size, 0), endpoint(7, 3));
        assert!(endpoint(7, 63) < endpoint(8, 0));
    }

    #[test]
    fn sizes_read() {
        assert_eq!("10000x3".parse(), Ok(Size::new(10_000, 3)));
        assert_eq!(Size::new(30_000, 10).to_string(), "30k × 10");
        for wrong in ["", "10000", "x3", "0x3", "10x40", "70000x3"] {
            assert!(wrong.parse::<Size>().is_err(), "{wrong}");
        }
    }
}
