//! The packet evaluator against the kernel: random small clusters, written one over the other, and real connections from every
//! side to every address. What the evaluator says of the wanted table, and of the table read back, is what happens.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use futures::StreamExt;
use portolan::dataplane::conntrack::Conntrack;
use portolan_dataplane::{Dataplane, Outcome, Packet, Settings, evaluate, table_id};
use portolan_lab::netns::Namespace;
use portolan_lab::{Answer, probe};
use portolan_model::{
    Action, Address, Balance, Detector, Family, Forwarding, Frontend, Masquerade, Protocol, ServiceId,
    ServicePlan,
};

use super::site::{CLIENT, CLIENT6, NODE, PODS, PODS6, Site, at, balance, on_site, plan, settings};

const BUDGET_MS: u64 = 12_000;
/// Long enough for an answer between namespaces of one machine.
const SILENCE: Duration = Duration::from_millis(400);
/// Requests under way: all of a cluster's at once would wait for each other, not for the kernel.
const AT_ONCE: usize = 64;
const SERVICES: [&str; 3] = ["a", "b", "c"];
const PROTOCOLS: [Protocol; 2] = [Protocol::Tcp, Protocol::Udp];
/// Datagrams until one is answered: TCP repeats its own, for the kernel does not send every ICMP error.
const DATAGRAMS: usize = 3;

/// What a client sees, of the many things that may be: pods by name, and the address that they see.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Seen {
    Answer(String, IpAddr),
    Refused,
    Silence,
    /// Nobody of ours answers; who else does is not ours to say.
    Nothing,
}

fn pods(family: Family) -> [&'static str; 3] {
    if family == Family::Ipv4 { PODS } else { PODS6 }
}

/// The node's address on the link to a pod, which is what masquerading gives.
fn gateway(family: Family, pod: usize) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::from([10, 244, 1, 4 * pod as u8 + 1]),
        Family::Ipv6 => format!("fd00:10:244:1::{:x}1", pod + 1).parse().unwrap(),
    }
}

fn vip(family: Family, number: u8) -> IpAddr {
    match family {
        Family::Ipv4 => IpAddr::from([10, 96, 0, number]),
        Family::Ipv6 => format!("fd00:10:96::{number}").parse().unwrap(),
    }
}

fn action(u: &mut Unstructured, family: Family) -> Result<Action> {
    let masquerade = *u.choose(&[Masquerade::Never, Masquerade::NonPods, Masquerade::Always])?;
    let bits = u.int_in_range(1..=7)?;
    let some: Vec<&str> = pods(family)
        .into_iter()
        .enumerate()
        .filter(|(i, _)| bits >> i & 1 == 1)
        .map(|(_, pod)| pod)
        .collect();
    Ok(match u.int_in_range(0..=7)? {
        0 => Action::Reject,
        1 => Action::Drop,
        2 | 3 => affine(balance(masquerade, &some)),
        _ => balance(masquerade, &some),
    })
}

fn affine(action: Action) -> Action {
    let Action::Balance(balance) = action else { return action };
    Action::Balance(Balance { affinity: Some(Duration::from_secs(10_800)), ..balance })
}

fn forwarding(u: &mut Unstructured, family: Family) -> Result<Forwarding> {
    let from_outside = action(u, family)?;
    let from_cluster = if u.ratio(1, 3)? { action(u, family)? } else { from_outside.clone() };
    let only = |ip: &str| ipnet::IpNet::from(ip.parse::<IpAddr>().unwrap());
    let client = if family == Family::Ipv4 { CLIENT } else { CLIENT6 };
    let allowed_sources = match u.int_in_range(0..=7)? {
        0 => Some(vec![]),
        1 => Some(vec![only(client)]),
        2 => Some(vec![only(pods(family)[0]), only(client)]),
        _ => None,
    };
    Ok(Forwarding { from_cluster, from_outside, allowed_sources: allowed_sources.map(Into::into) })
}

fn service(u: &mut Unstructured) -> Result<ServicePlan> {
    let mut frontends = Vec::new();
    for _ in 0..u.int_in_range(4..=10)? {
        let family = *u.choose(&Family::ALL)?;
        let (address, ports) = match u.int_in_range(0..=3)? {
            0 => (Address::NodePort(Family::Ipv4), [30080, 30081]),
            1 => (Address::Vip(vip(family, 1)), [80, 81]),
            2 => (Address::Vip(vip(family, 2)), [80, 81]),
            _ => (Address::Vip(vip(family, 3)), [80, 81]),
        };
        let frontend = Frontend { address, protocol: *u.choose(&PROTOCOLS)?, port: *u.choose(&ports)? };
        frontends.push((frontend, forwarding(u, frontend.family())?));
    }
    Ok(plan(frontends))
}

