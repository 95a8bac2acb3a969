//! What finding the changes of one Service costs, by how many others there are: it must not matter.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use divan::Bencher;
use portolan_dataplane::{Dataplane, KernelState, Settings};
use portolan_model::{
    Action, Address, Balance, Forwarding, Frontend, Masquerade, Protocol, Scheduler, ServiceId, ServicePlan,
};

fn main() {
    divan::main();
}

const SERVICES: [u32; 3] = [1_000, 10_000, 30_000];
const ENDPOINTS: u32 = 10;

#[divan::bench(args = SERVICES)]
fn one_replaced(bencher: Bencher, services: u32) {
    let plans = [plan(7, 0, ENDPOINTS), plan(7, 1, ENDPOINTS)];
    alternate(bencher, services, plans);
}

#[divan::bench(args = SERVICES)]
fn one_more(bencher: Bencher, services: u32) {
    let plans = [plan(7, 0, ENDPOINTS), plan(7, 0, ENDPOINTS + 1)];
    alternate(bencher, services, plans);
}

/// Everything, in a dataplane that knows of an empty kernel.
#[divan::bench(args = [1_000, 10_000], sample_count = 10)]
fn all(bencher: Bencher, services: u32) {
    let plans: Vec<_> = (0..services).map(|service| (id(service), plan(service, 0, ENDPOINTS))).collect();
    bencher.bench(|| {
        let mut dataplane = empty();
        for (id, plan) in &plans {
            dataplane.set_service(id, 0, Some(plan.clone()));
        }
        dataplane.steps()
    });
}

fn alternate(bencher: Bencher, services: u32, plans: [Arc<ServicePlan>; 2]) {
    let mut dataplane = loaded(services);
    let (id, mut turn) = (id(7), 0);
    bencher.bench_local(|| {
        turn += 1;
        dataplane.set_service(&id, 0, Some(plans[turn % 2].clone()));
        let steps = dataplane.steps();
        steps.iter().for_each(|step| dataplane.applied(step));
        steps
    });
}

fn empty() -> Dataplane {
    let mut dataplane = Dataplane::new(Settings::default());
    dataplane.observed(&KernelState::default());
    dataplane
}

fn loaded(services: u32) -> Dataplane {
    let mut dataplane = empty();
    for service in 0..services {
        dataplane.set_service(&id(service), 0, Some(plan(service, 0, ENDPOINTS)));
    }
    let steps = dataplane.steps();
    steps.iter().for_each(|step| dataplane.applied(step));
    dataplane
}

fn id(service: u32) -> ServiceId {
    ServiceId::new("default", format!("s{service:05}"))
}

/// `first` is the number of the first endpoint.
fn plan(service: u32, first: u32, endpoints: u32) -> Arc<ServicePlan> {
    let vip = IpAddr::V4(Ipv4Addr::from(0x0a60_0100 + service));
    let backend =
        |number: u32| SocketAddr::new(Ipv4Addr::from(0x0a80_0000 + service * 64 + number).into(), 8080);
    // All but the first are the same: one is replaced, in place.
    let backends = (0..endpoints).map(|number| backend(if number == 0 { 32 * first } else { number }));
    let mut backends: Vec<SocketAddr> = backends.collect();
    backends.sort();
    let action = Action::Balance(Balance {
        backends: backends.into(),
        affinity: None,
        masquerade: Masquerade::NonPods,
        scheduler: Scheduler::Random,
    });
    let forwarding = Forwarding { from_cluster: action.clone(), from_outside: action, allowed_sources: None };
    let frontend = Frontend { address: Address::Vip(vip), protocol: Protocol::Tcp, port: 80 };
    Arc::new(ServicePlan {
        frontends: [(frontend, forwarding)].into(),
        vips: [vip].into(),
        hairpin: Default::default(),
    })
}
