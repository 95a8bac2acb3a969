use std::collections::BTreeSet;
use std::time::Duration;

use portolan::dataplane::nft::{CommitError, NftSocket};
use portolan_nft::{
    Atom, Bytes, Command, Element, Extra, KeyType, Range, Rule, Set, Statement, TableFamily, TableId, Value,
    ValueType, Verdict,
};

use crate::namespace::in_namespace;

fn id() -> TableId {
    TableId::new(TableFamily::Ip, "lab")
}

fn add_set(name: &str) -> Command {
    let set = Set { key: vec![KeyType::Address, KeyType::Index], ..Set::default() };
    Command::AddSet { name: name.into(), set }
}

fn member(i: u32) -> Element {
    Element::member(Bytes::concat(&[Atom::Address([10, 0, 0, 1].into()), Atom::Index(i)]))
}

fn add(elements: Vec<Element>) -> Command {
    Command::AddElements { set: "s".into(), elements }
}

fn errno(error: CommitError) -> Vec<(Option<usize>, Option<i32>)> {
    match error {
        CommitError::Refused(refusals) => {
            refusals.iter().map(|refusal| (refusal.command, refusal.error.raw_os_error())).collect()
        }
        other => panic!("{other}"),
    }
}

#[test]
fn s12_s66_thirty_thousand_elements_are_one_transaction() {
    in_namespace("s12_s66_thirty_thousand_elements_are_one_transaction", || {
        let mut socket = NftSocket::open().unwrap();
        let before = socket.generation().unwrap();
        let elements: Vec<_> = (0..30_000).map(member).collect();
        socket.commit(&id(), &[Command::AddTable, add_set("s"), add(elements.clone())]).unwrap();
        assert_eq!(socket.generation().unwrap(), before + 1);
        let (dumped, _) = socket.dump_table(&id()).unwrap().unwrap();
        let mut found = dumped.elements["s"].clone();
        found.sort();
        let mut wanted = elements;
        wanted.sort();
        assert!(found == wanted, "{} elements", found.len());
    });
}

/// The kernel puts a map that grew in another order a moment later; a dump at that time leaves out a fifth of them.
#[test]
fn s42_s66_all_clients_are_read_right_after_they_were_written() {
    in_namespace("s42_s66_all_clients_are_read_right_after_they_were_written", || {
        let mut socket = NftSocket::open().unwrap();
        let set = Set { key: vec![KeyType::Address, KeyType::Index], timeouts: true, ..Set::default() };
        let timeout = Some(Duration::from_secs(3600));
        let remembered =
            |i| Element { extra: Some(Box::new(Extra { timeout, ..Extra::default() })), ..member(i) };
        let clients: Vec<_> = (0..30_000).map(remembered).collect();
        let set = Command::AddSet { name: "s".into(), set };
        // not at each time is the kernel slower than the dump
        for _ in 0..5 {
            socket.commit(&id(), &[Command::AddTable, set.clone(), add(clients.clone())]).unwrap();
            let found = socket.elements(&id(), "s".into()).unwrap();
            let keys: BTreeSet<_> = found.iter().map(|element| &element.key[..]).collect();
            assert_eq!((found.len(), keys.len()), (30_000, 30_000));
            socket.commit(&id(), &[Command::DeleteTable]).unwrap();
        }
        socket.commit(&id(), &[Command::AddTable]).unwrap();
        assert_eq!(socket.elements(&id(), "none".into()).unwrap(), []);
    });
}

#[test]
fn s66_a_duplicate_as_the_last_of_many_leaves_nothing_behind() {
    in_namespace("s66_a_duplicate_as_the_last_of_many_leaves_nothing_behind", || {
        let mut socket = NftSocket::open().unwrap();
        socket.commit(&id(), &[Command::AddTable, add_set("s"), add(vec![member(0)])]).unwrap();
        let before = socket.generation().unwrap();
        let elements = (1..30_000).chain([0]).map(member).collect();
        let error = socket.commit(&id(), &[add_set("other"), add(elements)]).unwrap_err();
        assert_eq!(errno(error), [(Some(1), Some(libc::EEXIST))]);
        assert_eq!(socket.generation().unwrap(), before);
        let (dumped, _) = socket.dump_table(&id()).unwrap().unwrap();
        assert_eq!(dumped.elements["s"].len(), 1);
        assert_eq!(dumped.sets.len(), 1);
    });
}

#[test]
fn every_refused_command_is_named() {
    in_namespace("every_refused_command_is_named", || {
        let mut socket = NftSocket::open().unwrap();
        socket.commit(&id(), &[Command::AddTable, add_set("s")]).unwrap();
        let missing = || Command::DeleteElements { set: "s".into(), elements: vec![member(7)] };
        let commands = [
            Command::AddTable,
            missing(),
            add((0..5000).map(member).collect()),
            Command::DeleteChain { chain: "none".into() },
            Command::AddChain { chain: "c".into(), base: None },
        ];
        let error = socket.commit(&id(), &commands).unwrap_err();
        let sentence = error.to_string();
        assert!(sentence.contains("table ip lab: delete 1 elements of set s: No such file"), "{sentence}");
        assert!(sentence.ends_with("and 1 more"), "{sentence}");
        assert_eq!(errno(error), [(Some(1), Some(libc::ENOENT)), (Some(3), Some(libc::ENOENT))]);
        // the socket goes on
        socket.commit(&id(), &[add(vec![member(7)]), missing()]).unwrap();
    });
}

