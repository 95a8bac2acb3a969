use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use portolan::dataplane::nft::NftSocket;
use portolan_nft::{
    Atom, Base, Bytes, Chain, ChainKind, Command, Dumped, Element, Expr, Extra, Field, Hook, KeyType, Name,
    Rule, Set, Statement, Table, TableFamily, TableId, Value, ValueType, Verdict,
};

use crate::namespace::{in_namespace, run, run_with_input};

use Field::{
    CtOriginalDaddr, CtOriginalDport, CtOriginalSaddr, Daddr, Dport, Iif, L4Proto, Mark, Oif, Priority,
    Saddr, Sport,
};

/// Who is to understand the table. As text, nft 1.0.6 cannot read the port that a client asked for in a concatenation, nor
/// has it registers for an IPv6 affinity key and its value, though it lists both.
#[derive(Clone, Copy, PartialEq)]
enum For {
    Kernel,
    NftText,
}

#[test]
fn every_statement_is_read_back_as_written() {
    for family in [TableFamily::Ip, TableFamily::Ip6] {
        in_namespace("every_statement_is_read_back_as_written", move || {
            let wanted = table(family, For::Kernel);
            let mut socket = NftSocket::open().unwrap();
            write(&mut socket, &wanted);
            let (dumped, _) = socket.dump_table(&wanted.id).unwrap().expect("the table is there");
            assert_same(&dumped, &wanted);
        });
    }
}

#[test]
fn nft_lists_what_we_write_and_loads_its_listing() {
    for nft in nfts() {
        for family in [TableFamily::Ip, TableFamily::Ip6] {
            let listed = std::sync::Arc::new(std::sync::Mutex::new(String::new()));
            let (first, binary) = (listed.clone(), nft.clone());
            in_namespace("nft_lists_what_we_write", move || {
                write(&mut NftSocket::open().unwrap(), &table(family, For::Kernel));
                run(&binary, &["list", "ruleset"]);
                run(&binary, &["flush", "ruleset"]);
                write(&mut NftSocket::open().unwrap(), &table(family, For::NftText));
                *first.lock().unwrap() = list(&binary);
            });
            let binary = nft.clone();
            in_namespace("nft_loads_its_listing_of_our_table", move || {
                let text = listed.lock().unwrap().clone();
                run_with_input(&binary, &["-f", "-"], &text);
                assert_eq!(list(&binary), text);
            });
        }
    }
}

#[test]
fn our_text_means_what_our_messages_mean() {
    for nft in nfts() {
        for family in [TableFamily::Ip, TableFamily::Ip6] {
            let nft = nft.clone();
            in_namespace("our_text_means_what_our_messages_mean", move || {
                let wanted = table(family, For::NftText);
                run_with_input(&nft, &["-c", "-f", "-"], &wanted.to_string());
                run_with_input(&nft, &["-f", "-"], &wanted.to_string());
                let dumped = NftSocket::open().unwrap().dump_table(&wanted.id).unwrap();
                let (mut dumped, _) = dumped.expect("the table is there");
                for rule in dumped.chains.values_mut().flat_map(|chain| &mut chain.rules) {
                    // nft swaps the one byte of a protocol before it looks up ranges, which does nothing
                    rule.exprs.retain(|expr| *expr != Expr::Unknown("byteorder".into()));
                }
                assert_same(&dumped, &wanted);
            });
        }
    }
}

#[test]
fn foreign_rules_and_sets_are_not_taken_for_ours() {
    in_namespace("foreign_rules_and_sets_are_not_taken_for_ours", || {
        let text = "table ip other {
             set counted { type ipv4_addr; flags constant; elements = { 1.1.1.1 }; }
             set macs { type ether_addr; }
             chain c { type filter hook forward priority 0; policy drop; }
             chain rules {
                 counter
                 ip ttl 3 drop
                 dnat ip to 10.0.0.1
                 meta mark set 7
                 ip saddr 1.1.1.1-1.1.1.9 drop
                 ct reply ip saddr 1.1.1.1
                 log
                 fib saddr type local
                 numgen inc mod 3 1
                 reject with icmp host-unreachable
                 limit rate 3/second
             }
         }";
        run_with_input("nft", &["-f", "-"], text);
        let id = TableId::new(TableFamily::Ip, "other");
        let (dumped, _) = NftSocket::open().unwrap().dump_table(&id).unwrap().unwrap();
        assert_eq!(dumped.chains["c"].base.map(|base| base.kind), Some(ChainKind::Other));
        for set in ["counted", "macs"] {
            assert!(matches!(dumped.sets[set].key[..], [KeyType::Other(_)]), "{:?}", dumped.sets[set]);
        }
        let known = |rule: &&portolan_nft::DumpedRule| {
            !rule.exprs.iter().any(|expr| matches!(expr, Expr::Unknown(_)))
        };
        let known: Vec<_> = dumped.chains["rules"].rules.iter().filter(known).collect();
        // the counter, the fixed mark and the time to live are of our expressions; dnat to a fixed address too
        assert_eq!(known.len(), 4, "{known:#?}");
    });
}

