//! Routes to other nodes' pods: ours are known by their protocol number, and no other route is ever touched.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;

use anyhow::Context;
use futures::TryStreamExt;
use ipnet::IpNet;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol};
use rtnetlink::{Handle, IpVersion, RouteMessageBuilder};
use tokio::task::JoinSet;

use super::addresses::NodeAddress;

/// Our number in `rtm_protocol`: free in the kernel's `RTPROT_*` and in iproute2's `rt_protos`, below the block that
/// routing daemons have (186 to 192).
pub const PROTOCOL: u8 = 180;
/// Our routes' metric. The kernel tells routes to one prefix apart by it, so a metric of our own keeps ours from standing
/// in anyone's way; a lower one (the defaults are 0, and 1024 in IPv6) wins over ours.
pub const METRIC: u32 = 2048;

/// A route of our protocol number, as the kernel has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Observed {
    pub prefix: IpNet,
    pub metric: u32,
    /// None: not of our making (several next hops, or none).
    pub next_hop: Option<IpAddr>,
}

/// One change; any one of them is safe alone, in the order that [`diff`] gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    Delete { prefix: IpNet, metric: u32 },
    Replace { prefix: IpNet, next_hop: IpAddr },
    Add { prefix: IpNet, next_hop: IpAddr },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Step::Delete { prefix, .. } => write!(f, "delete route to {prefix}"),
            Step::Replace { prefix, next_hop } => write!(f, "replace route to {prefix} via {next_hop}"),
            Step::Add { prefix, next_hop } => write!(f, "add route to {prefix} via {next_hop}"),
        }
    }
}

/// The routes that can be: those whose next hop is a neighbour, on a subnet of an interface of this node. The others'
/// nodes are reached by other means (BGP, an overlay, the cloud's router).
pub fn on_link(routes: &BTreeMap<IpNet, IpAddr>, addresses: &[NodeAddress]) -> BTreeMap<IpNet, IpAddr> {
    let is_own = |ip: &IpAddr| addresses.iter().any(|own| own.address == *ip);
    let is_neighbour = |ip: &IpAddr| addresses.iter().any(|own| !own.host_scope && own.on_link.contains(ip));
    routes
        .iter()
        .filter(|(prefix, next_hop)| prefix.addr().is_ipv4() == next_hop.is_ipv4())
        .filter(|(_, next_hop)| is_neighbour(next_hop) && !is_own(next_hop))
        .map(|(prefix, next_hop)| (prefix.trunc(), *next_hop))
        .collect()
}

/// What to do so that exactly the desired routes are there.
pub fn diff(actual: &[Observed], desired: &BTreeMap<IpNet, IpAddr>) -> Vec<Step> {
    let ours: BTreeMap<IpNet, &Observed> =
        actual.iter().filter(|route| route.metric == METRIC).map(|route| (route.prefix, route)).collect();
    let stale = actual
        .iter()
        .filter(|route| route.metric != METRIC || !desired.contains_key(&route.prefix))
        .map(|route| Step::Delete { prefix: route.prefix, metric: route.metric });
    let wanted = desired.iter().filter_map(|(&prefix, &next_hop)| match ours.get(&prefix) {
        Some(route) if route.next_hop == Some(next_hop) => None,
        Some(_) => Some(Step::Replace { prefix, next_hop }),
        None => Some(Step::Add { prefix, next_hop }),
    });
    wanted.chain(stale).collect()
}

/// Reads and writes in the network namespace that it was opened in.
pub struct Routes {
    handle: Handle,
    _tasks: JoinSet<()>,
}

impl Routes {
    pub fn open() -> io::Result<Routes> {
        // strict: the kernel dumps our protocol's routes only, not a whole Internet table
        let (connection, handle, _) = rtnetlink::new_connection_with_strict_check()?;
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        Ok(Routes { handle, _tasks: tasks })
    }

    /// Our routes in the main table, both families, sorted.
    pub async fn observe(&self) -> anyhow::Result<Vec<Observed>> {
        let mut routes = Vec::new();
        for version in [IpVersion::V4, IpVersion::V6] {
            let messages = self.handle.route().get(filter(version)).execute();
            let messages: Vec<_> = messages.try_collect().await.context("reading routes")?;
            routes.extend(messages.iter().filter(|message| is_ours(message)).filter_map(observed));
        }
        routes.sort();
        Ok(routes)
    }

    /// Does every step it can, and reports those it could not.
    pub async fn apply(&self, steps: &[Step]) -> Vec<(Step, rtnetlink::Error)> {
        let mut failed = Vec::new();
        for step in steps {
            if let Err(error) = self.apply_one(step).await {
                failed.push((*step, error));
            }
        }
        failed
    }

    /// Removes all routes of ours.
    pub async fn cleanup(&self) -> anyhow::Result<()> {
        let steps = diff(&self.observe().await?, &BTreeMap::new());
        match self.apply(&steps).await.into_iter().next() {
            Some((step, error)) => Err(error).context(step.to_string()),
            None => Ok(()),
        }
    }

