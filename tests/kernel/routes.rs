use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use portolan::dataplane::addresses::Addresses;
use portolan::dataplane::routes::{self, METRIC, Routes, Step};

use crate::namespace::{in_namespace, run};

/// Long enough for any machine; only a failure takes it.
const DEADLINE: Duration = Duration::from_secs(30);

fn in_node(name: &str, test: impl AsyncFnOnce() + Send + 'static) {
    in_namespace(name, || {
        ip("link add eth0 type veth peer name lan");
        for interface in ["lo", "eth0", "lan"] {
            ip(&format!("link set {interface} up"));
        }
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("addr add fd00:1::1/64 dev eth0 nodad");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test());
    });
}

fn ip(arguments: &str) -> String {
    run("ip", &arguments.split(' ').collect::<Vec<_>>())
}

fn desired(routes: &[(&str, &str)]) -> BTreeMap<IpNet, IpAddr> {
    routes.iter().map(|(prefix, next_hop)| (prefix.parse().unwrap(), next_hop.parse().unwrap())).collect()
}

async fn converge(routes: &Routes, desired: &BTreeMap<IpNet, IpAddr>) -> Vec<Step> {
    let steps = routes::diff(&routes.observe().await.unwrap(), desired);
    let failed = routes.apply(&steps).await;
    assert!(failed.is_empty(), "{failed:?}");
    assert_eq!(routes::diff(&routes.observe().await.unwrap(), desired), []);
    steps
}

#[test]
fn routes_come_change_and_go_and_others_stay() {
    in_node("routes_come_change_and_go_and_others_stay", async || {
        // someone else's routes: to the same prefixes, of other protocols, and in another table with our number
        for route in [
            "route add 10.244.1.0/24 via 192.0.2.9",
            "route add 10.244.9.0/24 via 192.0.2.9 proto 186 metric 2048",
            "route add 10.244.8.0/24 via 192.0.2.9 proto 180 table 77",
            "-6 route add fd00:244:1::/64 via fd00:1::9",
        ] {
            ip(route);
        }
        let foreign = || [ip("route show"), ip("route show table 77"), ip("-6 route show")].concat();
        let before = foreign();
        let routes = Routes::open().unwrap();

        let first = desired(&[
            ("10.244.1.0/24", "192.0.2.2"),
            ("10.244.2.0/24", "192.0.2.3"),
            ("fd00:244:1::/64", "fd00:1::2"),
            ("fd00:244:2::/64", "fd00:1::3"),
        ]);
        assert_eq!(converge(&routes, &first).await.len(), 4);
        assert!(ip("route show 10.244.2.0/24").contains("via 192.0.2.3 dev eth0 proto 180 metric 2048"));
        assert!(ip("route get 10.244.1.7").contains("via 192.0.2.9"), "a foreign route wins");

        let second = desired(&[("10.244.2.0/24", "192.0.2.4"), ("fd00:244:2::/64", "fd00:1::4")]);
        let prefix = |text: &str| text.parse::<IpNet>().unwrap();
        let steps = converge(&routes, &second).await;
        assert_eq!(
            steps,
            [
                Step::Replace { prefix: prefix("10.244.2.0/24"), next_hop: "192.0.2.4".parse().unwrap() },
                Step::Replace { prefix: prefix("fd00:244:2::/64"), next_hop: "fd00:1::4".parse().unwrap() },
                Step::Delete { prefix: prefix("10.244.1.0/24"), metric: METRIC },
                Step::Delete { prefix: prefix("fd00:244:1::/64"), metric: METRIC },
            ]
        );

        // an earlier version's, with another metric, and one of several next hops
        ip("route add 10.244.5.0/24 via 192.0.2.5 proto 180 metric 5");
        ip("route add 10.244.6.0/24 proto 180 metric 2048 nexthop via 192.0.2.5 nexthop via 192.0.2.6");
        let third = desired(&[("10.244.6.0/24", "192.0.2.6")]);
        converge(&routes, &third).await;

        routes.cleanup().await.unwrap();
        assert_eq!(routes.observe().await.unwrap(), []);
        assert_eq!(foreign(), before);
    });
}

#[test]
fn a_route_that_cannot_be_is_reported_and_the_others_are_made() {
    in_node("a_route_that_cannot_be_is_reported_and_the_others_are_made", async || {
        let routes = Routes::open().unwrap();
        let wanted = desired(&[("10.244.1.0/24", "203.0.113.1"), ("10.244.2.0/24", "192.0.2.2")]);
        let failed = routes.apply(&routes::diff(&[], &wanted)).await;
        assert_eq!(failed.len(), 1);
        assert!(matches!(failed[0].0, Step::Add { prefix, .. } if prefix.to_string() == "10.244.1.0/24"));
        assert_eq!(routes.observe().await.unwrap().len(), 1);
    });
}

#[test]
fn addresses_are_read_and_watched() {
    in_node("addresses_are_read_and_watched", async || {
        let addresses = Addresses::open().unwrap();
        let mut changes = addresses.changes();
        let own = |list: &[portolan::dataplane::addresses::NodeAddress]| {
            let list = list.iter().filter(|own| !own.host_scope);
            list.map(|own| format!("{} {}", own.address, own.on_link)).collect::<Vec<_>>()
        };
        let first = addresses.read().await.unwrap();
        let list = own(&first);
        assert!(list.contains(&"192.0.2.1 192.0.2.0/24".into()), "{list:?}");
        assert!(list.contains(&"fd00:1::1 fd00:1::/64".into()), "{list:?}");
        assert!(first.iter().any(|own| own.host_scope && own.address.to_string() == "127.0.0.1"));

        let all = desired(&[("10.244.1.0/24", "192.0.2.2"), ("10.244.2.0/24", "198.51.100.2")]);
        assert_eq!(routes::on_link(&all, &first), desired(&[("10.244.1.0/24", "192.0.2.2")]));

        ip("addr add 198.51.100.1/24 dev eth0");
        let arrived = async {
            loop {
                changes.changed().await.unwrap();
                let now = addresses.read().await.unwrap();
                if own(&now).contains(&"198.51.100.1 198.51.100.0/24".into()) {
                    break now;
                }
            }
        };
        let now = tokio::time::timeout(DEADLINE, arrived).await.expect("the new address is signalled");
        assert_eq!(routes::on_link(&all, &now), all);

        changes.mark_unchanged();
        ip("link set eth0 down");
        tokio::time::timeout(DEADLINE, changes.changed()).await.expect("the interface is signalled").unwrap();
    });
}
