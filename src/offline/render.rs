//! One node of the file, as text in a fixed order.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::Arc;

use portolan_bgp::{PeerConfig, Route};
use portolan_dataplane::Dataplane;
use portolan_model::{Family, Name, Problem, ServiceId, ServicePlan};
use portolan_plan::localhost::Listeners;
use portolan_plan::{advertise, node_ports, routes, service};

use super::Offline;
use crate::agent::{Announcer, Here};
use crate::config::NodeRoutes;
use crate::speaker::Intent;
use crate::trace::Rules;

pub struct Node<'a> {
    cluster: &'a Offline,
    name: &'a Name,
    here: Here,
    plans: BTreeMap<ServiceId, Arc<ServicePlan>>,
    announcer: Announcer,
    problems: Vec<Problem>,
}

impl<'a> Node<'a> {
    pub fn new(cluster: &'a Offline, name: &'a Name) -> Node<'a> {
        let mut here = Here::new(name.clone(), None);
        here.see(&cluster.snapshot, &cluster.config, []);
        let services = cluster.snapshot.services.iter();
        let plans: BTreeMap<ServiceId, Arc<ServicePlan>> =
            services.map(|(id, wanted)| (id.clone(), Arc::new(service::plan(wanted, &here.view)))).collect();
        let mut announcer =
            Announcer::new(name.clone(), cluster.config.bgp.asn, (&cluster.config.classes).into());
        let of_peers = announcer.configure(&cluster.snapshot).problems;
        for (id, plan) in &plans {
            announcer.announce(&cluster.snapshot, id, Some(plan));
        }
        let of_node = here.problems(&cluster.snapshot, &cluster.config);
        let problems =
            of_peers.into_iter().chain(of_node).chain(advertise::problems(&cluster.snapshot)).collect();
        Node { cluster, name, here, plans, announcer, problems }
    }

    /// Addresses, and what is wrong.
    pub fn status(&self) -> String {
        let problems = self.cluster.problems.iter().chain(&self.problems);
        let problems: Vec<String> =
            problems.map(|problem| format!("{problem} ({})", problem.reason)).collect();
        section("allocations", &self.cluster.allocations) + &section("problems", &problems)
    }

    /// The tables in the language of `nft -f`.
    pub fn nft(&self) -> String {
        portolan_dataplane::render(&self.dataplane())
    }

    /// What packets meet.
    pub fn rules(&self, family: Family) -> Rules {
        Rules {
            node: self.name.to_string(),
            table: self.dataplane().desired(family),
            unread: Vec::new(),
            addresses: self.here.view.addresses.clone(),
            relays: Some(self.relays()),
        }
    }

    fn relays(&self) -> Listeners {
        let loopback = node_ports::loopback(&self.cluster.config.proxy.node_port_addresses);
        let mut listeners = Listeners::default();
        for (id, plan) in &self.plans {
            let service = self.cluster.snapshot.services.get(id);
            listeners.set(id, service.map(|service| (&**service, &**plan)), &loopback);
        }
        listeners
    }

    fn dataplane(&self) -> Dataplane {
        let mut dataplane = Dataplane::new(self.here.settings(&self.cluster.snapshot, &self.cluster.config));
        for (id, plan) in &self.plans {
            let created = self.cluster.snapshot.services.get(id).map_or(i64::MAX, |service| service.created);
            dataplane.set_service(id, created, Some(plan.clone()));
        }
        dataplane
    }

    /// Routes to other nodes, what each peer is told, and what is kept back.
    pub fn routes(mut self) -> String {
        let mut text = section("routes to other nodes", &self.to_nodes());
        let intent = self.announcer.intent();
        for (name, peer) in &intent.peers {
            text += &section(&heading(name, peer), &told(&intent, name));
        }
        let withheld = self.announcer.withheld();
        let lines: Vec<String> = withheld
            .iter()
            .map(|entry| {
                format!("{} {}: {}", entry.ip, entry.service.as_deref().unwrap_or_default(), entry.reason)
            })
            .collect();
        text + &section("withheld", &lines)
    }

    fn to_nodes(&self) -> Vec<String> {
        match self.cluster.config.node_routes {
            NodeRoutes::Off => Vec::new(),
            NodeRoutes::Api => {
                let routes = routes::to_nodes(&self.cluster.snapshot, self.name);
                routes.iter().map(|(cidr, via)| format!("{cidr} via {via}")).collect()
            }
        }
    }
}

fn heading(name: &str, peer: &PeerConfig) -> String {
    format!("BGP to {name} ({} AS {}) from AS {}", peer.remote, peer.peer_asn, peer.local_asn)
}

fn told(intent: &Intent, peer: &str) -> Vec<String> {
    let routes = intent.routes.get(peer).into_iter().flat_map(|routes| routes.iter());
    routes.map(|(prefix, route)| format!("{prefix}{}", attributes(route))).collect()
}

/// What differs from an ordinary route.
fn attributes(route: &Route) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: Option<u32>| {
        if let Some(value) = value {
            let _ = write!(text, " {name} {value}");
        }
    };
    add("med", route.med);
    add("local-pref", route.local_pref);
    add("prepend", (route.prepend > 0).then_some(route.prepend.into()));
    let communities: Vec<String> = route.communities.iter().map(|community| community.to_string()).collect();
    if communities.is_empty() { text } else { format!("{text} communities {}", communities.join(" ")) }
}

fn section(title: &str, lines: &[String]) -> String {
    let none = ["none".to_owned()];
    let lines = if lines.is_empty() { &none } else { lines };
    lines.iter().fold(format!("# {title}\n"), |text, line| text + line + "\n")
}
