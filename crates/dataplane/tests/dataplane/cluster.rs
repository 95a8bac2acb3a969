//! Small clusters: few addresses and ports, so that Services meet each other, and events upon them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Arbitrary, Result, Unstructured};
use portolan_dataplane::{Dataplane, Packet, Settings};
use portolan_model::{
    Action, Address, Balance, Detector, Family, Forwarding, Frontend, Masquerade, Protocol, Scheduler,
    ServiceId, ServicePlan,
};

pub const PORTS: [u16; 2] = [80, 30080];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];

#[derive(Clone, Debug)]
pub enum Event {
    Set(ServiceId, i64, Arc<ServicePlan>),
    Remove(ServiceId),
    Settings(Settings),
    /// Write what is to be written, and check.
    Write,
    /// Write some of the steps, then lose everything in memory.
    Crash(usize),
    /// Forget the kernel's state and look again.
    Fail,
    /// A client's connection to one of the frontends that remember their clients.
    Connect(Family, u8, usize),
}

/// What a cluster asks for, whatever happened before.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub settings: Settings,
    pub services: BTreeMap<ServiceId, (i64, Arc<ServicePlan>)>,
}

impl Wish {
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Set(id, created, plan) => _ = self.services.insert(id.clone(), (*created, plan.clone())),
            Event::Remove(id) => _ = self.services.remove(id),
            Event::Settings(settings) => self.settings = settings.clone(),
            Event::Write | Event::Crash(_) | Event::Fail | Event::Connect(..) => {}
        }
    }

    /// A new agent that is told everything; `order` turns the order of the telling.
    pub fn dataplane(&self, new: impl FnOnce(Settings) -> Dataplane, order: usize) -> Dataplane {
        let mut dataplane = new(self.settings.clone());
        let services: Vec<_> = self.services.iter().collect();
        let (first, second) = services.split_at(order % (services.len() + 1));
        for (id, (created, plan)) in second.iter().chain(first) {
            dataplane.set_service(id, *created, Some(plan.clone()));
        }
        dataplane
    }
}

pub fn ip(family: Family, net: u8, host: u8) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::from([10, net, 0, host]),
        Family::Ipv6 => IpAddr::from([0xfd00, 0, 0, net as u16, 0, 0, 0, host as u16]),
    }
}

pub fn pods(family: Family) -> ipnet::IpNet {
    match family {
        Family::Ipv4 => "10.244.0.0/16".parse().unwrap(),
        Family::Ipv6 => "fd00:0:0:f4::/64".parse().unwrap(),
    }
}

/// The test networks: VIPs, node addresses, pods, clients.
pub const VIP: u8 = 96;
pub const NODE: u8 = 1;
pub const POD: u8 = 244;
pub const CLIENT: u8 = 9;

pub fn settings(u: &mut Unstructured) -> Result<Settings> {
    let (mut settings, mut ranges) = (Settings::default(), Vec::new());
    for family in Family::ALL {
        if u.ratio(3, 4)? {
            ranges.push(pods(family));
        }
        let nodes = u.int_in_range(0..=2)?;
        settings.node_port_addresses.extend((1..=nodes).map(|host| ip(family, NODE, host)));
    }
    settings.pods = match u.int_in_range(0..=7)? {
        0 => Detector::Interface("cbr0".into()),
        1 => Detector::InterfacePrefix("veth".into()),
        _ => Detector::Ranges(ranges),
    };
    if u.arbitrary()? {
        settings.service_cidrs.push(ipnet::IpNet::new(ip(Family::Ipv4, VIP, 0), 30).unwrap());
    }
    if u.ratio(1, 8)? {
        settings.mark = 0x8000;
    }
    Ok(settings)
}

fn action(u: &mut Unstructured, family: Family) -> Result<Action> {
    Ok(match u.int_in_range(0..=7)? {
        0 => Action::Reject,
        1 => Action::Drop,
        _ => {
            let hosts: BTreeSet<u8> =
                (0..u.int_in_range(1..=4)?).map(|_| u.int_in_range(1..=6)).collect::<Result<_>>()?;
            Action::Balance(Balance {
                backends: hosts
                    .into_iter()
                    .map(|host| SocketAddr::new(ip(family, POD, host), 8080))
                    .collect(),
                affinity: u.choose(&[None, None, Some(10), Some(30)])?.map(Duration::from_secs),
                masquerade: *u.choose(&[Masquerade::Never, Masquerade::NonPods, Masquerade::Always])?,
                scheduler: Scheduler::Random,
            })
        }
    })
}

