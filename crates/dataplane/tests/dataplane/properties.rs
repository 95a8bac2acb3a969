//! What holds for any cluster and any sequence of events (invariants 2, 5, 11 and 13).

use std::collections::{BTreeMap, BTreeSet};

use crate::cluster::{CLIENT, Event, Wish, ip, packets};
use crate::gates;
use crate::kernel::{Kernel, Record, names};
use portolan_dataplane::{Dataplane, KernelState, Limits, Outcome, Packet, Settings, evaluate, render};
use portolan_model::Family;
use portolan_nft::{Atom, Bytes, Element, KeyType, Name, Table, Value, Verdict};

/// Small transactions, so that every boundary between two of them is met.
fn new(settings: Settings) -> Dataplane {
    Dataplane::with_limits(settings, Limits { elements: 5, replacement: 10_000, spare: 2 })
}

fn restarted(wish: &Wish, kernel: &Kernel) -> Dataplane {
    let mut dataplane = wish.dataplane(new, 0);
    dataplane.observed(&kernel.observe());
    dataplane
}

fn outcome(table: &Table, packet: &Packet) -> Outcome {
    evaluate(table, packet).outcome
}

/// Lives through the events; `after_step` sees the kernel before and after each transaction.
fn live(events: &[Event], mut after_step: impl FnMut(&Kernel, &Kernel)) -> (Wish, Kernel, Dataplane) {
    let (mut wish, mut kernel) = (Wish::default(), Kernel::default());
    let mut dataplane = restarted(&wish, &kernel);
    for event in events {
        wish.take(event);
        match event {
            Event::Set(id, created, plan) => drop(dataplane.set_service(id, *created, Some(plan.clone()))),
            Event::Remove(id) => drop(dataplane.set_service(id, 0, None)),
            Event::Settings(settings) => dataplane.set_settings(settings.clone()),
            Event::Write => kernel.write(&mut dataplane, &mut after_step),
            Event::Crash(steps) => {
                for step in dataplane.steps().iter().take(*steps) {
                    let before = kernel.clone();
                    kernel.apply(step).unwrap();
                    after_step(&before, &kernel);
                }
                dataplane = restarted(&wish, &kernel);
            }
            Event::Connect(family, client, choice) => {
                kernel.remember(*family, ip(*family, CLIENT, *client), *choice)
            }
            Event::Fail => {
                dataplane.failed();
                assert!(dataplane.steps().is_empty());
                dataplane.observed(&kernel.observe());
            }
        }
    }
    kernel.write(&mut dataplane, &mut after_step);
    (wish, kernel, dataplane)
}

fn check_events(property: impl Fn(&[Event])) {
    arbtest::arbtest(|u| {
        let events: Vec<Event> = u.arbitrary()?;
        property(&events);
        Ok(())
    })
    .budget_ms(8_000);
}

#[test]
fn applying_the_steps_converges_and_a_restart_writes_nothing() {
    check_events(|events| {
        let (wish, kernel, mut dataplane) = live(events, |_, _| {});
        assert_eq!(format!("{:?}", dataplane.steps()), "[]");
        assert_eq!(format!("{:?}", restarted(&wish, &kernel).steps()), "[]");
    });
}

#[test]
fn no_element_stands_behind_a_closed_gate() {
    check_events(|events| _ = live(events, |_, kernel| gates::check(kernel)));
}