#[test]
fn more_errors_than_the_socket_holds_are_a_failure() {
    in_namespace("more_errors_than_the_socket_holds_are_a_failure", || {
        let mut socket = NftSocket::open().unwrap();
        socket.commit(&id(), &[Command::AddTable]).unwrap();
        let before = socket.generation().unwrap();
        let missing: Vec<_> =
            (0..40_000).map(|i| Command::DeleteChain { chain: format!("c{i}").into() }).collect();
        match socket.commit(&id(), &missing) {
            Err(CommitError::Overrun) => {}
            other => panic!("{other:?}"),
        }
        assert_eq!(socket.generation().unwrap(), before);
        socket.commit(&id(), &[add_set("s")]).unwrap();
    });
}

#[test]
fn a_transaction_made_from_an_old_dump_is_stale() {
    in_namespace("a_transaction_made_from_an_old_dump_is_stale", || {
        let mut socket = NftSocket::open().unwrap();
        socket.commit(&id(), &[Command::AddTable, add_set("s")]).unwrap();
        let (_, generation) = socket.dump_table(&id()).unwrap().unwrap();
        socket.commit_since(&id(), &[add(vec![member(1)])], Some(generation)).unwrap();
        let error = socket.commit_since(&id(), &[add(vec![member(2)])], Some(generation)).unwrap_err();
        assert!(matches!(error, CommitError::Stale), "{error}");
        let (dumped, _) = socket.dump_table(&id()).unwrap().unwrap();
        assert_eq!(dumped.elements["s"], [member(1)]);
    });
}

#[test]
fn a_table_comes_and_goes() {
    in_namespace("a_table_comes_and_goes", || {
        let mut socket = NftSocket::open().unwrap();
        assert_eq!(socket.dump_table(&id()).unwrap(), None);
        socket.commit(&id(), &[]).unwrap();
        socket.commit(&id(), &[Command::AddTable]).unwrap();
        assert!(socket.dump_table(&id()).unwrap().is_some());
        socket.commit(&id(), &[Command::AddTable, Command::DeleteTable]).unwrap();
        assert_eq!(socket.dump_table(&id()).unwrap(), None);
    });
}

#[test]
fn everything_added_can_be_deleted_again() {
    in_namespace("everything_added_can_be_deleted_again", || {
        let mut socket = NftSocket::open().unwrap();
        let ranges = Set { interval: true, key: vec![KeyType::Address, KeyType::Port], ..Set::default() };
        let nets = Set { interval: true, key: vec![KeyType::Address], ..Set::default() };
        let verdicts = Set { key: vec![KeyType::Port], value: Some(ValueType::Verdict), ..Set::default() };
        let key = |last, port| Bytes::concat(&[Atom::Address([10, 0, 0, last].into()), Atom::Port(port)]);
        let ip = |last| Bytes::concat(&[Atom::Address([10, 0, 0, last].into())]);
        let goto = Value::Verdict(Verdict::Goto("c".into()));
        let contents = [
            ("ranges", vec![Element::range(key(1, 80), key(9, 80))]),
            ("nets", Element::interval(ip(16), &ip(31))),
            ("verdicts", vec![Element::new(Bytes::concat(&[Atom::Port(80)]), goto)]),
        ];
        let mut commands = vec![Command::AddTable, Command::AddChain { chain: "c".into(), base: None }];
        for (name, set) in [("ranges", ranges), ("nets", nets), ("verdicts", verdicts)] {
            commands.push(Command::AddSet { name: name.into(), set });
        }
        for (set, elements) in contents.clone() {
            commands.push(Command::AddElements { set: set.into(), elements });
        }
        let rule = Rule::new(vec![Statement::Reject]);
        commands.push(Command::AddRule { chain: "c".into(), rule: rule.clone() });
        commands.push(Command::AddRule { chain: "c".into(), rule });
        socket.commit(&id(), &commands).unwrap();

        let (dumped, _) = socket.dump_table(&id()).unwrap().unwrap();
        let handle = dumped.chains["c"].rules[0].handle;
        assert!(
            dumped.elements["nets"]
                .iter()
                .any(|e| e.extra.as_ref().is_some_and(|x| x.range == Some(Range::End)))
        );
        let mut commands = vec![Command::DeleteRule { chain: "c".into(), handle }];
        for (set, elements) in contents {
            commands.push(Command::DeleteElements { set: set.into(), elements });
        }
        socket.commit(&id(), &commands).unwrap();
        let (dumped, _) = socket.dump_table(&id()).unwrap().unwrap();
        assert!(dumped.elements.values().all(Vec::is_empty), "{:?}", dumped.elements);
        assert_eq!(dumped.chains["c"].rules.len(), 1);

        let mut commands = vec![Command::FlushChain { chain: "c".into() }];
        for set in ["ranges", "nets", "verdicts"] {
            commands.push(Command::FlushSet { set: set.into() });
            commands.push(Command::DeleteSet { name: set.into() });
        }
        commands.push(Command::DeleteChain { chain: "c".into() });
        socket.commit(&id(), &commands).unwrap();
        let (dumped, _) = socket.dump_table(&id()).unwrap().unwrap();
        assert_eq!(dumped, portolan_nft::Dumped::default());
    });
}
