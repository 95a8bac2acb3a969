//! `portolan`: parses the command line and runs one command.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use portolan::cli::{Cli, Command};

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log_json);
    if !matches!(cli.command, Command::Agent(_) | Command::Controller(_)) {
        end_with_the_reader();
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("portolan: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// `portolan status | head` ends quietly, as every command-line program does; a daemon must not die of a closed pipe.
fn end_with_the_reader() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: the default disposition runs no code of ours.
    if let Err(error) = unsafe { signal(Signal::SIGPIPE, SigHandler::SigDfl) } {
        tracing::warn!(%error, "SIGPIPE stays ignored");
    }
}

/// The client logs every failed attempt as an error; src/watch.rs says each trouble once, in a sentence.
const LOG: &str = "info,kube_client=off,kube_runtime=off";

fn start_log(json: bool) {
    use tracing_subscriber::{EnvFilter, fmt};
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG));
    let log =
        fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(std::io::stderr().is_terminal());
    if json { log.json().init() } else { log.init() }
}

fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Plan(arguments) => portolan::offline::run(&arguments),
        Command::Crds => portolan::crds::run(),
        command => runtime()?.block_on(run_on_cluster(command)),
    }
}

async fn run_on_cluster(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Agent(arguments) => portolan::agent::run(arguments).await,
        Command::Controller(arguments) => portolan::controller::command(arguments).await,
        Command::Status(arguments) => portolan::status::run(arguments).await,
        Command::Trace(arguments) => portolan::trace::run(arguments).await,
        Command::Cleanup(arguments) if arguments.kube_proxy => portolan::dataplane::cleanup_kube_proxy(),
        Command::Cleanup(_) => portolan::dataplane::cleanup().await,
        Command::Plan(_) | Command::Crds => unreachable!("run without a runtime"),
    }
}

/// Two workers: the agent is a line of a few tasks, and one of them holds the kernel.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