/// The installed nft, and those named in NFTS, separated by spaces.
fn nfts() -> Vec<String> {
    let more = std::env::var("NFTS").unwrap_or_default();
    std::iter::once("nft").chain(more.split_whitespace()).map(str::to_owned).collect()
}

/// The ruleset in nft's words, but for the time that elements have left.
fn list(nft: &str) -> String {
    let listed = run(nft, &["list", "ruleset"]);
    let lines = listed.lines().map(|line| match line.split_once(" expires ") {
        Some((before, _)) => format!("{before} }}\n"),
        None => format!("{line}\n"),
    });
    lines.collect()
}

fn write(socket: &mut NftSocket, table: &Table) {
    let mut commands = vec![Command::AddTable];
    commands.extend(
        table.sets.iter().map(|(name, set)| Command::AddSet { name: name.clone(), set: set.clone() }),
    );
    commands.extend(
        table.chains.iter().map(|(name, chain)| Command::AddChain { chain: name.clone(), base: chain.base }),
    );
    commands.extend(
        table
            .elements
            .iter()
            .map(|(name, elements)| Command::AddElements { set: name.clone(), elements: elements.clone() }),
    );
    for (name, chain) in &table.chains {
        let rules = chain.rules.iter().cloned();
        commands.extend(rules.map(|rule| Command::AddRule { chain: name.clone(), rule }));
    }
    socket.commit(&table.id, &commands).unwrap();
}

fn assert_same(dumped: &Dumped, wanted: &Table) {
    assert_eq!(dumped.sets, wanted.sets);
    for (name, chain) in &wanted.chains {
        let found = &dumped.chains[name];
        assert_eq!(found.base, chain.base, "chain {name}");
        for (found, wanted_rule) in found.rules.iter().zip(&chain.rules) {
            let text = wanted_rule.text(wanted.id.family);
            assert_eq!(found.exprs, wanted_rule.compile(wanted.id.family), "chain {name}: {text}");
            assert_eq!(found.comment, wanted_rule.comment, "chain {name}: {text}");
            assert!(found.is(wanted_rule, wanted.id.family));
        }
        assert_eq!(found.rules.len(), chain.rules.len(), "chain {name}");
    }
    assert_eq!(dumped.chains.len(), wanted.chains.len());
    for name in wanted.sets.keys() {
        let sorted = |elements: Option<&Vec<Element>>| {
            let mut elements = elements.cloned().unwrap_or_default();
            elements.iter_mut().for_each(forget_expiry);
            // nft begins a set of ranges with the end of what is before the first
            elements
                .retain(|element| !(element.extra.is_some() && element.key.iter().all(|byte| *byte == 0)));
            elements.sort();
            elements
        };
        assert_eq!(sorted(dumped.elements.get(name)), sorted(wanted.elements.get(name)), "set {name}");
    }
}

fn forget_expiry(element: &mut Element) {
    if let Some(extra) = &mut element.extra {
        extra.expires = None;
        element.extra = element.extra.take().filter(|extra| **extra != Extra::default());
    }
}

/// A table with every construct: the shape of services, with all that later features add.
fn table(family: TableFamily, reader: For) -> Table {
    let mut table = Table::new(TableId::new(family, "lab"));
    sets(&mut table);
    elements(&mut table);
    chains(&mut table, reader);
    table
}

