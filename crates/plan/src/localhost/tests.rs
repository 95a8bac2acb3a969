use super::*;
use crate::fixture::{ip, n1, port, web, web_with};
use crate::service::plan;
use portolan_model::{ServiceType, TrafficPolicy};

fn both() -> BTreeSet<IpAddr> {
    [ip("127.0.0.1"), ip("::1")].into()
}

fn set(listeners: &mut Listeners, service: &Service) -> bool {
    listeners.set(&service.id, Some((service, &plan(service, &n1()))), &both())
}

fn shown(listeners: &Listeners) -> String {
    let line = |(at, listener): (SocketAddr, &Arc<Listener>)| {
        let backends: Vec<String> = listener.backends.iter().map(Backend::to_string).collect();
        format!("{at} {}: {}", listener.service, backends.join(" "))
    };
    listeners.iter().map(line).collect::<Vec<_>>().join("; ")
}

fn check(service: &Service, expected: &str) {
    let mut listeners = Listeners::default();
    set(&mut listeners, service);
    assert_eq!(shown(&listeners), expected);
}

#[test]
fn s22_listeners_of_tcp_node_ports_with_endpoints() {
    let two = "10.1.1.1 n1\n10.1.2.1 n2";
    check(&web_with(two), "127.0.0.1:30080 default/web: 10.1.1.1:8080 10.1.2.1:8080");
    check(&web_with(""), "");
    check(&web_with("10.1.1.1 n1 unready"), "");
    check(&web_with("10.1.1.1 n1 terminating"), "127.0.0.1:30080 default/web: 10.1.1.1:8080");
    check(&Service { kind: ServiceType::ClusterIp, ..web_with(two) }, "");
    check(&Service { ports: vec![port("", 80, 0)], ..web_with(two) }, "");
    let mut udp = web_with(two);
    udp.ports[0].protocol = Protocol::Udp;
    check(&udp, "");
    let six = Service { cluster_ips: vec![ip("fd96::10")], ..web_with("fd01::1 n1") };
    check(&six, "[::1]:30080 default/web: [fd01::1]:8080");
}

#[test]
fn s22_policy_local_means_endpoints_of_this_node() {
    let local = |endpoints| Service { external_policy: TrafficPolicy::Local, ..web_with(endpoints) };
    check(&local("10.1.1.1 n1\n10.1.2.1 n2"), "127.0.0.1:30080 default/web: 10.1.1.1:8080");
    check(&local("10.1.2.1 n2"), "");
}

#[test]
fn s22_listeners_follow_their_services() {
    let (mut listeners, web) = (Listeners::default(), web_with("10.1.1.1 n1"));
    assert!(set(&mut listeners, &web));
    assert!(!set(&mut listeners, &web), "nothing changed");
    let older = Service { id: ServiceId::new("default", "old"), created: 1, ..web_with("10.1.1.2 n1") };
    assert!(set(&mut listeners, &older));
    assert_eq!(shown(&listeners), "127.0.0.1:30080 default/old: 10.1.1.2:8080");
    assert!(listeners.set(&older.id, None, &both()));
    assert_eq!(shown(&listeners), "127.0.0.1:30080 default/web: 10.1.1.1:8080");
    let plan = plan(&web, &n1());
    assert!(listeners.set(&web.id, Some((&web, &plan)), &BTreeSet::new()), "loopback is no longer asked for");
    assert_eq!(listeners, Listeners::default());
}

#[expect(clippy::disallowed_methods, reason = "a test's clock starts somewhere")]
fn start_of_time() -> Instant {
    Instant::now()
}

fn listener(backends: &[&str], affinity_secs: Option<u64>) -> Listener {
    let backends = backends.iter().map(|backend| backend.parse().unwrap()).collect();
    let affinity = affinity_secs.map(Duration::from_secs);
    Listener { service: web().id, uid: "".into(), backends, affinity }
}

const TWO: [&str; 2] = ["10.1.1.1:8080", "10.1.2.1:8080"];

#[test]
fn s22_any_endpoint_without_affinity() {
    let (mut memory, now) = (Memory::default(), start_of_time());
    let chosen =
        |memory: &mut Memory, draw| memory.choose(&listener(&TWO, None), draw, now).unwrap().to_string();
    assert_eq!([0, 1, 2].map(|draw| chosen(&mut memory, draw)), [TWO[0], TWO[1], TWO[0]]);
    assert_eq!(memory.choose(&listener(&[], None), 7, now), None);
}

#[test]
fn s22_s41_client_ip_affinity_pins_all_to_one() {
    let (mut memory, start) = (Memory::default(), start_of_time());
    let mut chosen = |backends: &[&str], draw, secs| {
        let now = start + Duration::from_secs(secs);
        memory.choose(&listener(backends, Some(100)), draw, now).unwrap().to_string()
    };
    assert_eq!(chosen(&TWO, 1, 0), TWO[1]);
    assert_eq!(chosen(&TWO, 0, 99), TWO[1]);
    assert_eq!(chosen(&TWO, 0, 198), TWO[1], "each connection begins the time anew");
    assert_eq!(chosen(&TWO[..1], 0, 199), TWO[0], "S42: an endpoint that is gone is forgotten");
    assert_eq!(chosen(&TWO, 1, 200), TWO[0]);
    assert_eq!(chosen(&TWO, 1, 300), TWO[1], "the time is over");
}
