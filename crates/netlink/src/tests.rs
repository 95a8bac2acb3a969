use super::*;

fn message(kind: u16, header: &[u8], f: impl FnOnce(&mut Writer)) -> Vec<u8> {
    let mut w = Writer::default();
    w.message(kind, flag::ACK, 42, header, f);
    w.0
}

#[test]
fn messages_are_read_as_they_are_written() {
    let write = |w: &mut Writer| {
        w.bytes(1, &[7]);
        w.text(2, "portolan");
        w.nest(3, |w| {
            w.u32(1, 5);
            w.u64(2, 6);
        });
    };
    let bytes =
        [message(0x0a00, &nfnetlink(2, 10), write), message(0x0a01, &nfnetlink(2, 0), |_| {})].concat();
    let all: Vec<Message> = messages(&bytes).collect();
    let heads: Vec<_> = all.iter().map(|m| (m.kind, m.flags, m.seq, m.end())).collect();
    let flags = flag::REQUEST | flag::ACK;
    assert_eq!(heads, [(0x0a00, flags, 42, None), (0x0a01, flags, 42, None)]);
    assert_eq!(&all[0].body[..4], [2, 0, 0, 10]);
    let attributes = all[0].attributes();
    assert_eq!((attributes.array(1), attributes.text(2)), (Some([7]), Some("portolan")));
    let nested = attributes.nest(3).expect("the third");
    assert_eq!((nested.u32(1), nested.u64(2), nested.u32(2)), (Some(5), Some(6), None), "of its own length");
    assert_eq!(attributes.get(4), None);
}

#[test]
fn requests_end() {
    let end =
        |kind, body: &[u8]| messages(&message(kind, body, |_| {})).next().map(|m| format!("{:?}", m.end()));
    let check = |kind, body: &[u8], expected: &str| assert_eq!(end(kind, body).as_deref(), Some(expected));
    check(2, &0i32.to_ne_bytes(), "Some(Ack)");
    check(2, &(-17i32).to_ne_bytes(), "Some(Error { errno: 17, text: None })");
    check(2, &i32::MIN.to_ne_bytes(), "Some(Error { errno: 2147483647, text: None })");
    check(2, &[1], "None");
    check(3, &[], "Some(Done)");
    check(3, &0i32.to_ne_bytes(), "Some(Done)");
    check(3, &(-4i32).to_ne_bytes(), "Some(Error { errno: 4, text: None })");
}

/// struct nlmsgerr with NLM_F_CAPPED | NLM_F_ACK_TLVS and NLMSGERR_ATTR_MSG; and without them.
#[test]
fn errors_bring_the_kernels_sentence() {
    let body = [&(-17i32).to_ne_bytes()[..], &[0; HEADER]].concat();
    let mut w = Writer::default();
    w.message(2, flag::ACK_TLVS | flag::CAPPED, 42, &body, |w| w.text(1, "no"));
    let end = messages(&w.0).next().and_then(|message| message.end());
    assert_eq!(end, Some(End::Error { errno: 17, text: Some("no") }));
    let plain = message(2, &body, |w| w.text(1, "no"));
    let end = messages(&plain).next().and_then(|message| message.end());
    assert_eq!(end, Some(End::Error { errno: 17, text: None }));
}

/// Cut anywhere, or with any length in its place.
#[test]
fn any_bytes_end_somewhere() {
    let whole = message(0x0a00, &nfnetlink(2, 10), |w| w.nest(3, |w| w.text(1, "portolan")));
    for len in 0..whole.len() {
        assert_eq!(messages(&whole[..len]).count(), 0);
    }
    for at in 0..whole.len() {
        for byte in 0..=u8::MAX {
            let mut bytes = whole.clone();
            bytes[at] = byte;
            for message in messages(&bytes) {
                let _ = (message.end(), message.attributes().nest(3).map(|nested| nested.text(1)));
            }
        }
    }
}
