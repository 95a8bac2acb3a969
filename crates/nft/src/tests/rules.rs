use expect_test::{Expect, expect};

use crate::{
    Atom, Base, Bytes, Chain, ChainKind, Element, Field, Hook, KeyType, Rule, Set, Statement, Table,
    TableFamily, TableId, Value, ValueType, Verdict,
};

/// The rule as text, and each expression on a line.
fn check(family: TableFamily, statements: Vec<Statement>, expected: Expect) {
    let rule = Rule::new(statements);
    let exprs: Vec<_> = rule.compile(family).iter().map(|expr| format!("  {expr:?}\n")).collect();
    expected.assert_eq(&format!("{}\n{}", rule.text(family), exprs.concat()));
}

fn frontend() -> Vec<Field> {
    vec![Field::Daddr, Field::L4Proto, Field::Dport]
}

fn endpoint(modulus: u32, offset: u32) -> Vec<Field> {
    [frontend(), vec![Field::Numgen { modulus, offset }]].concat()
}

#[test]
fn dnat_takes_address_and_port_from_the_map() {
    let dnat = |modulus, offset| {
        vec![Statement::Dnat { key: endpoint(modulus, offset), map: "endpoints".into(), port: None }]
    };
    check(
        TableFamily::Ip,
        dnat(4, 0),
        expect![[r#"
        dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 4 map @endpoints
          Payload { dreg: Reg(0), base: Network, offset: 16, len: 4 }
          Meta { dreg: Reg(1), key: L4Proto }
          Payload { dreg: Reg(2), base: Transport, offset: 2, len: 2 }
          Numgen { dreg: Reg(3), modulus: 4, offset: 0 }
          Lookup { set: "endpoints", sreg: Reg(0), dreg: Some(Reg(0)), negate: false }
          Dnat { family: Ip, address: Reg(0), port: Some(Reg(1)) }
    "#]],
    );
    check(
        TableFamily::Ip6,
        dnat(2, 65536),
        expect![[r#"
        dnat ip6 to ip6 daddr . meta l4proto . th dport . numgen random mod 2 offset 65536 map @endpoints
          Payload { dreg: Reg(0), base: Network, offset: 24, len: 16 }
          Meta { dreg: Reg(4), key: L4Proto }
          Payload { dreg: Reg(5), base: Transport, offset: 2, len: 2 }
          Numgen { dreg: Reg(6), modulus: 2, offset: 65536 }
          Lookup { set: "endpoints", sreg: Reg(0), dreg: Some(Reg(0)), negate: false }
          Dnat { family: Ip6, address: Reg(0), port: Some(Reg(4)) }
    "#]],
    );
}

#[test]
fn verdict_maps() {
    check(
        TableFamily::Ip,
        vec![Statement::Vmap { key: frontend(), map: "services".into() }],
        expect![[r#"
        ip daddr . meta l4proto . th dport vmap @services
          Payload { dreg: Reg(0), base: Network, offset: 16, len: 4 }
          Meta { dreg: Reg(1), key: L4Proto }
          Payload { dreg: Reg(2), base: Transport, offset: 2, len: 2 }
          Vmap { set: "services", sreg: Reg(0) }
    "#]],
    );
}

#[test]
fn bits_of_the_last_byte() {
    let last = || vec![Statement::LastByte { field: Field::Daddr, mask: 3, value: 2 }];
    check(
        TableFamily::Ip,
        last(),
        expect![[r#"
            ip daddr & 0.0.0.3 == 0.0.0.2
              Payload { dreg: Reg(0), base: Network, offset: 16, len: 4 }
              Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0x00000003, xor: 0x00000000 }
              Cmp { sreg: Reg(0), op: Eq, value: 0x00000002 }
        "#]],
    );
    check(
        TableFamily::Ip6,
        last(),
        expect![[r#"
            ip6 daddr & ::3 == ::2
              Payload { dreg: Reg(0), base: Network, offset: 24, len: 16 }
              Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0x00000000000000000000000000000003, xor: 0x00000000000000000000000000000000 }
              Cmp { sreg: Reg(0), op: Eq, value: 0x00000000000000000000000000000002 }
        "#]],
    );
}

#[test]
fn prefixes_of_whole_bytes_are_shorter_loads() {
    let prefix = |address: &str, length, negate| {
        let address = address.parse().unwrap();
        vec![Statement::InPrefix { field: Field::Saddr, address, length, negate }]
    };
    check(
        TableFamily::Ip,
        prefix("10.128.0.0", 9, true),
        expect![[r#"
        ip saddr != 10.128.0.0/9
          Payload { dreg: Reg(0), base: Network, offset: 12, len: 4 }
          Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0xff800000, xor: 0x00000000 }
          Cmp { sreg: Reg(0), op: Neq, value: 0x0a800000 }
    "#]],
    );
    check(
        TableFamily::Ip,
        prefix("10.1.2.3", 16, false),
        expect![[r#"
        ip saddr 10.1.2.3/16
          Payload { dreg: Reg(0), base: Network, offset: 12, len: 2 }
          Cmp { sreg: Reg(0), op: Eq, value: 0x0a01 }
    "#]],
    );
    check(
        TableFamily::Ip,
        prefix("0.0.0.0", 0, false),
        expect![[r#"
        ip saddr 0.0.0.0/0
          Payload { dreg: Reg(0), base: Network, offset: 12, len: 4 }
          Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0x00000000, xor: 0x00000000 }
          Cmp { sreg: Reg(0), op: Eq, value: 0x00000000 }
    "#]],
    );
    check(
        TableFamily::Ip6,
        prefix("fd00::", 64, false),
        expect![[r#"
        ip6 saddr fd00::/64
          Payload { dreg: Reg(0), base: Network, offset: 8, len: 8 }
          Cmp { sreg: Reg(0), op: Eq, value: 0xfd00000000000000 }
    "#]],
    );
    check(
        TableFamily::Ip,
        prefix("10.0.0.1", 200, false),
        expect![[r#"
        ip saddr 10.0.0.1/200
          Payload { dreg: Reg(0), base: Network, offset: 12, len: 4 }
          Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0xffffffff, xor: 0x00000000 }
          Cmp { sreg: Reg(0), op: Eq, value: 0x0a000001 }
    "#]],
    );
}

#[test]
fn marks() {
    let statements = vec![
        Statement::MarkTest { mask: 0x4000, value: 0x4000 },
        Statement::MarkXor(0x4000),
        Statement::MarkOr(0x8000),
        Statement::Masquerade { fully_random: true },
    ];
    check(
        TableFamily::Ip,
        statements,
        expect![[r#"
        meta mark & 0x00004000 == 0x00004000 meta mark set meta mark xor 0x00004000 meta mark set meta mark or 0x00008000 masquerade fully-random
          Meta { dreg: Reg(0), key: Mark }
          Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0x00400000, xor: 0x00000000 }
          Cmp { sreg: Reg(0), op: Eq, value: 0x00400000 }
          Meta { dreg: Reg(0), key: Mark }
          Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0xffffffff, xor: 0x00400000 }
          MetaSet { sreg: Reg(0), key: Mark }
          Meta { dreg: Reg(0), key: Mark }
          Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0xff7fffff, xor: 0x00800000 }
          MetaSet { sreg: Reg(0), key: Mark }
          Masquerade { fully_random: true }
    "#]],
    );
}

/// As nft 1.0.6 makes it of the same text.
#[test]
fn a_number_from_one_map_leads_through_another() {
    let statements = vec![
        Statement::SetPriorityFrom { key: frontend(), map: "services".into() },
        Statement::Vmap { key: vec![Field::Priority], map: "targets".into() },
    ];
    check(
        TableFamily::Ip,
        statements,
        expect![[r#"
        meta priority set ip daddr . meta l4proto . th dport map @services meta priority vmap @targets
          Payload { dreg: Reg(0), base: Network, offset: 16, len: 4 }
          Meta { dreg: Reg(1), key: L4Proto }
          Payload { dreg: Reg(2), base: Transport, offset: 2, len: 2 }
          Lookup { set: "services", sreg: Reg(0), dreg: Some(Reg(0)), negate: false }
          MetaSet { sreg: Reg(0), key: Priority }
          Meta { dreg: Reg(0), key: Priority }
          Vmap { set: "targets", sreg: Reg(0) }
    "#]],
    );
    check(
        TableFamily::Ip6,
        vec![
            Statement::SetPriority(0),
            Statement::SetPriority(0x1_000a),
            Statement::SetPriorityRandom { modulus: 3, offset: 0x10_0000 },
        ],
        expect![[r#"
            meta priority set none meta priority set 1:a meta priority set numgen random mod 3 offset 1048576
              Immediate { dreg: Reg(0), value: 0x00000000 }
              MetaSet { sreg: Reg(0), key: Priority }
              Immediate { dreg: Reg(0), value: 0x0a000100 }
              MetaSet { sreg: Reg(0), key: Priority }
              Numgen { dreg: Reg(0), modulus: 3, offset: 1048576 }
              MetaSet { sreg: Reg(0), key: Priority }
        "#]],
    );
}

#[test]
fn a_port_that_no_map_gives_is_loaded_behind_the_address() {
    let tcp = Statement::Compare { field: Field::L4Proto, value: Atom::Protocol(6), negate: false };
    let dnat = Statement::Dnat { key: vec![Field::Saddr], map: "affinity".into(), port: Some(8080) };
    check(
        TableFamily::Ip6,
        vec![tcp, dnat],
        expect![[r#"
        meta l4proto tcp dnat ip6 to ip6 saddr map @affinity:8080
          Meta { dreg: Reg(0), key: L4Proto }
          Cmp { sreg: Reg(0), op: Eq, value: 0x06 }
          Payload { dreg: Reg(0), base: Network, offset: 8, len: 16 }
          Lookup { set: "affinity", sreg: Reg(0), dreg: Some(Reg(0)), negate: false }
          Immediate { dreg: Reg(4), value: 0x1f90 }
          Dnat { family: Ip6, address: Reg(0), port: Some(Reg(4)) }
    "#]],
    );
}

#[test]
fn updates_load_the_value_behind_the_key() {
    let key = vec![Field::Saddr, Field::CtOriginalDaddr, Field::L4Proto, Field::CtOriginalDport];
    let value = vec![Field::Daddr, Field::Dport];
    let update = Statement::Update { set: "affinity".into(), key, value, timeout: None };
    check(
        TableFamily::Ip6,
        vec![Statement::CtStatusDnat, update],
        expect![[r#"
        ct status dnat update @affinity { ip6 saddr . ct original ip6 daddr . meta l4proto . ct original proto-dst : ip6 daddr . th dport }
          Ct { dreg: Reg(0), key: Status }
          Bitwise { sreg: Reg(0), dreg: Reg(0), mask: 0x20000000, xor: 0x00000000 }
          Cmp { sreg: Reg(0), op: Neq, value: 0x00000000 }
          Payload { dreg: Reg(0), base: Network, offset: 8, len: 16 }
          Ct { dreg: Reg(4), key: OriginalDaddr }
          Meta { dreg: Reg(8), key: L4Proto }
          Ct { dreg: Reg(9), key: OriginalDport }
          Payload { dreg: Reg(10), base: Network, offset: 24, len: 16 }
          Payload { dreg: Reg(14), base: Transport, offset: 2, len: 2 }
          Update { set: "affinity", key: Reg(0), value: Some(Reg(10)), timeout: None }
    "#]],
    );
}

#[test]
fn a_table_is_printed_in_a_fixed_order() {
    let mut table = Table::new(TableId::new(TableFamily::Ip, "portolan"));
    let address = |last| Atom::Address([10, 96, 0, last].into());
    let key = |last, port| Bytes::concat(&[address(last), Atom::Protocol(6), Atom::Port(port)]);
    let goto = |chain: &str| Value::Verdict(Verdict::Goto(chain.into()));
    let services = Set {
        key: vec![KeyType::Address, KeyType::Protocol, KeyType::Port],
        value: Some(ValueType::Verdict),
        comment: Some("VIPs \"and\" ports".into()),
        ..Set::default()
    };
    let elements = vec![
        Element::new(key(2, 80), goto("pick-1")),
        Element::new(key(1, 443), Value::Verdict(Verdict::Drop)),
        Element::new(key(1, 80), goto("pick-1")),
    ];
    table.sets.insert("services".into(), services);
    table.elements.insert("services".into(), elements);

    let endpoints = Set {
        key: vec![KeyType::Address, KeyType::Protocol, KeyType::Port, KeyType::Index],
        value: Some(ValueType::Concat(vec![KeyType::Address, KeyType::Port])),
        ..Set::default()
    };
    table.sets.insert("endpoints".into(), endpoints);

    let nets = Set { key: vec![KeyType::Address], interval: true, ..Set::default() };
    let ip = |a: [u8; 4]| Bytes::concat(&[Atom::Address(a.into())]);
    let ranges = [
        Element::interval(ip([10, 0, 0, 0]), &ip([10, 255, 255, 255])),
        Element::interval(ip([192, 0, 2, 8]), &ip([192, 0, 2, 15])),
        Element::interval(ip([240, 0, 0, 0]), &ip([255, 255, 255, 255])),
        Element::interval(ip([192, 0, 2, 7]), &ip([192, 0, 2, 7])),
    ];
    table.sets.insert("nets".into(), nets);
    table.elements.insert("nets".into(), ranges.concat());

    let allow = Set { key: vec![KeyType::Address, KeyType::Address], interval: true, ..Set::default() };
    let pair = |last, other| Bytes::concat(&[address(last), address(other)]);
    table.sets.insert("allow".into(), allow);
    table.elements.insert("allow".into(), vec![Element::range(pair(1, 16), pair(1, 31))]);

    let pick = Rule::commented(
        vec![Statement::Dnat { key: endpoint(1, 0), map: "endpoints".into(), port: None }],
        "raced with a commit",
    );
    table.chains.insert("pick-1".into(), Chain { base: None, rules: vec![pick] });
    let base = Some(Base { kind: ChainKind::Nat, hook: Hook::Prerouting, priority: -100 });
    let rules = vec![
        Rule::new(vec![Statement::Vmap { key: frontend(), map: "services".into() }]),
        Rule::new(vec![
            Statement::InSet { key: vec![Field::Daddr], set: "nets".into(), negate: true },
            Statement::DaddrIsLocal,
            Statement::Reject,
        ]),
    ];
    table.chains.insert("nat-prerouting".into(), Chain { base, rules });
    expect![[r#"
        table ip portolan {
        	set allow {
        		type ipv4_addr . ipv4_addr
        		flags interval
        		elements = {
        			10.96.0.1 . 10.96.0.16-10.96.0.31,
        		}
        	}
        	map endpoints {
        		typeof ip daddr . meta l4proto . th dport . numgen random mod 2 : ip daddr . th dport
        	}
        	set nets {
        		type ipv4_addr
        		flags interval
        		elements = {
        			10.0.0.0-10.255.255.255,
        			192.0.2.7,
        			192.0.2.8-192.0.2.15,
        			240.0.0.0-255.255.255.255,
        		}
        	}
        	map services {
        		type ipv4_addr . inet_proto . inet_service : verdict
        		comment "VIPs 'and' ports"
        		elements = {
        			10.96.0.1 . tcp . 80 : goto pick-1,
        			10.96.0.1 . tcp . 443 : drop,
        			10.96.0.2 . tcp . 80 : goto pick-1,
        		}
        	}
        	chain nat-prerouting {
        		type nat hook prerouting priority -100
        		ip daddr . meta l4proto . th dport vmap @services
        		ip daddr != @nets fib daddr type local reject
        	}
        	chain pick-1 {
        		dnat ip to ip daddr . meta l4proto . th dport . numgen random mod 1 map @endpoints comment "raced with a commit"
        	}
        }
    "#]].assert_eq(&table.to_string());
}
