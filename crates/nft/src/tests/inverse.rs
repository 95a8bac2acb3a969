use arbtest::arbtest;
use portolan_netlink::{Attributes, Writer};

use super::arbitrary;
use crate::{
    Batch, Bytes, Command, Content, Dumped, DumpedRule, Element, Expr, Request, Rule, Set, Statement, Table,
    TableFamily, TableId, generation, messages,
};

fn table(family: TableFamily) -> TableId {
    TableId::new(family, "lab")
}

#[test]
fn expressions() {
    arbtest(|u| {
        let family = arbitrary::family(u)?;
        let expr = arbitrary::expr(u, family)?;
        let mut w = Writer::default();
        expr.encode(&mut w, family);
        assert_eq!(Expr::decode(Attributes(&w.0), family), expr);
        Ok(())
    });
}

#[test]
fn rules() {
    arbtest(|u| {
        let family = arbitrary::family(u)?;
        let few = u.int_in_range(0..=3)?;
        let statements = (0..few).map(|_| arbitrary::statement(u, family)).collect::<Result<_, _>>()?;
        let rule = Rule { statements, comment: None };
        let dumped = DumpedRule { handle: 1, exprs: rule.compile(family), packets: None, comment: None };
        assert_eq!(dumped.read(family), Some(rule));
        Ok(())
    });
}

/// What a foreign rule does is either said in words that mean the same, or not at all.
#[test]
fn foreign_rules() {
    arbtest(|u| {
        let family = arbitrary::family(u)?;
        let few = u.int_in_range(0..=4)?;
        let exprs: Vec<Expr> = (0..few).map(|_| arbitrary::expr(u, family)).collect::<Result<_, _>>()?;
        let dumped = DumpedRule { handle: 1, exprs, packets: None, comment: None };
        if let Some(rule) = dumped.read(family) {
            assert!(dumped.is(&rule, family), "{rule:?}");
        }
        Ok(())
    });
}

#[test]
fn declarations_of_sets() {
    arbtest(|u| {
        let (family, set) = (arbitrary::family(u)?, arbitrary::set(u)?);
        let mut w = Writer::default();
        set.encode(&mut w, family, 1);
        assert_eq!(Set::decode(Attributes(&w.0), family), set);
        Ok(())
    });
}

#[test]
fn keys_and_values() {
    arbtest(|u| {
        let (family, types) = (arbitrary::family(u)?, arbitrary::key(u)?);
        let atoms = arbitrary::atoms(u, family, &types)?;
        let bytes = Bytes::concat(&atoms);
        let whole = types.iter().map(|kind| kind.len(family).next_multiple_of(4)).sum::<usize>() <= 64;
        if whole {
            assert_eq!(bytes.atoms(family, &types), Some(atoms));
        }
        assert_eq!(bytes.atoms(family, &[&types[..], &types[..1]].concat()), None);
        Ok(())
    });
}

/// A set and its elements, through a whole transaction.
fn transaction(u: arbitrary::Input) -> ::arbitrary::Result<(TableFamily, Set, Vec<Element>, Batch)> {
    let (family, set) = (arbitrary::family(u)?, arbitrary::set(u)?);
    let few = u.int_in_range(0..=5)?;
    let elements: Vec<_> = (0..few).map(|_| arbitrary::element(u, family, &set)).collect::<Result<_, _>>()?;
    let commands = [
        Command::AddTable,
        Command::AddChain { chain: "c".into(), base: None },
        Command::AddSet { name: "s".into(), set: set.clone() },
        Command::AddElements { set: "s".into(), elements: elements.clone() },
    ];
    Ok((family, set, elements, Batch::new(&table(family), &commands, None)))
}

fn read(table: &TableId, bytes: &[u8]) -> Dumped {
    let mut dumped = Dumped::default();
    for message in messages(bytes) {
        if let Content::Object { kind, family, attributes } = message.content {
            let _ = dumped.read(table, kind, family, attributes);
        }
    }
    dumped
}

#[test]
fn elements() {
    arbtest(|u| {
        let (family, set, elements, batch) = transaction(u)?;
        let dumped = read(&table(family), &batch.bytes);
        assert_eq!(dumped.sets["s"], set);
        assert_eq!(dumped.elements.get("s").cloned().unwrap_or_default(), elements);
        assert_eq!(dumped.chains.len(), 1);
        Ok(())
    });
}

#[test]
fn broken_messages_are_never_a_panic() {
    arbtest(|u| {
        let (family, _, _, batch) = transaction(u)?;
        let mut bytes = batch.bytes;
        for _ in 0..u.int_in_range(1..=4)? {
            let at = u.choose_index(bytes.len())?;
            bytes[at] = u.arbitrary()?;
        }
        bytes.truncate(u.int_in_range(0..=bytes.len())?);
        read(&table(family), &bytes);
        Ok(())
    });
}

