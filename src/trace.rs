//! `portolan trace`: what becomes of the first packet of a connection, and why. The rules are those of a YAML file's plan, or
//! those that this node's kernel has now.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use anyhow::{Context, ensure};
use portolan_dataplane::{Candidate, Outcome, Packet, evaluate, table_id};
use portolan_model::{Family, Name, Protocol};
use portolan_nft::Table;
use portolan_plan::localhost::Listeners;

use crate::cli;
use crate::config::Config;
use crate::dataplane::addresses::Addresses;
use crate::dataplane::kernel::Kernel;
use crate::offline::Offline;

/// `10.244.1.5`, or with the port that the client happens to have: no rule asks for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source(pub SocketAddr);

/// `10.96.0.10:80/tcp`; TCP may be left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Destination {
    pub to: SocketAddr,
    pub protocol: Protocol,
}

/// The rules of one node that a packet meets.
pub struct Rules {
    /// "n1", "this node".
    pub node: String,
    pub table: Table,
    /// What the table has besides and cannot be followed: one sentence each.
    pub unread: Vec<String>,
    /// The node's own addresses: what comes from them is sent by the node itself.
    pub addresses: BTreeSet<IpAddr>,
    /// Where the agent's relay listens (S22). The kernel's rules do not show it: None.
    pub relays: Option<Listeners>,
}

const UNKNOWN_RELAY: &str = "  perhaps to the agent: it listens at node ports here, if proxy.nodePortAddresses has localhost, and relays\n";
/// Of the ephemeral ports, where none is given.
const ANY_PORT: u16 = 40000;

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        let alone = || text.parse().map(|ip| SocketAddr::new(ip, ANY_PORT));
        text.parse().or_else(|_| alone()).map(Source).map_err(|_: std::net::AddrParseError| {
            "an IP address is wanted, alone or with a port, like 10.244.1.5 or [fd00::5]:40000".into()
        })
    }
}

impl FromStr for Destination {
    type Err = String;

    fn from_str(text: &str) -> Result<Destination, String> {
        let (to, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            other => return Err(format!("{other:?} is no protocol: tcp, udp or sctp are wanted")),
        };
        let to = to.parse().map_err(|_| {
            "an address with a port is wanted, like 10.96.0.10:80/tcp or [fd00::a]:53/udp".to_owned()
        })?;
        Ok(Destination { to, protocol })
    }
}

pub async fn run(arguments: cli::Trace) -> anyhow::Result<()> {
    let (Source(from), to) = (arguments.from, arguments.to);
    let family = Family::of(&to.to.ip());
    let of_from = Family::of(&from.ip());
    ensure!(family == of_from, "--from is an {of_from} address and --to an {family} one: no packet has both");
    let rules = match (&arguments.file, &arguments.node) {
        (Some(file), Some(node)) => {
            let config = arguments.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
            Offline::open(file, config)?.rules(node, family)?
        }
        _ => live(family).await?,
    };
    print!("{}", explain(&rules, from, to, arguments.interface.map(Name::from)));
    Ok(())
}

/// What the kernel of this network namespace has.
async fn live(family: Family) -> anyhow::Result<Rules> {
    let state = Kernel::open()?.observe().context("reading the kernel's rules takes root")?;
    let id = table_id(family);
    let dumped = match family {
        Family::Ipv4 => state.ipv4,
        Family::Ipv6 => state.ipv6,
    };
    let dumped = dumped.with_context(|| format!("there is no table {id} here: no agent has run"))?;
    let (table, unread) = dumped.table(id);
    let unread = unread
        .into_iter()
        .map(|(chain, handle)| format!("rule {handle} of chain {chain} is not Portolan's and was left out"))
        .collect();
    let addresses = Addresses::open()?.read().await?.into_iter().map(|address| address.address).collect();
    Ok(Rules { node: "this node".into(), table, unread, addresses, relays: None })
}

/// The outcome, then a line for every rule that took part. `interface`: what the packet comes in by, where that is known.
pub fn explain(rules: &Rules, from: SocketAddr, to: Destination, interface: Option<Name>) -> String {
    let from_node = from.ip().is_loopback() || rules.addresses.contains(&from.ip());
    let interface = interface.filter(|_| !from_node);
    let packet = Packet { source: from, destination: to.to, protocol: to.protocol, from_node, interface };
    let trace = evaluate(&rules.table, &packet);
    let who = if from_node { " (the node itself)" } else { "" };
    let relay = relayed(rules, to).filter(|_| trace.outcome == Outcome::Pass);
    let outcome = relay.unwrap_or_else(|| said(&trace.outcome));
    let mut text = format!("{}{who} to {}/{} on {}: {outcome}", from.ip(), to.to, to.protocol, rules.node);
    lines(&mut text, "because", &trace.reasons);
    lines(&mut text, "beware", &rules.unread);
    text
}

/// TCP to a node port at a loopback address meets no rule of ours, but the agent's relay (S22).
fn relayed(rules: &Rules, to: Destination) -> Option<String> {
    let may_be = to.to.ip().is_loopback() && to.protocol == Protocol::Tcp;
    match rules.relays.as_ref().filter(|_| may_be) {
        None => may_be.then(|| said(&Outcome::Pass) + UNKNOWN_RELAY),
        Some(relays) => relays.get(&to.to).map(|listener| {
            let count = listener.backends.len();
            let head = format!("taken by the agent, which relays {} to one of {count}\n", listener.service);
            let line = |backend| format!("  {backend}  it sees an address of the node\n");
            head + &listener.backends.iter().map(line).collect::<String>()
        }),
    }
}

fn said(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Dnat(candidates) => {
            let count = match candidates.len() {
                1 => "forwarded\n".to_owned(),
                n => format!("forwarded to one of {n}\n"),
            };
            candidates.iter().fold(count, |text, candidate| text + &backend(candidate))
        }
        Outcome::Reject => "refused, with an ICMP port unreachable\n".into(),
        Outcome::Reset => "refused, with a TCP reset\n".into(),
        Outcome::Drop => "dropped without an answer\n".into(),
        Outcome::Pass => "passed on as it is, no rule of Portolan's is for it\n".into(),
    }
}

fn backend(candidate: &Candidate) -> String {
    let source = match candidate.masquerade {
        true => "masqueraded: it sees an address of the node",
        false => "it sees the client's address",
    };
    format!("  {}  {source}\n", candidate.backend)
}

fn lines(text: &mut String, title: &str, lines: &[String]) {
    if !lines.is_empty() {
        let _ = writeln!(text, "{title}");
    }
    for line in lines {
        let _ = writeln!(text, "  {line}");
    }
}
