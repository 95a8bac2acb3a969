//! Any bytes at all (invariant 10): a message, a NOTIFICATION or a wait, never a panic.

use std::path::Path;

use arbtest::arbtest;
use portolan_bgp::wire::{Format, Message, Update};

use super::feed::{FORMAT, greeting};

fn feed(input: &[&[u8]]) {
    super::feed::feed(input, super::start_of_time());
}

#[test]
fn random_bytes() {
    arbtest(|u| {
        let bytes: Vec<Vec<u8>> = u.arbitrary()?;
        feed(&bytes.iter().map(Vec::as_slice).collect::<Vec<_>>());
        Ok(())
    });
}

#[test]
fn random_bodies_in_every_state() {
    arbtest(|u| {
        let greeting = greeting();
        let greeted = *u.choose(&[0, greeting.len() - 19, greeting.len()])?;
        let mut bytes = greeting[..greeted].to_vec();
        for _ in 0..u.int_in_range(1..=5)? {
            let body: Vec<u8> = u.arbitrary()?;
            let body = &body[..body.len().min(4000)];
            bytes.extend([0xff; 16]);
            bytes.extend((body.len() as u16 + 19).to_be_bytes());
            bytes.push(u.int_in_range(0..=6)?);
            bytes.extend(body);
        }
        feed(&[&bytes]);
        Ok(())
    });
}

/// What does decode, and is well formed, encodes to something that decodes to the same.
#[test]
fn decoded_updates_survive_another_round() {
    arbtest(|u| {
        let mut bytes = [0xff; 16].to_vec();
        let attributes: Vec<u8> = u.arbitrary()?;
        let attributes = &attributes[..attributes.len().min(3000)];
        bytes.extend((attributes.len() as u16 + 23).to_be_bytes());
        bytes.extend([2, 0, 0]);
        bytes.extend((attributes.len() as u16).to_be_bytes());
        bytes.extend(attributes);
        let Ok(Message::Update(update)) = Message::decode(&bytes, FORMAT) else { return Ok(()) };
        if update.announced.is_empty() && update.withdrawn.is_empty() {
            return Ok(());
        }
        let clean = Message::Update(Update { errors: vec![], ..update });
        assert_eq!(Message::decode(&clean.encode(FORMAT), FORMAT), Ok(clean));
        Ok(())
    });
}

/// The fuzzer starts from these.
#[test]
fn fuzz_seeds() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fuzz/seeds");
    let mut count = 0;
    for target in ["bgp_decode", "bgp_speaker"] {
        for file in std::fs::read_dir(seeds.join(target)).unwrap() {
            let bytes = std::fs::read(file.unwrap().path()).unwrap();
            for four_octet_as in [true, false] {
                for internal in [true, false] {
                    let _ = Message::decode(&bytes, Format { four_octet_as, internal });
                }
            }
            feed(&[&bytes]);
            feed(&[&greeting(), &bytes]);
            count += 1;
        }
    }
    assert!(count > 10, "{count} seeds");
}
