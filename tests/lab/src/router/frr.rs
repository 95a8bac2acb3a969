//! FRR: zebra and bgpd, every node welcome by a listen range, both families on each session.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;
use nix::unistd::{Group, User, chown};
use serde::Deserialize;

use crate::netns::Namespace;
use crate::process::Daemon;
use crate::topology::{NODE_ASN, ROUTER, ROUTER_ASN};

const DAEMONS: [&str; 2] = ["zebra", "bgpd"];

pub fn start(ns: &Namespace, dir: &Path, logs: &Path) -> anyhow::Result<Vec<Daemon>> {
    let user = User::from_name("frr")?.context("there is no user frr: is the package frr installed?")?;
    let group = Group::from_name("frrvty")?.context("there is no group frrvty")?;
    // The daemons give up root for the user frr before they make their sockets here.
    chown(dir, Some(user.uid), Some(group.gid))?;
    std::fs::write(dir.join("zebra.conf"), "hostname router\n")?;
    std::fs::write(dir.join("bgpd.conf"), configuration())?;
    DAEMONS.into_iter().map(|name| start_daemon(ns, dir, logs, name)).collect()
}

fn start_daemon(ns: &Namespace, dir: &Path, logs: &Path, name: &str) -> anyhow::Result<Daemon> {
    let mut command = ns.command(Path::new("/usr/lib/frr").join(name))?;
    command
        .args(["--user", "frr", "--group", "frr", "--log", "stdout", "--vty_port", "0", "--vty_socket"])
        .arg(dir);
    command.arg("-i").arg(dir.join(format!("{name}.pid"))).arg("-z").arg(dir.join("zserv.api"));
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
