//! Which address for which family, and if none, why not.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use portolan_model::{
    Allocation, AllocationPhase, Allocations, Family, Name, ObjectId, Owner, Problem, Service,
};

use super::Pass;
use crate::supply::Stock;

/// An address for a Service.
#[derive(Clone, Debug)]
pub struct Hold {
    pub address: IpAddr,
    pool: Name,
    /// It is not bound to the Service yet.
    pub new: bool,
}

/// Why a family gets no address, or not the requested one.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub reason: &'static str,
    field: &'static str,
    message: String,
}

const REQUESTED_IPS: &str = "metadata.annotations[portolan.dev/ips]";
const REQUESTED_POOLS: &str = "metadata.annotations[portolan.dev/pool]";
const NO_REQUEST: &str = "status.loadBalancer";

impl Hold {
    pub fn allocation(&self, now: i64, service: &Service) -> Allocation {
        let owner = Owner { service: service.id.clone(), uid: service.uid.clone() };
        let (address, pool, phase) = (self.address, self.pool.clone(), AllocationPhase::Bound);
        Allocation { address, pool, owners: vec![owner], phase, since: now }
    }
}

impl Refusal {
    fn of_pools(reason: &'static str, message: String) -> Refusal {
        Refusal { reason, field: NO_REQUEST, message }
    }

    /// The Service asks for something that it may not have, rather than for what has run out.
    pub fn of_request(&self) -> bool {
        self.field != NO_REQUEST
    }

    pub fn problem(&self, service: &Service) -> Problem {
        let object = ObjectId::service(&service.id);
        Problem { object, field: self.field.into(), reason: self.reason, message: self.message.clone() }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.of_request() {
            true => write!(f, "{}: {}", self.field, self.message),
            false => f.write_str(&self.message),
        }
    }
}

type Choice = (Option<Hold>, Option<Refusal>);

/// One choice for each family of the Service, in its order (A10).
pub fn families(pass: &Pass, service: &Service) -> Vec<Choice> {
    let wanted = wanted(service);
    let settled: Vec<_> = wanted.iter().map(|family| settled(pass, service, *family)).collect();
    let open = wanted.iter().zip(&settled).filter(|(_, choice)| choice.is_none());
    let open: Vec<Family> = open.map(|(family, _)| *family).collect();
    let mut from_pools = from_pools(pass, service, &open).into_iter();
    let fill = |choice: Option<Choice>| choice.or_else(|| from_pools.next()).unwrap_or((None, None));
    settled.into_iter().map(fill).chain(strangers(service)).collect()
}

/// The Service's families in its order, each once.
pub fn wanted(service: &Service) -> Vec<Family> {
    let mut wanted = Vec::new();
    for family in &service.families {
        if !wanted.contains(family) {
            wanted.push(*family);
        }
    }
    wanted
}

/// Requests in a family that the Service does not have.
fn strangers(service: &Service) -> impl Iterator<Item = Choice> {
    let strange = service.requested_ips.iter().filter(|ip| !service.families.contains(&Family::of(ip)));
    strange.map(|ip| {
        let message = format!("{ip}: the Service has no {}", Family::of(ip));
        (None, Some(Refusal { reason: "FamilyUnavailable", field: REQUESTED_IPS, message }))
    })
}

/// What is decided without looking for a free address; None = look in the pools.
fn settled(pass: &Pass, service: &Service, family: Family) -> Option<Choice> {
    let current = held(pass, service, family);
    if let Some(problem) = &service.request_problem {
        let message = problem.message.clone();
        return Some((current, Some(Refusal { reason: problem.reason, field: REQUESTED_IPS, message })));
    }
    match requested(service, family) {
        // A request that was taken away leaves the address where it is (A14); so do edits of pools (A22, A25).
        None => current.or_else(|| rested(pass, service, family)).map(|hold| (Some(hold), None)),
        Some(wanted) if current.as_ref().is_some_and(|hold| hold.address == wanted) => Some((current, None)),
        // What the Service has it keeps until it can have what it wants (A12).
        Some(wanted) => Some(match request(pass, service, wanted) {
            Ok(hold) => (Some(hold), None),
            Err(refusal) => (current, Some(refusal)),
        }),
    }
}

fn requested(service: &Service, family: Family) -> Option<IpAddr> {
    service.requested_ips.iter().copied().find(|ip| Family::of(ip) == family)
}

