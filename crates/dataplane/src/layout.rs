//! Layout R: the sets, and the chains that every cluster has (nftables.md).
//!
//! ```text
//!   prerouting ──> source-ranges ──> [pods] cluster-services ──> services ──> (masq-|nonpod-)pick-E ──> pick ──> dnat
//!   output     ──> source-ranges ────────── cluster-services ──> services          │ refuse, drop
//!   postrouting ── remember, then masquerade what was marked, and pods that reach themselves
//!   input ──────── remember
//! ```
//!
//! `services` and `cluster-services` give a number ([`Target::code`]), and the small map `targets` the chain of that number: what
//! the kernel does for each new verdict is to follow all verdicts of the same map, in all chains and for every hook, which costs
//! 6 ms of CPU with 30,000 frontends, and nothing that one would notice with a few hundred numbers.
//!
//! In the same way one chain of each side looks up `endpoints`, and a chain for each number of endpoints says no more than which index
//! to look for: for each rule that is to look up a map the kernel walks it whole, 50 ms with 300,000 endpoints. So a count that
//! nobody had before costs next to nothing, however large.
//!
//! From one look-up to the next, numbers and indices are in the packet's priority, the one place that a rule can write, and another
//! rule of the same kind read, which is of no meaning to others at that point: nft(8) cannot list a rule of two chained look-ups,
//! and marks belong to whoever uses them (S47). The last hooks set it to none. So the first packet of a connection that is translated
//! loses a priority that it had: of the process (SO_PRIORITY), of its TOS, or of a VLAN's tag; no other packet is touched.
//!
//! Node ports at loopback addresses (S22) are served by a relay in user space as far as they are TCP; all others are refused
//! by `refuse-on-localhost`, which counts them.
//!
//! Only nat hooks: a packet of a connection that stands runs none of these rules.

mod affinity;

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use portolan_model::{Detector, Family, Masquerade, Protocol};
use portolan_nft::{
    Atom, Base, Chain, ChainKind, Field, Hook, KeyType, Name, Rule, Set, Statement, TableFamily, TableId,
    ValueType, Verdict,
};

use crate::localhost;
use crate::target::{Pick, Shared, Side, Target};

pub use affinity::ledger;

pub const SERVICES: &str = "services";
pub const CLUSTER_SERVICES: &str = "cluster-services";
pub const TARGETS: &str = "targets";
pub const ENDPOINTS: &str = "endpoints";
pub const VIPS: &str = "vips";
pub const HAIRPIN: &str = "hairpin";
pub const HOST_PORTS: &str = "host-ports";
pub const CLUSTER_PORTS: &str = "cluster-ports";
pub const FW_VIPS: &str = "fw-vips";
pub const FW_ALLOW: &str = "fw-allow";
pub const REFUSE: &str = "refuse";
pub const REFUSE_ON_LOCALHOST: &str = "refuse-on-localhost";
pub const AFFINITY: &str = "affinity";
pub const AFFINE: &str = "affine";
pub const RECALL: &str = "recall";
const PICK: &str = "pick";
const CLUSTER_PICK: &str = "cluster-pick";
const REMEMBER: &str = "remember";
const RACED: &str = "raced";
const CLUSTER_RACED: &str = "cluster-raced";
const SOURCE_RANGES: &str = "source-ranges";
const MARK_NONPODS: &str = "mark-nonpods";
const PREROUTING: &str = "nat-prerouting";
const OUTPUT: &str = "nat-output";
const POSTROUTING: &str = "nat-postrouting";
const INPUT: &str = "nat-input";
/// Of an interface's name, without the zero at its end.
const MAX_INTERFACE_LEN: usize = 15;

/// Every chain after those that it leads to, the hooks last.
pub const FIXED: [&str; 16] = [
    PICK,
    CLUSTER_PICK,
    REFUSE,
    REFUSE_ON_LOCALHOST,
    RECALL,
    REMEMBER,
    MARK_NONPODS,
    RACED,
    CLUSTER_RACED,
    SOURCE_RANGES,
    CLUSTER_SERVICES,
    SERVICES,
    POSTROUTING,
    INPUT,
    PREROUTING,
    OUTPUT,
];

