//! What a kube-proxy left in the kernel, and what of it goes when we take its place (S74).
//!
//! Its nftables mode owns the tables `kube-proxy` whole. Its iptables and IPVS modes write into tables that belong to everybody:
//! there only chains that are known to be kube-proxy's go, with the rules of the kernel's own chains that lead to them. What
//! somebody else leads to stays (portmap can use KUBE-MARK-MASQ), and so do the kubelet's chains (S80).

pub mod ipvs;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use portolan_nft::{Command, Dumped, Expr, Name, TableFamily, TableId, Verdict};

/// The table of kube-proxy's nftables mode, in both families.
pub const KUBE_PROXY: &str = "kube-proxy";
/// Tables of iptables that a kube-proxy writes to.
pub const IPTABLES: [&str; 3] = ["filter", "mangle", "nat"];

/// Chains of these names are kube-proxy's.
const NAMES: [&str; 13] = [
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-FORWARD",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
    "KUBE-LOAD-BALANCER",
    "KUBE-MARK-MASQ",
    "KUBE-NODE-PORT",
    "KUBE-NODEPORTS",
    "KUBE-POSTROUTING",
    "KUBE-PROXY-CANARY",
    "KUBE-PROXY-FIREWALL",
    "KUBE-SERVICES",
    "KUBE-SOURCE-RANGES-FIREWALL",
];
/// Chains of one service port or endpoint, which end in a hash.
const PREFIXES: [&str; 6] = ["KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-SVC-", "KUBE-SVL-", "KUBE-XLB-"];
/// No rule of kube-proxy's own in the kernel's chains leads here: one that does is somebody else's.
const NEVER_ENTERED: &str = "KUBE-MARK-MASQ";

/// Everything of a kube-proxy that one transaction removes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    pub table: TableId,
    pub commands: Vec<Command>,
    pub summary: Summary,
}

/// What goes and what stays, for the log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The whole table goes.
    pub table: bool,
    pub rules: usize,
    pub chains: usize,
    /// Chains of kube-proxy's that rules of somebody else lead to.
    pub kept: Vec<Name>,
}

