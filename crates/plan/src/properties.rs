//! Whatever the cluster looks like: planners never fail (invariant 9), and what they say holds together.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::time::Duration;

use arbitrary::{Result, Unstructured};
use portolan_model::*;

use crate::fixture::{labels, n1, node, peer, pool, selector, web};
use crate::{Classes, NodeView, Supply, advertise, allocate, peers, routes, service};

/// Few values, so that they meet.
fn address(u: &mut Unstructured) -> Result<IpAddr> {
    let n = u.int_in_range(0..=12u8)?;
    Ok(match u.int_in_range(0..=7)? {
        0 => Ipv4Addr::from_bits(u.arbitrary()?).into(),
        1 => Ipv6Addr::from_bits(u.arbitrary()?).into(),
        2 => IpAddr::from([255, 255, 255, 243 + n]),
        3 => Ipv6Addr::from_bits(u128::MAX - u128::from(n)).into(),
        4 => Ipv6Addr::from_bits((0x2001_0db8 << 96) + u128::from(n)).into(),
        _ => IpAddr::from([192, 0, 2, n]),
    })
}

fn net(u: &mut Unstructured) -> Result<ipnet::IpNet> {
    let ip = address(u)?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    Ok(ipnet::IpNet::new(ip, u.int_in_range(0..=longest)?).unwrap())
}

fn several<T>(u: &mut Unstructured, of: impl Fn(&mut Unstructured) -> Result<T>) -> Result<Vec<T>> {
    (0..u.int_in_range(0..=3)?).map(|_| of(u)).collect()
}

fn name(u: &mut Unstructured) -> Result<Name> {
    Ok((*u.choose(&["n1", "n2", "a", "b"])?).into())
}

fn policy(u: &mut Unstructured) -> Result<TrafficPolicy> {
    Ok(*u.choose(&[TrafficPolicy::Cluster, TrafficPolicy::Local])?)
}

fn port(u: &mut Unstructured) -> Result<ServicePort> {
    let protocol = *u.choose(&[Protocol::Tcp, Protocol::Udp])?;
    Ok(ServicePort { name: name(u)?, protocol, port: u.arbitrary()?, node_port: u.arbitrary()? })
}

fn endpoint(u: &mut Unstructured) -> Result<Endpoint> {
    let hints = |u: &mut Unstructured| -> Result<Option<Box<[Name]>>> {
        Ok(if u.ratio(1, 2)? { Some(several(u, name)?.into()) } else { None })
    };
    Ok(Endpoint {
        address: address(u)?,
        ready: u.arbitrary()?,
        serving: u.arbitrary()?,
        terminating: u.arbitrary()?,
        node: if u.arbitrary()? { Some(name(u)?) } else { None },
        zone: None,
        hints: Some(Box::new(Hints { zones: hints(u)?, nodes: hints(u)? })),
    })
}

fn slice(u: &mut Unstructured) -> Result<Arc<EndpointSlice>> {
    let ports = several(u, |u| {
        let port = port(u)?;
        Ok((port.name, port.protocol, port.port))
    })?;
    let family = *u.choose(&Family::ALL)?;
    Ok(Arc::new(EndpointSlice { name: name(u)?, family, ports, endpoints: several(u, endpoint)? }))
}

fn service(u: &mut Unstructured) -> Result<Service> {
    let kind = *u.choose(&[ServiceType::ClusterIp, ServiceType::NodePort, ServiceType::LoadBalancer])?;
    let mode = *u.choose(&[IpMode::Vip, IpMode::Proxy])?;
    let family_policy = *u.choose(&[
        FamilyPolicy::SingleStack,
        FamilyPolicy::PreferDualStack,
        FamilyPolicy::RequireDualStack,
    ])?;
    Ok(Service {
        id: ServiceId::new("default", name(u)?),
        uid: name(u)?,
        kind,
        cluster_ips: several(u, address)?,
        families: several(u, |u| Ok(*u.choose(&Family::ALL)?))?,
        family_policy,
        external_ips: several(u, address)?.into(),
        ingress: several(u, |u| Ok(IngressIp { ip: address(u)?, mode }))?.into(),
        ports: several(u, port)?,
        internal_policy: policy(u)?,
        external_policy: policy(u)?,
        source_ranges: if u.arbitrary()? { Some(several(u, net)?) } else { None },
        requested_ips: several(u, address)?.into(),
        requested_pools: several(u, name)?.into(),
        slices: several(u, slice)?,
        ..web()
    })
}

