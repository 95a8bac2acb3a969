//! BIRD 2: one passive session per node and family, both families on each.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::path::Path;

use anyhow::Context;

use crate::netns::Namespace;
use crate::process::Daemon;
use crate::topology::{NODE_ASN, ROUTER, ROUTER_ASN, node_address};

pub fn start(ns: &Namespace, dir: &Path, nodes: u8, logs: &Path) -> anyhow::Result<Vec<Daemon>> {
    let config = dir.join("bird.conf");
    std::fs::write(&config, configuration(nodes))?;
    let mut command = ns.command(program("bird"))?;
    command.arg("-f").arg("-c").arg(&config).arg("-s").arg(dir.join("bird.ctl"));
    Ok(vec![Daemon::start(command, "router-bird", logs)?])
}

pub async fn ask(ns: &Namespace, dir: &Path, command: &str) -> anyhow::Result<String> {
    let socket = dir.join("bird.ctl").display().to_string();
    ns.output(&[program("birdc"), "-s", &socket, command]).await
}

pub async fn established(ns: &Namespace, dir: &Path) -> anyhow::Result<BTreeSet<IpAddr>> {
    let text = ask(ns, dir, "show protocols all").await?;
    let mut neighbours = BTreeSet::new();
    let mut up = false;
    for line in text.lines().map(str::trim) {
        match line.split_once(':') {
            Some(("BGP state", state)) => up = state.trim() == "Established",
            Some(("Neighbor address", address)) if up => {
                neighbours.insert(address.trim().parse().context("neighbour address")?);
            }
            _ => {}
        }
    }
    Ok(neighbours)
}

/// Debian keeps them in sbin, which is not on everybody's path.
fn program(name: &str) -> &str {
    match name {
        "bird" if Path::new("/usr/sbin/bird").exists() => "/usr/sbin/bird",
        "birdc" if Path::new("/usr/sbin/birdc").exists() => "/usr/sbin/birdc",
        other => other,
    }
}

fn configuration(nodes: u8) -> String {
    // Without the short error times a node that was restarted would be refused for a minute.
    let mut text = format!(
        "router id {id};
log stderr all;
protocol device {{ scan time 5; }}
protocol direct {{ ipv4; ipv6; }}
protocol kernel kernel4 {{ merge paths on limit 16; ipv4 {{ import none; export where source = RTS_BGP; }}; }}
protocol kernel kernel6 {{ merge paths on limit 16; ipv6 {{ import none; export where source = RTS_BGP; }}; }}
template bgp node {{
  local as {ROUTER_ASN};
  passive on;
  connect delay time 1;
  error wait time 1, 2;
  error forget time 1;
  ipv4 {{ import all; export none; }};
  ipv6 {{ import all; export none; }};
}}
",
        id = ROUTER.v4
    );
    for number in 1..=nodes {
        let node = node_address(number);
        text += &format!("protocol bgp n{number} from node {{ neighbor {} as {NODE_ASN}; }}\n", node.v4);
        text += &format!("protocol bgp n{number}v6 from node {{ neighbor {} as {NODE_ASN}; }}\n", node.v6);
    }
    text
}
