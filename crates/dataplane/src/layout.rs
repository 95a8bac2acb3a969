//! Layout R: the sets, and the chains that every cluster has (nftables.md).
//!
//! ```text
//!   prerouting ──> source-ranges ──> [pods] cluster-services ──> services ──> (masq-|nonpod-)pick-E-from-N ──> dnat-from-N
//!   output     ──> source-ranges ────────── cluster-services ──> services          │ refuse, drop
//!   postrouting ── remember, then masquerade what was marked, and pods that reach themselves
//!   input ──────── remember
//! ```
//!
//! Node ports at loopback addresses (S22) are served by a relay in user space as far as they are TCP; all others are refused
//! by `refuse-on-localhost`, which counts them.
//!
//! Nothing leads to `source-ranges`, `cluster-services` and `remember` while nobody uses them, and nothing looks for pods that
//! reach themselves where there are none ([`Gate`](crate::gate::Gate)).
//!
//! Only nat hooks: a packet of a connection that stands runs none of these rules.

mod affinity;
mod choice;
mod clients;
mod parts;
mod settings;

use portolan_model::{Family, Protocol};
use portolan_nft::{
    Base, Chain, ChainKind, Field, Hook, KeyType, Rule, Set, Statement, TableFamily, TableId, ValueType,
    Verdict,
};

use crate::gate::{Gate, Open};
use crate::localhost;
use crate::shard::Shard;
use crate::target::{Shared, Side};
use parts::{goto, in_prefix, is, is_port, is_vip, jump, rule};

pub use affinity::ledger;
pub use choice::verdict;
pub use settings::Settings;

pub const SERVICES: &str = "services";
pub const CLUSTER_SERVICES: &str = "cluster-services";
pub const TARGETS: &str = "targets";
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
const REMEMBER: &str = "remember";
const RACED: &str = "raced";
const CLUSTER_RACED: &str = "cluster-raced";
const SOURCE_RANGES: &str = "source-ranges";
/// Of what numbers, indices and maps mean, as the comment of `services`. The table of another version is replaced at once: piece by
/// piece, packets would be sent where nothing is yet.
const VERSION: &str = "layout 2";
const MARK_NONPODS: &str = "mark-nonpods";
const PREROUTING: &str = "nat-prerouting";
const OUTPUT: &str = "nat-output";
const POSTROUTING: &str = "nat-postrouting";
const INPUT: &str = "nat-input";