/// The address that is bound to this Service; of several the published one.
pub fn held(pass: &Pass, service: &Service, family: Family) -> Option<Hold> {
    let mine = |a: &&Arc<Allocation>| {
        a.phase == AllocationPhase::Bound && Family::of(&a.address) == family && is_owner(a, service)
    };
    let shown = |a: &Arc<Allocation>| service.ingress.iter().any(|ingress| ingress.ip == a.address);
    let best = pass.taken.of(&service.id).filter(mine).min_by_key(|a| (!shown(a), a.address))?;
    Some(Hold { address: best.address, pool: best.pool.clone(), new: false })
}

/// The address that the status shows although no allocation says so: another controller's, or ours from before a
/// restore (A3). Whoever is recorded as its owner keeps it (A4).
pub fn shown(pass: &Pass, service: &Service, family: Family) -> Option<Hold> {
    let mut shown = service.ingress.iter().map(|ingress| ingress.ip).filter(|ip| Family::of(ip) == family);
    let free = |ip: &IpAddr| pass.taken.get(ip).is_none_or(|allocation| of_name(allocation, service));
    let address = shown.find(free)?;
    let pool = pass.supply.of(address).map_or_else(|| "".into(), |stock| stock.pool.name.clone());
    Some(Hold { address, pool, new: false })
}

/// The address that an earlier Service of this name had, unless another has it since (A19).
fn rested(pass: &Pass, service: &Service, family: Family) -> Option<Hold> {
    let mut earlier =
        pass.taken.of(&service.id).filter(|a| Family::of(&a.address) == family && of_name(a, service));
    earlier.find_map(|allocation| {
        let stock = pass.supply.of(allocation.address).filter(|stock| stock.offers(allocation.address))?;
        let asked = service.requested_pools.is_empty() || service.requested_pools.contains(&stock.pool.name);
        let given = asked && !stock.pool.disabled && stock.serves(service);
        given.then(|| new(stock, allocation.address))
    })
}

fn request(pass: &Pass, service: &Service, address: IpAddr) -> Result<Hold, Refusal> {
    let refuse = |reason, message| Err(Refusal { reason, field: REQUESTED_IPS, message });
    let Some(stock) = pass.supply.of(address) else {
        return refuse("RequestedIPNotInPool", format!("{address} is in no IPAddressPool"));
    };
    let pool = &stock.pool.name;
    if !stock.offers(address) {
        return refuse("RequestedIPNotInPool", format!("{address} is left out of IPAddressPool {pool}"));
    }
    if let Err(why) = open_to(stock, service) {
        return refuse("NoMatchingPool", format!("{address}: {why}"));
    }
    match pass.taken.get(&address) {
        None => Ok(new(stock, address)),
        Some(allocation) if of_name(allocation, service) => Ok(new(stock, address)),
        Some(allocation) => {
            refuse("RequestedIPInUse", format!("{address} {}", why_taken(allocation, service)))
        }
    }
}

/// A holder in another namespace is not named to tenants (A13).
fn why_taken(allocation: &Allocation, service: &Service) -> String {
    let holder = allocation.owners.iter().find(|owner| owner.service.namespace == service.id.namespace);
    match (allocation.phase, holder) {
        (AllocationPhase::Reserved, _) => "is reserved".into(),
        (AllocationPhase::Quarantined, _) => "was another Service's until now and rests".into(),
        (AllocationPhase::Bound, Some(owner)) => format!("is in use by Service {}", owner.service),
        (AllocationPhase::Bound, None) => "is in use by another Service".into(),
    }
}

/// New addresses for some families of one Service (A7, A10).
fn from_pools(pass: &Pass, service: &Service, families: &[Family]) -> Vec<Choice> {
    let (stocks, refused) = candidates(pass, service);
    if let Some(together) = together(&stocks, families, &pass.taken) {
        return together.into_iter().map(|hold| (Some(hold), None)).collect();
    }
    let alone = |family: &Family| match find(&stocks, *family, &pass.taken) {
        Some(hold) => (Some(hold), None),
        None => (None, Some(why_none(pass, service, &stocks, &refused, *family))),
    };
    families.iter().map(alone).collect()
}

/// The pools to try, in order, each with its class: one class per requested pool, else by A7. And why others are out.
type Candidates<'a> = Vec<((bool, u32), &'a Stock)>;

fn candidates<'a>(pass: &Pass<'a>, service: &Service) -> (Candidates<'a>, Vec<String>) {
    let (mut stocks, mut refused) = (Vec::new(), Vec::new());
    let mut consider = |class, stock: &'a Stock| match open_to(stock, service) {
        Ok(()) => stocks.push((class, stock)),
        Err(why) => refused.push(why),
    };
    if service.requested_pools.is_empty() {
        let automatic = pass.supply.iter().filter(|stock| stock.pool.auto_assign); // A9
        automatic.for_each(|stock| consider(stock.class(), stock));
        return (stocks, refused);
    }
    let mut missing = Vec::new();
    for (rank, name) in (0..).zip(&service.requested_pools) {
        match pass.supply.named(name) {
            Some(stock) => consider((false, rank), stock),
            None => missing.push(format!("there is no IPAddressPool {name}")),
        }
    }
    refused.extend(missing);
    (stocks, refused)
}

