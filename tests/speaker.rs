//! The speaker against real routers: BIRD and FRR, each in a namespace of its own, on a wire that the test makes.
//!
//! Needs root; says so loudly where it cannot run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, ensure};
use portolan::speaker::{self, Intent, SpeakerStatus};
use portolan_bgp::{Community, PeerAsn, PeerConfig, PeerName, Route, Routes, SessionStatus, State};
use portolan_lab::netns::{self, Namespace};
use portolan_lab::router::{Router, RouterKind, RouterProcesses};
use portolan_lab::topology::{self, CONTROL_PLANE, NODE_ASN, ROUTER, ROUTER_ASN, node_address};
use portolan_lab::wait_for;
use tokio::sync::watch;

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn bird_learns_replaces_and_forgets_routes() {
    on_wire("bird-routes", async |wire| routes(&wire, RouterKind::Bird).await);
}

#[test]
fn frr_learns_replaces_and_forgets_routes() {
    on_wire("frr-routes", async |wire| routes(&wire, RouterKind::Frr).await);
}

#[test]
fn bird_refuses_a_wrong_as() {
    on_wire("bird-as", async |wire| wrong_as(&wire, RouterKind::Bird).await);
}

#[test]
fn frr_refuses_a_wrong_as() {
    on_wire("frr-as", async |wire| wrong_as(&wire, RouterKind::Frr).await);
}

#[test]
fn a_session_comes_back_with_its_router() {
    on_wire("bird-restart", restart);
}

#[test]
fn peers_that_dial_are_accepted() {
    on_wire("listener", listener);
}

/// Both families over one session (B42), over IPv4 and over IPv6, replaced (A47) and withdrawn.
async fn routes(wire: &Wire, kind: RouterKind) -> anyhow::Result<()> {
    let (router, mut processes) = wire.router(kind).await?;
    let result = async {
        let peers = [to_router("over-v4", ROUTER.v4.into()), to_router("over-v6", ROUTER.v6.into())];
        let running = Running::start(&wire.ns("n1")?, peers.clone(), &[])?;
        let told = |v4: Routes, v6: Routes| {
            BTreeMap::from([("over-v4".into(), Arc::new(v4)), ("over-v6".into(), Arc::new(v6))])
        };
        let communities = vec![Community::Standard(64512 << 16 | 7), Community::Large(64512, 1, 2)];
        let marked = Route { communities, med: Some(50), ..Route::default() };
        let plain = |prefix: &str| (prefix.parse().unwrap(), Route::default());
        let mut over_v4 = Routes::from(["192.0.2.10/32", "10.244.1.0/24", "2001:db8::10/128"].map(plain));
        let over_v6 = Routes::from(["192.0.2.20/32", "2001:db8::20/128"].map(plain));

        running.want(1, &peers, told(over_v4.clone(), over_v6.clone()));
        running.wait("both sessions are up", all_established).await?;
        running.wait("the routes are written", |status| status.generation == 1).await?;
        let by_node = |v4: bool| {
            BTreeSet::from([if v4 { node_address(1).v4.into() } else { node_address(1).v6.into() }])
        };
        for prefix in ["192.0.2.10/32", "10.244.1.0/24", "192.0.2.20/32"] {
            has_routes(&router, prefix, by_node(true)).await?;
        }
        for prefix in ["2001:db8::10/128", "2001:db8::20/128"] {
            has_routes(&router, prefix, by_node(false)).await?;
        }

        over_v4.insert("192.0.2.10/32".parse()?, marked);
        over_v4.remove(&"2001:db8::10/128".parse()?);
        running.want(2, &peers, told(over_v4.clone(), over_v6));
        has_routes(&router, "2001:db8::10/128", BTreeSet::new()).await?;
        let show = match kind {
            RouterKind::Bird => "show route all 192.0.2.10/32",
            RouterKind::Frr => "show bgp ipv4 unicast 192.0.2.10/32",
        };
        wait_for("the router shows the new attributes", PATIENCE, async || {
            let text = router.ask(show).await?;
            let shown = match kind {
                RouterKind::Bird => ["(64512,7)", "(64512, 1, 2)", "BGP.med: 50", "BGP.origin: IGP"],
                RouterKind::Frr => ["64512:7", "64512:1:2", "metric 50", "Origin IGP"],
            };
            Ok(if shown.iter().all(|part| text.contains(part)) { Ok(()) } else { Err(text) })
        })
        .await?;
        has_routes(&router, "192.0.2.10/32", by_node(true)).await?;

        running.want(3, &peers, BTreeMap::new());
        running.wait("the withdraws are written", |status| status.generation == 3).await?;
        has_routes(&router, "192.0.2.10/32", BTreeSet::new()).await?;
        has_routes(&router, "2001:db8::20/128", BTreeSet::new()).await?;
        ensure!(all_established(&running.status.borrow()), "withdrawing everything keeps the sessions");

        running.want(4, &peers, told(over_v4, Routes::new()));
        has_routes(&router, "192.0.2.10/32", by_node(true)).await?;
        running.shut_down("node drain").await?;
        has_routes(&router, "192.0.2.10/32", BTreeSet::new()).await?;
        // FRR forgets a neighbour of a listen range together with what it said last.
        if kind == RouterKind::Bird {
            let log = std::fs::read_to_string(wire.dir.join("router-bird.log"))?;
            ensure!(log.contains("node drain"), "BIRD logs our shutdown communication (RFC 9003):\n{log}");
        }
        Ok(())
    }
    .await;
    processes.kill().await?;
    result
}

