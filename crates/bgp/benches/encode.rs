//! What the UPDATEs of many host routes cost, to write and to read.

use std::net::{IpAddr, Ipv4Addr};

use divan::Bencher;
use divan::counter::ItemsCount;
use portolan_bgp::wire::{self, Format, Message, Origin, PathAttributes};
use portolan_bgp::{Community, Prefix};

fn main() {
    divan::main();
}

const PREFIXES: [u32; 3] = [1, 1_000, 30_000];
const FORMAT: Format = Format { four_octet_as: true, internal: false };

#[divan::bench(args = PREFIXES)]
fn announce(bencher: Bencher, count: u32) {
    let prefixes = prefixes(count);
    bencher.counter(ItemsCount::new(count)).bench(|| written(divan::black_box(&prefixes)));
}

#[divan::bench(args = PREFIXES)]
fn decode(bencher: Bencher, count: u32) {
    let bytes = written(&prefixes(count));
    bencher.counter(ItemsCount::new(count)).bench(|| {
        let mut rest = divan::black_box(&bytes[..]);
        let mut messages = 0;
        while let Ok(Some(length)) = wire::frame(rest) {
            let (message, after) = rest.split_at(length);
            messages += usize::from(Message::decode(message, FORMAT).is_ok());
            rest = after;
        }
        messages
    });
}

fn prefixes(count: u32) -> Vec<Prefix> {
    (0..count).map(|number| host(Ipv4Addr::from(0xc612_0000 + number).into())).collect()
}

fn host(address: IpAddr) -> Prefix {
    format!("{address}/32").parse().expect("a prefix")
}

fn written(prefixes: &[Prefix]) -> Vec<u8> {
    let attributes = PathAttributes {
        origin: Origin::Igp,
        as_path: vec![64512],
        med: None,
        local_pref: None,
        communities: vec![Community::Standard(64512 << 16 | 100)],
    };
    let (next_hop, mut bytes) = (Ipv4Addr::new(10, 9, 0, 1).into(), Vec::new());
    wire::announce(prefixes, &attributes, next_hop, FORMAT, &mut bytes);
    bytes
}
