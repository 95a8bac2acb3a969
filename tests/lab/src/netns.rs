//! Network namespaces: a thread that lives in one, sockets made there, commands started there.
//!
//! A socket belongs to the namespace of the thread that made it, whoever uses it afterwards, so the rest of the lab is
//! ordinary tokio code in one process.

use std::fs::File;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::mpsc;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};
use tokio::process::Command;

type Job = Box<dyn FnOnce() + Send>;

/// A named namespace (`ip netns`) that this process has opened. Cheap to clone; the thread ends with the last clone.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
    jobs: mpsc::Sender<Job>,
}

impl Namespace {
    /// Opens an existing namespace.
    pub fn open(name: &str) -> anyhow::Result<Namespace> {
        let file = open_file(name)?;
        let (jobs, queue) = mpsc::channel::<Job>();
        let (entered, result) = mpsc::channel();
        std::thread::Builder::new().name(format!("ns {name}")).spawn(move || {
            let _ = entered.send(setns(&file, CloneFlags::CLONE_NEWNET));
            drop(file);
            queue.into_iter().for_each(|job| job());
        })?;
        result.recv().context("namespace thread")?.with_context(|| format!("enter namespace {name}"))?;
        Ok(Namespace { name: name.into(), jobs })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a short, non-blocking function on the thread inside the namespace.
    pub fn run<T: Send + 'static>(&self, f: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let (done, result) = mpsc::channel();
        let job = move || {
            let _ = done.send(f());
        };
        self.jobs.send(Box::new(job)).ok().with_context(|| format!("namespace {} is closed", self.name))?;
        result.recv().with_context(|| format!("namespace {}: the job died", self.name))
    }

    /// Writes kernel settings, given as paths below `/proc/sys`.
    pub fn sysctl(&self, settings: &[(&str, &str)]) -> anyhow::Result<()> {
        let settings: Vec<(String, String)> =
            settings.iter().map(|(key, value)| (format!("/proc/sys/{key}"), (*value).into())).collect();
        self.run(move || {
            for (path, value) in settings {
                std::fs::write(&path, &value).with_context(|| format!("write {value} to {path}"))?;
            }
            anyhow::Ok(())
        })?
        .with_context(|| format!("namespace {}", self.name))
    }

    /// How many SYNs of TCP clients in this namespace had to be repeated so far: each is a packet that was lost, or whose answer
    /// took a second.
    pub fn repeated_syns(&self) -> anyhow::Result<u64> {
        let text = self.run(|| std::fs::read_to_string("/proc/thread-self/net/netstat"))??;
        counter(&text, "TcpExt:", "TCPSynRetrans").context("TCPSynRetrans")
    }

    fn socket(&self, to: SocketAddr, kind: Type, protocol: Protocol) -> anyhow::Result<Socket> {
        let socket =
            self.run(move || Socket::new(Domain::for_address(to), kind.nonblocking(), Some(protocol)))??;
        Ok(socket)
    }

    /// One TCP connection from inside the namespace.
    pub async fn connect(&self, to: SocketAddr) -> anyhow::Result<TcpStream> {
        let socket = self.socket(to, Type::STREAM, Protocol::TCP)?;
        let stream = TcpSocket::from_std_stream(socket.into()).connect(to).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// A connected UDP socket.
    pub async fn udp(&self, to: SocketAddr) -> anyhow::Result<UdpSocket> {
        let socket = self.socket(to, Type::DGRAM, Protocol::UDP)?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.connect(to).await?;
        Ok(socket)
    }

    /// Listens for both families when `at` is the unspecified IPv6 address.
    pub fn listen_tcp(&self, at: SocketAddr) -> anyhow::Result<TcpListener> {
        let socket = self.socket(at, Type::STREAM, Protocol::TCP)?;
        socket.set_reuse_address(true)?;
        bind_dual(&socket, at).with_context(|| format!("namespace {}: listen on TCP {at}", self.name))?;
        socket.listen(1024)?;
        Ok(TcpListener::from_std(socket.into())?)
    }

    /// Binds both families when `at` is the unspecified IPv6 address.
    pub fn listen_udp(&self, at: SocketAddr) -> anyhow::Result<UdpSocket> {
        let socket = self.socket(at, Type::DGRAM, Protocol::UDP)?;
        bind_dual(&socket, at).with_context(|| format!("namespace {}: listen on UDP {at}", self.name))?;
        Ok(UdpSocket::from_std(socket.into())?)
    }

    /// A command that will run inside the namespace, with no input.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> anyhow::Result<Command> {
        let file = open_file(&self.name)?;
        let mut command = Command::new(program);
        command.stdin(Stdio::null());
        // SAFETY: setns is a plain system call; nothing is allocated and no lock is taken between fork and exec.
        unsafe {
            command.pre_exec(move || match libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) {
                0 => Ok(()),
                _ => Err(std::io::Error::last_os_error()),
            });
        }
        Ok(command)
    }

    /// Runs a command to its end and returns what it printed; failure carries its error output.
    pub async fn output(&self, line: &[&str]) -> anyhow::Result<String> {
        let [program, args @ ..] = line else { bail!("empty command") };
        let mut command = self.command(program)?;
        command.args(args);
        run(command).await.with_context(|| format!("namespace {}: {}", self.name, line.join(" ")))
    }

    /// Runs `ip` commands as one batch, one per line.
    pub async fn ip(&self, batch: &str) -> anyhow::Result<()> {
        let mut command = self.command("ip")?;
        command.args(["-batch", "-"]);
        run_with_input(command, batch).await.with_context(|| format!("namespace {}: ip:\n{batch}", self.name))
    }
}

/// Runs `ip` commands in this process's own namespace, as one batch: only ever to make namespaces and links between them.
pub async fn ip(batch: &str) -> anyhow::Result<()> {
    let mut command = Command::new("ip");
    command.args(["-batch", "-"]);
    run_with_input(command, batch).await.with_context(|| format!("ip:\n{batch}"))
}

/// Runs a command to its end; output on success, error output in the error.
pub async fn run(mut command: Command) -> anyhow::Result<String> {
    let output = command.stdin(Stdio::null()).output().await.context("start")?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("{}: {} {}", output.status, said.trim(), String::from_utf8_lossy(&output.stdout).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

async fn run_with_input(mut command: Command, input: &str) -> anyhow::Result<()> {
    use tokio::io::AsyncWriteExt;
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("stdin")?;
    stdin.write_all(input.as_bytes()).await?;
    drop(stdin);
    let output = child.wait_with_output().await?;
    if !output.status.success() {
        bail!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// A number of `/proc/net/netstat`: each kind has a line of names and a line of values.
fn counter(text: &str, kind: &str, name: &str) -> Option<u64> {
    let mut lines = text.lines().filter(|line| line.starts_with(kind));
    let (names, values) = (lines.next()?, lines.next()?);
    let mut pairs = names.split_whitespace().zip(values.split_whitespace());
    pairs.find(|(found, _)| *found == name)?.1.parse().ok()
}

/// The names of all namespaces that begin with `prefix`.
pub fn list(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect();
    names.sort();
    names
}

fn open_file(name: &str) -> anyhow::Result<File> {
    let path = PathBuf::from("/run/netns").join(name);
    File::open(&path).with_context(|| format!("namespace {}", path.display()))
}

fn bind_dual(socket: &Socket, at: SocketAddr) -> std::io::Result<()> {
    if at.is_ipv6() {
        socket.set_only_v6(at.ip() != IpAddr::from([0u16; 8]))?;
    }
    socket.bind(&at.into())
}
