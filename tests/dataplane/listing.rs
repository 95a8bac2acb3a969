//! Our tables in the words of nft(8), of each version that is at hand: listed, loaded again, and doing the same (nftables.md,
//! decision 5).

use std::sync::Arc;

use anyhow::Context;
use portolan_lab::probe;
use portolan_model::{Action, Address, Family, Forwarding, Frontend, Masquerade, Protocol, ServicePlan};

use super::site::{
    CLIENT, CLIENT6, NODE, PODS, PODS6, Site, affine, answered_by, at, balance, id, on_site, plan, refused,
    same, serve, silent, vip,
};

/// The VIPs: balanced, refusing, none here, with affinity, local.
fn ips(family: Family) -> [&'static str; 5] {
    match family {
        Family::Ipv4 => ["10.96.0.1", "10.96.0.2", "10.96.0.3", "10.96.0.4", "192.0.2.10"],
        Family::Ipv6 => {
            ["fd00:10:96::1", "fd00:10:96::2", "fd00:10:96::3", "fd00:10:96::4", "2001:db8:2::10"]
        }
    }
}

/// Every feature of Services that the rules know but affinity, of one family.
fn features(family: Family) -> ServicePlan {
    let (pods, client) = if family == Family::Ipv4 { (PODS, CLIENT) } else { (PODS6, CLIENT6) };
    let ips = ips(family);
    let local = Forwarding {
        from_outside: balance(Masquerade::Never, &pods[..1]),
        allowed_sources: Some(
            [ipnet::IpNet::from(at(client, 0).ip()), "10.244.1.0/30".parse().unwrap()].into(),
        ),
        ..same(balance(Masquerade::NonPods, &pods))
    };
    let none_here = Forwarding { from_outside: Action::Drop, ..same(balance(Masquerade::Always, &pods)) };
    let udp = Frontend { protocol: Protocol::Udp, ..vip(ips[0]) };
    let sctp = Frontend { protocol: Protocol::Sctp, ..vip(ips[0]) };
    let node_port = Frontend { address: Address::NodePort(family), protocol: Protocol::Tcp, port: 30080 };
    plan([
        (vip(ips[0]), same(balance(Masquerade::NonPods, &pods))),
        (udp, same(balance(Masquerade::Always, &pods))),
        (sctp, same(balance(Masquerade::Never, &pods[..1]))),
        (vip(ips[1]), same(Action::Reject)),
        (vip(ips[2]), none_here),
        (node_port, same(balance(Masquerade::Always, &pods[..2]))),
        (vip(ips[4]), local),
    ])
}

fn with_affinity(family: Family) -> ServicePlan {
    let pods = if family == Family::Ipv4 { PODS } else { PODS6 };
    let plan = features(family);
    let affine = [(80, 10800), (81, 30)].map(|(port, seconds)| {
        let forwarding = affine(balance(Masquerade::NonPods, &pods), seconds);
        (Frontend { port, ..vip(ips(family)[3]) }, forwarding)
    });
    let frontends = plan.frontends.iter().map(|(frontend, forwarding)| (*frontend, forwarding.clone()));
    ServicePlan { frontends: frontends.chain(affine).collect(), ..plan.clone() }
}

/// The machine's own nft, and that of a newer Debian where it can be fetched.
fn versions() -> Vec<String> {
    let newer = portolan_lab::nft::newer().map(|path| path.display().to_string());
    let newer = newer.inspect_err(|error| eprintln!("no nft but the machine's own: {error:#}")).ok();
    std::iter::once("nft".into()).chain(newer).collect()
}

/// Loads what this nft lists of the table in place of everything.
async fn reload(site: &Site, nft: &str, table: &str) -> anyhow::Result<()> {
    let listed = list(site, nft, table).await?;
    // Longer than an argument may be, were it for the elements.
    let command = format!("{nft} flush ruleset && {nft} -f - <<'END'\n{listed}END");
    site.node.output(&["sh", "-c", &command]).await?;
    assert_eq!(timeless(&list(site, nft, table).await?), timeless(&listed), "{nft}");
    Ok(())
}

/// Without the time that clients are remembered yet.
fn timeless(listed: &str) -> String {
    let left =
        |line: &str| line.split_once(" expires ").map_or(line.to_owned(), |(before, _)| before.to_owned());
    listed.lines().map(left).collect::<Vec<_>>().join("\n")
}

async fn list(site: &Site, nft: &str, table: &str) -> anyhow::Result<String> {
    site.node.output(&[nft, "list", "table", table, "portolan"]).await
}

/// Every version with either family, and a kernel that holds nothing yet.
async fn with_each(
    site: &Site,
    body: impl AsyncFn(&str, Family, &'static str) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    for nft in versions() {
        for (family, table) in [(Family::Ipv4, "ip"), (Family::Ipv6, "ip6")] {
            site.node.output(&["nft", "flush", "ruleset"]).await?;
            body(&nft, family, table).await.with_context(|| format!("{nft}, {family:?}"))?;
        }
    }
    Ok(())
}

