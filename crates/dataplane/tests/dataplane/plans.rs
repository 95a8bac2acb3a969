//! Plans in few words, and packets to them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use portolan_dataplane::Packet;
use portolan_model::{
    Action, Address, Backend, Balance, Family, Forwarding, Frontend, Masquerade, Protocol, Scheduler,
    ServicePlan,
};

pub const NODE: &str = "172.30.0.11";
pub const POD: &str = "10.244.1.9";
pub const CLIENT: &str = "198.51.100.7";

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn balance(masquerade: Masquerade, backends: &[&str]) -> Action {
    balance_to(masquerade, parse(backends))
}

pub fn balance_to(masquerade: Masquerade, backends: Vec<Backend>) -> Action {
    Action::Balance(among(masquerade, backends))
}

/// With session affinity, unless for no time.
pub fn affine(seconds: u64, backends: &[&str]) -> Action {
    let affinity = (seconds > 0).then(|| Duration::from_secs(seconds));
    Action::Balance(Balance { affinity, ..among(Masquerade::NonPods, parse(backends)) })
}

fn among(masquerade: Masquerade, mut backends: Vec<Backend>) -> Balance {
    backends.sort();
    Balance { backends: backends.into(), affinity: None, masquerade, scheduler: Scheduler::Random }
}

fn parse(backends: &[&str]) -> Vec<Backend> {
    backends.iter().map(|backend| backend.parse().unwrap()).collect()
}

pub fn same(action: Action) -> Forwarding {
    Forwarding { from_cluster: action.clone(), from_outside: action, allowed_sources: None }
}

pub fn vip(address: &str, port: u16) -> Frontend {
    Frontend { address: Address::Vip(ip(address)), protocol: Protocol::Tcp, port }
}

pub fn node_port(port: u16) -> Frontend {
    Frontend { address: Address::NodePort(Family::Ipv4), protocol: Protocol::Tcp, port }
}

pub fn plan(frontend: Frontend, forwarding: Forwarding) -> ServicePlan {
    let vips = match frontend.address {
        Address::Vip(ip) => [ip].into(),
        Address::NodePort(_) => Default::default(),
    };
    ServicePlan { frontends: [(frontend, forwarding)].into(), vips, hairpin: Default::default() }
}

/// The first of a TCP connection.
pub fn packet(from: &str, to: &str) -> Packet {
    Packet {
        source: SocketAddr::new(ip(from), 40000),
        destination: to.parse().unwrap(),
        protocol: Protocol::Tcp,
        from_node: from == NODE,
        interface: None,
    }
}
