//! Programs that print events as they happen (`ip monitor route`, `nft monitor`), each line with the time it was read: how
//! a test proves what came first, or that nothing happened.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Child;

use crate::netns::Namespace;
use crate::wait::wait_for;

#[derive(Clone, Debug)]
pub struct Line {
    pub at: Instant,
    pub text: String,
}

/// Ends its program when dropped.
#[derive(Debug)]
pub struct Monitor {
    name: String,
    lines: Arc<Mutex<Vec<Line>>>,
    _child: Child,
}

impl Monitor {
    /// Changes of routes in `ns`, both families, one line each; removals begin with `Deleted`.
    pub async fn routes(ns: &Namespace) -> anyhow::Result<Monitor> {
        Monitor::start(ns, &["ip", "-o", "monitor", "route"]).await
    }

    /// Changes of nftables in `ns`, as `nft monitor` prints them.
    pub async fn nftables(ns: &Namespace) -> anyhow::Result<Monitor> {
        Monitor::start(ns, &["nft", "monitor"]).await
    }

    /// Starts the program and waits until its netlink socket is open: what happens from now on is seen.
    pub async fn start(ns: &Namespace, line: &[&str]) -> anyhow::Result<Monitor> {
        let [program, args @ ..] = line else { anyhow::bail!("empty command") };
        let name = format!("{} in {}", line.join(" "), ns.name());
        let mut command = ns.command(program)?;
        command.args(args).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| name.clone())?;
        let output = child.stdout.take().context("stdout")?;
        let pid = child.id().context("pid")?;
        let lines: Arc<Mutex<Vec<Line>>> = Arc::default();
        let read = lines.clone();
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Ok(Some(text)) = output.next_line().await {
                read.lock().expect("lines").push(Line { at: Instant::now(), text });
            }
        });
        wait_for(&format!("{name} listens"), Duration::from_secs(5), async || Ok(listens(pid))).await?;
        Ok(Monitor { name, lines, _child: child })
    }

    pub fn lines(&self) -> Vec<Line> {
        self.lines.lock().expect("lines").clone()
    }

    /// Waits for the first line that satisfies `wanted`, from the beginning.
    pub async fn first(
        &self,
        what: &str,
        within: Duration,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<Line> {
        wait_for(&format!("{} shows {what}", self.name), within, async || {
            let lines = self.lines();
            let found = lines.iter().find(|line| wanted(&line.text)).cloned();
            Ok(found.ok_or_else(|| format!("{} lines, the last: {:?}", lines.len(), lines.last())))
        })
        .await
    }
}

/// Whether a process has joined a netlink multicast group: the groups column of /proc/PID/net/netlink.
fn listens(pid: u32) -> Result<(), &'static str> {
    let table = std::fs::read_to_string(format!("/proc/{pid}/net/netlink")).unwrap_or_default();
    let sockets = table.lines().skip(1).map(|line| line.split_whitespace().collect::<Vec<_>>());
    let joined = sockets
        .filter(|columns| columns.get(2) == Some(&pid.to_string().as_str()))
        .any(|columns| columns.get(3).is_some_and(|groups| groups.bytes().any(|digit| digit != b'0')));
    if joined { Ok(()) } else { Err("no netlink socket in a multicast group") }
}