#[test]
fn history_leaves_no_trace() {
    check_events(|events| {
        let (wish, kernel, dataplane) = live(events, |_, _| {});
        let scratch = wish.dataplane(new, events.len());
        assert_eq!(render(&dataplane), render(&scratch), "the order of telling is no matter");
        for family in Family::ALL {
            let (mut written, wanted) = (kernel.table(family).unwrap(), scratch.desired(family));
            let nobodys = |set: &&Name| {
                set.starts_with("affinity") && !written.chains.values().any(|chain| names(chain, set))
            };
            assert_eq!(written.sets.keys().find(nobodys), None);
            // a few chains may stand by
            let stands_by = |name: &str| {
                ["pick-", "remember-", "recall-"].iter().any(|beginning| name.contains(beginning))
            };
            written.chains.retain(|name, _| !stands_by(name) || wanted.chains.contains_key(name));
            let targets = written.elements.get_mut("targets").unwrap();
            targets.retain(|target| match &target.value {
                Value::Verdict(Verdict::Jump(chain)) => written.chains.contains_key(chain),
                _ => true,
            });
            written.elements.retain(|name, _| !name.starts_with("affinity"));
            assert_eq!(contents(&written), contents(&wanted));
            for packet in packets().iter().filter(|p| Family::of(&p.source.ip()) == family) {
                assert_eq!(outcome(&written, packet), outcome(&wanted, packet), "{packet:?}");
            }
        }
    });
}

/// By frontend, and whether from the cluster's side.
type Endpoints = BTreeMap<(Vec<Atom>, bool), BTreeSet<Bytes>>;

/// Everything in a table, endpoints as sets with dense indices.
fn contents(table: &Table) -> (BTreeSet<String>, Endpoints) {
    let mut seen: BTreeSet<String> = table.chains.iter().map(|chain| format!("{chain:?}")).collect();
    let mut endpoints = Endpoints::new();
    let mut indices: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
    for (set, elements) in &table.elements {
        for element in elements {
            if !set.starts_with("endpoints-") {
                seen.insert(format!("{set}: {element:?}"));
                continue;
            }
            let (frontend, index) = endpoint_key(table, element);
            let Value::Bytes(backend) = &element.value else { panic!("{element:?}") };
            let half = (frontend, index >= 1 << 20);
            endpoints.entry(half.clone()).or_default().insert(backend.clone());
            indices.entry(half).or_default().insert(index % (1 << 20));
        }
    }
    for (half, indices) in indices {
        assert_eq!(indices, (0..endpoints[&half].len() as u32).collect(), "dense, without copies: {half:?}");
    }
    (seen, endpoints)
}

fn endpoint_key(table: &Table, element: &Element) -> (Vec<Atom>, u32) {
    let types = [KeyType::Address, KeyType::Protocol, KeyType::Port, KeyType::Priority];
    let mut atoms = element.key.atoms(table.id.family, &types).unwrap();
    match atoms.pop() {
        Some(Atom::Priority(index)) => (atoms, index),
        other => panic!("{other:?}"),
    }
}

/// After every transaction, and after a restart wherever an earlier agent stopped.
#[test]
fn s42_nobody_is_remembered_for_an_endpoint_that_is_gone() {
    check_events(|events| {
        let check = |kernel: &Kernel| {
            for family in Family::ALL {
                let client = if family == Family::Ipv4 { 4 } else { 16 };
                let records = kernel.records(family);
                for map in kernel.maps(family).into_iter().filter(|map| map.starts_with("affinity")) {
                    for element in kernel.elements(family, &map).into_values() {
                        let Value::Bytes(backend) = element.value else { panic!("{map}") };
                        let may_be = |record: &Record| {
                            record.map == map
                                && record.frontend[..] == element.key[client..]
                                && record.value == backend
                        };
                        assert!(records.iter().any(may_be), "{map}: {:?} to {backend:?}", element.key);
                    }
                }
            }
        };
        let (_, kernel, _) = live(events, |_, after| check(after));
        check(&kernel);
    });
}