fn advertisement(u: &mut Unstructured) -> Result<Advertisement> {
    let sources =
        [Source::LoadBalancerIp, Source::ClusterIp, Source::ExternalIp, Source::ServiceCidr, Source::PodCidr];
    let when_no_endpoints = *u.choose(&[WhenNoEndpoints::Withdraw, WhenNoEndpoints::Keep])?;
    let bgp = BgpAdvertisement {
        peers: several(u, name)?,
        // Even what the API refuses must not hurt.
        aggregation_length: u.arbitrary()?,
        aggregation_length_v6: u.arbitrary()?,
        local_pref: u.arbitrary()?,
        med: u.arbitrary()?,
        as_path_prepend: u.arbitrary()?,
        communities: vec![],
        when_no_endpoints,
    };
    Ok(Advertisement {
        name: name(u)?,
        pools: several(u, name)?,
        pool_selectors: vec![],
        service_selectors: if u.ratio(1, 4)? { vec![selector("app=web")] } else { vec![] },
        namespaces: vec![],
        node_selectors: if u.ratio(1, 4)? { vec![selector("kubernetes.io/hostname=n1")] } else { vec![] },
        sources: several(u, |u| Ok(*u.choose(&sources)?))?,
        external_ip_cidrs: several(u, net)?,
        disabled: u.ratio(1, 8)?,
        bgp: Some(bgp),
    })
}

fn allocation(u: &mut Unstructured) -> Result<Allocation> {
    let owner =
        |u: &mut Unstructured| Ok(Owner { service: ServiceId::new("default", name(u)?), uid: name(u)? });
    let phases = [AllocationPhase::Reserved, AllocationPhase::Bound, AllocationPhase::Quarantined];
    let (owners, phase) = (several(u, owner)?, *u.choose(&phases)?);
    Ok(Allocation { address: address(u)?, pool: name(u)?, owners, phase, since: u.arbitrary()? })
}

fn any_pool(u: &mut Unstructured) -> Result<Pool> {
    let range = |u: &mut Unstructured| {
        let (a, b) = (address(u)?, address(u)?);
        let b = if Family::of(&a) == Family::of(&b) { b } else { a };
        Ok(IpRange { first: a.min(b), last: a.max(b) })
    };
    Ok(Pool {
        created: u.int_in_range(0..=2)?,
        addresses: several(u, range)?,
        exclude: several(u, range)?,
        auto_assign: u.arbitrary()?,
        avoid_dot0_dot255: u.arbitrary()?,
        reuse_delay: Duration::from_secs(u.arbitrary()?),
        disabled: u.ratio(1, 8)?,
        ..pool(&name(u)?, "")
    })
}

fn snapshot(u: &mut Unstructured) -> Result<Snapshot> {
    let mut snapshot = Snapshot::default();
    for service in several(u, service)? {
        snapshot.services.insert_mut(service.id.clone(), Arc::new(service));
    }
    for number in 0..u.int_in_range(0..=2u8)? {
        let mut node = node(&name(u)?, number);
        node.internal_ips = several(u, address)?;
        node.pod_cidrs = several(u, net)?;
        node.network_unavailable = u.ratio(1, 8)?;
        if u.ratio(1, 4)? {
            node.labels = labels("node.kubernetes.io/exclude-from-external-load-balancers=");
        }
        snapshot.nodes.insert_mut(node.name.clone(), Arc::new(node));
    }
    for each in several(u, any_pool)? {
        snapshot.pools.insert_mut(each.name.clone(), Arc::new(each));
    }
    for each in several(u, advertisement)? {
        snapshot.advertisements.insert_mut(each.name.clone(), Arc::new(each));
    }
    for each in several(u, name)? {
        let each = Peer { address: address(u)?, my_asn: u.arbitrary()?, ..peer(&each) };
        snapshot.peers.insert_mut(each.name.clone(), Arc::new(each));
    }
    for each in several(u, allocation)? {
        snapshot.allocations.insert_mut(Arc::new(each));
    }
    let cidrs = several(u, net)?;
    snapshot
        .service_cidrs
        .insert_mut("kubernetes".into(), Arc::new(ServiceCidr { name: "kubernetes".into(), cidrs }));
    Ok(snapshot)
}

fn check_plan(plan: &ServicePlan, node: &NodeView) {
    for (frontend, forwarding) in &plan.frontends {
        for action in [&forwarding.from_cluster, &forwarding.from_outside] {
            let Action::Balance(balance) = action else { continue };
            assert!(!balance.backends.is_empty(), "{frontend} balances over nothing");
            assert!(balance.backends.is_sorted_by(|a, b| a < b), "{frontend}: not a sorted set");
            assert!(balance.backends.iter().all(|b| Family::of(&b.ip()) == frontend.family()), "{frontend}");
        }
    }
    assert!(!plan.vips.iter().any(|vip| node.addresses.contains(vip)));
}

