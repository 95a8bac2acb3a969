//! What runs in a pod: a server that says who it is and whom it sees.
//!
//! TCP speaks HTTP/1.1 with connections kept open, so that `curl` works and a connection can be asked again later; a UDP
//! datagram is answered by one. Either answer is [`Answer`]'s text.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

use crate::netns::Namespace;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Port {
    Tcp(u16),
    Udp(u16),
}

/// One answer: `pod web-5d-x2 node n1 client 10.8.0.2:40112`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub pod: String,
    pub node: String,
    /// The client's address as the pod saw it.
    pub client: SocketAddr,
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "pod {} node {} client {}", self.pod, self.node, self.client)
    }
}

impl FromStr for Answer {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Answer> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let ["pod", pod, "node", node, "client", client] = words[..] else {
            anyhow::bail!("not an answer of a pod: {text:?}")
        };
        let client = client.parse().with_context(|| format!("client address {client:?}"))?;
        Ok(Answer { pod: pod.into(), node: node.into(), client })
    }
}

/// A running server. Dropping it closes its sockets and connections at once.
#[derive(Debug)]
pub struct PodServer {
    _tasks: JoinSet<()>,
}

impl PodServer {
    /// Listens on every port, both families, in `ns`. Fails if one is taken.
    pub fn start(ns: &Namespace, pod: &str, node: &str, ports: &[Port]) -> anyhow::Result<PodServer> {
        PodServer::start_on(&[Ipv6Addr::UNSPECIFIED.into()], ns, pod, node, ports)
    }

    /// The same on these addresses only. Where there are several, a datagram's answer has the right one by this alone.
    pub fn start_on(
        addresses: &[IpAddr],
        ns: &Namespace,
        pod: &str,
        node: &str,
        ports: &[Port],
    ) -> anyhow::Result<PodServer> {
        let mut tasks = JoinSet::new();
        let identity = Identity { pod: pod.into(), node: node.into() };
        for (address, port) in
            addresses.iter().flat_map(|address| ports.iter().map(move |port| (*address, port)))
        {
            match *port {
                Port::Tcp(port) => {
                    let listener = ns.listen_tcp((address, port).into())?;
                    tasks.spawn(serve_tcp(listener, identity.clone()));
                }
                Port::Udp(port) => {
                    let socket = ns.listen_udp((address, port).into())?;
                    tasks.spawn(serve_udp(socket, identity.clone()));
                }
            }
        }
        Ok(PodServer { _tasks: tasks })
    }
}

#[derive(Clone)]
struct Identity {
    pod: String,
    node: String,
}

impl Identity {
    fn answer(&self, client: SocketAddr) -> String {
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        Answer { pod: self.pod.clone(), node: self.node.clone(), client }.to_string()
    }
}

async fn serve_tcp(listener: TcpListener, identity: Identity) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        // What fails here is the one connection.
        let Ok((stream, client)) = accepted else { continue };
        let body = identity.answer(client);
        connections.spawn(async move {
            // A client that goes away in the middle is its own affair.
            let _ = serve_connection(stream, &body).await;
        });
    }
}

async fn serve_connection(stream: TcpStream, body: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = BufReader::new(stream);
    let response = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    loop {
        let mut close = false;
        loop {
            let mut line = String::new();
            if stream.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            close |= line.trim_end().eq_ignore_ascii_case("connection: close");
            if line.trim_end().is_empty() {
                break;
            }
        }
        stream.write_all(response.as_bytes()).await?;
        if close {
            return stream.shutdown().await;
        }
    }
}

async fn serve_udp(socket: UdpSocket, identity: Identity) {
    let mut buffer = [0u8; 2048];
    loop {
        if let Ok((_, client)) = socket.recv_from(&mut buffer).await {
            let _ = socket.send_to(identity.answer(client).as_bytes(), client).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_reads_back() {
        let answer =
            Answer { pod: "web-1".into(), node: "n1".into(), client: "[fd08::2]:80".parse().unwrap() };
        assert_eq!(answer.to_string().parse::<Answer>().unwrap(), answer);
        assert!("HTTP/1.1 503".parse::<Answer>().is_err());
    }
}
