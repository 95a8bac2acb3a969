//! From a frontend to one of its endpoints.
//!
//! `services` and `cluster-services` give a number ([`Target::code`]), and the small map `targets` the chain of that number: what
//! the kernel does for each new verdict is to follow all verdicts of the same map, in all chains and for every hook, which costs
//! 6 ms of CPU with 30,000 frontends, and nothing that one would notice with a few hundred numbers.
//!
//! In the same way one chain of each side and shard looks up the shard's map of endpoints, and a chain for each number of endpoints in it
//! marks, and says which index to look for: for each rule that is to look up a map the kernel walks it whole, 50 ms with 300,000
//! endpoints. So a count that nobody had there before costs next to nothing, however large.
//!
//! From one look-up to the next, numbers and indices are in the packet's priority, the one place that a rule can write, and another
//! rule of the same kind read, which is of no meaning to others at that point: nft(8) cannot list a rule of two chained look-ups,
//! and marks belong to whoever uses them (S47). The last hooks set it to none. So the first packet of a connection that is translated
//! loses a priority that it had: of the process (SO_PRIORITY), of its TOS, or of a VLAN's tag; no other packet is touched.

use portolan_model::{Family, Masquerade};
use portolan_nft::{Field, Rule, Statement, Verdict};

use super::clients;
use super::parts::{frontend, goto, jump, rule};
use super::{MARK_NONPODS, RECALL, REFUSE, REFUSE_ON_LOCALHOST, Settings, TARGETS};
use crate::shard::Shard;
use crate::target::{Pick, Side, Target};

/// The chains that send on to the endpoint of which the priority is the index, of each shard.
pub const DNAT: [&str; Shard::COUNT] = ["dnat-from-0", "dnat-from-1", "dnat-from-2", "dnat-from-3"];
pub const CLUSTER_DNAT: [&str; Shard::COUNT] =
    ["cluster-dnat-from-0", "cluster-dnat-from-1", "cluster-dnat-from-2", "cluster-dnat-from-3"];

/// One rule, so that a frontend that is in no map leaves it before anything is written.
pub fn dispatch(map: &str) -> Rule {
    rule([
        Statement::SetPriorityFrom { key: frontend(), map: map.into() },
        Statement::Vmap { key: vec![Field::Priority], map: TARGETS.into() },
    ])
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

pub fn pick(settings: &Settings, family: Family, pick: Pick) -> Vec<Rule> {
    let first = match pick.masquerade {
        Masquerade::Always => Some(rule([Statement::MarkOr(settings.mark)])),
        Masquerade::NonPods => Some(clients::mark_unless_pod(settings, family)),
        Masquerade::Never => pick.affine.then(|| rule([jump(RECALL)])),
    };
    let last = match pick.next() {
        Some(next) => rule([goto(&next.to_string())]),
        None => rule([
            Statement::SetPriorityRandom { modulus: pick.count, offset: pick.side.offset() },
            goto(dnat_chain(pick.side, pick.shard)),
        ]),
    };
    first.into_iter().chain([last]).collect()
}

/// Whose chain this is, if it is one of [`DNAT`] or [`CLUSTER_DNAT`].
pub fn of_dnat_chain(chain: &str) -> Option<(Side, Shard)> {
    let of = |side| Shard::ALL.into_iter().map(move |shard| (side, shard));
    Side::ALL.into_iter().flat_map(of).find(|(side, shard)| dnat_chain(*side, *shard) == chain)
}

pub fn dnat_rules(side: Side, shard: Shard) -> Vec<Rule> {
    // Gone altogether: the client asks again and finds the new rules. Let through, the packet would leave
    // the node as it is, and a UDP flow would stay that way (S52).
    let last = rule([Statement::Verdict(Verdict::Drop)]);
    vec![rule([dnat(shard)]), retry(side), rule([dnat(shard)]), last]
}

/// What it found on the way was of two generations.
pub fn raced(side: Side) -> Vec<Rule> {
    let last = match side {
        Side::Outside => goto(REFUSE), // S17
        Side::Cluster => Statement::Verdict(Verdict::Drop),
    };
    let here =
        |shard: Shard| Statement::LastByte { field: Field::Daddr, mask: Shard::MASK, value: shard.number() };
    let dnat = Shard::ALL.map(|shard| rule([here(shard), dnat(shard)]));
    [rule([jump(MARK_NONPODS)]), retry(side)].into_iter().chain(dnat).chain([rule([last])]).collect()
}

fn dnat_chain(side: Side, shard: Shard) -> &'static str {
    let chains = match side {
        Side::Outside => DNAT,
        Side::Cluster => CLUSTER_DNAT,
    };
    chains[usize::from(shard.number())]
}

/// To the endpoint of which the priority is the index.
fn dnat(shard: Shard) -> Statement {
    let mut key = frontend();
    key.push(Field::Priority);
    Statement::Dnat { key, map: shard.map().into(), port: None }
}

/// A packet that read one map before a commit and the other after it takes index 0, which is always there (nftables.md,
/// decision 4). It comes here in two ways: through a pick chain whose count is not that of the endpoints; and through
/// `raced`, when it found no number in the middle of a replacement, or one that `targets` does not have any more, or that leads
/// to a chain which in the packet's own generation is not yet or no longer filled. That is why verdicts jump: after a goto such
/// a packet would go out as it is.
fn retry(side: Side) -> Rule {
    Rule::commented(vec![Statement::SetPriority(side.offset())], "raced with a commit")
}
