//! One kind's list and watch in protobuf, with the events and errors of kube's own watcher, which knows JSON only.
//!
//! ```text
//!   Unlisted ──> Streaming ──the list is complete──> Watching <──resumed── Listed
//!       └──────> Paging ───────────────────────────────────────────────────^
//! ```

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, stream};
use http_body_util::BodyExt;
use kube::Client;
use kube::api::{ListParams, WatchParams};
use kube::client::Body;
use kube::core::{Request, Status, request};
use kube::runtime::watcher::{self, Event};
use portolan_index::{Kind, Object, protobuf};

use super::frames::Frames;
use super::{Events, SILENCE};

const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";
/// The server gives up after a minute whatever is no watch, but a connection that lost its way would be waited on for ever.
const ANSWER: Duration = Duration::from_secs(60);

/// Objects in one page of a list.
const PAGE: u32 = 2_000;

/// Endless; after an error the next event is of another attempt. The list comes as the configuration says.
pub fn watch(client: Client, kind: Kind, path: String, config: watcher::Config) -> Events {
    let source = Source { client, kind, request: Request::new(path), config, answer: ANSWER };
    let watch = Watch { source, state: State::Unlisted };
    stream::unfold(watch, async |mut watch| Some((watch.next().await, watch))).boxed()
}

struct Watch {
    source: Source,
    state: State,
}

/// What is asked for, and where.
struct Source {
    client: Client,
    kind: Kind,
    request: Request,
    config: watcher::Config,
    /// How long an answer may be silent, before it begins and in between; a watch, only before.
    answer: Duration,
}

enum State {
    Unlisted,
    Streaming(Frames),
    /// What is left of a page, and what comes after it.
    Paging(std::vec::IntoIter<Object>, After),
    /// Up to this resource version, and no watch stands.
    Listed(String),
    Watching(String, Frames),
}

enum After {
    /// The page that begins here; None = the first.
    Page(Option<String>),
    Watch(String),
}

/// What is next, and what there is to say of the way to it.
type Step = (State, watcher::Result<Option<Event<Object>>>);

impl Watch {
    async fn next(&mut self) -> watcher::Result<Event<Object>> {
        loop {
            let (state, outcome) =
                self.source.step(std::mem::replace(&mut self.state, State::Unlisted)).await;
            self.state = state;
            if let Some(event) = outcome? {
                return Ok(event);
            }
        }
    }
}

impl Source {
    async fn step(&self, state: State) -> Step {
        match state {
            State::Unlisted if self.is_paged() => {
                (State::Paging(Vec::new().into_iter(), After::Page(None)), Ok(Some(Event::Init)))
            }
            State::Unlisted => match self.open(None).await {
                Ok(frames) => (State::Streaming(frames), Ok(Some(Event::Init))),
                Err(error) => (State::Unlisted, Err(watcher::Error::WatchStartFailed(error))),
            },
            State::Streaming(mut frames) => match self.read(&mut frames, self.answer).await {
                Ok(said) => streamed(said, frames),
                Err(error) => (State::Unlisted, Err(error)),
            },
            State::Paging(mut objects, after) => match objects.next() {
                Some(object) => (State::Paging(objects, after), Ok(Some(Event::InitApply(object)))),
                None => self.turn(after).await,
            },
            State::Listed(version) => match self.open(Some(&version)).await {
                Ok(frames) => (State::Watching(version, frames), Ok(None)),
                Err(error) => (State::Listed(version), Err(watcher::Error::WatchStartFailed(error))),
            },
            State::Watching(version, mut frames) => match self.read(&mut frames, SILENCE).await {
                Ok(said) => watched(said, version, frames),
                Err(error) => (State::Listed(version), Err(error)),
            },
        }
    }

    async fn turn(&self, after: After) -> Step {
        let begin = match after {
            After::Page(begin) => begin,
            After::Watch(version) => return (State::Listed(version), Ok(Some(Event::InitDone))),
        };
        let page = match self.page(begin).await {
            Ok(page) => page,
            Err(error) => return (State::Unlisted, Err(watcher::Error::InitialListFailed(error))),
        };
        let after = match (page.more.is_empty(), page.version.is_empty()) {
            (false, _) => After::Page(Some(page.more)),
            (true, false) => After::Watch(page.version),
            (true, true) => return (State::Unlisted, Err(watcher::Error::NoResourceVersion)),
        };
        (State::Paging(page.objects.into_iter(), after), Ok(None))
    }