/// Whether kube-proxy makes chains of this name in the tables of iptables.
pub fn is_kube_proxys(chain: &str) -> bool {
    NAMES.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// The tables to look at, in this order.
pub fn tables() -> impl Iterator<Item = TableId> {
    [TableFamily::Ip, TableFamily::Ip6].into_iter().flat_map(|family| {
        [KUBE_PROXY].into_iter().chain(IPTABLES).map(move |name| TableId::new(family, name))
    })
}

/// What goes of one of [`tables`] as it was found; None when nothing does.
pub fn removal(table: &TableId, found: &Dumped) -> Option<Removal> {
    if *table.name == *KUBE_PROXY {
        let summary = Summary { table: true, ..Summary::default() };
        return Some(Removal { table: table.clone(), commands: vec![Command::DeleteTable], summary });
    }
    let chains = found.chains.iter().map(|(name, chain)| {
        let targets = chain.rules.iter().map(|rule| rule.exprs.iter().find_map(target).cloned()).collect();
        (name.clone(), Links { is_base: chain.base.is_some(), targets })
    });
    let decision = decide(&chains.collect())?;
    let jumps = decision.rules.iter().filter_map(|(chain, i)| {
        let handle = found.chains.get(chain)?.rules.get(*i)?.handle;
        Some(Command::DeleteRule { chain: chain.clone(), handle })
    });
    // A chain must be empty and unused when it goes, and they lead to each other.
    let flushed = decision.chains.iter().map(|chain| Command::FlushChain { chain: chain.clone() });
    let deleted = decision.chains.iter().map(|chain| Command::DeleteChain { chain: chain.clone() });
    let commands = jumps.chain(flushed).chain(deleted).collect();
    Some(Removal { table: table.clone(), commands, summary: decision.summary() })
}

/// The same for what `iptables-legacy-save` printed: input for `iptables-legacy-restore --noflush`, and what it does by table.
pub fn legacy_removal(saved: &str) -> Option<(String, Vec<(Name, Summary)>)> {
    let (mut input, mut summaries) = (String::new(), Vec::new());
    for section in saved.split("\n*").map(|section| section.trim_start_matches('*')) {
        let Some((table, body)) =
            section.split_once('\n').filter(|(table, _)| IPTABLES.contains(&table.trim()))
        else {
            continue;
        };
        let saved = SavedTable::read(body);
        let Some(decision) = decide(&saved.links) else { continue };
        input += &format!("*{table}\n");
        for (chain, i) in &decision.rules {
            let rule = saved.rules.get(chain).and_then(|rules| rules.get(*i)).copied().unwrap_or_default();
            input += &format!("-D {chain} {rule}\n");
        }
        decision.chains.iter().for_each(|chain| input += &format!("-F {chain}\n"));
        decision.chains.iter().for_each(|chain| input += &format!("-X {chain}\n"));
        input += "COMMIT\n";
        summaries.push((table.into(), decision.summary()));
    }
    (!summaries.is_empty()).then_some((input, summaries))
}

/// Where a chain's rules lead, rule by rule.
#[derive(Default)]
struct Links {
    is_base: bool,
    targets: Vec<Option<Name>>,
}

#[derive(Default)]
struct Decision {
    /// By chain, the index of a rule.
    rules: Vec<(Name, usize)>,
    chains: Vec<Name>,
    kept: Vec<Name>,
}

impl Decision {
    fn summary(&self) -> Summary {
        let (rules, chains) = (self.rules.len(), self.chains.len());
        Summary { table: false, rules, chains, kept: self.kept.clone() }
    }
}

fn decide(chains: &BTreeMap<Name, Links>) -> Option<Decision> {
    let mut decision = Decision::default();
    let mut kept = BTreeSet::new();
    for (chain, links) in chains.iter().filter(|(chain, _)| !is_kube_proxys(chain)) {
        for (i, target) in links.targets.iter().enumerate() {
            match target {
                Some(target) if links.is_base && is_entered(target) => {
                    decision.rules.push((chain.clone(), i))
                }
                Some(target) if is_kube_proxys(target) => keep(target, chains, &mut kept),
                Some(_) | None => {}
            }
        }
    }
    let theirs = chains.keys().filter(|chain| is_kube_proxys(chain));
    (decision.kept, decision.chains) = theirs.cloned().partition(|chain| kept.contains(chain));
    (!decision.rules.is_empty() || !decision.chains.is_empty()).then_some(decision)
}

fn is_entered(chain: &str) -> bool {
    NAMES.contains(&chain) && chain != NEVER_ENTERED
}

/// The chain and all that it leads to.
fn keep(chain: &Name, chains: &BTreeMap<Name, Links>, kept: &mut BTreeSet<Name>) {
    if is_kube_proxys(chain) && kept.insert(chain.clone()) {
        let links = chains.get(chain).into_iter().flat_map(|links| links.targets.iter().flatten());
        links.for_each(|target| keep(target, chains, kept));
    }
}

fn target(expr: &Expr) -> Option<&Name> {
    match expr {
        Expr::Verdict(Verdict::Jump(chain) | Verdict::Goto(chain)) => Some(chain),
        _ => None,
    }
}

/// One table of `iptables-save`.
#[derive(Default)]
struct SavedTable<'a> {
    links: BTreeMap<Name, Links>,
    /// By chain: each rule without its `-A CHAIN`.
    rules: BTreeMap<Name, Vec<&'a str>>,
}

impl<'a> SavedTable<'a> {
    fn read(body: &'a str) -> SavedTable<'a> {
        let mut table = SavedTable::default();
        for line in body.lines() {
            if let Some(declared) = line.strip_prefix(':') {
                let mut words = declared.split_whitespace();
                let (name, policy) = (words.next().unwrap_or_default(), words.next().unwrap_or("-"));
                table.links.entry(name.into()).or_default().is_base = policy != "-";
            } else if let Some((chain, rule)) = line.strip_prefix("-A ").and_then(|line| line.split_once(' '))
            {
                table.links.entry(chain.into()).or_default().targets.push(saved_target(rule));
                table.rules.entry(chain.into()).or_default().push(rule);
            }
        }
        table
    }
}

/// The target is the word after the last `-j` or `-g`: a comment before it may hold anything.
fn saved_target(rule: &str) -> Option<Name> {
    let words: Vec<&str> = rule.split_whitespace().collect();
    let i = words.iter().rposition(|word| matches!(*word, "-j" | "-g"))?;
    words.get(i + 1).map(|target| (*target).into())
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.table {
            return f.write_str("the whole table");
        }
        write!(f, "{} chains, {} rules that led to them", self.chains, self.rules)?;
        if !self.kept.is_empty() {
            write!(f, "; kept, for rules of others lead to them: {}", self.kept.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
