//! Other endpoints, other settings, another agent: what is written, and what that costs.

use std::sync::Arc;

use portolan_lab::probe;
use portolan_model::{Action, Address, Family, Forwarding, Frontend, Masquerade, Protocol};

use super::site::{
    NODE, PODS, PODS6, answered_by, at, balance, id, on_site, plan, refused, same, serve, settings, silent,
    vip,
};

/// Every kind of element and chain, so that each is read back as it was written.
#[test]
fn a_restart_writes_nothing_and_cleanup_leaves_nothing() {
    on_site("a_restart_writes_nothing_and_cleanup_leaves_nothing", async |site| {
        let mut local = Forwarding {
            from_outside: balance(Masquerade::Always, &PODS[..1]),
            ..same(balance(Masquerade::NonPods, &PODS))
        };
        local.allowed_sources = Some(["198.51.100.0/24".parse()?, "10.244.1.2/32".parse()?].into());
        let node_port =
            Frontend { address: Address::NodePort(Family::Ipv4), protocol: Protocol::Sctp, port: 30080 };
        let plan = plan([
            (vip("10.96.0.1"), local),
            (vip("10.96.0.2"), same(Action::Reject)),
            (vip("10.96.0.3"), same(Action::Drop)),
            (node_port, same(balance(Masquerade::Never, &PODS))),
            (vip("fd00:10:96::1"), same(balance(Masquerade::NonPods, &PODS6))),
        ]);
        let (mut kernel, _) = serve(site, plan.clone());
        let generation = kernel.generation()?;
        let (mut again, mut dataplane) = serve(site, plan);
        assert_eq!(again.generation()?, generation, "{:#?}", kernel.observe()?);
        assert_eq!(again.write(&mut dataplane)?, 0);
        // a changed rule and a foreign element are put right
        site.node.output(&["nft", "add rule ip portolan services accept"]).await?;
        site.node.output(&["nft", "add element ip portolan vips { 10.96.0.77 }"]).await?;
        dataplane.observed(&again.observe()?);
        assert_eq!(again.write(&mut dataplane)?, 1);
        dataplane.observed(&again.observe()?);
        assert_eq!(again.write(&mut dataplane)?, 0);
        kernel.cleanup()?;
        kernel.cleanup()?;
        assert_eq!(site.node.output(&["nft", "list", "ruleset"]).await?, "");
        Ok(())
    });
}

#[test]
fn s18_s20_s21_addresses_follow_the_settings() {
    on_site("s18_s20_s21_addresses_follow_the_settings", async |site| {
        let node_port =
            Frontend { address: Address::NodePort(Family::Ipv4), protocol: Protocol::Tcp, port: 30080 };
        let balance = balance(Masquerade::Always, &PODS[..1]);
        let (mut kernel, mut dataplane) =
            serve(site, plan([(vip("10.96.0.1"), same(balance.clone())), (node_port, same(balance))]));
        answered_by(&site.client, at(NODE, 30080)).await?;
        refused(probe::tcp(&site.client, at("10.244.1.5", 30080)).await);
        let mut other = settings();
        other.service_cidrs = vec!["10.96.0.0/16".parse()?];
        other.node_port_addresses = ["10.244.1.5".parse()?].into();
        dataplane.set_settings(other);
        kernel.write(&mut dataplane)?;
        answered_by(&site.client, at("10.96.0.1", 80)).await?;
        refused(probe::tcp(&site.client, at("10.96.0.1", 81)).await); // S17
        silent(probe::tcp(&site.client, at("10.96.0.2", 80)).await);
        silent(probe::tcp(&site.node, at("10.96.0.2", 80)).await);
        refused(probe::tcp(&site.client, at(NODE, 30080)).await);
        answered_by(&site.client, at("10.244.1.5", 30080)).await?;
        Ok(())
    });
}

/// nftables.md, bars: connections lost or refused while one service changes its endpoints without pause: 0.
#[test]
fn s50_flapping_endpoints_lose_no_connection() {
    const CONNECTIONS: usize = 2_000;
    on_site("s50_flapping_endpoints_lose_no_connection", async |site| {
        let of =
            |pods: &[&str]| Arc::new(plan([(vip("10.96.0.1"), same(balance(Masquerade::NonPods, pods)))]));
        let sets = [of(&PODS), of(&PODS[1..]), of(&PODS[..1]), of(&PODS[..2])];
        let (mut kernel, mut dataplane) =
            serve(site, plan([(vip("10.96.0.1"), same(balance(Masquerade::NonPods, &PODS)))]));
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let flapping = std::thread::spawn(move || {
            let mut transactions = 0;
            for plan in sets.iter().cycle() {
                dataplane.set_service(&id(), 0, Some(plan.clone()));
                transactions += kernel.write(&mut dataplane).unwrap();
                if stopped.try_recv() != Err(std::sync::mpsc::TryRecvError::Empty) {
                    return transactions;
                }
            }
            unreachable!("the sets never end")
        });
        let repeated = site.client.repeated_syns()?;
        let tally = probe::many(&site.client, at("10.96.0.1", 80), CONNECTIONS).await;
        assert_eq!(site.client.repeated_syns()?, repeated, "no SYN was lost");
        drop(stop);
        let transactions = flapping.join().unwrap();
        println!(
            "{} connections over {transactions} transactions, slowest {:?}",
            tally.asked(),
            tally.slowest
        );
        assert!(transactions > 100, "{transactions}");
        assert_eq!(tally.failures, []);
        assert_eq!(tally.answered, CONNECTIONS);
        Ok(())
    });
}