/// The node's facts that the rules depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How pods are told from outside clients (S48).
    pub pods: Detector,
    /// The node's addresses that answer node ports (S20), of both families. At loopback addresses among them TCP is left to a
    /// relay and the rest is refused (S22).
    pub node_port_addresses: BTreeSet<IpAddr>,
    /// The cluster's ranges of ClusterIPs: what of them is nobody's goes nowhere (S18).
    pub service_cidrs: Vec<IpNet>,
    /// The bit that says "masquerade" between our chains (S47).
    pub mark: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            pods: Detector::default(),
            node_port_addresses: BTreeSet::new(),
            service_cidrs: Vec::new(),
            mark: 0x4000,
        }
    }
}

/// Sorted and without overlaps, so that the order in which they were given changes nothing.
fn of_family(nets: &[IpNet], family: Family) -> Vec<IpNet> {
    let own = nets.iter().filter(|net| Family::of(&net.addr()) == family);
    IpNet::aggregate(&own.map(IpNet::trunc).collect())
}

pub fn table_id(family: Family) -> TableId {
    TableId::new(table_family(family), "portolan")
}

pub fn table_family(family: Family) -> TableFamily {
    match family {
        Family::Ipv4 => TableFamily::Ip,
        Family::Ipv6 => TableFamily::Ip6,
    }
}

pub fn sets(family: Family) -> [(&'static str, Set); 12] {
    use KeyType::{Address, Port, Priority, Protocol};
    let set = |key: &[KeyType]| Set { key: key.to_vec(), ..Set::default() };
    let map = |key: &[KeyType], value| Set { value: Some(value), ..set(key) };
    let frontend = [Address, Protocol, Port];
    [
        (SERVICES, map(&frontend, ValueType::Concat(vec![Priority]))),
        (CLUSTER_SERVICES, map(&frontend, ValueType::Concat(vec![Priority]))),
        (TARGETS, map(&[Priority], ValueType::Verdict)),
        (ENDPOINTS, map(&[Address, Protocol, Port, Priority], ValueType::Concat(vec![Address, Port]))),
        (VIPS, set(&[Address])),
        // the frontends whose address is no VIP, and those that are in `cluster-services`: see `raced`
        (HOST_PORTS, set(&frontend)),
        (CLUSTER_PORTS, set(&frontend)),
        (HAIRPIN, set(&[Address, Address])),
        (FW_VIPS, set(&frontend)),
        (FW_ALLOW, Set { interval: true, ..set(&[Address, Protocol, Port, Address]) }),
        (AFFINE, map(&[Address, Protocol, Port, Address, Port], ValueType::Verdict)),
        affinity::set(family),
    ]
}

/// The chains that stand whatever the Services are, every one after those that it leads to.
pub fn fixed(settings: &Settings, family: Family) -> Vec<(&'static str, Chain)> {
    let rules = Rules { settings, family };
    FIXED.into_iter().map(|name| (name, Chain { base: base(name), rules: rules.fixed(name) })).collect()
}

/// What `targets` has for a target.
pub fn verdict(target: Target) -> Verdict {
    match target {
        Target::Pick(pick) => Verdict::Jump(pick.to_string().into()),
        Target::Refuse => Verdict::Jump(REFUSE.into()),
        Target::RefuseOnLocalhost => Verdict::Jump(REFUSE_ON_LOCALHOST.into()),
        Target::Drop | Target::Unknown => Verdict::Drop,
    }
}

pub fn shared(settings: &Settings, shared: Shared) -> Vec<Rule> {
    match shared {
        Shared::Pick(pick) => self::pick(settings, pick),
        Shared::Remember(memory) => affinity::remember_for(memory),
        Shared::Record(memory, ledger) => affinity::record(memory, ledger),
        Shared::Recall(recall) => affinity::look_through(recall),
    }
}

fn pick(settings: &Settings, pick: Pick) -> Vec<Rule> {
    let Some(next) = pick.next() else {
        let chosen = Statement::SetPriorityRandom { modulus: pick.count, offset: pick.side.offset() };
        return vec![rule([chosen, goto(chain_by_index(pick.side))])];
    };
    let first = match pick.masquerade {
        Masquerade::Always => Statement::MarkOr(settings.mark),
        Masquerade::NonPods => jump(MARK_NONPODS),
        Masquerade::Never => jump(RECALL),
    };
    vec![rule([first]), rule([goto(&next.to_string())])]
}

fn is(protocol: Protocol) -> Statement {
    let value = Atom::Protocol(protocol.number());
    Statement::Compare { field: Field::L4Proto, value, negate: false }
}

fn base(chain: &str) -> Option<Base> {
    let nat = |hook, priority| Some(Base { kind: ChainKind::Nat, hook, priority });
    match chain {
        PREROUTING => nat(Hook::Prerouting, -100),
        OUTPUT => nat(Hook::Output, -100),
        POSTROUTING => nat(Hook::Postrouting, 100),
        INPUT => nat(Hook::Input, 100),
        _ => None,
    }
}

struct Rules<'a> {
    settings: &'a Settings,
    family: Family,
}

