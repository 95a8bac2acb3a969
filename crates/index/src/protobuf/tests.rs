//! That the field numbers are Kubernetes' own, and that both encodings mean the same, is asked of a real API server
//! (`tests/api.rs`).

use expect_test::{Expect, expect};

use super::messages::*;
use super::*;

fn wrapped(kind: &str, object: &impl Message) -> Bytes {
    let unknown =
        Unknown { type_meta: Some(TypeMeta { kind: kind.into() }), raw: object.encode_to_vec().into() };
    [MAGIC, &unknown.encode_to_vec()].concat().into()
}

fn frame(event: &str, kind: &str, object: &impl Message) -> Bytes {
    let raw = wrapped(kind, object);
    WatchEvent { kind: event.into(), object: Some(RawExtension { raw }) }.encode_to_vec().into()
}

fn metadata(name: &str) -> Option<ObjectMeta> {
    let labels = [("kubernetes.io/service-name".into(), "web".into())].into();
    Some(ObjectMeta {
        name: name.into(),
        namespace: "default".into(),
        resource_version: "7".into(),
        labels,
        ..Default::default()
    })
}

fn slice(name: &str) -> EndpointSlice {
    EndpointSlice { metadata: metadata(name), address_type: "IPv4".into(), ..Default::default() }
}

fn said(event: Result<Event, Malformed>) -> String {
    match event {
        Ok(Event::Apply(object, version)) => format!("{} is, at {version}", object.key().name),
        Ok(Event::Delete(object, version)) => format!("{} went, at {version}", object.key().name),
        Ok(other) => format!("{other:?}"),
        Err(error) => format!("error: {error}"),
    }
}

fn check(frames: &[Bytes], expected: Expect) {
    let lines: Vec<_> = frames.iter().map(|frame| said(event(Kind::EndpointSlice, frame.clone()))).collect();
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn what_a_watch_says() {
    let mut end = metadata("").unwrap_or_default();
    end.annotations.insert(LIST_ENDS.into(), b"true".into());
    let gone = Status { message: "too old".into(), reason: "Expired".into(), code: 410 };
    check(
        &[
            frame("ADDED", "EndpointSlice", &slice("a")),
            frame("MODIFIED", "EndpointSlice", &slice("b")),
            frame("DELETED", "EndpointSlice", &slice("c")),
            frame(
                "BOOKMARK",
                "EndpointSlice",
                &EndpointSlice { metadata: metadata(""), ..Default::default() },
            ),
            frame("BOOKMARK", "EndpointSlice", &EndpointSlice { metadata: Some(end), ..Default::default() }),
            frame("ERROR", "Status", &gone),
        ],
        expect![[r#"
            a is, at 7
            b is, at 7
            c went, at 7
            Bookmark { version: "7", ends_list: false }
            Bookmark { version: "7", ends_list: true }
            Failed(Failure { code: 410, reason: "Expired", message: "too old" })"#]],
    );
}

#[test]
fn what_is_no_answer_is_an_error() {
    let mut cut = frame("ADDED", "EndpointSlice", &slice("a"));
    cut.truncate(cut.len() - 1);
    check(
        &[
            Bytes::from_static(b"{\"type\":\"ADDED\"}"),
            Bytes::new(),
            cut,
            frame("RENAMED", "EndpointSlice", &slice("a")),
            frame("ADDED", "Service", &slice("a")),
        ],
        expect![[r#"
            error: protobuf: failed to decode Protobuf message: buffer underflow
            error: not an object in Kubernetes' protobuf encoding
            error: protobuf: failed to decode Protobuf message: WatchEvent.object: buffer underflow
            error: a watch event of type "RENAMED"
            error: a Service where a EndpointSlice was to come"#]],
    );
}

#[test]
fn what_a_list_says() {
    let items = ["a", "b"].map(|name| slice(name).encode_to_vec().into()).to_vec();
    let metadata = Some(ListMeta { resource_version: "7".into(), more: "there".into() });
    let body = wrapped("EndpointSliceList", &List { metadata, items });
    let Page { objects, version, more } = page(Kind::EndpointSlice, body.clone()).unwrap();
    let names: Vec<_> = objects.iter().map(|object| &*object.key().name).collect();
    assert_eq!((names, &*version, &*more), (vec!["a", "b"], "7", "there"));
    let error = page(Kind::Service, body).unwrap_err();
    assert_eq!(error.to_string(), "a EndpointSliceList where a ServiceList was to come");
}

/// Who stores an object in protobuf may put there what is no text.
#[test]
fn s14_an_annotation_that_is_no_text_costs_nothing() {
    let mut metadata = metadata("web").unwrap_or_default();
    metadata.annotations.insert("portolan.dev/ips".into(), b"192.0.2.1\xff".into());
    let spec =
        ServiceSpec { kind: "LoadBalancer".into(), cluster_ip: "10.96.0.1".into(), ..Default::default() };
    let service = Service { metadata: Some(metadata), spec: Some(spec), status: None };
    let items = vec![service.encode_to_vec().into()];
    let list = wrapped("ServiceList", &List { metadata: None, items });
    let object = page(Kind::Service, list).unwrap().objects.remove(0);
    assert_eq!(object.problems[0].message, "\"192.0.2.1\u{fffd}\" is not an IP address");
}

#[test]
fn s14_no_bytes_make_it_panic() {
    arbtest::arbtest(|u| {
        let kind = *u.choose(&[Kind::Service, Kind::EndpointSlice, Kind::Node])?;
        let mut bytes = match u.arbitrary()? {
            true => frame("ADDED", kind.name(), &slice("a")).to_vec(),
            false => Vec::new(),
        };
        let at = u.choose_index(bytes.len() + 1)?;
        let len = u.arbitrary_len::<u8>()?;
        let some = u.bytes(len)?;
        bytes.splice(at..(at + some.len()).min(bytes.len()), some.iter().copied());
        let bytes = Bytes::from(bytes);
        let _ = (event(kind, bytes.clone()), page(kind, bytes));
        Ok(())
    });
}