/// What a request for the pool must pass, too (A8).
fn open_to(stock: &Stock, service: &Service) -> Result<(), String> {
    let name = &stock.pool.name;
    match (stock.serves(service), stock.pool.disabled) {
        (false, _) => Err(format!("IPAddressPool {name} is not for this namespace or these labels")),
        (true, true) => Err(format!("IPAddressPool {name} is disabled")),
        (true, false) => Ok(()),
    }
}

/// All families from one class of pools, from one pool if there is one (A10).
fn together(stocks: &Candidates, families: &[Family], taken: &Allocations) -> Option<Vec<Hold>> {
    let mut rest = stocks.as_slice();
    while let Some((class, _)) = rest.first() {
        let (same, others) = rest.split_at(rest.partition_point(|(other, _)| other == class));
        let from = |stocks: &[((bool, u32), &Stock)]| -> Option<Vec<Hold>> {
            families.iter().map(|family| free(stocks, *family, taken)).collect()
        };
        let one_pool = same.iter().find_map(|stock| from(std::slice::from_ref(stock)));
        if let Some(holds) = one_pool.or_else(|| from(same)) {
            return Some(holds);
        }
        rest = others;
    }
    None
}

fn find(stocks: &Candidates, family: Family, taken: &Allocations) -> Option<Hold> {
    free(stocks, family, taken).or_else(|| oldest_resting(stocks, family, taken))
}

fn free(stocks: &[((bool, u32), &Stock)], family: Family, taken: &Allocations) -> Option<Hold> {
    let mut found = stocks.iter().filter_map(|(_, stock)| Some((stock, stock.first_free(family, taken)?)));
    found.next().map(|(stock, address)| new(stock, address))
}

/// Better an address that has not rested long enough than none (vips.md 2.1, reuseDelay).
fn oldest_resting(stocks: &Candidates, family: Family, taken: &Allocations) -> Option<Hold> {
    let mut resting =
        taken.quarantined().map(|allocation| allocation.address).filter(|a| Family::of(a) == family);
    resting.find_map(|address| {
        let (_, stock) = stocks.iter().find(|(_, stock)| stock.offers(address))?;
        Some(new(stock, address))
    })
}

fn why_none(
    pass: &Pass,
    service: &Service,
    stocks: &Candidates,
    refused: &[String],
    family: Family,
) -> Refusal {
    let names = |stocks: &mut dyn Iterator<Item = &Stock>| {
        stocks.map(|stock| stock.pool.name.to_string()).collect::<Vec<_>>().join(", ")
    };
    let because = if refused.is_empty() { String::new() } else { format!("; {}", refused.join("; ")) };
    let asked = !service.requested_pools.is_empty();
    if stocks.is_empty() && asked {
        let message = refused.join("; ");
        return Refusal { reason: "NoMatchingPool", field: REQUESTED_POOLS, message };
    }
    if pass.supply.is_empty() {
        return Refusal::of_pools("NoPool", "there is no IPAddressPool".into());
    }
    if stocks.is_empty() {
        return Refusal::of_pools("NoMatchingPool", format!("no IPAddressPool is for this Service{because}"));
    }
    let with_family = stocks.iter().map(|(_, stock)| *stock).filter(|stock| stock.has_family(family));
    let tried = names(&mut with_family.into_iter());
    if tried.is_empty() {
        let all = names(&mut stocks.iter().map(|(_, stock)| *stock));
        return Refusal::of_pools(
            "FamilyUnavailable",
            format!("no {family} address in IPAddressPool {all}{because}"),
        );
    }
    let message = format!("every {family} address of IPAddressPool {tried} is taken{because}"); // A29
    Refusal::of_pools("PoolExhausted", message)
}

fn new(stock: &Stock, address: IpAddr) -> Hold {
    Hold { address, pool: stock.pool.name.clone(), new: true }
}

fn is_owner(allocation: &Allocation, service: &Service) -> bool {
    allocation.owners.iter().any(|owner| owner.service == service.id && owner.uid == service.uid)
}

/// The only owner has this Service's name: itself, or an earlier one that is gone. A reservation without owners is
/// nobody's.
fn of_name(allocation: &Allocation, service: &Service) -> bool {
    !allocation.owners.is_empty() && allocation.owners.iter().all(|owner| owner.service == service.id)
}
