//! What the kernel has of a subject, as other people's tools list it.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use anyhow::ensure;
use portolan_lab::nft;

use crate::objects::{PORT, TARGET_PORT};
use crate::subject::Kind;
use crate::world::Node;

#[derive(Debug)]
pub struct Listing {
    kind: Kind,
    services: usize,
    /// What Services lead to, in order.
    endpoints: Vec<Ipv4Addr>,
}

impl Listing {
    pub async fn read(kind: Kind, node: &Node) -> anyhow::Result<Listing> {
        let list = async |line: &[&str]| node.node.output(line).await;
        let (services, mut endpoints) = match kind {
            Kind::Portolan => {
                let services = list(&["nft", "list", "map", "ip", "portolan", "services"]).await?;
                let endpoints = nft::endpoints(&node.node, "ip").await?;
                (services.matches(&format!(" . tcp . {PORT} : ")).count(), in_maps(&endpoints))
            }
            Kind::Nftables => {
                let services = list(&["nft", "list", "map", "ip", "kube-proxy", "service-ips"]).await?;
                let chains = list(&["nft", "--terse", "list", "table", "ip", "kube-proxy"]).await?;
                (services.matches(&format!(" . tcp . {PORT} : goto service-")).count(), in_maps(&chains))
            }
            Kind::Iptables => in_iptables(&list(&["iptables-save", "-t", "nat"]).await?),
        };
        endpoints.sort();
        Ok(Listing { kind, services, endpoints })
    }

    /// Fails unless it has so many Services and endpoints, no fewer and no more.
    pub fn check(&self, services: u32, endpoints: u32) -> anyhow::Result<()> {
        let counted = (self.services, self.endpoints.len());
        let (wanted, name) = ((services as usize, endpoints as usize), self.kind.name());
        ensure!(
            counted == wanted,
            "the kernel has (Services, endpoints) {counted:?} of {name}, not {wanted:?}"
        );
        Ok(())
    }

    /// Whether some Service leads to this address.
    pub fn has(&self, endpoint: Ipv4Addr) -> bool {
        self.endpoints.binary_search(&endpoint).is_ok()
    }
}

/// The values of maps, which are written `ADDRESS . PORT`.
fn in_maps(text: &str) -> Vec<Ipv4Addr> {
    let port = format!(" . {TARGET_PORT}");
    let values = text.match_indices(&port).map(|(end, _)| text[..end].rsplit(' ').next());
    values.filter_map(|word| word?.parse().ok()).collect()
}

/// Chains that nothing leads to any more stay for a while and do not count.
fn in_iptables(text: &str) -> (usize, Vec<Ipv4Addr>) {
    let rules = |of: &'static str| text.lines().filter(move |line| line.starts_with(of));
    let port = format!("--dport {PORT} ");
    let services = rules("-A KUBE-SERVICES -d ").filter(|rule| rule.contains(&port)).count();
    let led_to: BTreeSet<&str> = rules("-A KUBE-SVC-").filter_map(|rule| word_after(rule, "-j")).collect();
    let live = rules("-A KUBE-SEP-")
        .filter(|rule| word_after(rule, "-A").is_some_and(|chain| led_to.contains(chain)));
    let port = format!(":{TARGET_PORT}");
    let endpoints =
        live.filter_map(|rule| word_after(rule, "--to-destination")?.strip_suffix(&port)?.parse().ok());
    (services, endpoints.collect())
}

fn word_after<'a>(line: &'a str, option: &str) -> Option<&'a str> {
    line.split_whitespace().skip_while(|word| *word != option).nth(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_read_from_maps() {
        let text = "elements = { 10.96.1.0 . tcp . 80 . 0 : 10.128.0.0 . 8080,\n\
                    \t 10.96.1.0 . tcp . 80 . 1 : 10.128.0.1 . 8080 }";
        assert_eq!(in_maps(text), [Ipv4Addr::new(10, 128, 0, 0), Ipv4Addr::new(10, 128, 0, 1)]);
        assert_eq!(in_maps("dnat ip to numgen random mod 1 map { 0 : 10.128.0.9 . 8080 }").len(), 1);
    }

    #[test]
    fn stale_chains_of_iptables_do_not_count() {
        let text = "-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -m tcp --dport 443 -j KUBE-SVC-NPX\n\
                    -A KUBE-SERVICES -d 10.96.1.0/32 -p tcp -m comment --comment \"a b\" -m tcp --dport 80 -j KUBE-SVC-A\n\
                    -A KUBE-SVC-A -m statistic --mode random -j KUBE-SEP-ONE\n\
                    -A KUBE-SEP-ONE -s 10.128.0.0/32 -j KUBE-MARK-MASQ\n\
                    -A KUBE-SEP-ONE -p tcp -m tcp -j DNAT --to-destination 10.128.0.0:8080\n\
                    -A KUBE-SEP-OLD -p tcp -m tcp -j DNAT --to-destination 10.128.0.1:8080\n";
        assert_eq!(in_iptables(text), (1, vec![Ipv4Addr::new(10, 128, 0, 0)]));
    }
}