fn sets(table: &mut Table) {
    use KeyType::{Address, Index, Interface, Mark, Port, Priority, Protocol};
    let set = |key: &[KeyType]| Set { key: key.to_vec(), ..Set::default() };
    let map = |key: &[KeyType], value| Set { value: Some(value), ..set(key) };
    let address_port = || ValueType::Concat(vec![Address, Port]);
    let sets = [
        ("services", map(&[Address, Protocol, Port], ValueType::Verdict)),
        (
            "endpoints",
            Set {
                comment: Some("who serves".into()),
                ..map(&[Address, Protocol, Port, Index], address_port())
            },
        ),
        ("cluster-ips", set(&[Address])),
        ("hairpin", set(&[Address, Address])),
        ("fw-vips", set(&[Address, Protocol, Port])),
        ("fw-allow", Set { interval: true, ..set(&[Address, Protocol, Port, Address]) }),
        ("nets", Set { interval: true, ..set(&[Address]) }),
        (
            "affinity",
            Set {
                dynamic: true,
                timeout: Some(Duration::from_secs(10800)),
                size: Some(65536),
                ..map(&[Address, Address, Protocol, Port], address_port())
            },
        ),
        ("seen", Set { dynamic: true, timeouts: true, size: Some(100), ..set(&[Address]) }),
        ("ports", set(&[Port])),
        ("protocols", set(&[Protocol])),
        ("marks", set(&[Mark])),
        ("interfaces", set(&[Interface])),
        ("by-mark", map(&[Mark, Interface], ValueType::Verdict)),
        ("to-mark", map(&[Port], ValueType::Concat(vec![Mark]))),
        ("codes", map(&[Address, Protocol, Port], ValueType::Concat(vec![Priority]))),
        ("targets", map(&[Priority], ValueType::Verdict)),
        ("by-index", map(&[Address, Protocol, Port, Priority], address_port())),
    ];
    table.sets = sets.into_iter().map(|(name, set)| (Name::from(name), set)).collect();
}

fn ip(family: TableFamily, last: u8) -> IpAddr {
    match family {
        TableFamily::Ip => IpAddr::from([10, 96, 0, last]),
        TableFamily::Ip6 => IpAddr::from([0xfd00, 0, 0, 0, 0, 0, 0, last as u16]),
    }
}

fn elements(table: &mut Table) {
    let address = |last| Atom::Address(ip(table.id.family, last));
    let (tcp, udp) = (Atom::Protocol(6), Atom::Protocol(17));
    let frontend = |last, proto: &Atom, port| vec![address(last), proto.clone(), Atom::Port(port)];
    let verdict = |key: Vec<Atom>, verdict| Element::new(Bytes::concat(&key), Value::Verdict(verdict));
    let member = |key: &[Atom]| Element::member(Bytes::concat(key));
    let backend = |last, port| Value::Bytes(Bytes::concat(&[address(last), Atom::Port(port)]));
    let endpoint = |i| {
        let key = [frontend(1, &tcp, 80), vec![Atom::Index(i)]].concat();
        Element::new(Bytes::concat(&key), backend(100 + i as u8, 8080))
    };
    let allowed = |from, to| {
        let key = |last| Bytes::concat(&[frontend(1, &tcp, 80), vec![address(last)]].concat());
        Element::range(key(from), key(to))
    };
    let mut brief = member(&[address(9)]);
    brief.extra = Some(Box::new(Extra { timeout: Some(Duration::from_secs(3600)), ..Extra::default() }));
    let interval =
        |first, last| Element::interval(Bytes::concat(&[address(first)]), &Bytes::concat(&[address(last)]));
    let elements = [
        (
            "services",
            vec![
                verdict(frontend(1, &tcp, 80), Verdict::Goto("pick-3".into())),
                verdict(frontend(2, &udp, 53), Verdict::Goto("affine-3".into())),
                verdict(frontend(3, &tcp, 80), Verdict::Drop),
                verdict(frontend(4, &Atom::Protocol(132), 80), Verdict::Jump("masq-pick-3".into())),
                verdict(frontend(5, &tcp, 80), Verdict::Accept),
                verdict(frontend(6, &tcp, 80), Verdict::Return),
            ],
        ),
        ("endpoints", (0..3).chain([65536]).map(endpoint).collect()),
        ("cluster-ips", (1..=200).map(|last| member(&[address(last)])).collect()),
        ("hairpin", vec![member(&[address(100), address(100)])]),
        ("fw-vips", vec![member(&frontend(1, &tcp, 80))]),
        ("fw-allow", vec![allowed(16, 31), allowed(40, 40)]),
        ("nets", [interval(16, 31), interval(40, 47), interval(64, 127)].concat()),
        ("seen", vec![brief]),
        ("ports", vec![member(&[Atom::Port(80)])]),
        ("protocols", vec![member(std::slice::from_ref(&tcp)), member(std::slice::from_ref(&udp))]),
        ("marks", vec![member(&[Atom::Mark(0x4000)])]),
        ("interfaces", vec![member(&[Atom::Interface("eth0".into())])]),
        ("by-mark", vec![verdict(vec![Atom::Mark(1), Atom::Interface("lo".into())], Verdict::Accept)]),
        (
            "codes",
            [(1, 3), (2, 0), (3, u32::MAX), (4, 0x300_000a)]
                .map(|(last, code)| {
                    let code = Value::Bytes(Bytes::concat(&[Atom::Priority(code)]));
                    Element::new(Bytes::concat(&frontend(last, &tcp, 81)), code)
                })
                .into(),
        ),
        (
            "by-index",
            [0, 1, 0x10_0000]
                .map(|index| {
                    let key = [frontend(1, &tcp, 80), vec![Atom::Priority(index)]].concat();
                    Element::new(Bytes::concat(&key), backend(100, 8080))
                })
                .into(),
        ),
        (
            "targets",
            vec![
                verdict(vec![Atom::Priority(3)], Verdict::Jump("pick-3".into())),
                verdict(vec![Atom::Priority(0x300_000a)], Verdict::Drop),
            ],
        ),
        (
            "to-mark",
            vec![Element::new(
                Bytes::concat(&[Atom::Port(80)]),
                Value::Bytes(Bytes::concat(&[Atom::Mark(2)])),
            )],
        ),
    ];
    table.elements = elements.into_iter().map(|(name, elements)| (Name::from(name), elements)).collect();
}

