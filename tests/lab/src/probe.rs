//! Requests to pods' servers from any namespace, and what became of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use crate::netns::Namespace;
use crate::pod_server::Answer;

/// How long one request may take. Longer than the first repetition of a lost SYN (1 s), so that a lost packet shows as a
/// slow answer, and a lost connection as a failure.
pub const PATIENCE: Duration = Duration::from_secs(3);

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

/// One request on a connection of its own.
pub async fn tcp(ns: &Namespace, to: SocketAddr) -> anyhow::Result<Answer> {
    tcp_within(ns, to, PATIENCE).await
}

pub async fn tcp_within(ns: &Namespace, to: SocketAddr, patience: Duration) -> anyhow::Result<Answer> {
    let ask = async { Connection::open(ns, to).await?.ask().await };
    timeout(patience, ask)
        .await
        .unwrap_or_else(|_| bail!("no answer within {patience:?}"))
        .with_context(|| from_to(ns, to))
}

/// One datagram there and one back.
pub async fn udp(ns: &Namespace, to: SocketAddr) -> anyhow::Result<Answer> {
    udp_within(ns, to, PATIENCE).await
}

pub async fn udp_within(ns: &Namespace, to: SocketAddr, patience: Duration) -> anyhow::Result<Answer> {
    let ask = async {
        let socket = ns.udp(to).await?;
        socket.send(b"who").await?;
        let mut buffer = [0u8; 2048];
        let length = socket.recv(&mut buffer).await?;
        std::str::from_utf8(&buffer[..length])?.parse()
    };
    timeout(patience, ask)
        .await
        .unwrap_or_else(|_| bail!("no answer within {patience:?}"))
        .with_context(|| from_to(ns, to))
}

fn from_to(ns: &Namespace, to: SocketAddr) -> String {
    format!("{} -> {to}", ns.name())
}

/// A TCP connection that stays open between requests.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub async fn open(ns: &Namespace, to: SocketAddr) -> anyhow::Result<Connection> {
        let connect = ns.connect(to);
        let stream = timeout(PATIENCE, connect).await.context("connect: no answer")?.context("connect")?;
        Ok(Connection { stream })
    }

    /// Our own end of the connection.
    pub fn local(&self) -> anyhow::Result<SocketAddr> {
        Ok(self.stream.local_addr()?)
    }

    pub async fn ask(&mut self) -> anyhow::Result<Answer> {
        timeout(PATIENCE, self.exchange()).await.context("no answer on an open connection")?
    }

    async fn exchange(&mut self) -> anyhow::Result<Answer> {
        self.stream.write_all(REQUEST).await.context("send")?;
        let mut text = Vec::new();
        let mut buffer = [0u8; 1024];
        loop {
            let length = self.stream.read(&mut buffer).await.context("receive")?;
            if length == 0 {
                bail!("the connection was closed");
            }
            text.extend_from_slice(&buffer[..length]);
            // Head and body come in one write, and the body is one line.
            if let Some((_, body)) = std::str::from_utf8(&text)?.split_once("\r\n\r\n")
                && body.ends_with('\n')
            {
                return body.parse();
            }
        }
    }
}

/// What became of many requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    pub answered: usize,
    /// How many answers each pod gave.
    pub pods: BTreeMap<String, usize>,
    /// The client addresses that the pods saw, without ports.
    pub clients: BTreeMap<std::net::IpAddr, usize>,
    /// When each failed request began, counted from the start, and why it failed.
    pub failures: Vec<(Duration, String)>,
    /// The longest time an answer took.
    pub slowest: Duration,
}

impl Tally {
    pub fn asked(&self) -> usize {
        self.answered + self.failures.len()
    }

    fn count(&mut self, began: Duration, took: Duration, result: anyhow::Result<Answer>) {
        match result {
            Ok(answer) => {
                self.answered += 1;
                self.slowest = self.slowest.max(took);
                *self.pods.entry(answer.pod).or_default() += 1;
                *self.clients.entry(answer.client.ip()).or_default() += 1;
            }
            Err(error) => self.failures.push((began, format!("{error:#}"))),
        }
    }
}

/// `count` TCP requests, one after the other.
pub async fn many(ns: &Namespace, to: SocketAddr, count: usize) -> Tally {
    let start = Instant::now();
    let mut tally = Tally::default();
    for _ in 0..count {
        let began = start.elapsed();
        let result = tcp(ns, to).await;
        tally.count(began, start.elapsed() - began, result);
    }
    tally
}

/// Requests at a steady rate, each on a connection or from a port of its own and none waiting for another, until stopped or
/// dropped.
#[derive(Debug)]
pub struct Requests {
    tally: Arc<Mutex<Tally>>,
    stop: Arc<AtomicBool>,
    /// None of the tasks in it outlives it.
    task: JoinSet<()>,
}

impl Requests {
    pub fn start(ns: &Namespace, to: SocketAddr, per_second: u32) -> Requests {
        Requests::start_by(Protocol::Tcp, ns, to, per_second)
    }

    pub fn start_by(protocol: Protocol, ns: &Namespace, to: SocketAddr, per_second: u32) -> Requests {
        let (tally, stop) = (Arc::<Mutex<Tally>>::default(), Arc::<AtomicBool>::default());
        let load = Load { protocol, ns: ns.clone(), to, per_second };
        let mut task = JoinSet::new();
        task.spawn(ask_until(stop.clone(), load, tally.clone()));
        Requests { tally, stop, task }
    }

    /// The count so far.
    pub fn so_far(&self) -> Tally {
        self.tally.lock().expect("tally").clone()
    }

    /// Asks no more, waits for the answers that are still to come, and returns the count.
    pub async fn stop(mut self) -> anyhow::Result<Tally> {
        self.stop.store(true, Ordering::Relaxed);
        self.task.join_next().await.context("requests")??;
        Ok(self.tally.lock().expect("tally").clone())
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Clone)]
struct Load {
    protocol: Protocol,
    ns: Namespace,
    to: SocketAddr,
    per_second: u32,
}

impl Load {
    async fn ask(&self) -> anyhow::Result<Answer> {
        match self.protocol {
            Protocol::Tcp => tcp(&self.ns, self.to).await,
            Protocol::Udp => udp(&self.ns, self.to).await,
        }
    }
}

async fn ask_until(stop: Arc<AtomicBool>, load: Load, tally: Arc<Mutex<Tally>>) {
    let start = Instant::now();
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / load.per_second.max(1));
    let mut asked = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        ticks.tick().await;
        let (load, tally) = (load.clone(), tally.clone());
        asked.spawn(async move {
            let began = start.elapsed();
            let result = load.ask().await;
            tally.lock().expect("tally").count(began, start.elapsed() - began, result);
        });
        while asked.try_join_next().is_some() {}
    }
    asked.join_all().await;
}