async fn wrong_as(wire: &Wire, kind: RouterKind) -> anyhow::Result<()> {
    let (_router, mut processes) = wire.router(kind).await?;
    let result = async {
        let mut peer = to_router("tor", ROUTER.v4.into());
        peer.local_asn = 64999;
        let running = Running::start(&wire.ns("n1")?, [peer], &[])?;
        running
            .wait("the router's NOTIFICATION is in the status", |status| {
                status.sessions["tor"].last_error.as_ref().is_some_and(|last| {
                    last.error.to_string() == "received NOTIFICATION 2/2 OPEN Message Error, Bad Peer AS"
                })
            })
            .await
    }
    .await;
    processes.kill().await?;
    result
}

/// The router dies without a word, and starts again.
async fn restart(wire: Wire) -> anyhow::Result<()> {
    let (router, mut processes) = wire.router(RouterKind::Bird).await?;
    let result = async {
        let peers = [to_router("tor", ROUTER.v4.into())];
        let running = Running::start(&wire.ns("n1")?, peers.clone(), &[])?;
        let routes = Routes::from([("192.0.2.10/32".parse()?, Route::default())]);
        running.want(1, &peers, BTreeMap::from([("tor".into(), Arc::new(routes))]));
        running.wait("the session is up", all_established).await?;
        processes.kill().await?;
        running.wait("the loss is seen", |status| status.sessions["tor"].state != State::Established).await?;
        router.flush().await?;
        processes = wire.router(RouterKind::Bird).await?.1;
        has_routes(&router, "192.0.2.10/32", BTreeSet::from([node_address(1).v4.into()])).await
    }
    .await;
    processes.kill().await?;
    result
}

/// Two of our own, one of which only listens, on both families.
async fn listener(wire: Wire) -> anyhow::Result<()> {
    let server = SocketAddr::from((node_address(1).v6, 179));
    let mut passive = PeerConfig::new(
        "dialer",
        SocketAddr::from((CONTROL_PLANE.v6, 179)),
        64513,
        PeerAsn::Number(64512),
        node_address(1).v4,
    );
    passive.passive = true;
    let dialer = PeerConfig::new("server", server, 64512, PeerAsn::External, CONTROL_PLANE.v4);
    let listen = [SocketAddr::from(([0; 4], 179)), SocketAddr::from(([0u16; 8], 179))];
    let server = Running::start(&wire.ns("n1")?, [passive], &listen)?;
    let client = Running::start(&wire.ns("cp")?, [dialer], &[])?;
    server.wait("the passive end is up", all_established).await?;
    client.wait("the dialing end is up", all_established).await?;
    client.shut_down("enough").await?;
    server
        .wait("the reason arrived", |status| {
            status.sessions["dialer"]
                .last_error
                .as_ref()
                .is_some_and(|last| last.error.to_string().contains("enough"))
        })
        .await
}

fn all_established(status: &SpeakerStatus) -> bool {
    !status.sessions.is_empty() && status.sessions.values().all(|session| session.state == State::Established)
}

async fn has_routes(router: &Router, prefix: &str, next_hops: BTreeSet<IpAddr>) -> anyhow::Result<()> {
    wait_for(&format!("the router has {prefix} by {next_hops:?}"), PATIENCE, async || {
        let found = router.routes(prefix).await?;
        Ok(if found == next_hops { Ok(()) } else { Err(format!("{found:?}")) })
    })
    .await
}

/// The lab's router, as node n1 sees it.
fn to_router(name: &str, address: IpAddr) -> PeerConfig {
    let remote = SocketAddr::new(address, 179);
    let mut peer = PeerConfig::new(name, remote, NODE_ASN, PeerAsn::Number(ROUTER_ASN), node_address(1).v4);
    peer.ttl = Some(1);
    peer.source = Some(if address.is_ipv4() { node_address(1).v4.into() } else { node_address(1).v6.into() });
    peer.local_v4 = Some(node_address(1).v4);
    peer.local_v6 = Some(node_address(1).v6);
    peer.connect_time = Duration::from_secs(2);
    peer
}

