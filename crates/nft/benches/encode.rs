//! What turning elements into the bytes of a transaction costs.

use std::net::Ipv4Addr;

use divan::Bencher;
use divan::counter::ItemsCount;
use portolan_nft::{Atom, Batch, Bytes, Command, Element, TableFamily, TableId, Value};

fn main() {
    divan::main();
}

#[divan::bench(args = [1, 100, 4_000])]
fn endpoints(bencher: Bencher, count: u32) {
    let table = TableId { family: TableFamily::Ip, name: "portolan".into() };
    let elements = (0..count).map(element).collect();
    let commands = [Command::AddElements { set: "endpoints".into(), elements }];
    bencher.counter(ItemsCount::new(count)).bench(|| Batch::new(&table, divan::black_box(&commands), None));
}

fn element(number: u32) -> Element {
    let vip = Atom::Address(Ipv4Addr::from(0x0a60_0100 + number / 10).into());
    let key = [vip, Atom::Protocol(6), Atom::Port(80), Atom::Index(number % 10)];
    let value = [Atom::Address(Ipv4Addr::from(0x0a80_0000 + number).into()), Atom::Port(8080)];
    Element::new(Bytes::concat(&key), Value::Bytes(Bytes::concat(&value)))
}
