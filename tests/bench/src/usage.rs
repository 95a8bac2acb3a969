//! What a process and its children take: CPU by a cgroup of their own, memory by /proc.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

const NAME: &str = "portolan-bench";

/// A cgroup (version 2). Its CPU time counts every process that was ever in it, those that ended too.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
}

impl Cgroup {
    pub fn new() -> anyhow::Result<Cgroup> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = root()?;
        clear(&root);
        let name = format!("{NAME}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let dir = root.join(name);
        fs::create_dir(&dir).with_context(|| format!("cgroup {}", dir.display()))?;
        Ok(Cgroup { dir })
    }

    /// The command will run in it.
    pub fn hold(&self, command: &mut Command) -> anyhow::Result<()> {
        let procs = OpenOptions::new().write(true).open(self.dir.join("cgroup.procs"))?;
        // SAFETY: write is a plain system call; nothing is allocated and no lock is taken between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) {
                1 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            });
        }
        Ok(())
    }

    /// CPU time so far, that of the kernel on their behalf included.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(self.dir.join("cpu.stat"))?;
        let micros = stat.lines().find_map(|line| line.strip_prefix("usage_usec ")).context("usage_usec")?;
        Ok(Duration::from_micros(micros.parse()?))
    }

    /// Of that, what the kernel did.
    pub fn system(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(self.dir.join("cpu.stat"))?;
        let micros =
            stat.lines().find_map(|line| line.strip_prefix("system_usec ")).context("system_usec")?;
        Ok(Duration::from_micros(micros.parse()?))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.dir);
    }
}

fn root() -> anyhow::Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut unified = mounts.lines().filter_map(|line| {
        let words: Vec<&str> = line.split(' ').collect();
        (words.get(2) == Some(&"cgroup2")).then(|| PathBuf::from(words[1]))
    });
    let root = unified.next().context("CPU is measured by a cgroup of version 2, and none is mounted")?;
    ensure!(root.join("cgroup.procs").exists(), "{} is no cgroup", root.display());
    Ok(root)
}

/// What a run that was killed left; one with processes in it does not go.
fn clear(root: &Path) {
    let stale = fs::read_dir(root).into_iter().flatten().flatten();
    let ours = stale.filter(|entry| entry.file_name().to_string_lossy().starts_with(NAME));
    ours.for_each(|entry| drop(fs::remove_dir(entry.path())));
}

/// CPU time of the calling thread.
pub fn thread_cpu() -> Duration {
    // SAFETY: the time is written by the call, and zero where it could not be.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time);
        time
    };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Resident memory of one process in KiB: now, and its largest so far.
pub fn resident_kib(pid: i32) -> anyhow::Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| -> anyhow::Result<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("field")?;
        Ok(line.split_whitespace().next().context("value")?.parse()?)
    };
    Ok((field("VmRSS:")?, field("VmHWM:")?))
}
