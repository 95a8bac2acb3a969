//! A process of the lab that runs until it is ended: its output goes to a log file.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::Context;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// Dropping it leaves the process running: the lab's clean-up finds processes by their namespace.
#[derive(Debug)]
pub struct Daemon {
    name: String,
    pid: i32,
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` in a process group of its own (the terminal's Ctrl-C does not reach it), appending to
    /// `<logs>/<name>.log`.
    pub fn start(mut command: Command, name: &str, logs: &Path) -> anyhow::Result<Daemon> {
        let log = logs.join(format!("{name}.log"));
        let file = OpenOptions::new().create(true).append(true).open(&log).context("open log")?;
        let child = command
            .stdin(std::process::Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {name} ({:?})", command.as_std().get_program()))?;
        let pid = child.id().context("pid")? as i32;
        Ok(Daemon { name: name.into(), pid, child, log })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    pub fn log(&self) -> &Path {
        &self.log
    }

    /// How it ended, if it did.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Fails, with the end of its log, if the process is gone.
    pub fn check(&mut self) -> anyhow::Result<()> {
        match self.exited() {
            None => Ok(()),
            Some(status) => anyhow::bail!("{} ended ({status}); {}", self.name, tail(&self.log, 15)),
        }
    }

    /// `kill -9`, then waits until it is gone.
    pub async fn kill(&mut self) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGKILL)?;
        self.child.wait().await.context("wait")
    }

    /// SIGTERM, then waits for an orderly end; kills it, and fails, if that takes longer than `within`.
    pub async fn terminate(&mut self, within: Duration) -> anyhow::Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        match tokio::time::timeout(within, self.child.wait()).await {
            Ok(status) => status.context("wait"),
            Err(_) => {
                self.kill().await?;
                anyhow::bail!("{} did not end within {within:?} of SIGTERM", self.name)
            }
        }
    }

    pub fn signal(&mut self, signal: Signal) -> anyhow::Result<()> {
        // A process that was waited for no longer owns its number.
        if self.exited().is_none() {
            kill(Pid::from_raw(self.pid), signal).with_context(|| format!("{signal} to {}", self.name))?;
        }
        Ok(())
    }
}

/// The last lines of a log, for messages.
pub fn tail(log: &Path, lines: usize) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    let last = all[all.len().saturating_sub(lines)..].join("\n");
    format!("the end of {}:\n{last}", log.display())
}
