//! kube watchers -> [`index::Change`](portolan_index::Change): one task per kind, each retrying for ever.
//!
//! ```text
//!   API server ──list, watch──> task per Kind ──Object──> mpsc<Change> ──> Index (its owner)
//! ```
//!
//! A list is sent as one `Replace` when it is complete, and only then: an API server that is away, or goes away in
//! the middle of a list, leaves everything as it was (A2, A56).

use std::fmt::Debug;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Context;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::core::{DeserializeGuard, Status};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource};
use portolan_api::service::{HEADLESS_LABEL, PROXY_NAME_LABEL, SERVICE_NAME_LABEL};
use portolan_api::{Advertisement, BGPPeer, IPAddressPool, IPAllocation};
use portolan_index::{Change, Key, Kind, Object};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;
use tracing::{debug, info, warn};

use crate::metrics::Metrics;
use crate::metrics::api_requests::Counting;

mod frames;
mod protobuf;
pub mod trimmed;

use trimmed::Trimmed;

/// Changes that may wait for the index before the watches wait for it in turn.
const WAITING_CHANGES: usize = 1024;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// The server ends a watch after 290 s; one that says nothing for longer is dead.
const SILENCE: Duration = Duration::from_secs(295);
/// Of whatever has no limit of its own, and longer than those that have.
const READ_TIMEOUT: Duration = Duration::from_secs(300);
const RETRY_FIRST: Duration = Duration::from_millis(200);
/// Short, because the API server's return is what everyone waits for; with jitter, because every node does.
const RETRY_LONGEST: Duration = Duration::from_secs(5);

/// The client of a kubeconfig file, or of the pod we run in. An error names the file and what is wrong with it.
pub async fn client(kubeconfig: Option<&Path>) -> anyhow::Result<Client> {
    let config = client_config(kubeconfig).await?;
    Client::try_from(config).with_context(|| named(kubeconfig))
}

/// The same, and its requests are counted.
pub async fn counted_client(kubeconfig: Option<&Path>, metrics: Arc<Metrics>) -> anyhow::Result<Client> {
    let config = client_config(kubeconfig).await?;
    let host = config.cluster_url.authority().map(ToString::to_string).unwrap_or_default();
    let client = ClientBuilder::try_from(config).with_context(|| named(kubeconfig))?;
    Ok(client.with_layer(&Counting { metrics, host }).build())
}

fn named(kubeconfig: Option<&Path>) -> String {
    kubeconfig
        .map_or_else(|| "the pod's service account".into(), |path| format!("kubeconfig {}", path.display()))
}

async fn client_config(kubeconfig: Option<&Path>) -> anyhow::Result<kube::Config> {
    let mut config = match kubeconfig {
        Some(path) => {
            let in_file = || named(Some(path));
            // Opened first, because kube tells of a missing file twice over.
            std::fs::File::open(path).with_context(in_file)?;
            let file =
                Kubeconfig::read_from(path).map_err(|error| first_line(&error)).with_context(in_file)?;
            let options = KubeConfigOptions::default();
            kube::Config::from_custom_kubeconfig(file, &options).await.with_context(in_file)?
        }
        None => kube::Config::incluster().context("no kubeconfig was given, and this is not a pod")?,
    };
    config.connect_timeout = Some(CONNECT_TIMEOUT);
    config.read_timeout = Some(READ_TIMEOUT);
    // The time that a connection was idle before does not count.
    config.reset_reader_on_write = true;
    Ok(config)
}

/// The sentence; the parser's picture of the file below it is left out.
fn first_line(error: &dyn std::error::Error) -> anyhow::Error {
    let text = error.to_string();
    anyhow::anyhow!("{}", text.lines().next().unwrap_or_default())
}

/// Starts watching; the watches end when the receiver is dropped.
///
/// `proxy_name`: only the Services that carry this value of the label service-proxy-name, in place of those without it (S3).
pub fn start(client: &Client, kinds: &[Kind], proxy_name: Option<&str>) -> mpsc::Receiver<Change> {
    let (changes, receiver) = mpsc::channel(WAITING_CHANGES);
    for kind in kinds {
        let (client, changes) = (client.clone(), changes.clone());
        let kind = *kind;
        let config = selection(kind, proxy_name);
        tokio::spawn(async move {
            let closed = changes.clone();
            tokio::select! {
                () = watch(client, kind, config, changes) => {}
                () = closed.closed() => {}
            }
        });
    }
    receiver
}

