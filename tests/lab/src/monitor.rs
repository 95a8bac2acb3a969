//! Programs that print events as they happen (`ip monitor route`, `nft monitor`), each line with the time at which the program
//! had it, if it says so, else with that at which it was read: how a test proves what came first, or that nothing happened.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

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

impl Line {
    /// A busy test reads a line long after it was printed, so the program's own `[2026-11-22T00:35:01.123456] ` counts.
    fn read(text: String) -> Line {
        let now = (Instant::now(), SystemTime::now());
        let Some((printed, rest)) = stamped(&text) else { return Line { at: now.0, text } };
        let ago = now.1.duration_since(printed).unwrap_or_default();
        Line { at: now.0.checked_sub(ago).unwrap_or(now.0), text: rest.into() }
    }
}

fn stamped(text: &str) -> Option<(SystemTime, &str)> {
    let (stamp, rest) = text.strip_prefix('[')?.split_once("] ")?;
    let printed = stamp.parse::<jiff::civil::DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    Some((printed.timestamp().into(), rest))
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
        Monitor::start(ns, &["ip", "-o", "-ts", "monitor", "route"]).await
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
        command.args(args).env("TZ", "UTC").stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
        let mut child = command.spawn().with_context(|| name.clone())?;
        let output = child.stdout.take().context("stdout")?;
        let pid = child.id().context("pid")?;
        let lines: Arc<Mutex<Vec<Line>>> = Arc::default();
        let read = lines.clone();
        tokio::spawn(async move {
            let mut output = BufReader::new(output).lines();
            while let Ok(Some(text)) = output.next_line().await {
                read.lock().expect("lines").push(Line::read(text));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_the_lines_time_and_no_part_of_its_text() {
        let (printed, rest) = stamped("[1970-01-01T00:01:00.250000] Deleted 192.0.2.10").expect("a stamp");
        assert_eq!(printed.duration_since(SystemTime::UNIX_EPOCH).ok(), Some(Duration::from_millis(60_250)));
        assert_eq!(rest, "Deleted 192.0.2.10");
        assert!(stamped("[not a time] x").is_none() && stamped("Deleted 192.0.2.10").is_none());
    }
}
