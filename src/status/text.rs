//! The report as people read it.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use portolan_api::{IPAddressPool, IPAllocation, NodeStatus, NodeStatusFields, Session, SessionState};

use super::Report;
use super::table::Table;

pub fn render(report: &Report) -> String {
    [nodes(report), sessions(report), pools(report), vips(report), withheld(report), problems(report)]
        .concat()
}

fn status(node: &NodeStatus) -> NodeStatusFields {
    node.status.clone().unwrap_or_default()
}

fn nodes(report: &Report) -> String {
    let mut table = Table::new(&["NODE", "VERSION", "DATAPLANE", "SYNCED", "SESSIONS UP", "PREFIXES"]);
    for node in &report.nodes {
        let status = status(node);
        let (agent, bgp) = (status.agent.as_ref(), status.bgp.clone().unwrap_or_default());
        table.row(vec![
            node.name_any(),
            agent.map(|agent| agent.version.clone()).unwrap_or_default(),
            agent.map(|agent| format!("{:?}", agent.dataplane.mode).to_lowercase()).unwrap_or_default(),
            if agent.is_some_and(|agent| agent.dataplane.synced) { "yes".into() } else { "no".into() },
            format!("{}/{}", bgp.established, bgp.configured),
            status.vips.map(|vips| vips.announced.to_string()).unwrap_or_default(),
        ]);
    }
    table.render("Nodes")
}

fn sessions(report: &Report) -> String {
    let mut table =
        Table::new(&["NODE", "PEER", "ADDRESS", "STATE", "SINCE", "ADVERTISED", "RECEIVED", "LAST ERROR"]);
    for node in &report.nodes {
        for session in status(node).bgp.unwrap_or_default().sessions {
            table.row(session_row(&node.name_any(), &session));
        }
    }
    table.render("BGP sessions")
}

fn session_row(node: &str, session: &Session) -> Vec<String> {
    // An old error of a session that is up again says nothing about now.
    let error = session.last_error.as_ref().filter(|_| session.state != SessionState::Established);
    vec![
        node.into(),
        session.peer.clone(),
        session.address.clone(),
        format!("{:?}", session.state),
        session.since.0.to_string(),
        session.routes.advertised.to_string(),
        session.routes.received.to_string(),
        error.map(|error| error.text.clone()).unwrap_or_default(),
    ]
}

fn pools(report: &Report) -> String {
    let mut table = Table::new(&["POOL", "ADDRESSES", "USED IPv4", "FREE IPv4", "USED IPv6", "FREE IPv6"]);
    for pool in &report.pools {
        table.row(pool_row(pool));
    }
    table.render("Pools")
}

fn pool_row(pool: &IPAddressPool) -> Vec<String> {
    let status = pool.status.clone().unwrap_or_default();
    let used =
        |family: &Option<portolan_api::FamilyUse>| family.map(|f| f.assigned.to_string()).unwrap_or_default();
    let free = |family: &Option<portolan_api::FamilyUse>| {
        family.map(|f| f.available.to_string()).unwrap_or_default()
    };
    vec![
        pool.name_any(),
        pool.spec.addresses.join(","),
        used(&status.ipv4),
        free(&status.ipv4),
        used(&status.ipv6),
        free(&status.ipv6),
    ]
}

fn vips(report: &Report) -> String {
    let mut table = Table::new(&["VIP", "SERVICE", "POOL", "PHASE", "ANNOUNCED BY"]);
    for allocation in &report.allocations {
        table.row(allocation_row(allocation, announcers(report, &allocation.spec.address)));
    }
    table.render("VIPs")
}

fn allocation_row(allocation: &IPAllocation, announced_by: String) -> Vec<String> {
    let owners: Vec<String> =
        allocation.spec.owners.iter().map(|owner| format!("{}/{}", owner.namespace, owner.name)).collect();
    let phase = allocation.status.as_ref().and_then(|status| status.phase);
    vec![
        allocation.spec.address.clone(),
        owners.join(","),
        allocation.spec.pool.clone(),
        phase.map(|phase| format!("{phase:?}")).unwrap_or_default(),
        announced_by,
    ]
}

/// Nodes that announce a prefix with the address in it.
fn announcers(report: &Report, address: &str) -> String {
    let Ok(address) = address.parse::<IpAddr>() else { return String::new() };
    let covers = |prefix: &String| prefix.parse().is_ok_and(|prefix: IpNet| prefix.contains(&address));
    let vips = |node: &NodeStatus| status(node).vips.unwrap_or_default();
    let announces = |node: &&NodeStatus| vips(node).prefixes.iter().any(covers);
    let nodes: Vec<String> = report.nodes.iter().filter(announces).map(ResourceExt::name_any).collect();
    // A NodeStatus holds the first 64 prefixes only.
    let is_cut = report.nodes.iter().any(|node| vips(node).truncated);
    match (nodes.is_empty(), is_cut) {
        (false, false) => nodes.join(","),
        (false, true) => format!("{} and perhaps others", nodes.join(",")),
        (true, false) => "nobody".into(),
        (true, true) => "not among the first of any node".into(),
    }
}

fn withheld(report: &Report) -> String {
    let mut table = Table::new(&["NODE", "ADDRESS", "SERVICE", "REASON", "MESSAGE"]);
    for node in &report.nodes {
        for entry in status(node).vips.unwrap_or_default().withheld {
            let (service, message) = (entry.service.unwrap_or_default(), entry.message.unwrap_or_default());
            table.row(vec![node.name_any(), entry.ip, service, entry.reason, message]);
        }
    }
    table.render("Withheld")
}

/// Conditions that say something is wrong, on any of the objects shown.
fn problems(report: &Report) -> String {
    let mut table = Table::new(&["OBJECT", "CONDITION", "REASON", "MESSAGE"]);
    for node in &report.nodes {
        add_problems(&mut table, format!("NodeStatus {}", node.name_any()), &status(node).conditions);
    }
    for peer in &report.peers {
        let conditions = peer.status.clone().unwrap_or_default().conditions;
        add_problems(&mut table, format!("BGPPeer {}", peer.name_any()), &conditions);
    }
    for advertisement in &report.advertisements {
        let conditions = advertisement.status.clone().unwrap_or_default().conditions;
        add_problems(&mut table, format!("Advertisement {}", advertisement.name_any()), &conditions);
    }
    for pool in &report.pools {
        let conditions = pool.status.clone().unwrap_or_default().conditions;
        add_problems(&mut table, format!("IPAddressPool {}", pool.name_any()), &conditions);
    }
    table.render("Problems")
}

/// Types that are good news when True; of the others (Conflict, BGPDegraded ...) False is.
const GOOD: [&str; 4] = ["Ready", "Accepted", "ResolvedRefs", "DataplaneSynced"];

fn add_problems(table: &mut Table, object: String, conditions: &[Condition]) {
    let is_wrong =
        |condition: &&Condition| (condition.status == "True") != GOOD.contains(&condition.type_.as_str());
    for condition in conditions.iter().filter(is_wrong) {
        let (reason, message) = (condition.reason.clone(), condition.message.clone());
        table.row(vec![object.clone(), format!("{}={}", condition.type_, condition.status), reason, message]);
    }
}
