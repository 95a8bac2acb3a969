//! Requests from any namespace, and how they must end.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

use portolan_lab::netns::Namespace;
use portolan_lab::{Answer, probe, wait_for};

use crate::fixture::PATIENCE;

/// How long an answer may take before another request is made: a lost packet is not waited for.
const SOON: Duration = Duration::from_secs(1);
/// Requests in a row per pod that may answer: of three pods one is left out once in 60,000 rows, and then the row is repeated.
const ROW: usize = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

pub use Protocol::{Tcp, Udp};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    Answered,
    /// At once, by a reset or an ICMP error; of the node's own datagrams the kernel says that they were not let out.
    Refused,
    /// No answer, and nobody says why.
    Silent,
}

pub use End::{Answered, Refused, Silent};

/// One request, on a socket of its own.
pub async fn ask(from: &Namespace, to: SocketAddr, protocol: Protocol) -> Result<Answer, String> {
    let answer = match protocol {
        Tcp => probe::tcp_within(from, to, SOON).await,
        Udp => probe::udp_within(from, to, SOON).await,
    };
    answer.map_err(|error| format!("{error:#}"))
}

/// Waits until a request ends so.
pub async fn ends(from: &Namespace, to: SocketAddr, protocol: Protocol, end: End) -> anyhow::Result<()> {
    wait_for(&format!("{protocol:?} {} -> {to}: {end:?}", from.name()), PATIENCE, async || {
        let result = ask(from, to, protocol).await;
        Ok(if ended(&result) == Some(end) { Ok(()) } else { Err(format!("{result:?}")) })
    })
    .await
}

pub fn ended(result: &Result<Answer, String>) -> Option<End> {
    match result {
        Ok(_) => Some(Answered),
        Err(error) if error.contains("refused") || error.contains("not permitted") => Some(Refused),
        Err(error) if error.contains("no answer") => Some(Silent),
        Err(_) => None,
    }
}

/// Waits until a row of requests is answered by exactly these pods, each of them at least once; the addresses they saw.
pub async fn answered_by(
    from: &Namespace,
    to: SocketAddr,
    protocol: Protocol,
    pods: &[&str],
) -> anyhow::Result<BTreeSet<std::net::IpAddr>> {
    let wanted: BTreeSet<&str> = pods.iter().copied().collect();
    let what = format!("{protocol:?} {} -> {to} is answered by {pods:?}", from.name());
    wait_for(&what, PATIENCE, async || {
        let (mut seen, mut clients) = (BTreeSet::new(), BTreeSet::new());
        for _ in 0..ROW * pods.len() {
            match ask(from, to, protocol).await {
                Ok(answer) if wanted.contains(answer.pod.as_str()) => {
                    seen.insert(answer.pod);
                    clients.insert(answer.client.ip());
                }
                other => return Ok(Err(format!("{other:?}"))),
            }
        }
        Ok(if seen.len() == wanted.len() { Ok(clients) } else { Err(format!("only {seen:?}")) })
    })
    .await
}