/// A speaker on a thread inside a namespace.
struct Running {
    intent: watch::Sender<Arc<Intent>>,
    status: watch::Receiver<Arc<SpeakerStatus>>,
    thread: JoinHandle<anyhow::Result<()>>,
}

impl Running {
    fn start(
        ns: &Namespace,
        peers: impl IntoIterator<Item = PeerConfig>,
        listen: &[SocketAddr],
    ) -> anyhow::Result<Running> {
        let peers: Vec<_> = peers.into_iter().collect();
        let (intent, intents) = watch::channel(Arc::new(wanted(0, &peers, BTreeMap::new())));
        let (statuses, status) = watch::channel(Arc::default());
        let file = std::fs::File::open(format!("/run/netns/{}", ns.name()))?;
        let listen = listen.to_vec();
        let thread = std::thread::spawn(move || {
            nix::sched::setns(&file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            runtime.block_on(speaker::run(intents, &listen, statuses))
        });
        Ok(Running { intent, status, thread })
    }

    fn want(&self, generation: u64, peers: &[PeerConfig], routes: BTreeMap<PeerName, Arc<Routes>>) {
        self.intent.send_replace(Arc::new(wanted(generation, peers, routes)));
    }

    async fn wait(&self, what: &str, condition: impl Fn(&SpeakerStatus) -> bool) -> anyhow::Result<()> {
        let mut status = self.status.clone();
        // Before its first status the speaker knows no session.
        let waited = status.wait_for(|status| !status.sessions.is_empty() && condition(status));
        match tokio::time::timeout(PATIENCE, waited).await {
            Ok(found) => found.map(drop).context("the speaker ended"),
            Err(_) => {
                anyhow::bail!("after {PATIENCE:?} it is not so that {what}:\n{}", show(&self.status.borrow()))
            }
        }
    }

    async fn shut_down(self, text: &str) -> anyhow::Result<()> {
        self.intent.send_modify(|intent| {
            let mut last = Intent::clone(intent);
            last.shutdown = Some(text.into());
            *intent = Arc::new(last);
        });
        tokio::task::spawn_blocking(|| self.thread.join()).await?.expect("the speaker's thread")
    }
}

fn wanted(generation: u64, peers: &[PeerConfig], routes: BTreeMap<PeerName, Arc<Routes>>) -> Intent {
    let peers = peers.iter().map(|peer| (peer.name.clone(), peer.clone())).collect();
    Intent { generation, peers, routes, shutdown: None }
}

fn show(status: &SpeakerStatus) -> impl Display + use<> {
    let line = |(name, session): (&PeerName, &SessionStatus)| format!("{name}: {session:#?}\n");
    format!("generation {}\n{}", status.generation, status.sessions.iter().map(line).collect::<String>())
}

/// One node, the router's box and the control plane's on a switch; nothing runs in them yet.
struct Wire {
    prefix: String,
    dir: std::path::PathBuf,
}

impl Wire {
    fn ns(&self, name: &str) -> anyhow::Result<Namespace> {
        Namespace::open(&format!("{}-{name}", self.prefix))
    }

    async fn router(&self, kind: RouterKind) -> anyhow::Result<(Router, RouterProcesses)> {
        let router = Router::new(kind, self.ns("router")?, &self.dir);
        let processes = router.start(1, &self.dir).await?;
        Ok((router, processes))
    }
}

/// Runs a test on a wire of its own, and takes it down whatever comes of it.
fn on_wire(name: &str, test: impl AsyncFnOnce(Wire) -> anyhow::Result<()>) {
    if !nix::unistd::geteuid().is_root() {
        let message = format!("\nSKIPPED {name}: needs root, because it makes network namespaces\n");
        // Past the test harness, which hides what a passing test prints.
        let _ = writeln!(std::io::stderr(), "{message}");
        assert!(std::env::var_os("PORTOLAN_LAB_REQUIRED").is_none(), "{message}");
        return;
    }
    let prefix = format!("sp{}-{name}", std::process::id());
    let dir = std::env::temp_dir().join(&prefix);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let result = runtime.block_on(async {
        std::fs::create_dir_all(&dir)?;
        let built = topology::build(&prefix, 1, topology::Families::Both).await;
        let result = match built {
            Ok(()) => test(Wire { prefix: prefix.clone(), dir: dir.clone() }).await,
            Err(error) => Err(error),
        };
        for namespace in netns::list(&format!("{prefix}-")) {
            netns::ip(&format!("netns del {namespace}\n")).await?;
        }
        result
    });
    match result {
        Ok(()) => std::fs::remove_dir_all(&dir).unwrap(),
        Err(error) => panic!("{error:?}\nlogs are in {}", dir.display()),
    }
}
