//! Real packets: a server that is every endpoint, and clients that ask which of them answered.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, bail};
use portolan_lab::netns::Namespace;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::objects::{self, TARGET_PORT};

const PATIENCE: Duration = Duration::from_secs(3);
/// With 11 endpoints, chance leaves one out of so many answers once in 10^16 times.
const ENOUGH: usize = 400;

/// Answers with the address it was reached at.
pub struct Server {
    task: JoinHandle<()>,
}

impl Server {
    pub fn start(ns: &Namespace) -> anyhow::Result<Server> {
        let listener = ns.listen_tcp(SocketAddr::from(([0, 0, 0, 0], TARGET_PORT)))?;
        Ok(Server { task: tokio::spawn(serve(listener)) })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { continue };
        tokio::spawn(async move {
            let Ok(SocketAddr::V4(own)) = stream.local_addr() else { return };
            // A client that went away is its own affair.
            let _ = stream.write_all(&own.ip().octets()).await;
        });
    }
}

/// One connection; the endpoint that answered.
pub async fn who(client: &Namespace, to: SocketAddr) -> anyhow::Result<Ipv4Addr> {
    let ask = async {
        let mut stream = client.connect(to).await?;
        // Resets at the end: thousands of connections leave no waiting socket.
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        let mut address = [0; 4];
        stream.read_exact(&mut address).await?;
        anyhow::Ok(Ipv4Addr::from(address))
    };
    timeout(PATIENCE, ask).await.unwrap_or_else(|_| bail!("no answer")).with_context(|| to.to_string())
}

/// Asks the Service until `new` answers, and as often as that takes; fails if `gone` does.
pub async fn reaches(
    client: &Namespace,
    service: u32,
    new: Ipv4Addr,
    gone: Option<Ipv4Addr>,
) -> anyhow::Result<()> {
    let to = objects::frontend(service);
    for _ in 0..ENOUGH {
        let answered = who(client, to).await?;
        if Some(answered) == gone {
            bail!("{answered}, which is gone, answered for {to}");
        }
        if answered == new {
            return Ok(());
        }
    }
    bail!("{new} answered none of {ENOUGH} connections to {to}")
}

/// One answer by one of `endpoints`.
pub async fn is_answered(client: &Namespace, service: u32, endpoints: &[Ipv4Addr]) -> anyhow::Result<()> {
    let answered = who(client, objects::frontend(service)).await?;
    let known = endpoints.contains(&answered);
    anyhow::ensure!(known, "{answered} answered for Service {service}, which has {endpoints:?}");
    Ok(())
}