#[test]
fn invariant_9_services_of_any_kind_have_a_sound_plan() {
    arbtest::arbtest(|u| {
        let pods = if u.arbitrary()? { n1().pods } else { Detector::default() };
        let addresses: BTreeSet<IpAddr> = several(u, address)?.into_iter().collect();
        let node = NodeView { addresses, pods, external_ips: u.arbitrary()?, ..n1() };
        check_plan(&service::plan(&service(u)?, &node), &node);
        Ok(())
    });
}

#[test]
fn invariant_7_only_what_the_kernel_balances_is_announced() {
    arbtest::arbtest(|u| {
        let snapshot = snapshot(u)?;
        let me: Name = "n1".into();
        let (sessions, _) = peers::selected(&snapshot, &me, Some(64512));
        let context = advertise::Context::new(&snapshot, &me, &Classes::default(), &sessions);
        let keeps = snapshot.advertisements.values().filter_map(|a| a.bgp.as_ref());
        let keeps = keeps.into_iter().any(|bgp| bgp.when_no_endpoints == WhenNoEndpoints::Keep);
        for each in snapshot.services.values() {
            let view = NodeView { node: me.clone(), external_ips: true, ..NodeView::default() };
            // The kernel may run the plan of another time.
            let programmed =
                if u.ratio(1, 2)? { service::plan(each, &view) } else { service::plan(&service(u)?, &view) };
            let said = advertise::service(&context, &snapshot, each, Some(&programmed));
            let balanced = |prefix: &ipnet::IpNet| {
                programmed.frontends.iter().any(|(frontend, forwarding)| match frontend.address {
                    Address::Vip(ip) => {
                        prefix.contains(&ip) && matches!(forwarding.from_outside, Action::Balance(_))
                    }
                    Address::NodePort(_) => false,
                })
            };
            for announcement in &said.routes {
                assert!(balanced(&announcement.prefix) || keeps, "{}", announcement.prefix);
            }
            assert!(advertise::service(&context, &snapshot, each, None).routes.is_empty());
        }
        advertise::merge(&advertise::node(&context, &snapshot));
        advertise::counts(&snapshot, &Classes::default());
        advertise::problems(&snapshot);
        routes::to_nodes(&snapshot, &me);
        Ok(())
    });
}

/// The agent looks at no Service when facts besides Services change and the context comes out equal.
#[test]
fn invariant_2_an_equal_context_announces_every_service_as_before() {
    arbtest::arbtest(|u| {
        let (before, other) = (snapshot(u)?, snapshot(u)?);
        let mut after = before.clone();
        match u.int_in_range(0..=4)? {
            0 => after.nodes = other.nodes,
            1 => after.pools = other.pools,
            2 => after.peers = other.peers,
            3 => after.advertisements = other.advertisements,
            _ => after.service_cidrs = other.service_cidrs,
        }
        let me: Name = "n1".into();
        let context = |snapshot: &Snapshot| {
            let (sessions, _) = peers::selected(snapshot, &me, Some(64512));
            advertise::Context::new(snapshot, &me, &Classes::default(), &sessions)
        };
        let (old, new) = (context(&before), context(&after));
        if old == new {
            let view = NodeView { node: me.clone(), external_ips: true, ..NodeView::default() };
            for each in before.services.values() {
                let programmed = service::plan(each, &view);
                let said = |context, snapshot| advertise::service(context, snapshot, each, Some(&programmed));
                assert_eq!(said(&old, &before), said(&new, &after));
            }
        }
        Ok(())
    });
}

#[test]
fn invariant_9_any_pools_and_allocations_can_be_decided_on() {
    arbtest::arbtest(|u| {
        let snapshot = snapshot(u)?;
        let supply = Supply::new(&snapshot);
        supply.usage(&snapshot.allocations);
        let (everyone, now) = (allocate::everyone(&snapshot), u.arbitrary()?);
        let decisions = allocate::services(&snapshot, &supply, &Classes::default(), &everyone, now);
        allocate::expired(&snapshot, &supply, now);
        let mut given = BTreeSet::new();
        for step in decisions.iter().flat_map(|decision| &decision.steps) {
            if let allocate::Step::Create(allocation) = step {
                assert!(given.insert(allocation.address), "{} is given twice", allocation.address);
                assert!(snapshot.allocations.get(&allocation.address).is_none());
            }
        }
        Ok(())
    });
}
