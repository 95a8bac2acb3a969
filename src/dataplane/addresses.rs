//! The node's own addresses, read and watched.

use std::io;
use std::net::IpAddr;

use anyhow::Context;
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::LinkFlags;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// One address of this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeAddress {
    pub address: IpAddr,
    /// Who can be reached over the interface without a router.
    pub on_link: IpNet,
    /// Index of the interface.
    pub interface: u32,
    /// Only this node itself can use it: loopback addresses.
    pub host_scope: bool,
}

/// Reads and watches in the network namespace that it was opened in.
pub struct Addresses {
    handle: Handle,
    changes: watch::Receiver<()>,
    _tasks: JoinSet<()>,
}

impl Addresses {
    /// Changes are counted from here on: call before the first [`Addresses::read`].
    pub fn open() -> io::Result<Addresses> {
        let groups = [MulticastGroup::Ipv4Ifaddr, MulticastGroup::Ipv6Ifaddr, MulticastGroup::Link];
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
        let (changed, changes) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        tasks.spawn(async move {
            while let Some((message, _)) = messages.next().await {
                if is_change(&message) {
                    changed.send_replace(());
                }
            }
        });
        Ok(Addresses { handle, changes, _tasks: tasks })
    }

    /// Sorted.
    pub async fn read(&self) -> anyhow::Result<Vec<NodeAddress>> {
        let messages = self.handle.address().get().execute();
        let messages: Vec<_> = messages.try_collect().await.context("reading the node's addresses")?;
        let mut addresses: Vec<_> = messages.iter().filter_map(node_address).collect();
        addresses.sort();
        Ok(addresses)
    }

    /// Signals that addresses, or the state of an interface, have changed. The kernel drops an interface's routes
    /// when it goes down, without a word of its own for IPv4, so routes are to be looked at as well.
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changes.clone()
    }
}

fn is_change(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewAddress(_) | RouteNetlinkMessage::DelAddress(_),
        ) => true,
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
            link.header.change_mask.intersects(LinkFlags::Up | LinkFlags::Running | LinkFlags::LowerUp)
        }
        // some messages were lost: anything may have changed
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}

fn node_address(message: &AddressMessage) -> Option<NodeAddress> {
    let find = |f: fn(&AddressAttribute) -> Option<IpAddr>| message.attributes.iter().find_map(f);
    let local = find(|attribute| match attribute {
        AddressAttribute::Local(ip) => Some(*ip),
        _ => None,
    });
    // on a point-to-point interface this is the other end, else the same as the local address
    let peer = find(|attribute| match attribute {
        AddressAttribute::Address(ip) => Some(*ip),
        _ => None,
    });
    let on_link = IpNet::new(peer.or(local)?, message.header.prefix_len).ok()?.trunc();
    Some(NodeAddress {
        address: local.or(peer)?,
        on_link,
        interface: message.header.index,
        host_scope: message.header.scope == AddressScope::Host,
    })
}