    async fn apply_one(&self, step: &Step) -> Result<(), rtnetlink::Error> {
        match *step {
            Step::Delete { prefix, metric } => {
                match self.handle.route().del(message(prefix, None, metric)).execute().await {
                    // gone meanwhile, for example with its interface
                    Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ESRCH => Ok(()),
                    other => other,
                }
            }
            Step::Replace { prefix, next_hop } => {
                self.handle.route().add(message(prefix, Some(next_hop), METRIC)).replace().execute().await
            }
            Step::Add { prefix, next_hop } => {
                self.handle.route().add(message(prefix, Some(next_hop), METRIC)).execute().await
            }
        }
    }
}

fn filter(version: IpVersion) -> RouteMessage {
    let mut message = match version {
        IpVersion::V4 => RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        IpVersion::V6 => RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    };
    message.header = RouteHeader {
        address_family: message.header.address_family,
        protocol: RouteProtocol::Other(PROTOCOL),
        table: RouteHeader::RT_TABLE_MAIN,
        ..RouteHeader::default()
    };
    message
}

/// A route of ours. A deletion matches the protocol number too, so that it can never hit a foreign route.
fn message(prefix: IpNet, next_hop: Option<IpAddr>, metric: u32) -> RouteMessage {
    let mut message = match prefix {
        IpNet::V4(net) => RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .build(),
        IpNet::V6(net) => RouteMessageBuilder::<std::net::Ipv6Addr>::new()
            .destination_prefix(net.network(), net.prefix_len())
            .build(),
    };
    message.header.protocol = RouteProtocol::Other(PROTOCOL);
    message.attributes.push(RouteAttribute::Priority(metric));
    message.attributes.extend(next_hop.map(|ip| RouteAttribute::Gateway(ip.into())));
    message
}

fn is_ours(message: &RouteMessage) -> bool {
    let table = message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    message.header.protocol == RouteProtocol::Other(PROTOCOL)
        && table.unwrap_or(message.header.table as u32) == RouteHeader::RT_TABLE_MAIN as u32
}

fn observed(message: &RouteMessage) -> Option<Observed> {
    let mut destination = match message.header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::from([0; 4]),
        _ => IpAddr::from([0; 16]),
    };
    let (mut metric, mut next_hop) = (0, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => destination = ip(address)?,
            RouteAttribute::Gateway(address) => next_hop = ip(address),
            RouteAttribute::Priority(priority) => metric = *priority,
            _ => {}
        }
    }
    let prefix = IpNet::new(destination, message.header.destination_prefix_length).ok()?;
    Some(Observed { prefix, metric, next_hop })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn routes(list: &[(&str, &str)]) -> BTreeMap<IpNet, IpAddr> {
        list.iter().map(|(prefix, next_hop)| (prefix.parse().unwrap(), next_hop.parse().unwrap())).collect()
    }

    fn address(address: &str, on_link: &str) -> NodeAddress {
        let host_scope = on_link == "127.0.0.0/8";
        NodeAddress {
            address: address.parse().unwrap(),
            on_link: on_link.parse().unwrap(),
            interface: 2,
            host_scope,
        }
    }

    #[test]
    fn only_neighbours_are_next_hops() {
        let addresses = [
            address("127.0.0.1", "127.0.0.0/8"),
            address("192.0.2.1", "192.0.2.0/24"),
            address("fd00:1::1", "fd00:1::/64"),
            // the other end of a point-to-point link
            address("10.9.0.1", "10.9.0.2/32"),
        ];
        let all = routes(&[
            ("10.244.1.0/24", "192.0.2.2"),
            ("10.244.2.0/24", "198.51.100.2"),
            ("10.244.3.0/24", "127.0.0.2"),
            ("10.244.4.0/24", "192.0.2.1"),
            ("10.244.5.0/24", "10.9.0.2"),
            ("10.244.6.0/24", "fd00:1::2"),
            ("fd00:244:1::/64", "fd00:1::2"),
            ("fd00:244:2::/64", "fd00:2::2"),
        ]);
        let reachable = routes(&[
            ("10.244.1.0/24", "192.0.2.2"),
            ("10.244.5.0/24", "10.9.0.2"),
            ("fd00:244:1::/64", "fd00:1::2"),
        ]);
        assert_eq!(on_link(&all, &addresses), reachable);
        assert_eq!(on_link(&all, &[]), BTreeMap::new());
    }

    #[test]
    fn the_difference_is_replaced_added_and_deleted() {
        let prefix = |i: u8| IpNet::new([10, 244, i, 0].into(), 24).unwrap();
        let hop = |i: u8| IpAddr::from([192, 0, 2, i]);
        let ours = |i, next_hop| Observed { prefix: prefix(i), metric: METRIC, next_hop };
        let actual = [
            ours(1, Some(hop(1))),
            ours(2, Some(hop(9))),
            ours(3, None),
            ours(4, Some(hop(4))),
            Observed { prefix: prefix(1), metric: 5, next_hop: Some(hop(1)) },
        ];
        let desired = [1, 2, 3, 5].map(|i| (prefix(i), hop(i))).into();
        let replace = |i| Step::Replace { prefix: prefix(i), next_hop: hop(i) };
        assert_eq!(
            diff(&actual, &desired),
            [
                replace(2),
                replace(3),
                Step::Add { prefix: prefix(5), next_hop: hop(5) },
                Step::Delete { prefix: prefix(4), metric: METRIC },
                Step::Delete { prefix: prefix(1), metric: 5 },
            ]
        );
        assert_eq!(diff(&[], &BTreeMap::new()), []);
    }
}
