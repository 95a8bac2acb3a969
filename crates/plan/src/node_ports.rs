//! Which of this node's addresses answer node ports (S19, S20, S21).

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;
use portolan_model::Family;

/// One entry of `nodePortAddresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selector {
    /// The addresses that the node is known by: its Node object's internal IPs, unless bindAddress says another (S76).
    Primary,
    /// Loopback addresses: by a relay, never by rules (S19, S22).
    Localhost,
    All,
    Within(IpNet),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a CIDR nor one of primary, localhost, all")]
pub struct UnknownSelector(String);

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Selector::Primary => f.write_str("primary"),
            Selector::Localhost => f.write_str("localhost"),
            Selector::All => f.write_str("all"),
            Selector::Within(net) => net.fmt(f),
        }
    }
}

impl FromStr for Selector {
    type Err = UnknownSelector;

    fn from_str(text: &str) -> Result<Selector, UnknownSelector> {
        Ok(match text.trim() {
            "primary" => Selector::Primary,
            "localhost" => Selector::Localhost,
            "all" => Selector::All,
            cidr => Selector::Within(cidr.parse().map_err(|_| UnknownSelector(text.into()))?),
        })
    }
}

/// The addresses that answer node ports by rules: of `interfaces`, which are this node's addresses, those that `selectors` ask
/// for, and no loopback address (S19). `primary` are the addresses that the node is known by. `vips` are not the node's own even
/// where it has them on an interface (S21), unless they are primary addresses (S28).
pub fn addresses(
    selectors: &[Selector],
    primary: &[IpAddr],
    interfaces: &BTreeSet<IpAddr>,
    vips: &BTreeSet<IpAddr>,
) -> BTreeSet<IpAddr> {
    let own = primary.iter().chain(interfaces.difference(vips));
    own.filter(|ip| !ip.is_loopback() && is_selected(selectors, primary, ip)).copied().collect()
}

/// The loopback addresses that node ports are relayed on: 127.0.0.1 and ::1, each where `selectors` name it by the keyword or
/// by a range of loopback addresses alone. That `all` or 0.0.0.0/0 contain it is not enough (S22).
pub fn loopback(selectors: &[Selector]) -> BTreeSet<IpAddr> {
    let asked = |ip: &IpAddr| {
        selectors.iter().any(|selector| match selector {
            Selector::Localhost => true,
            Selector::Within(net) => net.network().is_loopback() && net.contains(ip),
            Selector::Primary | Selector::All => false,
        })
    };
    let both = [IpAddr::from(Ipv4Addr::LOCALHOST), IpAddr::from(Ipv6Addr::LOCALHOST)];
    both.into_iter().filter(asked).collect()
}

/// Where health check node ports are served (S60), of `chosen`, the addresses that answer node ports: there, or at [`::`], which is
/// every address of both families, where `selectors` ask for all.
pub fn health_addresses(selectors: &[Selector], chosen: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let all_of = |family| {
        selectors.iter().any(|selector| match selector {
            Selector::All => true,
            Selector::Within(net) => net.prefix_len() == 0 && Family::of(&net.addr()) == family,
            Selector::Primary | Selector::Localhost => false,
        })
    };
    match Family::ALL.into_iter().all(all_of) {
        true => [Ipv6Addr::UNSPECIFIED.into()].into(),
        false => chosen.clone(),
    }
}

fn is_selected(selectors: &[Selector], primary: &[IpAddr], ip: &IpAddr) -> bool {
    let is_primary = primary.contains(ip);
    let asked = selectors.iter().any(|selector| match selector {
        Selector::Primary => is_primary,
        Selector::Localhost => false,
        Selector::All => true,
        Selector::Within(net) => net.contains(ip),
    });
    match selectors {
        [] => is_primary,
        selectors => asked || is_open(selectors, Family::of(ip)),
    }
}