    /// None at the end of the answer, and when it is silent for too long.
    async fn read(&self, frames: &mut Frames, silence: Duration) -> watcher::Result<Option<protobuf::Event>> {
        let failed = |error| watcher::Error::WatchFailed(kube::Error::ReadEvents(error));
        let Ok(frame) = tokio::time::timeout(silence, frames.next()).await else { return Ok(None) };
        let Some(frame) = frame.map_err(failed)? else { return Ok(None) };
        let event = protobuf::event(self.kind, frame);
        event.map(Some).map_err(|error| failed(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    fn is_paged(&self) -> bool {
        self.config.initial_list_strategy == watcher::InitialListStrategy::ListWatch
    }

    async fn page(&self, begin: Option<String>) -> kube::Result<protobuf::Page> {
        let parameters = ListParams {
            label_selector: self.config.label_selector.clone(),
            field_selector: self.config.field_selector.clone(),
            limit: Some(PAGE),
            continue_token: begin,
            ..ListParams::default()
        };
        let body = self.ask(self.request.list(&parameters)).await?;
        let page = protobuf::page(self.kind, self.collect(body).await?);
        page.map_err(|error| kube::Error::ReadEvents(io::Error::new(io::ErrorKind::InvalidData, error)))
    }

    /// A watch from a version on, or of everything there is.
    async fn open(&self, version: Option<&str>) -> kube::Result<Frames> {
        let parameters = WatchParams {
            label_selector: self.config.label_selector.clone(),
            field_selector: self.config.field_selector.clone(),
            send_initial_events: version.is_none(),
            ..WatchParams::default()
        };
        self.ask(self.request.watch(&parameters, version.unwrap_or("0"))).await.map(Frames::of)
    }

    async fn ask(&self, request: Result<http::Request<Vec<u8>>, request::Error>) -> kube::Result<Body> {
        let mut request = request.map_err(kube::Error::BuildRequest)?;
        request.headers_mut().insert(http::header::ACCEPT, http::HeaderValue::from_static(CONTENT_TYPE));
        let answer = self.in_time(self.client.send(request.map(Body::from))).await?;
        if !answer.status().is_success() {
            let code = answer.status().as_u16();
            return Err(refusal(code, self.collect(answer.into_body()).await?));
        }
        let content_type = answer.headers().get(http::header::CONTENT_TYPE);
        let content_type = content_type.and_then(|value| value.to_str().ok()).unwrap_or_default();
        if !content_type.starts_with(CONTENT_TYPE) {
            let message = format!("asked for protobuf, the server answered in \"{content_type}\"");
            return Err(kube::Error::Api(Status::failure(&message, "NotAcceptable").with_code(406).boxed()));
        }
        Ok(answer.into_body())
    }

    async fn collect(&self, mut body: Body) -> kube::Result<Bytes> {
        let mut all = BytesMut::new();
        loop {
            let next = async { body.frame().await.transpose() };
            match self.in_time(next).await? {
                Some(part) => part.into_data().iter().for_each(|data| all.extend_from_slice(data)),
                None => return Ok(all.freeze()),
            }
        }
    }

    async fn in_time<T>(&self, answer: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        let late = |_| {
            let message = format!("no answer in {:?}", self.answer);
            kube::Error::ReadEvents(io::Error::new(io::ErrorKind::TimedOut, message))
        };
        tokio::time::timeout(self.answer, answer).await.map_err(late)?
    }
}

/// After a frame of a list.
fn streamed(said: Option<protobuf::Event>, frames: Frames) -> Step {
    match said {
        Some(protobuf::Event::Apply(object, _)) => {
            (State::Streaming(frames), Ok(Some(Event::InitApply(object))))
        }
        Some(protobuf::Event::Bookmark { version, ends_list: true }) => {
            (State::Watching(version, frames), Ok(Some(Event::InitDone)))
        }
        // A list deletes nothing.
        Some(protobuf::Event::Bookmark { .. } | protobuf::Event::Delete(..)) => {
            (State::Streaming(frames), Ok(None))
        }
        Some(protobuf::Event::Failed(failure)) => (State::Unlisted, Err(watch_error(failure))),
        None => {
            let error = io::Error::new(io::ErrorKind::UnexpectedEof, "the list is cut short");
            (State::Unlisted, Err(watcher::Error::WatchFailed(kube::Error::ReadEvents(error))))
        }
    }
}

/// After a frame of the watch, which had come up to the version `before`.
fn watched(said: Option<protobuf::Event>, before: String, frames: Frames) -> Step {
    let (event, version) = match said {
        Some(protobuf::Event::Apply(object, version)) => (Some(Event::Apply(object)), version),
        Some(protobuf::Event::Delete(object, version)) => (Some(Event::Delete(object)), version),
        Some(protobuf::Event::Bookmark { version, .. }) => (None, version),
        // Gone: what happened since is not known there any more.
        Some(protobuf::Event::Failed(failure)) if failure.code == 410 => {
            return (State::Unlisted, Err(watch_error(failure)));
        }
        Some(protobuf::Event::Failed(failure)) => return (State::Listed(before), Err(watch_error(failure))),
        None => return (State::Listed(before), Ok(None)),
    };
    match version.is_empty() {
        true => (State::Unlisted, Err(watcher::Error::NoResourceVersion)),
        false => (State::Watching(version, frames), Ok(event)),
    }
}

fn watch_error(failure: protobuf::Failure) -> watcher::Error {
    watcher::Error::WatchError(status(failure).boxed())
}

fn status(failure: protobuf::Failure) -> Status {
    Status::failure(&failure.message, &failure.reason).with_code(failure.code)
}

/// What stands between us and the server may refuse in words of its own.
fn refusal(code: u16, body: Bytes) -> kube::Error {
    let in_protobuf = protobuf::failure(body.clone()).ok().map(status);
    let known = in_protobuf.or_else(|| serde_json::from_slice(&body).ok());
    let foreign = || Status::failure(String::from_utf8_lossy(&body).trim(), "").with_code(code);
    kube::Error::Api(known.unwrap_or_else(foreign).boxed())
}

#[cfg(test)]
mod tests {
    use expect_test::expect;
    use k8s_openapi::api::core::v1::Node;
    use portolan_index::protobuf::{Event as Said, Failure};

    use super::*;

    fn object() -> Object {
        let mut node = Node::default();
        node.metadata.name = Some("n1".into());
        node.into()
    }

    fn shown((state, outcome): Step) -> String {
        let state = match state {
            State::Unlisted => "unlisted".into(),
            State::Streaming(_) => "streaming".into(),
            State::Paging(..) => "paging".into(),
            State::Listed(version) => format!("listed at {version}"),
            State::Watching(version, _) => format!("watching at {version}"),
        };
        let event = match outcome {
            Ok(None) => "nothing".into(),
            Ok(Some(Event::Init)) => "Init".into(),
            Ok(Some(Event::InitApply(object))) => format!("InitApply {}", object.key().name),
            Ok(Some(Event::InitDone)) => "InitDone".into(),
            Ok(Some(Event::Apply(object))) => format!("Apply {}", object.key().name),
            Ok(Some(Event::Delete(object))) => format!("Delete {}", object.key().name),
            Err(error) => format!("error: {error}"),
        };
        format!("{event}; {state}")
    }

    fn all() -> [Option<Said>; 8] {
        let bookmark = |version: &str, ends_list| Some(Said::Bookmark { version: version.into(), ends_list });
        let failed = |code, message: &str| {
            Some(Said::Failed(Failure { code, message: message.into(), ..Failure::default() }))
        };
        [
            Some(Said::Apply(object(), "7".into())),
            Some(Said::Delete(object(), "8".into())),
            bookmark("9", false),
            bookmark("9", true),
            bookmark("", false),
            failed(410, "too old"),
            failed(500, "etcd is away"),
            None,
        ]
    }

    #[test]
    fn a2_a56_a_streamed_list_is_complete_at_its_bookmark_and_not_before() {
        let steps = all().map(|said| shown(streamed(said, Frames::of(Body::empty()))));
        expect![[r#"
            InitApply n1; streaming
            nothing; streaming
            nothing; streaming
            InitDone; watching at 9
            nothing; streaming
            error: error returned by apiserver during watch: too old: ; unlisted
            error: error returned by apiserver during watch: etcd is away: ; unlisted
            error: watch stream failed: Error reading events stream: the list is cut short; unlisted"#]]
        .assert_eq(&steps.join("\n"));
    }

    #[test]
    fn a56_a_watch_goes_on_where_it_was_unless_that_is_gone() {
        let steps = all().map(|said| shown(watched(said, "6".into(), Frames::of(Body::empty()))));
        expect![[r#"
            Apply n1; watching at 7
            Delete n1; watching at 8
            nothing; watching at 9
            nothing; watching at 9
            error: no metadata.resourceVersion in watch result (does resource support watch?); unlisted
            error: error returned by apiserver during watch: too old: ; unlisted
            error: error returned by apiserver during watch: etcd is away: ; listed at 6
            nothing; listed at 6"#]]
        .assert_eq(&steps.join("\n"));
    }

    /// A server that takes a connection and is never heard of again.
    #[tokio::test]
    async fn a2_a56_a_list_that_nobody_answers_is_asked_for_again() {
        let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = tokio::spawn(async move {
            let mut silent = Vec::new();
            while silent.len() < 2 {
                silent.push(listener.accept().await.unwrap());
            }
            silent
        });
        let config = watcher::Config::default();
        for config in [config.clone(), config.streaming_lists()] {
            let source = Source {
                client: Client::try_from(kube::Config::new(url.parse().unwrap())).unwrap(),
                kind: Kind::Node,
                request: Request::new("/api/v1/nodes"),
                config,
                answer: Duration::from_millis(20),
            };
            let mut watch = Watch { source, state: State::Unlisted };
            let error = loop {
                if let Err(error) = watch.next().await {
                    break error;
                }
            };
            assert!(format!("{error:?}").contains("no answer in 20ms"), "{error:?}");
            assert!(matches!(watch.state, State::Unlisted));
        }
        assert_eq!(asked.await.unwrap().len(), 2);
    }

    #[test]
    fn refusals_are_told_whoever_refuses() {
        let shown = |body: &'static str| match refusal(502, Bytes::from_static(body.as_bytes())) {
            kube::Error::Api(status) => (status.code, status.message),
            other => panic!("{other}"),
        };
        let gateway = "<html>bad gateway</html>";
        assert_eq!(shown(gateway), (502, gateway.into()));
        assert_eq!(
            shown(r#"{"kind":"Status","message":"no","reason":"Why","code":403}"#),
            (403, "no".into())
        );
    }
}