fn forwarding(u: &mut Unstructured, family: Family) -> Result<Forwarding> {
    let from_outside = action(u, family)?;
    let from_cluster = if u.ratio(1, 3)? { action(u, family)? } else { from_outside.clone() };
    let allowed_sources = match u.int_in_range(0..=7)? {
        0 => Some(vec![]),
        1 => Some(vec![ipnet::IpNet::new(ip(family, CLIENT, 0), 31).unwrap(), pods(Family::Ipv4)]),
        2 => Some(vec![ipnet::IpNet::from(ip(family, CLIENT, 1)), ipnet::IpNet::from(ip(family, CLIENT, 0))]),
        _ => None,
    };
    Ok(Forwarding { from_cluster, from_outside, allowed_sources: allowed_sources.map(Into::into) })
}

pub fn plan(u: &mut Unstructured) -> Result<ServicePlan> {
    let (mut vips, mut frontends, mut hairpin) = (BTreeSet::new(), BTreeMap::new(), BTreeSet::new());
    for _ in 0..u.int_in_range(0..=4)? {
        let family = *u.choose(&Family::ALL)?;
        let address = match u.int_in_range(0..=4)? {
            0 => Address::NodePort(family),
            // an external IP may be a node's own address
            1 => Address::Vip(ip(family, NODE, 1)),
            _ => Address::Vip(ip(family, VIP, u.int_in_range(1..=3)?)),
        };
        if let (Address::Vip(vip), true) = (address, u.ratio(2, 3)?) {
            vips.insert(vip);
        }
        let frontend = Frontend { address, protocol: *u.choose(&PROTOCOLS)?, port: *u.choose(&PORTS)? };
        frontends.insert(frontend, forwarding(u, family)?);
        if u.arbitrary()? {
            hairpin.insert(ip(family, POD, u.int_in_range(1..=3)?));
        }
    }
    Ok(ServicePlan { frontends: frontends.into(), vips: vips.into(), hairpin: hairpin.into() })
}

fn service(u: &mut Unstructured) -> Result<ServiceId> {
    Ok(ServiceId::new("default", *u.choose(&["a", "b", "c", "d"])?))
}

impl<'a> Arbitrary<'a> for Event {
    fn arbitrary(u: &mut Unstructured<'a>) -> Result<Event> {
        Ok(match u.int_in_range(0..=17)? {
            0..=6 => Event::Set(service(u)?, u.int_in_range(1..=2)?, Arc::new(plan(u)?)),
            7 | 8 => Event::Remove(service(u)?),
            9 => Event::Settings(settings(u)?),
            10 => Event::Crash(u.int_in_range(0..=6)?),
            11 => Event::Fail,
            12 | 13 => {
                Event::Connect(*u.choose(&Family::ALL)?, u.int_in_range(1..=3)?, u.int_in_range(0..=9)?)
            }
            _ => Event::Write,
        })
    }
}

/// One packet of every kind that the generator's plans may treat differently.
pub fn packets() -> Vec<Packet> {
    let mut packets = Vec::new();
    for family in Family::ALL {
        let addresses =
            [(VIP, 1), (VIP, 2), (VIP, 3), (NODE, 1), (NODE, 2)].map(|(net, host)| ip(family, net, host));
        let sources =
            [(CLIENT, 1, false), (CLIENT, 9, false), (POD, 1, false), (POD, 9, false), (NODE, 1, true)];
        for address in addresses {
            for (net, host, from_node) in sources {
                for (port, protocol) in
                    [(80, PROTOCOLS[0]), (80, PROTOCOLS[1]), (30080, PROTOCOLS[0]), (9, PROTOCOLS[0])]
                {
                    packets.push(Packet {
                        source: SocketAddr::new(ip(family, net, host), 40000),
                        destination: SocketAddr::new(address, port),
                        protocol,
                        from_node,
                        interface: (net == POD).then(|| "cbr0".into()),
                    });
                }
            }
        }
    }
    packets
}