async fn does_the_same(site: &Site, family: Family) -> anyhow::Result<()> {
    let (ips, client) = (ips(family), if family == Family::Ipv4 { CLIENT } else { CLIENT6 });
    let [cluster, refusing, none_here, _, local] = ips.map(|ip| at(ip, 80));
    assert_eq!(answered_by(&site.client, cluster).await?.0.len(), 3);
    assert_eq!(answered_by(&site.pods[0], cluster).await?.0.len(), 3, "itself among them");
    probe::udp(&site.client, cluster).await?;
    refused(probe::tcp(&site.client, refusing).await);
    refused(probe::tcp(&site.node, at(ips[0], 8888)).await);
    silent(probe::tcp(&site.client, none_here).await);
    assert_eq!(answered_by(&site.pods[0], none_here).await?.0.len(), 3);
    let (pods, clients) = answered_by(&site.client, local).await?;
    assert_eq!((pods, clients), (vec!["pod0".into()], vec![client.parse()?]));
    silent(probe::tcp(&site.pods[1], local).await);
    if family == Family::Ipv4 {
        assert_eq!(answered_by(&site.client, at(NODE, 30080)).await?.0.len(), 2);
    }
    Ok(())
}

#[test]
fn nft_lists_every_feature_and_its_listing_does_the_same() {
    on_site("nft_lists_every_feature_and_its_listing_does_the_same", async |site| {
        with_each(site, async |nft, family, table| {
            let _served = serve(site, features(family));
            site.node.output(&[nft, "list", "ruleset"]).await?;
            reload(site, nft, table).await?;
            does_the_same(site, family).await
        })
        .await
    });
}

/// What was listed remembers, and it lists who is remembered.
#[test]
fn s41_nft_lists_affinity_and_its_listing_does_the_same() {
    on_site("s41_nft_lists_affinity_and_its_listing_does_the_same", async |site| {
        with_each(site, async |nft, family, table| {
            let (_kernel, _) = serve(site, with_affinity(family));
            reload(site, nft, table).await?;
            let to = at(ips(family)[3], 80);
            let (home, _) = answered_by(&site.client, to).await?;
            assert_eq!(home.len(), 1, "it is remembered");
            reload(site, nft, table).await?;
            assert_eq!(answered_by(&site.client, to).await?.0, home);
            does_the_same(site, family).await
        })
        .await
    });
}

/// Counts that come later, from the cluster's side too.
#[test]
fn nft_lists_many_endpoints_and_its_listing_does_the_same() {
    on_site("nft_lists_many_endpoints_and_its_listing_does_the_same", async |site| {
        with_each(site, async |nft, family, table| {
            let (net, pod, local) = match family {
                Family::Ipv4 => ("10.244.2.0/24", PODS[0], "10.244.2."),
                Family::Ipv6 => ("fd00:10:244:2::/64", PODS6[0], "fd00:10:244:2::"),
            };
            site.pods[0].ip(&format!("route replace local {net} dev lo\n")).await?;
            site.node.ip(&format!("route replace {net} via {pod}\n")).await?;
            let many = |count: u32| {
                let pods: Vec<String> = (1..=count).map(|host| format!("{local}{host}")).collect();
                balance(Masquerade::NonPods, &pods.iter().map(String::as_str).collect::<Vec<_>>())
            };
            let [both, sides, ..] = ips(family);
            let frontends = |count| {
                let two_sided = Forwarding { from_cluster: many(count + 1), ..same(many(count)) };
                plan([(vip(both), same(many(count))), (vip(sides), two_sided)])
            };
            let (mut kernel, mut dataplane) = serve(site, frontends(40));
            for count in [41, 64, 200] {
                dataplane.set_service(&id(), 0, Some(Arc::new(frontends(count))));
                kernel.write(&mut dataplane)?;
            }
            dataplane.observed(&kernel.observe()?);
            assert!(dataplane.steps().is_empty(), "what was written is what is read");
            let listed = list(site, nft, table).await?;
            // The two addresses are of two shards.
            let rules = [
                ("random mod 200 goto dnat-from-", 2),
                ("random mod 201 offset 1048576 goto cluster-dnat-from-", 1),
            ];
            assert!(rules.iter().all(|(rule, count)| listed.matches(rule).count() == *count), "{listed}");
            reload(site, nft, table).await?;
            for from in [&site.client, &site.node, &site.pods[1]] {
                for to in [both, sides] {
                    assert_eq!(answered_by(from, at(to, 80)).await?.0, ["pod0"]);
                }
            }
            Ok(())
        })
        .await
    });
}
