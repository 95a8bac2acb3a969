//! A guest kernel, for what the host's may lack (IPVS, ipset, dummy interfaces): Debian's cloud kernel in qemu, emulated in
//! software, with a root folder of our own in memory. It boots in three seconds; times measured in it mean nothing.

mod kernel;
mod root;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use kernel::Kernel;
use root::Root;

use crate::netns::Namespace;

const QEMU: &str = "qemu-system-x86_64";
const MEMORY_MIB: &str = "1024";
/// A line of the console that is for the test begins with this.
const RESULT: &str = "RESULT ";
/// What `init` prints after the script; a run without it was cut short.
const END: &str = "RESULT end";
/// Lines of the console that a failure shows.
const SHOWN: usize = 60;

/// What is in the guest beside busybox and its shell.
#[derive(Clone, Debug, Default)]
pub struct Guest {
    /// Folders with kernel modules, relative to the modules' `kernel` folder, and single ones; those they need must be named.
    pub modules: Vec<&'static str>,
    /// Programs, by name or path, with their libraries: in the guest's `/usr/bin`.
    pub programs: Vec<PathBuf>,
    /// Whole folders of the host, at the same path.
    pub folders: Vec<PathBuf>,
    /// Files of the guest's folder `/guest`.
    pub files: Vec<(&'static str, String)>,
    /// What this namespace reaches, the guest reaches by its interface `eth0` with address 10.0.2.15/24 and gateway 10.0.2.2, with TCP
    /// and UDP of its own: the emulator makes connections of them. Needs [`UPLINK_MODULES`].
    pub uplink: Option<Namespace>,
}

/// nf_tables, IPVS, ipset, and links of every kind that tests use.
pub const NETWORK_MODULES: &[&str] = &[
    "net/netfilter",
    "net/ipv4",
    "net/ipv6",
    "net/core",
    "lib",
    "crypto",
    "drivers/net/dummy.ko",
    "drivers/net/veth.ko",
];
/// Beside the others.
pub const UPLINK_MODULES: &[&str] =
    &["drivers/net/virtio_net.ko", "drivers/net/net_failover.ko", "drivers/virtio"];
/// What iptables loads for its matches and targets.
pub const IPTABLES_EXTENSIONS: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// Why there can be no guest here, if so.
pub fn missing() -> Option<String> {
    let lacking: Vec<&str> = [QEMU, "busybox", "depmod", "strip", "dpkg-deb"]
        .into_iter()
        .filter(|name| root::find(name).is_none())
        .collect();
    (!lacking.is_empty()).then(|| format!("needs {}: tests/lab/setup.sh installs them", lacking.join(", ")))
}

impl Guest {
    /// Boots, runs `script` (of busybox's shell, whose applets go before programs of the same name) and powers off. Gives what
    /// the script said in lines that begin with `RESULT `, without that word. Fails, with the end of the console, when it took
    /// longer than `within` or did not reach its end.
    pub fn run(&self, script: &str, within: Duration) -> anyhow::Result<Vec<String>> {
        let kernel = Kernel::ensure()?;
        let root = Root::make(self, &kernel, script)?;
        let console = boot(self.emulator()?, &kernel.image(), root.archive(), within)?;
        if !console.iter().any(|line| line == END) {
            bail!("the guest's script was cut short; its console:\n{}", last(&console));
        }
        eprintln!("the guest's console:\n{}", last(&console));
        let said =
            console.iter().take_while(|line| *line != END).filter_map(|line| line.strip_prefix(RESULT));
        Ok(said.map(String::from).collect())
    }

    fn emulator(&self) -> anyhow::Result<Command> {
        let Some(uplink) = &self.uplink else { return Ok(Command::new(QEMU)) };
        let mut command = uplink.command(QEMU)?.into_std();
        command.args(["-netdev", "user,id=up", "-device", "virtio-net-pci,netdev=up,romfile="]);
        Ok(command)
    }
}

/// Ends with this value, so that no test leaves an emulator behind.
struct Machine(Child);

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of the serial console, until the machine is off.
fn boot(mut command: Command, image: &Path, archive: &Path, within: Duration) -> anyhow::Result<Vec<String>> {
    let deadline = Instant::now() + within;
    command.args([
        "-accel",
        "tcg",
        "-m",
        MEMORY_MIB,
        "-nodefaults",
        "-nographic",
        "-no-reboot",
        "-serial",
        "stdio",
    ]);
    command.arg("-kernel").arg(image).arg("-initrd").arg(archive);
    command.args(["-append", "console=ttyS0 quiet panic=-1"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
    let mut machine = Machine(command.spawn().context(QEMU)?);
    let output = machine.0.stdout.take().context("its output")?;
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
            let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
        }
    });
    let mut console = Vec::new();
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => console.push(line),
            Err(RecvTimeoutError::Disconnected) => return Ok(console),
            Err(RecvTimeoutError::Timeout) => {
                bail!("the guest was not off after {within:?}; its console:\n{}", last(&console))
            }
        }
    }
}

fn last(console: &[String]) -> String {
    console[console.len().saturating_sub(SHOWN)..].join("\n")
}