#[test]
fn what_is_published_has_its_endpoints_after_every_step() {
    check_events(|events| {
        live(events, |before, after| {
            for family in Family::ALL {
                for (map, offset) in [("services", 0), ("cluster-services", 1 << 20)] {
                    let picks = picks(after, family, map);
                    for (key, pick) in &picks {
                        for index in 0..pick.count {
                            let there = has_endpoint(after, family, pick, key, offset + index);
                            assert!(there, "{map} {key:?} {index}");
                        }
                    }
                    // a packet may read the maps on either side of a commit
                    let stays = |key: &Bytes| before.elements(family, map).contains_key(key);
                    for (key, pick) in picks.iter().filter(|(key, _)| stays(key)) {
                        assert!(has_endpoint(after, family, pick, key, offset), "{map} {key:?} raced");
                    }
                }
            }
        });
    });
}

/// A chain that picks.
struct Picks {
    /// How many endpoints it expects.
    count: u32,
    /// The map in which they are looked for.
    map: String,
}

/// Keys that a map sends to a chain that picks. None is sent nowhere.
fn picks(kernel: &Kernel, family: Family, map: &str) -> BTreeMap<Bytes, Picks> {
    let targets = kernel.elements(family, "targets");
    let picks = |element: &Element| {
        let Value::Bytes(code) = &element.value else { panic!("{element:?}") };
        match &targets.get(code).unwrap_or_else(|| panic!("{element:?} leads nowhere")).value {
            Value::Verdict(Verdict::Jump(chain)) if !chain.starts_with("refuse") => {
                let (_, pick) = chain.rsplit_once("pick-").unwrap();
                let (count, shard) = pick.split_once("-from-").unwrap();
                Some(Picks { count: count.parse().unwrap(), map: format!("endpoints-{shard}") })
            }
            _ => None,
        }
    };
    kernel.elements(family, map).iter().filter_map(|(key, e)| Some((key.clone(), picks(e)?))).collect()
}

fn has_endpoint(kernel: &Kernel, family: Family, pick: &Picks, key: &Bytes, index: u32) -> bool {
    let key = Bytes::new(&[&key[..], &index.to_ne_bytes()].concat());
    kernel.elements(family, &pick.map).contains_key(&key)
}

/// A frontend that is balanced before a change and after it is balanced all the way, to endpoints of before or after.
#[test]
fn connections_find_an_endpoint_all_the_way_through_a_change() {
    arbtest::arbtest(|u| {
        let (first, second): (Vec<Event>, Vec<Event>) = u.arbitrary()?;
        let (mut wish, mut kernel, mut dataplane) = live(&first, |_, _| {});
        let start = kernel.clone();
        for event in &second {
            wish.take(event);
        }
        for (id, (created, plan)) in &wish.services {
            dataplane.set_service(id, *created, Some(plan.clone()));
        }
        let gone: Vec<_> =
            dataplane.services().filter(|id| !wish.services.contains_key(id)).cloned().collect();
        gone.iter().for_each(|id| drop(dataplane.set_service(id, 0, None)));
        let mut between = Vec::new();
        kernel.write(&mut dataplane, |_, after| between.push(after.clone()));
        for packet in packets() {
            let family = Family::of(&packet.source.ip());
            let ask = |kernel: &Kernel| kernel.table(family).map(|table| outcome(&table, &packet));
            let (Some(Outcome::Dnat(a)), Some(Outcome::Dnat(b))) = (ask(&start), ask(&kernel)) else {
                continue;
            };
            let known: BTreeSet<_> = a.iter().chain(&b).map(|candidate| candidate.backend).collect();
            for kernel in &between {
                match ask(kernel) {
                    Some(Outcome::Dnat(now)) => assert!(now.iter().all(|c| known.contains(&c.backend))),
                    other => panic!("{packet:?}: {other:?} between {a:?} and {b:?}"),
                }
            }
        }
        Ok(())
    })
    .budget_ms(8_000);
}

#[test]
fn an_absent_table_is_no_state_of_ours() {
    let mut dataplane = new(Settings::default());
    assert!(dataplane.steps().is_empty(), "nothing is known yet");
    dataplane.observed(&KernelState::default());
    let mut kernel = Kernel::default();
    kernel.write(&mut dataplane, |_, _| {});
    assert!(dataplane.steps().is_empty());
}