fn chains(table: &mut Table, reader: For) {
    let family = table.id.family;
    let mut chains = BTreeMap::new();
    let mut chain = |name: &str, base: Option<Base>, rules: Vec<Vec<Statement>>| {
        let rules = rules.into_iter().map(Rule::new).collect();
        chains.insert(Name::from(name), Chain { base, rules });
    };
    let base = |kind, hook, priority| Some(Base { kind, hook, priority });
    let jump = |name: &str| Statement::Verdict(Verdict::Jump(name.into()));
    let goto = |name: &str| Statement::Verdict(Verdict::Goto(name.into()));

    chain("pick-3", None, vec![vec![dnat(3, 0)], vec![dnat(1, 0)], vec![dnat(3, 65536)]]);
    chain("masq-pick-3", None, vec![vec![Statement::MarkOr(0x4000)], vec![goto("pick-3")]]);
    chain("affine-3", None, vec![vec![affine()], vec![goto("pick-3")]]);
    chain("services", None, services(family));
    chain("matches", None, matches(family, reader));
    chain("remember", None, remember(family, reader));
    chain("nat-prerouting", base(ChainKind::Nat, Hook::Prerouting, -100), vec![vec![jump("services")]]);
    chain(
        "nat-output",
        base(ChainKind::Nat, Hook::Output, -100),
        vec![vec![Statement::DaddrIsLocal, jump("services")]],
    );
    chain("nat-input", base(ChainKind::Nat, Hook::Input, 100), vec![vec![jump("remember")]]);
    chain("nat-postrouting", base(ChainKind::Nat, Hook::Postrouting, 100), postrouting());
    chain("filter-forward", base(ChainKind::Filter, Hook::Forward, 0), vec![vec![jump("matches")]]);
    chain("route-output", base(ChainKind::Route, Hook::Output, -150), vec![]);
    let commented = Rule::commented(vec![Statement::Verdict(Verdict::Return)], "raced with a commit");
    chains.entry("pick-3".into()).or_insert_with(Chain::default).rules.push(commented);
    table.chains = chains;
}

fn dnat(modulus: u32, offset: u32) -> Statement {
    let key = vec![Daddr, L4Proto, Dport, Field::Numgen { modulus, offset }];
    Statement::Dnat { key, map: "endpoints".into(), port: None }
}

fn affine() -> Statement {
    Statement::Dnat { key: vec![Saddr, Daddr, L4Proto, Dport], map: "affinity".into(), port: None }
}

fn in_set(key: &[Field], set: &str) -> Statement {
    Statement::InSet { key: key.to_vec(), set: set.into(), negate: false }
}

fn not_in_set(key: &[Field], set: &str) -> Statement {
    Statement::InSet { key: key.to_vec(), set: set.into(), negate: true }
}