/// Every chain after those that it leads to, the hooks last.
pub const FIXED: [&str; 22] = [
    choice::DNAT[0],
    choice::DNAT[1],
    choice::DNAT[2],
    choice::DNAT[3],
    choice::CLUSTER_DNAT[0],
    choice::CLUSTER_DNAT[1],
    choice::CLUSTER_DNAT[2],
    choice::CLUSTER_DNAT[3],
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

pub fn table_id(family: Family) -> TableId {
    TableId::new(table_family(family), "portolan")
}

pub fn table_family(family: Family) -> TableFamily {
    match family {
        Family::Ipv4 => TableFamily::Ip,
        Family::Ipv6 => TableFamily::Ip6,
    }
}

pub fn sets(family: Family) -> Vec<(&'static str, Set)> {
    use KeyType::{Address, Port, Priority, Protocol};
    let set = |key: &[KeyType]| Set { key: key.to_vec(), ..Set::default() };
    let map = |key: &[KeyType], value| Set { value: Some(value), ..set(key) };
    let frontend = [Address, Protocol, Port];
    let endpoints = map(&[Address, Protocol, Port, Priority], ValueType::Concat(vec![Address, Port]));
    let mut sets = vec![
        (
            SERVICES,
            Set { comment: Some(VERSION.into()), ..map(&frontend, ValueType::Concat(vec![Priority])) },
        ),
        (CLUSTER_SERVICES, map(&frontend, ValueType::Concat(vec![Priority]))),
        (TARGETS, map(&[Priority], ValueType::Verdict)),
        (VIPS, set(&[Address])),
        // the frontends whose address is no VIP, and those that are in `cluster-services`: see `raced`
        (HOST_PORTS, set(&frontend)),
        (CLUSTER_PORTS, set(&frontend)),
        (HAIRPIN, set(&[Address, Address])),
        (FW_VIPS, set(&frontend)),
        (FW_ALLOW, Set { interval: true, ..set(&[Address, Protocol, Port, Address]) }),
        (AFFINE, map(&[Address, Protocol, Port, Address, Port], ValueType::Verdict)),
        affinity::set(family),
    ];
    sets.extend(Shard::ALL.map(|shard| (shard.map(), endpoints.clone())));
    sets
}

/// One of [`FIXED`]; `open`, of [its gates](gates).
pub fn fixed(settings: &Settings, family: Family, name: &str, open: Open) -> Chain {
    Chain { base: base(name), rules: Rules { settings, family, open }.fixed(name) }
}

/// The gates that the rules of a fixed chain depend on.
pub fn gates(settings: &Settings, family: Family, chain: &str) -> Open {
    match chain {
        PREROUTING if !settings.pods.detects(family) => Open::of(&[Gate::SourceRanges]),
        PREROUTING | OUTPUT => Open::of(&[Gate::SourceRanges, Gate::ClusterServices]),
        POSTROUTING => Open::of(&[Gate::Remember, Gate::Hairpin]),
        INPUT => Open::of(&[Gate::Remember]),
        _ => Open::default(),
    }
}

pub fn shared(settings: &Settings, family: Family, shared: Shared) -> Vec<Rule> {
    match shared {
        Shared::Pick(pick) => choice::pick(settings, family, pick),
        Shared::Remember(memory) => affinity::remember_for(memory),
        Shared::Record(memory, ledger) => affinity::record(memory, ledger),
        Shared::Recall(recall) => affinity::look_through(recall),
    }
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
    open: Open,
}

impl Rules<'_> {
    fn fixed(&self, chain: &str) -> Vec<Rule> {
        if let Some((side, shard)) = choice::of_dnat_chain(chain) {
            return choice::dnat_rules(side, shard);
        }
        match chain {
            PREROUTING => self.prerouting(),
            OUTPUT => self.output(),
            POSTROUTING => self.postrouting(),
            INPUT => vec![affinity::after_dnat(self.open)], // an endpoint in the host's network
            RECALL => vec![affinity::recall(self.family)],
            REMEMBER => affinity::remember(),
            SOURCE_RANGES => vec![clients::source_ranges()],
            CLUSTER_SERVICES => {
                vec![choice::dispatch(CLUSTER_SERVICES), rule([is_port(CLUSTER_PORTS), goto(CLUSTER_RACED)])]
            }
            SERVICES => self.services(),
            RACED => choice::raced(Side::Outside),
            CLUSTER_RACED => choice::raced(Side::Cluster),
            MARK_NONPODS => clients::mark_nonpods(self.settings, self.family),
            REFUSE => self.refuse(),
            REFUSE_ON_LOCALHOST => {
                let refuse =
                    |protocol: &Protocol| rule([is(*protocol), Statement::Counter, Statement::Reject]);
                localhost::PROTOCOLS.iter().map(refuse).collect()
            }
            _ => Vec::new(),
        }
    }

    /// S17, S38. The kernel does not hear an ICMPv6 error about the SYN that it is just sending (the socket is still
    /// held), and would tell a client on the node itself only with its next SYN, a second later; a reset it hears.
    fn refuse(&self) -> Vec<Rule> {
        let reset = rule([is(Protocol::Tcp), Statement::RejectTcpReset]);
        let heard_at_once = (self.family == Family::Ipv6).then_some(reset);
        heard_at_once.into_iter().chain([rule([Statement::Reject])]).collect()
    }

    fn services(&self) -> Vec<Rule> {
        let unallocated = settings::of_family(&self.settings.service_cidrs, self.family);
        let drop = unallocated
            .iter()
            .map(|net| rule([in_prefix(Field::Daddr, net), Statement::Verdict(Verdict::Drop)])); // S18
        let known = [
            choice::dispatch(SERVICES),
            rule([is_vip(), goto(RACED)]),
            rule([is_port(HOST_PORTS), goto(RACED)]),
        ];
        known.into_iter().chain(drop).collect()
    }

    fn prerouting(&self) -> Vec<Rule> {
        let pods = clients::pod_sources(self.settings, self.family).into_iter();
        self.hook(pods.map(|from_pod| rule([from_pod, jump(CLUSTER_SERVICES)]))) // S45
    }

    /// S45: the node's own connections.
    fn output(&self) -> Vec<Rule> {
        self.hook([rule([jump(CLUSTER_SERVICES)])])
    }

    fn hook(&self, to_cluster_services: impl IntoIterator<Item = Rule>) -> Vec<Rule> {
        let mut rules = Vec::new();
        if self.open.has(Gate::SourceRanges) {
            rules.push(rule([jump(SOURCE_RANGES)]));
        }
        if self.open.has(Gate::ClusterServices) {
            rules.extend(to_cluster_services);
        }
        rules.push(rule([jump(SERVICES)]));
        rules
    }

    /// S43, S46, S47.
    fn postrouting(&self) -> Vec<Rule> {
        let mark = self.settings.mark;
        let masquerade = Statement::Masquerade { fully_random: true };
        let itself =
            Statement::InSet { key: vec![Field::Saddr, Field::Daddr], set: HAIRPIN.into(), negate: false };
        let mut rules = vec![
            affinity::after_dnat(self.open),
            rule([
                Statement::MarkTest { mask: mark, value: mark },
                Statement::MarkXor(mark),
                masquerade.clone(),
            ]),
        ];
        if self.open.has(Gate::Hairpin) {
            rules.push(rule([itself, masquerade]));
        }
        rules
    }
}
