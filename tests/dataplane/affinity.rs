//! Clients go where they went before (S41, S42).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use portolan::dataplane::kernel::Kernel;
use portolan_lab::probe;
use portolan_lab::wait::wait_for;
use portolan_model::{Family, Masquerade};
use portolan_nft::Value;

use super::site::{NODE, PODS, PODS6, Site, affine, answered_by, at, balance, id, on_site, plan, serve, vip};

/// The client's source address from now on.
async fn client_is(site: &Site, i: usize) -> anyhow::Result<()> {
    let ip = format!("198.51.100.{}", 10 + i);
    let ip6 = format!("2001:db8:1::{:x}", 0x10 + i);
    site.client
        .ip(&format!(
            "addr replace {ip}/24 dev eth0\nroute replace default via {NODE} src {ip}\n\
             addr replace {ip6}/128 dev eth0 nodad\nroute replace default via 2001:db8:1::1 src {ip6}\n"
        ))
        .await
}

#[test]
fn s41_s42_session_affinity() {
    on_site("s41_s42_session_affinity", async |site| {
        let of = |pods: &[&str], pods6: &[&str]| {
            let action = affine(balance(Masquerade::NonPods, pods), 10800);
            let action6 = affine(balance(Masquerade::NonPods, pods6), 10800);
            plan([(vip("10.96.0.1"), action), (vip("fd00:10:96::1"), action6)])
        };
        let (mut kernel, _) = serve(site, of(&PODS, &PODS6));
        for to in [at("10.96.0.1", 80), at("fd00:10:96::1", 80)] {
            let mut home = BTreeMap::new();
            let mut chosen = BTreeSet::new();
            while chosen.len() < PODS.len() {
                let client = home.len();
                assert!(client < 100, "{home:?}");
                client_is(site, client).await?;
                let (pods, _) = answered_by(&site.client, to).await?;
                assert_eq!(pods.len(), 1, "24 connections of one client");
                chosen.extend(pods.clone());
                home.insert(client, pods);
            }
            // nothing is written by a restart, and nobody is forgotten
            let generation = kernel.generation()?;
            let mut dataplane;
            (kernel, dataplane) = serve(site, of(&PODS, &PODS6));
            assert_eq!(kernel.generation()?, generation, "{:#?}", kernel.observe()?);
            for (client, pods) in &home {
                client_is(site, *client).await?;
                assert_eq!(&answered_by(&site.client, to).await?.0, pods, "after a restart");
            }
            // pod0 goes: its clients move, once, and the others stay, as they do when it comes back
            for plan in [of(&PODS[1..], &PODS6[1..]), of(&PODS, &PODS6)] {
                dataplane.set_service(&id(), 0, Some(Arc::new(plan)));
                kernel.write(&mut dataplane)?;
                for (client, pods) in &mut home {
                    client_is(site, *client).await?;
                    let (now, _) = answered_by(&site.client, to).await?;
                    assert_ne!(now, ["pod0"]);
                    assert!(now == *pods || *pods == ["pod0"], "{now:?} after {pods:?}");
                    *pods = now;
                }
            }
        }
        Ok(())
    });
}

/// Where clients are remembered for, by the bytes of endpoints.
fn remembered(kernel: &mut Kernel, family: Family) -> Vec<Vec<u8>> {
    let state = kernel.observe().unwrap();
    let table = if family == Family::Ipv4 { state.ipv4 } else { state.ipv6 }.unwrap();
    let maps = table.elements.into_iter().filter(|(map, _)| map.starts_with("affinity"));
    let values = maps.flat_map(|(_, elements)| elements).map(|element| match element.value {
        Value::Bytes(bytes) => bytes.to_vec(),
        other => panic!("{other:?}"),
    });
    values.collect()
}

fn of(family: Family) -> (&'static str, [&'static str; 3]) {
    match family {
        Family::Ipv4 => ("10.96.0.1", PODS),
        Family::Ipv6 => ("fd00:10:96::1", PODS6),
    }
}

#[test]
fn s41_affinity_ends_after_its_time() {
    on_site("s41_affinity_ends_after_its_time", async |site| {
        for family in Family::ALL {
            let (address, pods) = of(family);
            let forwarding = affine(balance(Masquerade::NonPods, &pods), 1);
            let (mut kernel, _) = serve(site, plan([(vip(address), forwarding)]));
            let to = at(address, 80);
            let first = probe::tcp(&site.client, to).await?;
            assert_eq!(remembered(&mut kernel, family).len(), 1);
            // whoever comes again too late chooses again, and some time chooses something else
            let mut tries = 0..40;
            loop {
                assert!(tries.next().is_some(), "the same endpoint forty times");
                let forgotten = async || {
                    let left = remembered(&mut kernel, family);
                    Ok(if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) })
                };
                wait_for("the client is forgotten", Duration::from_secs(10), forgotten).await?;
                if probe::tcp(&site.client, to).await?.pod != first.pod {
                    break;
                }
            }
        }
        Ok(())
    });
}

/// S42 under load: a client's connections go on while endpoints come and go, and none finds one that is gone for good.
#[test]
fn s42_affinity_while_endpoints_flap() {
    on_site("s42_affinity_while_endpoints_flap", async |site| {
        for family in Family::ALL {
            let (address, pods) = of(family);
            let of =
                |pods: &[&str]| plan([(vip(address), affine(balance(Masquerade::NonPods, pods), 10800))]);
            let (mut kernel, mut dataplane) = serve(site, of(&pods));
            let requests = probe::Requests::start(&site.client, at(address, 80), 200);
            for round in 0..150 {
                let gone = pods[round % pods.len()];
                let left: Vec<&str> = pods.iter().copied().filter(|pod| *pod != gone).collect();
                dataplane.set_service(&id(), 0, Some(Arc::new(of(&left))));
                kernel.write(&mut dataplane)?;
                let gone = portolan_nft::Bytes::concat(&[portolan_nft::Atom::Address(gone.parse()?)]);
                let left = remembered(&mut kernel, family);
                assert!(left.iter().all(|backend| !backend.starts_with(&gone)), "round {round}: {left:?}");
            }
            let tally = requests.stop().await?;
            assert_eq!(tally.failures, []);
            assert!(tally.answered > 0);
        }
        Ok(())
    });
}
