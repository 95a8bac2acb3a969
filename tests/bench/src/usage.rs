//! What a process and its children take: CPU by a cgroup of their own, memory by /proc.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;

const NAME: &str = "portolan-bench";

/// A cgroup (version 2). Its CPU time counts every process that was ever in it, those that ended too.
#[derive(Debug)]
pub struct Cgroup {
    dir: PathBuf,
    /// Where the memory controller is still of version 1, it has a tree of its own.
    memory: Option<PathBuf>,
}

impl Cgroup {
    pub fn new() -> anyhow::Result<Cgroup> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let root = mounted(|kind, _| kind == "cgroup2")?;
        let root = root.context("CPU is measured by a cgroup of version 2, and none is mounted")?;
        let name = format!("{NAME}-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let make = |root: PathBuf| {
            clear(&root);
            let dir = root.join(&name);
            fs::create_dir(&dir).with_context(|| format!("cgroup {}", dir.display()))?;
            anyhow::Ok(dir)
        };
        let old =
            mounted(|kind, options| kind == "cgroup" && options.split(',').any(|each| each == "memory"))?;
        Ok(Cgroup { dir: make(root)?, memory: old.map(make).transpose()? })
    }

    /// The command will run in it.
    pub fn hold(&self, command: &mut Command) -> anyhow::Result<()> {
        for dir in [Some(&self.dir), self.memory.as_ref()].into_iter().flatten() {
            let procs = OpenOptions::new().write(true).open(dir.join("cgroup.procs"))?;
            // SAFETY: write is a plain system call; nothing is allocated and no lock is taken between fork and exec.
            unsafe {
                command.pre_exec(move || match libc::write(procs.as_raw_fd(), b"0".as_ptr().cast(), 1) {
                    1 => Ok(()),
                    _ => Err(io::Error::last_os_error()),
                });
            }
        }
        Ok(())
    }

    /// Memory that the kernel holds on their behalf, in KiB: rules and elements, beside what every process needs. None where
    /// the memory controller is not at hand.
    pub fn kernel_kib(&self) -> Option<u64> {
        let bytes = match &self.memory {
            Some(old) => fs::read_to_string(old.join("memory.kmem.usage_in_bytes")).ok()?,
            None => {
                let stat = fs::read_to_string(self.dir.join("memory.stat")).ok()?;
                stat.lines().find_map(|line| line.strip_prefix("kernel "))?.to_owned()
            }
        };
        Some(bytes.trim().parse::<u64>().ok()? / 1024)
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
        for dir in [Some(&self.dir), self.memory.as_ref()].into_iter().flatten() {
            let _ = fs::remove_dir(dir);
        }
    }
}

/// Where a file system is mounted whose type and options are as wanted.
fn mounted(is_wanted: impl Fn(&str, &str) -> bool) -> anyhow::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let found = mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, at, kind, options, ..] if is_wanted(kind, options) => Some(PathBuf::from(at)),
        _ => None,
    });
    Ok(found)
}

/// What runs that were killed left.
fn clear(root: &Path) {
    let entries = fs::read_dir(root).into_iter().flatten().flatten();
    for entry in entries {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.strip_prefix(NAME).and_then(|rest| rest.split('-').nth(1));
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = fs::remove_dir(entry.path());
        }
    }
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
