//! A lab held by a process of its own, so that it stays when the command that brought it up is done.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};

use crate::lab::{Lab, Options, folder, pid_file, reap};
use crate::site::Site;
use crate::wait::wait_for;

/// Removal takes a second or two; this is when to stop believing in it.
const REMOVAL: Duration = Duration::from_secs(20);

/// The command that holds a lab: `portolan-lab serve PREFIX ROUTER FAMILIES`.
pub const SERVE: &str = "serve";

/// Brings a lab up in a new process and waits until it is ready. What that process says until then is seen on standard error.
pub async fn up(options: &Options) -> anyhow::Result<Site> {
    down(&options.prefix).await?;
    let mut holder = spawn_holder(options)?;
    loop {
        if let Some(status) = holder.try_wait()? {
            bail!("the lab did not come up ({status})");
        }
        if let Some(site) = load(&options.prefix)? {
            return Ok(site);
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn spawn_holder(options: &Options) -> anyhow::Result<Child> {
    let mut command = Command::new(std::env::current_exe()?);
    let Options { prefix, router, families, .. } = options;
    command.args([SERVE, prefix, &router.to_string(), &families.to_string()]);
    command.stdin(std::process::Stdio::null());
    // SAFETY: setsid is a plain system call. A session of its own outlives the terminal.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    command.spawn().context("start the process that holds the lab")
}

/// The life of the process that holds a lab.
pub async fn serve(options: Options) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let lab = tokio::select! {
        lab = Lab::up(options) => lab?,
        _ = terminate.recv() => return Ok(()),
    };
    // From here on nobody listens: a pipe of the command that started us must not stay open.
    let log = std::fs::File::create(lab.logs().join("lab.log"))?;
    for stream in [libc::STDOUT_FILENO, libc::STDERR_FILENO] {
        // SAFETY: both descriptors are open, and the standard streams belong to nobody in particular.
        if unsafe { libc::dup2(log.as_raw_fd(), stream) } < 0 {
            return Err(std::io::Error::last_os_error()).context("redirect output");
        }
    }
    let site: &Site = &lab;
    let partial = lab.dir().join("site.partial");
    std::fs::write(&partial, serde_json::to_string_pretty(site)?)?;
    std::fs::rename(&partial, site_file(site.prefix()))?;
    terminate.recv().await;
    Ok(())
}

fn site_file(prefix: &str) -> PathBuf {
    folder(prefix).join("site.json")
}

/// The held lab of this prefix, if one is up.
pub fn load(prefix: &str) -> anyhow::Result<Option<Site>> {
    match std::fs::read(site_file(prefix)) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text).context("site.json")?)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context("site.json"),
    }
}

/// Ends the process that holds a lab and waits until every trace is gone; whether there was anything.
pub async fn down(prefix: &str) -> anyhow::Result<bool> {
    let Some(pid) = holder(prefix) else {
        return reap(prefix).await;
    };
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("end the process that holds the lab")?;
    wait_for("the lab is gone", REMOVAL, async || {
        Ok(if folder(prefix).exists() { Err("it is there") } else { Ok(()) })
    })
    .await?;
    reap(prefix).await?;
    Ok(true)
}

/// The recorded process, if its number still belongs to a lab's holder.
fn holder(prefix: &str) -> Option<i32> {
    let pid = std::fs::read_to_string(pid_file(prefix)).ok()?;
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let mut words = command_line.split(|byte| *byte == 0).skip(1);
    (words.next() == Some(SERVE.as_bytes()) && words.next() == Some(prefix.as_bytes()))
        .then_some(pid.parse().ok()?)
}