/// A list of CIDRs alone says nothing of a family that it does not name: all of that is meant. A keyword speaks for both.
fn is_open(selectors: &[Selector], family: Family) -> bool {
    selectors.iter().all(|selector| match selector {
        Selector::Within(net) => Family::of(&net.addr()) != family,
        Selector::Primary | Selector::Localhost | Selector::All => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIMARY: [&str; 2] = ["172.30.0.11", "fd00::11"];
    const INTERFACES: [&str; 7] =
        ["127.0.0.1", "::1", "172.30.0.11", "10.1.0.11", "192.0.2.10", "fd00::11", "2001:db8::11"];

    fn ips<C: FromIterator<IpAddr>>(texts: &[&str]) -> C {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn select(selectors: &[&str], vips: &[&str]) -> String {
        let selectors: Vec<Selector> = selectors.iter().map(|text| text.parse().unwrap()).collect();
        let primary: Vec<IpAddr> = ips(&PRIMARY);
        let chosen = addresses(&selectors, &primary, &ips(&INTERFACES), &ips(vips));
        chosen.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn s20_which_addresses_answer_node_ports() {
        let cases: [(&[&str], &str); 11] = [
            (&[], "172.30.0.11 fd00::11"),
            (&["primary"], "172.30.0.11 fd00::11"),
            (&["localhost"], ""),
            (&["all"], "10.1.0.11 172.30.0.11 192.0.2.10 2001:db8::11 fd00::11"),
            (&["10.1.0.0/16"], "10.1.0.11 2001:db8::11 fd00::11"),
            (&["10.1.0.0/16", "fd00::/64"], "10.1.0.11 fd00::11"),
            (&["2001:db8::/32"], "10.1.0.11 172.30.0.11 192.0.2.10 2001:db8::11"),
            (&["0.0.0.0/0", "primary"], "10.1.0.11 172.30.0.11 192.0.2.10 fd00::11"),
            (&["0.0.0.0/0", "::/0"], "10.1.0.11 172.30.0.11 192.0.2.10 2001:db8::11 fd00::11"),
            (&["127.0.0.0/8", "::1/128"], ""),
            (&["10.1.0.0/16", "localhost"], "10.1.0.11"),
        ];
        for (selectors, chosen) in cases {
            assert_eq!(select(selectors, &[]), chosen, "{selectors:?}");
        }
    }

    #[test]
    fn s22_loopback_is_asked_for_by_its_name() {
        let check = |selectors: &[&str], expected: &str| {
            let selectors: Vec<Selector> = selectors.iter().map(|text| text.parse().unwrap()).collect();
            let found: Vec<String> = loopback(&selectors).iter().map(IpAddr::to_string).collect();
            assert_eq!(found.join(" "), expected, "{selectors:?}");
        };
        check(&[], "");
        check(&["primary", "all", "0.0.0.0/0", "::/0", "0.0.0.0/1"], "");
        check(&["localhost"], "127.0.0.1 ::1");
        check(&["primary", "127.0.0.0/8"], "127.0.0.1");
        check(&["127.0.0.1/32", "::1/128"], "127.0.0.1 ::1");
        check(&["127.0.1.0/24"], "");
    }

    #[test]
    fn s60_health_check_ports_are_served_at_the_same_addresses() {
        let chosen: BTreeSet<IpAddr> = ips(&PRIMARY);
        let check = |selectors: &[&str], expected: &BTreeSet<IpAddr>| {
            let selectors: Vec<Selector> = selectors.iter().map(|text| text.parse().unwrap()).collect();
            assert_eq!(health_addresses(&selectors, &chosen), *expected, "{selectors:?}");
        };
        check(&[], &chosen);
        check(&["primary", "0.0.0.0/0"], &chosen);
        check(&["all"], &ips(&["::"]));
        check(&["0.0.0.0/0", "::/0"], &ips(&["::"]));
    }

    #[test]
    fn s21_a_vip_on_an_interface_is_no_node_address() {
        assert_eq!(select(&["all"], &["192.0.2.10"]), "10.1.0.11 172.30.0.11 2001:db8::11 fd00::11");
        assert_eq!(select(&["primary"], &["172.30.0.11"]), "172.30.0.11 fd00::11", "S28");
    }

    #[test]
    fn s20_what_is_no_selector_is_named() {
        let error = "10.0.0.0/33".parse::<Selector>().unwrap_err().to_string();
        assert_eq!(error, "\"10.0.0.0/33\" is neither a CIDR nor one of primary, localhost, all");
    }
}
