//! Bytes by hand from the headers; they are those of a little-endian machine.
#![cfg(target_endian = "little")]

use super::*;

const FAMILY: u16 = 0x22;

fn server(protocol: u8, address: &str) -> Server {
    Server::Address { protocol, address: address.parse().unwrap() }
}

#[test]
fn s74_a_deletion_names_its_server() {
    let v4 = [
        72, 0, 0, 0, 0x22, 0, 5, 0, 9, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr: request, ack
        3, 1, 0, 0, // DEL_SERVICE, version 1
        52, 0, 1, 0x80, // the service, nested
        6, 0, 1, 0, 2, 0, 0, 0, // AF_INET
        6, 0, 2, 0, 6, 0, 0, 0, // TCP
        20, 0, 3, 0, 10, 96, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // a union of 16 bytes
        6, 0, 4, 0, 0x01, 0xbb, 0, 0, // port 443, big-endian
        0, 0, 0, 0,
    ];
    // the nested attributes end the message
    let mut expected = v4[..68].to_vec();
    expected[0] = 68;
    expected[20] = 48;
    assert_eq!(delete(FAMILY, &server(6, "10.96.0.1:443"), 9), expected);

    let mark = delete(FAMILY, &Server::Mark { is_v6: true, mark: 7 }, 9);
    assert_eq!(mark[24..], [6, 0, 1, 0, 10, 0, 0, 0, 8, 0, 5, 0, 7, 0, 0, 0]);
}

#[test]
fn s74_requests_as_the_headers_have_them() {
    let family = family(1);
    assert_eq!(family[4..8], [16, 0, 5, 0]);
    assert_eq!(family[16..], [3, 1, 0, 0, 9, 0, 2, 0, b'I', b'P', b'V', b'S', 0, 0, 0, 0]);
    assert_eq!(servers(FAMILY, 1)[4..], [0x22, 0, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0, 4, 1, 0, 0]);
    assert_eq!(destinations(FAMILY, &server(17, "10.96.0.10:53"), 1)[16], 8);
    assert_eq!(
        sets(1)[4..],
        [7, 6, 1, 3, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 5, 0, 1, 0, 6, 0, 0, 0, 8, 0, 6, 0, 0, 0, 0, 2]
    );
    let destroyed = destroy_set("KUBE", 1);
    assert_eq!(destroyed[4..8], [3, 6, 5, 0]);
    assert_eq!(destroyed[28..], [9, 0, 2, 0, b'K', b'U', b'B', b'E', 0, 0, 0, 0]);
    let link = delete_link(5, 1);
    assert_eq!(
        (link.len(), &link[4..8], &link[16..24]),
        (32, &[17, 0, 5, 0][..], &[0, 0, 0, 0, 5, 0, 0, 0][..])
    );
}

/// A message as the kernel writes it.
fn told(kind: u16, command: u8, seq: u32, f: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::default();
    w.message(kind, 0, seq, &[command, 1, 0, 0], f);
    w.0
}

#[test]
fn s74_servers_are_read_as_they_are_written() {
    for wanted in
        [server(6, "10.96.0.1:443"), server(17, "[fd96::a]:53"), Server::Mark { is_v6: false, mark: 9 }]
    {
        let bytes = told(FAMILY, 1, 4, |w| {
            w.nest(SERVICE, |w| {
                wanted.write(w);
                w.bytes(6, b"rr\0");
                w.bytes(7, &[0; 8]);
            })
        });
        let read: Vec<Answer> = answers(&bytes).collect();
        assert_eq!(read, [Answer { seq: 4, content: Content::Server(wanted) }]);
    }
}

#[test]
fn s74_open_and_ending_connections_count() {
    let bytes = told(FAMILY, 5, 4, |w| {
        w.nest(DEST, |w| {
            w.bytes(7, &3u32.to_ne_bytes());
            w.bytes(8, &4u32.to_ne_bytes());
            w.bytes(9, &50u32.to_ne_bytes());
        })
    });
    assert_eq!(answers(&bytes).next().map(|answer| answer.content), Some(Content::Connections(7)));
}

#[test]
fn s74_other_answers() {
    let number = told(16, 1, 1, |w| w.bytes(1, &[0x22, 0]));
    let set = told(0x607, 2, 1, |w| w.bytes(2, b"KUBE-LOOP-BACK\0"));
    let mut refused = Writer::default();
    refused.message(2, 0, 1, &(-2i32).to_ne_bytes(), |_| {});
    let read: Vec<Content> =
        answers(&[number, set, refused.0].concat()).map(|answer| answer.content).collect();
    assert_eq!(read, [Content::Family(0x22), Content::Set("KUBE-LOOP-BACK".into()), Content::Error(2)]);
}

#[test]
fn any_bytes_end_somewhere() {
    let whole = told(FAMILY, 1, 4, |w| w.nest(SERVICE, |w| server(6, "[fd96::a]:53").write(w)));
    for at in 0..whole.len() {
        assert_eq!(answers(&whole[..at]).count(), 0);
        let mut wrong = whole.clone();
        wrong[at] ^= 0xff;
        answers(&wrong).for_each(drop);
    }
}
