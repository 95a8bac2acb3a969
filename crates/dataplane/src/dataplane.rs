//! The owner of both families' tables, desired and actual.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use portolan_model::{Address, Family, Frontend, ServiceId, ServicePlan};
use portolan_nft::{Dumped, Table};

use crate::actual::Frame;
use crate::claims::{self, Registered};
use crate::compact;
use crate::layout::Settings;
use crate::proxy::Proxy;
use crate::step::{Limits, Step};

/// What the kernel has of ours: None where the table is absent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    pub ipv4: Option<Dumped>,
    pub ipv6: Option<Dumped>,
}

/// Desired claims and the kernel's state as we know it, and the steps from the one to the other.
///
/// Call [`observed`](Self::observed) once at the start, then, after any number of [`set_service`](Self::set_service)
/// and [`set_settings`](Self::set_settings), [`steps`](Self::steps): write them in order, each followed by
/// [`applied`](Self::applied). When one cannot be written, call [`failed`](Self::failed), drop the rest, and begin again
/// with an observation. Steps that were neither applied nor failed come again.
#[derive(Debug)]
pub struct Dataplane {
    settings: Arc<Settings>,
    limits: Limits,
    services: BTreeMap<ServiceId, Registered>,
    proxies: [Proxy; 2],
}

impl Dataplane {
    pub fn new(settings: Settings) -> Self {
        Dataplane {
            settings: Arc::new(settings),
            limits: Limits::default(),
            services: BTreeMap::new(),
            proxies: Family::ALL.map(Proxy::new),
        }
    }

    pub fn with_limits(settings: Settings, limits: Limits) -> Self {
        Dataplane { limits, ..Dataplane::new(settings) }
    }

    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes effect with the next steps; only what depends on what changed is compared again.
    pub fn set_settings(&mut self, settings: Settings) {
        let old = std::mem::replace(&mut self.settings, Arc::new(settings));
        let new = self.settings.clone();
        if old == new {
            return;
        }
        for proxy in &mut self.proxies {
            proxy.resettle(&old, &new);
            let services = self.services.iter();
            services.for_each(|(id, registered)| proxy.move_node_ports(id, registered, &old, &new));
        }
    }

    /// The kernel's state from dumps: at the start, after [`failed`](Self::failed), or to check.
    pub fn observed(&mut self, state: &KernelState) {
        let dumps = [&state.ipv4, &state.ipv6];
        for (proxy, dumped) in self.proxies.iter_mut().zip(dumps) {
            proxy.observed(dumped.as_ref(), &self.settings);
        }
    }

    /// What the kernel still serves although no Service asks for it any more: at the start, those that went while no agent
    /// ran. A node port is one frontend for each address that it has.
    pub fn orphans(&self) -> Vec<Frontend> {
        let keys = self.proxies.iter().flat_map(Proxy::orphans);
        keys.map(|key| Frontend {
            address: Address::Vip(key.address),
            protocol: key.protocol,
            port: key.port,
        })
        .collect()
    }

    /// What a Service needs from now on; None = nothing any more. `created` orders the claims of several Services to one
    /// frontend: the oldest has it. Returns the others that claim a frontend of its, before or after: the kernel may serve
    /// them otherwise now.
    pub fn set_service(
        &mut self,
        id: &ServiceId,
        created: i64,
        plan: Option<Arc<ServicePlan>>,
    ) -> BTreeSet<ServiceId> {
        let new = plan.map(|plan| Registered { created, plan });
        let old = match &new {
            Some(new) => self.services.insert(id.clone(), new.clone()),
            None => self.services.remove(id),
        };
        let mut rivals = BTreeSet::new();
        for proxy in &mut self.proxies {
            proxy.replace_claims(id, &self.settings, old.as_ref(), new.as_ref());
            let nodes = &self.settings.node_port_addresses;
            for registered in old.iter().chain(&new) {
                proxy.claims.rivals(id, proxy.family, nodes, registered, &mut rivals);
            }
        }
        rivals
    }

    /// When the Service of this plan was made, as [`set_service`](Self::set_service) was last told.
    pub fn created(&self, id: &ServiceId) -> Option<i64> {
        self.services.get(id).map(|registered| registered.created)
    }

    /// What the Service is to have, as [`set_service`](Self::set_service) was last told.
    pub fn plan(&self, id: &ServiceId) -> Option<&Arc<ServicePlan>> {
        self.services.get(id).map(|registered| &registered.plan)
    }

    /// The Services that [`set_service`](Self::set_service) gave a plan, in order.
    pub fn services(&self) -> impl Iterator<Item = &ServiceId> {
        self.services.keys()
    }

    /// What is left to write, in order; empty while the kernel's state is unknown.
    pub fn steps(&mut self) -> Vec<Step> {
        let (settings, limits) = (&self.settings, self.limits);
        let proxies = self.proxies.iter_mut();
        proxies.flat_map(|proxy| proxy.steps(settings, limits)).collect()
    }

    /// After much has come at once: takes no more memory than that needs. What changes later is as quick as before.
    pub fn compact(&mut self) {
        compact(&mut self.services);
        for proxy in &mut self.proxies {
            proxy.claims.compact();
            proxy.actual.compact();
        }
    }

    /// The kernel took the step.
    pub fn applied(&mut self, step: &Step) {
        self.proxy_mut(step.family).applied(step);
    }

    /// The kernel did not take a step: nothing is sure until the next observation.
    pub fn failed(&mut self) {
        for proxy in &mut self.proxies {
            proxy.actual.frame = Frame::Unknown;
        }
    }

    /// The kernel serves the frontend on this node (Programmed): at all its addresses, in the way its plan says, if not
    /// yet with the latest endpoints.
    pub fn serves(&self, frontend: &Frontend) -> bool {
        let proxy = self.proxy(frontend.family());
        let mut keys = claims::keys(frontend, &self.settings.node_port_addresses).peekable();
        keys.peek().is_some() && keys.all(|key| proxy.serves(key, &self.settings))
    }

    /// Like [`serves`](Self::serves), and by the plan of this Service: another one may have the older claim.
    pub fn serves_for(&self, id: &ServiceId, frontend: &Frontend) -> bool {
        let proxy = self.proxy(frontend.family());
        let mut keys = claims::keys(frontend, &self.settings.node_port_addresses);
        self.serves(frontend) && keys.all(|key| proxy.claims.winner_id(key) == Some(id))
    }

    /// One family's table as wanted, as a first writing would make it: endpoints in order, no history, and of pick chains
    /// only those that something leads to.
    pub fn desired(&self, family: Family) -> Table {
        self.proxy(family).desired(&self.settings)
    }

    fn proxy(&self, family: Family) -> &Proxy {
        match family {
            Family::Ipv4 => &self.proxies[0],
            Family::Ipv6 => &self.proxies[1],
        }
    }

    fn proxy_mut(&mut self, family: Family) -> &mut Proxy {
        match family {
            Family::Ipv4 => &mut self.proxies[0],
            Family::Ipv6 => &mut self.proxies[1],
        }
    }
}

/// Both desired tables as `nft -f` text.
pub fn render(dataplane: &Dataplane) -> String {
    Family::ALL.iter().map(|family| dataplane.desired(*family).to_string()).collect()
}