async fn watch(client: Client, kind: Kind, config: watcher::Config, changes: mpsc::Sender<Change>) {
    match kind {
        Kind::Service => run::<Trimmed<Service>>(client, kind, config, changes, Object::from).await,
        Kind::EndpointSlice => {
            run::<Trimmed<EndpointSlice>>(client, kind, config, changes, Object::from).await
        }
        Kind::Node => run::<Trimmed<Node>>(client, kind, config, changes, Object::from).await,
        Kind::ServiceCidr => run::<ServiceCIDR>(client, kind, config, changes, Object::from).await,
        Kind::Pool => run_guarded::<IPAddressPool>(client, kind, config, changes).await,
        Kind::Advertisement => run_guarded::<Advertisement>(client, kind, config, changes).await,
        Kind::Peer => run_guarded::<BGPPeer>(client, kind, config, changes).await,
        Kind::Allocation => run_guarded::<IPAllocation>(client, kind, config, changes).await,
    }
}

async fn run_guarded<K>(client: Client, kind: Kind, config: watcher::Config, changes: mpsc::Sender<Change>)
where
    K: Resource<DynamicType = ()> + Into<Object> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    run::<DeserializeGuard<K>>(client, kind, config, changes, move |each| guarded(kind, each)).await;
}

/// One of ours that does not decode must not cost the rest of its list (vips.md 2.0, 7).
fn guarded<K: Into<Object>>(kind: Kind, DeserializeGuard(decoded): DeserializeGuard<K>) -> Object {
    match decoded {
        Ok(object) => object.into(),
        Err(invalid) => Object::unreadable(kind, Key::of(&invalid.metadata), &invalid.error),
    }
}

/// What the server leaves out for us (S3, S4, S5, S7).
fn selection(kind: Kind, proxy_name: Option<&str>) -> watcher::Config {
    let config = watcher::Config::default();
    match kind {
        Kind::Service => {
            let ours = match proxy_name {
                Some(name) => format!("{PROXY_NAME_LABEL}={name}"),
                None => format!("!{PROXY_NAME_LABEL}"),
            };
            config.labels(&ours).fields("spec.clusterIP!=None")
        }
        Kind::EndpointSlice => config.labels(&format!("!{HEADLESS_LABEL},{SERVICE_NAME_LABEL}")),
        _ => config,
    }
}

/// What a way of watching tells, in the words of kube's watcher.
type Events = BoxStream<'static, watcher::Result<Event<Object>>>;

/// How a list and its watch are asked for, the least work first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    /// The list as events of the watch, all in protobuf.
    Streamed,
    /// The list in pages, the watch after it.
    Paged,
    /// As the first, in JSON.
    StreamedJson,
    /// As the second, in JSON.
    PagedJson,
}

impl Way {
    fn all(kind: Kind) -> &'static [Way] {
        match portolan_index::protobuf::reads(kind) {
            true => &[Way::Streamed, Way::Paged, Way::StreamedJson, Way::PagedJson],
            false => &[Way::StreamedJson, Way::PagedJson],
        }
    }
}

/// Goes the first way that the server knows: while a list is awaited, a failure that may be the way's has the next one tried.
async fn run<K>(
    client: Client,
    kind: Kind,
    config: watcher::Config,
    changes: mpsc::Sender<Change>,
    object: impl Fn(K) -> Object + Copy + Send + 'static,
) where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let open = |way| {
        let (client, config) = (client.clone(), config.clone());
        match way {
            Way::Streamed => protobuf::watch(client, kind, K::url_path(&(), None), config.streaming_lists()),
            Way::Paged => protobuf::watch(client, kind, K::url_path(&(), None), config),
            Way::StreamedJson => in_json(client, config.streaming_lists(), object),
            Way::PagedJson => in_json(client, config, object),
        }
    };
    let mut feed = Feed { kind, list: None, listed: false, trouble: None, pause: RETRY_FIRST, changes };
    let mut ways = Way::all(kind).iter().cycle();
    let mut way = ways.next();
    while let Some(this) = way {
        if feed.follow(open(*this)).await == Next::OtherWay {
            way = ways.next();
        }
    }
}