/// Every side to every address. The node's own address in IPv6 is the kernel's choice, so it does not ask there.
fn packets(site: &Site) -> Vec<(&Namespace, Packet)> {
    let mut packets = Vec::new();
    for family in Family::ALL {
        let mut to: Vec<SocketAddr> = (1..=3)
            .flat_map(|number| [80, 81].map(|port| SocketAddr::new(vip(family, number), port)))
            .collect();
        let client = if family == Family::Ipv4 { CLIENT } else { CLIENT6 };
        let mut from =
            vec![(&site.client, client), (&site.pods[0], pods(family)[0]), (&site.pods[1], pods(family)[1])];
        if family == Family::Ipv4 {
            to.extend([at(NODE, 30080), at(NODE, 30081)]);
            from.push((&site.node, NODE));
        }
        for (ns, ip) in from {
            let all = to.iter().flat_map(|to| PROTOCOLS.map(|protocol| (ns, packet(ip, *to, protocol))));
            packets.extend(all);
        }
    }
    packets
}

fn packet(from: &str, destination: SocketAddr, protocol: Protocol) -> Packet {
    let pod = PODS.iter().chain(&PODS6).position(|pod| *pod == from).map(|pod| pod % PODS.len());
    let interface = (from != NODE).then(|| format!("to{}", pod.unwrap_or(PODS.len())).into());
    Packet { source: at(from, 40000), destination, protocol, from_node: from == NODE, interface }
}

/// By range, by the link to the first pod, or by the links to all, which the client's is like.
fn detector(u: &mut Unstructured) -> Result<Detector> {
    Ok(match u.int_in_range(0..=4)? {
        0 => Detector::default(),
        1 => Detector::Interface("to0".into()),
        2 => Detector::InterfacePrefix("to".into()),
        _ => settings().pods,
    })
}

/// What the evaluator says.
fn allowed(outcome: &Outcome, packet: &Packet) -> BTreeSet<Seen> {
    match outcome {
        Outcome::Reject | Outcome::Reset => [Seen::Refused].into(),
        // The kernel tells the node's own sockets of a datagram that it did not let out.
        Outcome::Drop if packet.from_node && packet.protocol == Protocol::Udp => {
            [Seen::Silence, Seen::Refused].into()
        }
        Outcome::Drop => [Seen::Silence].into(),
        Outcome::Pass => [Seen::Nothing, Seen::Refused, Seen::Silence].into(),
        Outcome::Dnat(candidates) => {
            let seen = |backend: SocketAddr, masquerade| {
                let family = Family::of(&backend.ip());
                let is = |pod: &&str| pod.parse() == Ok(backend.ip());
                let pod = pods(family).iter().position(is).expect("a pod of the site");
                let client = if masquerade { gateway(family, pod) } else { packet.source.ip() };
                Seen::Answer(format!("pod{pod}"), client)
            };
            candidates.iter().map(|c| seen(c.backend, c.masquerade)).collect()
        }
    }
}

/// What is and what should be differ by nothing but the clients who are remembered: they have one endpoint of those that
/// everybody else may get (S41, S42).
fn is_remembered(is: &Outcome, wanted: &Outcome) -> bool {
    let (Outcome::Dnat(one), Outcome::Dnat(all)) = (is, wanted) else { return false };
    one.len() == 1 && one.iter().all(|candidate| all.contains(candidate))
}

/// What happens.
async fn seen(ns: &Namespace, packet: &Packet, expected: &Outcome) -> Seen {
    let silent = matches!(expected, Outcome::Drop | Outcome::Pass);
    let patience = if silent { SILENCE } else { probe::PATIENCE };
    let answer = match packet.protocol {
        Protocol::Udp => datagrams(ns, packet.destination, patience / DATAGRAMS as u32).await,
        _ => probe::tcp_within(ns, packet.destination, patience).await,
    };
    match answer {
        Ok(answer) => Seen::Answer(answer.pod, answer.client.ip()),
        Err(error) => match format!("{error:#}") {
            error if error.contains("refused") || error.contains("not permitted") => Seen::Refused,
            error if error.contains("no answer") => Seen::Silence,
            _ => Seen::Nothing,
        },
    }
}

