//! What planning one Service costs, by its endpoints.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use divan::Bencher;
use portolan_model::{
    Detector, Endpoint, EndpointSlice, Family, Protocol, Service, ServiceId, ServicePort, ServiceType,
};
use portolan_plan::{NodeView, service};

fn main() {
    divan::main();
}

#[divan::bench(args = [3, 10, 100, 1000])]
fn cluster_ip(bencher: Bencher, endpoints: u16) {
    let (service, node) = (web(ServiceType::ClusterIp, None, endpoints), node());
    bencher.bench(|| service::plan(divan::black_box(&service), &node));
}

#[divan::bench(args = [3, 10, 100, 1000])]
fn node_port(bencher: Bencher, endpoints: u16) {
    let (service, node) = (web(ServiceType::NodePort, Some(30080), endpoints), node());
    bencher.bench(|| service::plan(divan::black_box(&service), &node));
}

fn node() -> NodeView {
    NodeView {
        node: "n1".into(),
        pods: Detector::Ranges(vec!["10.128.0.0/9".parse().expect("a range")]),
        ..NodeView::default()
    }
}

fn web(kind: ServiceType, node_port: Option<u16>, endpoints: u16) -> Service {
    let slice = EndpointSlice {
        name: "web-1".into(),
        family: Family::Ipv4,
        ports: vec![("http".into(), Protocol::Tcp, 8080)],
        endpoints: (0..endpoints).map(endpoint).collect(),
    };
    Service {
        kind,
        cluster_ips: vec![Ipv4Addr::new(10, 96, 0, 10).into()],
        ports: vec![ServicePort { name: "http".into(), protocol: Protocol::Tcp, port: 80, node_port }],
        slices: vec![Arc::new(slice)],
        ..Service::new(ServiceId::new("default", "web"))
    }
}

fn endpoint(number: u16) -> Endpoint {
    let [high, low] = number.to_be_bytes();
    Endpoint {
        address: IpAddr::from([10, 128, high, low]),
        ready: true,
        serving: true,
        terminating: false,
        node: Some("worker-1".into()),
        zone: Some("zone-1".into()),
        hints: None,
    }
}
