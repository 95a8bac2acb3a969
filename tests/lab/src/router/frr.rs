//! FRR: zebra and bgpd, every node welcome by a listen range, both families on each session.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use nix::unistd::{Group, User, chown};
use serde::Deserialize;
use tokio::net::UnixStream;

use crate::netns::Namespace;
use crate::process::Daemon;
use crate::topology::{NODE_ASN, ROUTER, ROUTER_ASN};
use crate::wait::wait_for;

const ZEBRA_SOCKET: &str = "zserv.api";
const START_TIME: Duration = Duration::from_secs(30);

/// Starts zebra, then bgpd: one that finds no zebra tries again only after 10 s, and loses routes until then.
pub async fn start(ns: &Namespace, dir: &Path, logs: &Path) -> anyhow::Result<Vec<Daemon>> {
    let user = User::from_name("frr")?.context("there is no user frr: is the package frr installed?")?;
    let group = Group::from_name("frrvty")?.context("there is no group frrvty")?;
    // The daemons give up root for the user frr before they make their sockets here.
    chown(dir, Some(user.uid), Some(group.gid))?;
    std::fs::write(dir.join("zebra.conf"), "hostname router\n")?;
    std::fs::write(dir.join("bgpd.conf"), configuration())?;
    let socket = dir.join(ZEBRA_SOCKET);
    let _ = std::fs::remove_file(&socket);
    let mut zebra = start_daemon(ns, dir, logs, "zebra")?;
    wait_for("zebra listens", START_TIME, async || {
        zebra.check()?;
        Ok(UnixStream::connect(&socket).await.map_err(|error| error.to_string()))
    })
    .await?;
    let mut bgpd = start_daemon(ns, dir, logs, "bgpd")?;
    wait_for("bgpd is connected to zebra", START_TIME, async || {
        bgpd.check()?;
        let clients = ask(ns, dir, "show zebra client summary").await;
        Ok(clients.map_err(|error| format!("{error:#}")).and_then(|clients| {
            let connected = clients.lines().any(|line| line.starts_with("bgp"));
            if connected { Ok(()) } else { Err(clients) }
        }))
    })
    .await?;
    Ok(vec![zebra, bgpd])
}

fn start_daemon(ns: &Namespace, dir: &Path, logs: &Path, name: &str) -> anyhow::Result<Daemon> {
    let mut command = ns.command(Path::new("/usr/lib/frr").join(name))?;
    command
        .args(["--user", "frr", "--group", "frr", "--log", "stdout", "--vty_port", "0", "--vty_socket"])
        .arg(dir);
    command.arg("-i").arg(dir.join(format!("{name}.pid"))).arg("-z").arg(dir.join(ZEBRA_SOCKET));
    command.arg("-f").arg(dir.join(format!("{name}.conf")));
    Daemon::start(command, &format!("router-{name}"), logs)
}

pub async fn ask(ns: &Namespace, dir: &Path, command: &str) -> anyhow::Result<String> {
    let dir = dir.display().to_string();
    ns.output(&["vtysh", "--vty_socket", &dir, "-c", command]).await
}

pub async fn established(ns: &Namespace, dir: &Path) -> anyhow::Result<BTreeSet<IpAddr>> {
    let text = ask(ns, dir, "show bgp neighbors json").await?;
    let neighbours: BTreeMap<String, serde_json::Value> =
        serde_json::from_str(&text).context("show bgp neighbors")?;
    let neighbours = neighbours.into_iter().filter_map(|(address, value)| {
        let neighbour = Neighbour::deserialize(value).ok()?;
        (neighbour.bgp_state == "Established").then_some(address.parse().ok()?)
    });
    Ok(neighbours.collect())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Neighbour {
    bgp_state: String,
}

fn configuration() -> String {
    // Of a link-local and a global next hop FRR takes the first, which says less about whose it is.
    format!(
        "hostname router
router bgp {ROUTER_ASN}
 bgp router-id {id}
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp bestpath as-path multipath-relax
 neighbor nodes peer-group
 neighbor nodes remote-as {NODE_ASN}
 bgp listen limit 200
 bgp listen range 10.9.0.0/24 peer-group nodes
 bgp listen range fd09::/64 peer-group nodes
 address-family ipv4 unicast
  neighbor nodes activate
  maximum-paths 16
 exit-address-family
 address-family ipv6 unicast
  neighbor nodes activate
  neighbor nodes route-map global in
  maximum-paths 16
 exit-address-family
route-map global permit 10
 set ipv6 next-hop prefer-global
",
        id = ROUTER.v4
    )
}