fn services(family: TableFamily) -> Vec<Vec<Statement>> {
    let pods = match family {
        TableFamily::Ip => IpAddr::from([10, 128, 0, 0]),
        TableFamily::Ip6 => IpAddr::from([0xfd80, 0, 0, 0, 0, 0, 0, 0]),
    };
    let not_pod = Statement::InPrefix { field: Saddr, address: pods, length: 9, negate: true };
    vec![
        vec![
            in_set(&[Daddr, L4Proto, Dport], "fw-vips"),
            not_in_set(&[Daddr, L4Proto, Dport, Saddr], "fw-allow"),
            Statement::Verdict(Verdict::Drop),
        ],
        vec![in_set(&[Daddr], "cluster-ips"), not_pod, Statement::MarkOr(0x4000)],
        vec![Statement::Vmap { key: vec![Daddr, L4Proto, Dport], map: "services".into() }],
        vec![
            Statement::SetPriorityFrom { key: vec![Daddr, L4Proto, Dport], map: "codes".into() },
            Statement::Vmap { key: vec![Priority], map: "targets".into() },
        ],
        vec![in_set(&[Daddr], "cluster-ips"), Statement::SetPriority(0), dnat(1, 0)],
        vec![Statement::SetPriorityRandom { modulus: 2, offset: 0 }],
        vec![Statement::SetPriorityRandom { modulus: 3, offset: 0x10_0000 }],
        vec![Statement::Dnat {
            key: vec![Daddr, L4Proto, Dport, Priority],
            map: "by-index".into(),
            port: None,
        }],
        vec![in_set(&[Daddr], "cluster-ips"), Statement::Reject],
    ]
}

fn matches(family: TableFamily, reader: For) -> Vec<Vec<Statement>> {
    let compare = |field, value| Statement::Compare { field, value, negate: false };
    let differ = |field, value| Statement::Compare { field, value, negate: true };
    let prefix =
        |field, length, negate| Statement::InPrefix { field, address: ip(family, 0), length, negate };
    let interface = |name: &str| Atom::Interface(name.into());
    let whole = family.address_len() as u8 * 8;
    let mut rules = vec![
        vec![compare(Saddr, Atom::Address(ip(family, 1))), differ(Daddr, Atom::Address(ip(family, 2)))],
        vec![prefix(Saddr, 8, false), prefix(Daddr, 24, true), prefix(Saddr, 17, false)],
        vec![prefix(Saddr, whole, false), prefix(Daddr, whole - 1, false)],
        vec![Statement::LastByte { field: Daddr, mask: 3, value: 0 }],
        vec![Statement::LastByte { field: Saddr, mask: 255, value: 7 }, in_set(&[Daddr], "cluster-ips")],
        vec![
            compare(L4Proto, Atom::Protocol(6)),
            compare(Dport, Atom::Port(80)),
            differ(Sport, Atom::Port(81)),
        ],
        vec![compare(Mark, Atom::Mark(1)), compare(Iif, interface("eth0")), differ(Oif, interface("lo"))],
        vec![compare(CtOriginalSaddr, Atom::Address(ip(family, 1))), prefix(CtOriginalDaddr, 16, false)],
        vec![in_set(&[Dport], "ports"), in_set(&[L4Proto], "protocols"), in_set(&[Saddr], "nets")],
        vec![in_set(&[Mark], "marks"), not_in_set(&[Iif], "interfaces"), Statement::Verdict(Verdict::Accept)],
        vec![Statement::Vmap { key: vec![Mark, Iif], map: "by-mark".into() }],
        vec![Statement::MarkTest { mask: 0xc000, value: 0x4000 }, Statement::Reject],
        vec![compare(L4Proto, Atom::Protocol(6)), Statement::RejectTcpReset],
        vec![Statement::IifPrefix("cali".into()), Statement::IifPrefix("a14byteslong14".into())],
        vec![compare(L4Proto, Atom::Protocol(17)), Statement::Counter, Statement::Reject],
    ];
    if reader == For::Kernel {
        rules.push(vec![compare(L4Proto, Atom::Protocol(6)), compare(CtOriginalDport, Atom::Port(80))]);
    }
    rules
}

fn remember(family: TableFamily, reader: For) -> Vec<Vec<Statement>> {
    let update = |set: &str, key, value, timeout| Statement::Update { set: set.into(), key, value, timeout };
    let affinity =
        |port| update("affinity", vec![Saddr, CtOriginalDaddr, L4Proto, port], vec![Daddr, Dport], None);
    let seen = update("seen", vec![Saddr], vec![], Some(Duration::from_secs(10)));
    match (reader, family) {
        (For::Kernel, _) => vec![vec![affinity(CtOriginalDport)], vec![seen]],
        (For::NftText, TableFamily::Ip) => vec![vec![affinity(Sport)], vec![seen]],
        (For::NftText, TableFamily::Ip6) => vec![vec![seen]],
    }
}

fn postrouting() -> Vec<Vec<Statement>> {
    vec![
        vec![Statement::CtStatusDnat, Statement::Verdict(Verdict::Jump("remember".into()))],
        vec![in_set(&[Saddr, Daddr], "hairpin"), Statement::Masquerade { fully_random: true }],
        vec![
            Statement::MarkTest { mask: 0x4000, value: 0x4000 },
            Statement::MarkXor(0x4000),
            Statement::Masquerade { fully_random: false },
        ],
    ]
}