fn in_json<K>(
    client: Client,
    config: watcher::Config,
    object: impl Fn(K) -> Object + Send + 'static,
) -> Events
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let decoded = move |event| match event {
        Event::Init => Event::Init,
        Event::InitApply(each) => Event::InitApply(object(each)),
        Event::InitDone => Event::InitDone,
        Event::Apply(each) => Event::Apply(object(each)),
        Event::Delete(each) => Event::Delete(object(each)),
    };
    watcher::watcher(Api::<K>::all(client), config).map_ok(decoded).boxed()
}

/// The server does not know the way, or what came by it could not be read; nothing else is wrong.
fn is_no_way(error: &watcher::Error) -> bool {
    let is_unreadable = match error {
        watcher::Error::WatchFailed(kube::Error::ReadEvents(error))
        | watcher::Error::InitialListFailed(kube::Error::ReadEvents(error)) => {
            error.kind() == std::io::ErrorKind::InvalidData
        }
        _ => false,
    };
    let is_refused = status(error).is_some_and(|status| matches!(status.code, 406 | 415));
    is_unreadable || is_refused || cannot_stream(error)
}

/// Whether the server would have failed us whichever way we came: it is away or busy, does not know us or the kind, or has
/// forgotten what we ask for.
fn is_whichever_way(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::WatchStartFailed(kube::Error::Api(_))
        | watcher::Error::InitialListFailed(kube::Error::Api(_)) => {}
        watcher::Error::WatchStartFailed(_) | watcher::Error::InitialListFailed(_) => return true,
        _ => {}
    }
    status(error).is_some_and(|status| matches!(status.code, 401 | 403 | 404 | 410 | 429 | 503))
}

/// What servers say whose WatchList feature is off, or whose etcd is too old for it (3.4 before 3.4.31).
fn cannot_stream(error: &watcher::Error) -> bool {
    let refusals = ["sendInitialEvents", "a watch stream was requested by the client but"];
    status(error).is_some_and(|status| refusals.iter().any(|refusal| status.message.contains(refusal)))
}

fn status(error: &watcher::Error) -> Option<&Status> {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => Some(status),
        _ => None,
    }
}

/// One kind's way from watch events to changes.
struct Feed {
    kind: Kind,
    /// A list that is being received.
    list: Option<Vec<Object>>,
    /// At least one complete list was sent.
    listed: bool,
    /// What was last complained of, so that it is said once.
    trouble: Option<String>,
    /// Before the next attempt, should that be needed.
    pause: Duration,
    changes: mpsc::Sender<Change>,
}

/// What is to be done after a way ended.
#[derive(Debug, PartialEq)]
enum Next {
    SameWay,
    OtherWay,
}

impl Feed {
    /// Passes on what comes until a new list must be asked for.
    async fn follow(&mut self, mut events: Events) -> Next {
        while let Some(event) = events.next().await {
            let error = match event {
                Ok(event) => {
                    self.event(event).await;
                    continue;
                }
                Err(error) => error,
            };
            if is_no_way(&error) {
                debug!(kind = self.kind.name(), error = chain(&error), "watching another way");
                return Next::OtherWay;
            }
            self.failed(&error).await;
            tokio::time::sleep(self.next_pause()).await;
            if self.awaits_list() {
                return if is_whichever_way(&error) { Next::SameWay } else { Next::OtherWay };
            }
        }
        Next::SameWay
    }

    async fn event(&mut self, event: Event<Object>) {
        match event {
            // Said before the server was asked when lists come in pages: no sign of health.
            Event::Init => {
                self.list = Some(Vec::new());
                return;
            }
            Event::InitApply(each) => self.list.get_or_insert_default().push(each),
            Event::InitDone => {
                let list = self.list.take().unwrap_or_default();
                self.listed = true;
                self.send(Change::Replace(self.kind, list)).await;
            }
            Event::Apply(each) => self.send(Change::Apply(each)).await,
            Event::Delete(each) => self.send(Change::Delete(self.kind, each.key().clone())).await,
        }
        self.pause = RETRY_FIRST;
        if self.trouble.take().is_some() {
            info!(kind = self.kind.name(), "watching again");
        }
    }