#[test]
fn noise_is_never_a_panic() {
    arbtest(|u| {
        let (family, kind) = (arbitrary::family(u)?, u.int_in_range(0..=20)?);
        let noise: Vec<u8> = u.arbitrary()?;
        messages(&noise).for_each(drop);
        // noise behind the name of our table
        let mut w = Writer::default();
        w.text(1, "lab");
        w.0.extend_from_slice(&noise);
        let _ = Dumped::default().read(&table(family), kind, family.number(), &w.0);
        let _ = Set::decode(Attributes(&noise), family);
        let _ = Expr::decode(Attributes(&noise), family);
        let _ = generation(kind, &noise);
        for name in ["nat", "dynset", "lookup", "bitwise", "reject", "immediate", "fib", "ct"] {
            let mut w = Writer::default();
            w.text(1, name);
            w.nest(2, |w| w.0.extend_from_slice(&noise[..noise.len().min(1000)]));
            let _ = Expr::decode(Attributes(&w.0), family);
        }
        Ok(())
    });
}

#[test]
fn any_table_can_be_printed() {
    arbtest(|u| {
        let (family, set, elements, _) = transaction(u)?;
        let mut table = Table::new(table(family));
        table.sets.insert("s".into(), set);
        table.elements.insert("s".into(), elements);
        let key = vec![arbitrary::field(u)?, arbitrary::field(u)?];
        let rule = crate::Rule::new(vec![Statement::InSet { key, set: "s".into(), negate: u.arbitrary()? }]);
        table.chains.insert("c".into(), crate::Chain { base: None, rules: vec![rule] });
        let first = table.to_string();
        table.elements.values_mut().for_each(|elements| elements.reverse());
        assert_eq!(first.lines().count(), table.to_string().lines().count());
        Ok(())
    });
}

#[test]
fn errors_are_of_the_command_that_made_them() {
    let many = (0..3000u32).map(|i| Element::member(Bytes::new(&i.to_ne_bytes()))).collect();
    let commands = [
        Command::AddTable,
        Command::AddElements { set: "s".into(), elements: vec![] },
        Command::AddElements { set: "s".into(), elements: many },
        Command::DeleteTable,
    ];
    let batch = Batch::new(&table(TableFamily::Ip), &commands, Some(7));
    let commands: Vec<_> = messages(&batch.bytes).map(|message| batch.command(message.seq)).collect();
    assert_eq!(commands, [None, Some(0), Some(2), Some(3), None]);
    assert!(!batch.is_empty());
    assert!(Batch::new(&table(TableFamily::Ip), &[], None).is_empty());
}

#[test]
fn s12_long_lists_are_split_below_64_kib() {
    let elements: Vec<_> = (0..30_000u32).map(|i| Element::member(Bytes::new(&i.to_be_bytes()))).collect();
    let commands = [Command::AddElements { set: "s".into(), elements: elements.clone() }];
    let batch = Batch::new(&table(TableFamily::Ip), &commands, None);
    let longest = messages(&batch.bytes).filter_map(|message| match message.content {
        Content::Object { attributes, .. } => Some(attributes.len()),
        _ => None,
    });
    assert!(longest.max() < Some(64 << 10));
    assert_eq!(read(&table(TableFamily::Ip), &batch.bytes).elements["s"], elements);
}

#[test]
fn requests_are_framed() {
    let table = table(TableFamily::Ip6);
    for request in [Request::Generation, Request::Table, Request::Rules, Request::Elements("s".into())] {
        let bytes = request.encode(&table, 9);
        let seqs: Vec<_> = messages(&bytes).map(|message| message.seq).collect();
        assert_eq!(seqs, [9], "{request:?}");
    }
}

#[test]
fn elements_stay_small() {
    // 300,000 of them are in memory at once when a large table is dumped
    assert_eq!(size_of::<Element>(), 72);
}

#[test]
fn a_dump_with_an_element_twice_is_not_whole() {
    let element = |last| Element::member(Bytes::new(&[10, 0, 0, last]));
    let dump = |set: Set, last: u8| Dumped {
        sets: [("s".into(), set)].into(),
        elements: [("s".into(), vec![element(1), element(2), element(last)])].into(),
        ..Dumped::default()
    };
    assert!(Dumped::default().is_whole());
    assert!(dump(Set::default(), 3).is_whole());
    assert!(!dump(Set::default(), 1).is_whole());
    // what packets write may come twice at any time, and a range may end where another begins
    assert!(dump(Set { dynamic: true, ..Set::default() }, 1).is_whole());
    assert!(dump(Set { timeouts: true, ..Set::default() }, 1).is_whole());
    assert!(dump(Set { interval: true, ..Set::default() }, 1).is_whole());
}