async fn datagrams(ns: &Namespace, to: SocketAddr, patience: Duration) -> anyhow::Result<Answer> {
    let mut answer = probe::udp_within(ns, to, patience).await;
    for _ in 1..DATAGRAMS {
        if answer
            .as_ref()
            .map_err(|error| format!("{error:#}"))
            .is_err_and(|error| error.contains("no answer"))
        {
            answer = probe::udp_within(ns, to, patience).await;
        }
    }
    answer
}

/// A datagram from a port that was used before would go where the flow went.
fn forget_flows(site: &Site) {
    let forget = || {
        let mut conntrack = Conntrack::open()?;
        for family in Family::ALL {
            let flows = conntrack.flows(family, Protocol::Udp)?;
            conntrack.delete(&flows)?;
        }
        anyhow::Ok(())
    };
    site.node.run(forget).unwrap().unwrap();
}

/// The clusters come one after the other over the same table, so that what was there before is part of the test.
#[test]
fn the_evaluator_says_what_the_kernel_does() {
    on_site("the_evaluator_says_what_the_kernel_does", async |site| {
        // else one client is told of only one refusal a second
        site.node.sysctl(&[("net/ipv4/icmp_ratelimit", "0"), ("net/ipv6/icmp/ratelimit", "0")])?;
        let (mut kernel, mut dataplane) = (site.kernel(), Dataplane::new(settings()));
        dataplane.observed(&kernel.observe()?);
        let remembered = AtomicUsize::new(0);
        let (mut clusters, mut answered, mut refused, mut silent) = (0, [0; 2], [0; 2], [0; 2]);
        arbtest::arbtest(|u| {
            dataplane.set_settings(Settings { pods: detector(u)?, ..settings() });
            for name in SERVICES {
                let plan = if u.ratio(4, 5)? { Some(Arc::new(service(u)?)) } else { None };
                dataplane.set_service(&ServiceId::new("default", name), 0, plan);
            }
            kernel.write(&mut dataplane).unwrap();
            forget_flows(site);
            let dumped = kernel.observe().unwrap();
            let written =
                [(Family::Ipv4, dumped.ipv4), (Family::Ipv6, dumped.ipv6)].map(|(family, dumped)| {
                    let (table, unread) = dumped.expect("both tables").table(table_id(family));
                    assert!(unread.is_empty(), "{unread:?}");
                    table
                });
            let wanted = Family::ALL.map(|family| dataplane.desired(family));
            let one = async |(ns, packet): (&Namespace, Packet)| {
                let family = Family::of(&packet.destination.ip());
                let [wanted, is] = [&wanted, &written]
                    .map(|tables| evaluate(&tables[(family == Family::Ipv6) as usize], &packet));
                if is_remembered(&is.outcome, &wanted.outcome) {
                    remembered.fetch_add(1, Ordering::Relaxed);
                } else {
                    assert_eq!(is.outcome, wanted.outcome, "{packet:?}: {:#?}", is.reasons);
                }
                let got = seen(ns, &packet, &is.outcome).await;
                let allowed = allowed(&is.outcome, &packet);
                assert!(
                    allowed.contains(&got),
                    "{packet:?}: {got:?}, not one of {allowed:?}: {:#?}",
                    is.reasons
                );
                got
            };
            let packets = packets(site);
            let protocols: Vec<usize> =
                packets.iter().map(|(_, packet)| usize::from(packet.protocol == Protocol::Udp)).collect();
            let all = tokio::task::block_in_place(|| {
                let asked = futures::stream::iter(packets).map(one).buffered(AT_ONCE).collect::<Vec<_>>();
                tokio::runtime::Handle::current().block_on(asked)
            });
            clusters += 1;
            for (seen, protocol) in all.into_iter().zip(protocols) {
                let count = match seen {
                    Seen::Answer(..) => &mut answered,
                    Seen::Refused => &mut refused,
                    Seen::Silence | Seen::Nothing => &mut silent,
                };
                count[protocol] += 1;
            }
            Ok(())
        })
        .size_min(1024)
        .budget_ms(BUDGET_MS);
        let remembered = remembered.into_inner();
        println!(
            "{clusters} clusters, by TCP and UDP: {answered:?} answered, {remembered} of one endpoint only, {refused:?} refused, {silent:?} silent"
        );
        assert!(clusters >= 2 && remembered > 0);
        assert!([answered, refused, silent].iter().flatten().all(|count: &i32| *count > 0));
        Ok(())
    });
}