impl Rules<'_> {
    fn fixed(&self, chain: &str) -> Vec<Rule> {
        match chain {
            PREROUTING => self.prerouting(),
            OUTPUT => vec![
                rule([jump(SOURCE_RANGES)]),
                rule([jump(CLUSTER_SERVICES)]), // S45: the node's own connections
                rule([jump(SERVICES)]),
            ],
            POSTROUTING => self.postrouting(),
            INPUT => vec![affinity::after_dnat()], // an endpoint in the host's network
            RECALL => vec![affinity::recall(self.family)],
            REMEMBER => affinity::remember(),
            PICK => by_index(Side::Outside),
            CLUSTER_PICK => by_index(Side::Cluster),
            SOURCE_RANGES => vec![self.source_ranges()],
            CLUSTER_SERVICES => {
                vec![dispatch(CLUSTER_SERVICES), rule([is_port(CLUSTER_PORTS), goto(CLUSTER_RACED)])]
            }
            SERVICES => self.services(),
            RACED => vec![
                rule([jump(MARK_NONPODS)]),
                retry(Side::Outside),
                rule([Statement::Reject]), // S17
            ],
            CLUSTER_RACED => vec![
                rule([jump(MARK_NONPODS)]),
                retry(Side::Cluster),
                rule([Statement::Verdict(Verdict::Drop)]),
            ],
            MARK_NONPODS => self.mark_nonpods(),
            REFUSE => vec![rule([Statement::Reject])],
            REFUSE_ON_LOCALHOST => {
                let refuse =
                    |protocol: &Protocol| rule([is(*protocol), Statement::Counter, Statement::Reject]);
                localhost::PROTOCOLS.iter().map(refuse).collect()
            }
            _ => Vec::new(),
        }
    }

    fn services(&self) -> Vec<Rule> {
        let unallocated = of_family(&self.settings.service_cidrs, self.family);
        let drop = unallocated
            .iter()
            .map(|net| rule([in_prefix(Field::Daddr, net), Statement::Verdict(Verdict::Drop)])); // S18
        let known =
            [dispatch(SERVICES), rule([is_vip(), goto(RACED)]), rule([is_port(HOST_PORTS), goto(RACED)])];
        known.into_iter().chain(drop).collect()
    }

    fn prerouting(&self) -> Vec<Rule> {
        let mut rules = vec![rule([jump(SOURCE_RANGES)])];
        rules.extend(self.pod_sources().into_iter().map(|from_pod| rule([from_pod, jump(CLUSTER_SERVICES)]))); // S45
        rules.push(rule([jump(SERVICES)]));
        rules
    }

    /// S43, S46, S47.
    fn postrouting(&self) -> Vec<Rule> {
        let mark = self.settings.mark;
        let masquerade = Statement::Masquerade { fully_random: true };
        let itself =
            Statement::InSet { key: vec![Field::Saddr, Field::Daddr], set: HAIRPIN.into(), negate: false };
        vec![
            affinity::after_dnat(),
            rule([
                Statement::MarkTest { mask: mark, value: mark },
                Statement::MarkXor(mark),
                masquerade.clone(),
            ]),
            rule([itself, masquerade]),
        ]
    }

    /// S27: before every other rule, so that pods and the node itself are held to the ranges too.
    fn source_ranges(&self) -> Rule {
        let mut with_source = frontend();
        with_source.push(Field::Saddr);
        rule([
            Statement::InSet { key: frontend(), set: FW_VIPS.into(), negate: false },
            Statement::InSet { key: with_source, set: FW_ALLOW.into(), negate: true },
            Statement::Verdict(Verdict::Drop),
        ])
    }

    /// S16.
    fn mark_nonpods(&self) -> Vec<Rule> {
        let pods = self
            .pod_sources()
            .into_iter()
            .map(|from_pod| rule([from_pod, Statement::Verdict(Verdict::Return)]));
        pods.chain([rule([Statement::MarkOr(self.settings.mark)])]).collect()
    }

    /// S48: one match for each range or interface of pods. What the node itself sends comes in by no interface.
    fn pod_sources(&self) -> Vec<Statement> {
        match &self.settings.pods {
            Detector::Ranges(ranges) => {
                of_family(ranges, self.family).iter().map(|net| in_prefix(Field::Saddr, net)).collect()
            }
            Detector::Interface(name) => vec![comes_in_by(name)],
            // As long as a name can be, it is the name.
            Detector::InterfacePrefix(name) if name.len() >= MAX_INTERFACE_LEN => vec![comes_in_by(name)],
            Detector::InterfacePrefix(prefix) => vec![Statement::IifPrefix(prefix.clone())],
        }
    }
}