    async fn failed(&mut self, error: &watcher::Error) {
        let sentence = sentence(self.kind, error);
        if self.trouble.as_ref() != Some(&sentence) {
            warn!(kind = self.kind.name(), "{sentence}; trying again");
            self.trouble = Some(sentence);
        }
        // The watch fell behind, and a new list follows.
        if status(error).is_some_and(|status| status.code == 410) {
            self.list = Some(Vec::new());
        }
        // S18: a server too old for ServiceCIDR objects has none.
        if self.kind == Kind::ServiceCidr
            && !self.listed
            && status(error).is_some_and(|status| status.code == 404)
        {
            self.listed = true;
            self.send(Change::Replace(self.kind, Vec::new())).await;
        }
    }

    fn awaits_list(&self) -> bool {
        self.list.is_some() || !self.listed
    }

    /// Doubles with each failure; a random half of it is left out, so that nodes do not come back all at once.
    fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(RETRY_LONGEST);
        let random = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.subsec_micros() % 1000);
        pause / 2 + pause / 2 * random / 1000
    }

    async fn send(&mut self, change: Change) {
        // The receiver is gone only when everything ends, and this task with it.
        let _ = self.changes.send(change).await;
    }
}

/// One sentence that says what is wrong and, where a person must act, what to do.
fn sentence(kind: Kind, error: &watcher::Error) -> String {
    match status(error) {
        Some(status) if status.code == 401 => {
            format!(
                "the API server does not know us when we ask for {kind} objects: the token or certificate is wrong or has expired"
            )
        }
        Some(status) if status.code == 403 => {
            format!(
                "the API server does not let us watch {kind} objects ({}): see the roles in the chart",
                status.message
            )
        }
        Some(status) if status.code == 404 && kind == Kind::ServiceCidr => {
            "the API server has no ServiceCIDR objects: unallocated cluster IPs are not answered for".into()
        }
        Some(status) if status.code == 404 => {
            format!(
                "the API server does not know {kind} objects: install them with the chart, or `portolan crds | kubectl apply -f -`"
            )
        }
        Some(status) if status.code == 410 => {
            format!("the watch of {kind} objects fell behind and starts over")
        }
        Some(status) => format!("watching {kind} objects: {}", status.message),
        None => format!("watching {kind} objects: {}", chain(error)),
    }
}

