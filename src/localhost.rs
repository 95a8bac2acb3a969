//! Relays of node ports on loopback addresses (S22): a listener for each, and two copied streams for each of its connections.
//! Where to listen and whom to ask is decided in `plan::localhost`.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use portolan_dataplane::{localhost, table_id};
use portolan_model::{Backend, Family, ObjectId, Protocol};
use portolan_plan::localhost::{Listener, Listeners, Memory};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::dataplane::nft::{DumpError, NftSocket};
use crate::events::{self, Events};
use crate::metrics::Metrics;

/// Between two attempts to bind.
const RETRY: Duration = Duration::from_secs(5);
/// How long an endpoint may take to answer.
const DIAL: Duration = Duration::from_secs(5);
/// After a connection could not be taken, for which there are no reasons that pass at once: no more files, no memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Keeps the listeners that are `wanted`, until that ends. A port that cannot be bound is tried again, and its Service told
/// once. Connections that stand go on whatever becomes of their listener (S50).
pub async fn serve(mut wanted: watch::Receiver<Listeners>, events: Events, metrics: Arc<Metrics>) {
    let mut servers: BTreeMap<SocketAddr, Server> = BTreeMap::new();
    loop {
        let listeners = wanted.borrow_and_update().clone();
        servers.retain(|at, _| listeners.get(at).is_some());
        for (at, listener) in listeners.iter() {
            servers
                .entry(at)
                .or_insert_with(|| Server::new(listener))
                .serve(at, listener, &events, &metrics)
                .await;
        }
        let open =
            |family| servers.iter().filter(|(at, s)| s.is_open() && Family::of(&at.ip()) == family).count();
        Family::ALL.iter().for_each(|family| metrics.localhost_listeners(*family, open(*family)));
        let failed = servers.values().any(|server| !server.is_open());
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// One address's listener, closed when dropped.
struct Server {
    task: Option<AbortHandle>,
    /// For the connections to come.
    now: watch::Sender<Arc<Listener>>,
    said: bool,
}

impl Server {
    fn new(listener: &Arc<Listener>) -> Server {
        Server { task: None, now: watch::Sender::new(listener.clone()), said: false }
    }

    fn is_open(&self) -> bool {
        self.task.is_some()
    }

    async fn serve(&mut self, at: SocketAddr, listener: &Arc<Listener>, events: &Events, metrics: &Metrics) {
        self.now.send_replace(listener.clone());
        if self.is_open() {
            return;
        }
        match TcpListener::bind(at).await {
            Ok(bound) => self.task = Some(tokio::spawn(accept(bound, self.now.subscribe())).abort_handle()),
            Err(error) => {
                metrics.localhost_listener_failed(Family::of(&at.ip()));
                self.say(at, listener, &error, events);
            }
        }
    }

    fn say(&mut self, at: SocketAddr, listener: &Listener, error: &io::Error, events: &Events) {
        if std::mem::replace(&mut self.said, true) {
            return;
        }
        let note = format!("cannot serve the node port on {at}: {error}; trying again");
        tracing::warn!(service = %listener.service, "{note}");
        let about = events::about(&ObjectId::service(&listener.service), &listener.uid);
        events.warning(about, "FailedToStartLocalhostNodePort", &note);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

async fn accept(bound: TcpListener, now: watch::Receiver<Arc<Listener>>) {
    let mut memory = Memory::default();
    loop {
        match bound.accept().await {
            Ok((client, _)) => {
                let backend = memory.choose(&now.borrow(), draw(), Instant::now());
                if let Some(backend) = backend {
                    tokio::spawn(relay(client, backend));
                }
            }
            Err(error) => {
                tracing::debug!(%error, "a connection to a node port on loopback could not be taken");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// The client of an endpoint that does not answer is reset, as it would be by the endpoint itself.
async fn relay(mut client: TcpStream, backend: Backend) {
    match timeout(DIAL, TcpStream::connect(backend)).await {
        Ok(Ok(mut server)) => {
            let prompt = client.set_nodelay(true).and_then(|()| server.set_nodelay(true));
            let copied = match prompt {
                Ok(()) => tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = copied {
                tracing::debug!(%backend, %error, "a relayed connection broke");
            }
        }
        Ok(Err(error)) => reset(&client, backend, &error),
        Err(_) => reset(&client, backend, &io::Error::from(io::ErrorKind::TimedOut)),
    }
}

fn reset(client: &TcpStream, backend: Backend, error: &io::Error) {
    tracing::debug!(%backend, %error, "an endpoint does not answer a relay");
    if let Err(error) = client.set_zero_linger() {
        tracing::debug!(%error, "a client is told nothing of it");
    }
}

/// Each hasher has keys of its own, from the system's source of randomness.
fn draw() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// What the kernel refused at loopback addresses, for that no relay speaks it: by family and protocol.
pub fn refused() -> Result<Vec<(Family, Protocol, u64)>, DumpError> {
    let mut socket = NftSocket::open()?;
    let mut refused = Vec::new();
    for family in Family::ALL {
        let rules = socket.rules(&table_id(family), localhost::chain())?;
        refused.extend(localhost::refused(&rules).map(|(protocol, packets)| (family, protocol, packets)));
    }
    Ok(refused)
}