fn comes_in_by(interface: &Name) -> Statement {
    Statement::Compare { field: Field::Iif, value: Atom::Interface(interface.clone()), negate: false }
}

fn frontend() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport]
}

/// Where the packet goes now.
fn endpoint() -> [Field; 2] {
    [Field::Daddr, Field::CtReplySport]
}

/// One rule, so that a frontend that is in no map leaves it before anything is written.
fn dispatch(map: &str) -> Rule {
    rule([
        Statement::SetPriorityFrom { key: frontend(), map: map.into() },
        Statement::Vmap { key: vec![Field::Priority], map: TARGETS.into() },
    ])
}

fn in_prefix(field: Field, net: &IpNet) -> Statement {
    Statement::InPrefix { field, address: net.addr(), length: net.prefix_len(), negate: false }
}

fn is_vip() -> Statement {
    Statement::InSet { key: vec![Field::Daddr], set: VIPS.into(), negate: false }
}

fn is_port(set: &str) -> Statement {
    Statement::InSet { key: frontend(), set: set.into(), negate: false }
}

/// To the endpoint of which the priority is the index.
fn dnat() -> Statement {
    let mut key = frontend();
    key.push(Field::Priority);
    Statement::Dnat { key, map: ENDPOINTS.into(), port: None }
}

fn chain_by_index(side: Side) -> &'static str {
    match side {
        Side::Outside => PICK,
        Side::Cluster => CLUSTER_PICK,
    }
}

fn by_index(side: Side) -> Vec<Rule> {
    vec![
        rule([dnat()]),
        retry(side),
        // Gone altogether: the client asks again and finds the new rules. Let through, the packet would leave
        // the node as it is, and a UDP flow would stay that way (S52).
        rule([Statement::Verdict(Verdict::Drop)]),
    ]
}

fn jump(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Jump(Name::from(chain)))
}

fn goto(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Goto(Name::from(chain)))
}

fn rule<const N: usize>(statements: [Statement; N]) -> Rule {
    Rule::new(statements.to_vec())
}

/// A packet that read one map before a commit and the other after it takes index 0, which is always there (nftables.md,
/// decision 4). It comes here in two ways: through a pick chain whose count is not that of `endpoints`; and through
/// `raced`, when it found no number in the middle of a replacement, or one that `targets` does not have any more, or that leads
/// to a chain which in the packet's own generation is not yet or no longer filled. That is why verdicts jump: after a goto such
/// a packet would go out as it is.
fn retry(side: Side) -> Rule {
    Rule::commented(vec![Statement::SetPriority(side.offset()), dnat()], "raced with a commit")
}