/// The error with its causes, none of them twice.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(each) = cause {
        let each_text = each.to_string();
        if !text.contains(&each_text) {
            text = format!("{text}: {each_text}");
        }
        cause = each.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    async fn check_client(text: Option<&str>, expected: Expect) {
        let dir = std::env::temp_dir().join(format!("portolan-kubeconfig-{}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a folder");
        let name = format!("{:x}", text.map_or(0, str::len));
        let path = dir.join(name);
        if let Some(text) = text {
            std::fs::write(&path, text).expect("a file");
        }
        let Err(error) = client(Some(&path)).await else { panic!("{text:?} was accepted") };
        let shown = format!("{error:#}").replace(&path.display().to_string(), "FILE");
        expected.assert_eq(shown.lines().next().unwrap_or_default());
        std::fs::remove_dir_all(&dir).expect("the folder");
    }

    #[tokio::test]
    async fn a_wrong_kubeconfig_is_named() {
        check_client(None, expect!["kubeconfig FILE: No such file or directory (os error 2)"]).await;
        check_client(Some("what is this"), expect!["kubeconfig FILE: failed to parse kubeconfig YAML: error: line 1 column 1: expected mapping start"]).await;
        check_client(
            Some("{apiVersion: v1, kind: Config, current-context: there}"),
            expect!["kubeconfig FILE: failed to load current context: there"],
        )
        .await;
    }

    fn feed() -> (Feed, mpsc::Receiver<Change>) {
        let (changes, receiver) = mpsc::channel(16);
        let feed =
            Feed { kind: Kind::Node, list: None, listed: false, trouble: None, pause: RETRY_FIRST, changes };
        (feed, receiver)
    }

    fn node(name: &str) -> Object {
        let node: Node = serde_json::from_value(json!({ "metadata": { "name": name } })).expect("a Node");
        node.into()
    }

    fn api_error(code: u16, message: &str) -> watcher::Error {
        let status = kube::core::Status { code, message: message.into(), ..Default::default() };
        watcher::Error::WatchStartFailed(kube::Error::Api(Box::new(status)))
    }

    #[test]
    fn s3_s4_s5_s7_the_server_leaves_out_what_is_not_ours() {
        let asked = |kind| {
            let config = selection(kind, None);
            (config.label_selector.unwrap_or_default(), config.field_selector.unwrap_or_default())
        };
        let (labels, fields) = asked(Kind::Service);
        assert_eq!(labels, "!service.kubernetes.io/service-proxy-name");
        assert_eq!(fields, "spec.clusterIP!=None");
        let ours = selection(Kind::Service, Some("mine"));
        assert_eq!(ours.label_selector.as_deref(), Some("service.kubernetes.io/service-proxy-name=mine"));
        let (labels, fields) = asked(Kind::EndpointSlice);
        assert_eq!(labels, "!service.kubernetes.io/headless,kubernetes.io/service-name");
        assert_eq!(fields, "");
    }

    /// A2: half a list is no list.
    #[tokio::test]
    async fn a2_s63_only_complete_lists_are_sent() {
        let (mut feed, mut changes) = feed();
        for event in [
            Event::Init,
            Event::InitApply(node("a")),
            Event::Init,
            Event::InitApply(node("b")),
            Event::InitApply(node("c")),
        ] {
            feed.event(event).await;
        }
        feed.failed(&api_error(500, "away")).await;
        assert!(changes.try_recv().is_err());
        feed.event(Event::InitDone).await;
        let Ok(Change::Replace(Kind::Node, list)) = changes.try_recv() else { panic!("a complete list") };
        assert_eq!(list.iter().map(|object| &*object.key().name).collect::<Vec<_>>(), ["b", "c"]);
    }

    /// S18: without the ServiceCIDR API the feature is off, but an outage is not an empty list (A2).
    #[tokio::test]
    async fn s18_a_server_without_service_cidrs_has_none() {
        let (mut feed, mut changes) = feed();
        feed.failed(&api_error(404, "not found")).await;
        feed.kind = Kind::ServiceCidr;
        feed.failed(&api_error(503, "starting")).await;
        assert!(changes.try_recv().is_err());
        feed.failed(&api_error(404, "not found")).await;
        feed.failed(&api_error(404, "not found")).await;
        assert!(
            matches!(changes.try_recv(), Ok(Change::Replace(Kind::ServiceCidr, list)) if list.is_empty())
        );
        assert!(changes.try_recv().is_err());
    }

    #[tokio::test]
    async fn pauses_grow_and_a_list_begun_is_no_sign_of_health() {
        let (mut feed, _changes) = feed();
        for _ in 0..10 {
            feed.event(Event::Init).await;
            assert!(feed.next_pause() <= RETRY_LONGEST);
        }
        assert_eq!(feed.pause, RETRY_LONGEST);
        feed.event(Event::InitDone).await;
        assert_eq!(feed.pause, RETRY_FIRST);
    }

    #[test]
    fn troubles_are_one_sentence() {
        let sentences = [
            sentence(Kind::Pool, &api_error(404, "404 page not found")),
            sentence(Kind::ServiceCidr, &api_error(404, "404 page not found")),
            sentence(Kind::Service, &api_error(403, "services is forbidden")),
            sentence(Kind::Service, &api_error(401, "Unauthorized")),
            sentence(Kind::Service, &api_error(503, "etcd is away")),
        ];
        expect![[r#"
            the API server does not know IPAddressPool objects: install them with the chart, or `portolan crds | kubectl apply -f -`
            the API server has no ServiceCIDR objects: unallocated cluster IPs are not answered for
            the API server does not let us watch Service objects (services is forbidden): see the roles in the chart
            the API server does not know us when we ask for Service objects: the token or certificate is wrong or has expired
            watching Service objects: etcd is away"#]].assert_eq(&sentences.join("\n"));
    }

    #[test]
    fn a_server_that_cannot_stream_lists_is_recognised() {
        let refusal = "ListOptions.meta.k8s.io \"\" is invalid: sendInitialEvents: Forbidden: sendInitialEvents is forbidden \
                       for watch unless the WatchList feature gate is enabled";
        assert!(cannot_stream(&api_error(422, refusal)));
        assert!(!cannot_stream(&api_error(422, "spec is invalid")));
        let old_etcd = "a watch stream was requested by the client but the required storage feature RequestWatchProgress is disabled";
        assert!(cannot_stream(&api_error(500, old_etcd)));
        assert!(!cannot_stream(&api_error(500, "etcd is away")));
    }
}
