//! For test binaries: one lab for all tests of the process. Those that stop parts of it, or say what must not happen, are
//! alone in it; others run side by side. And labs of a test's own.

use std::io::Write;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::path::Path;
use std::sync::{Mutex, OnceLock, PoisonError, RwLock};

use futures::FutureExt;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;

use crate::lab::{Lab, Options};

struct Shared {
    runtime: Runtime,
    /// The error of a lab that did not come up, so that later tests fail at once.
    lab: Result<Lab, String>,
}

static SHARED: OnceLock<Shared> = OnceLock::new();
/// Held by tests: to write by one that must be alone, to read by those that bear each other.
static TURN: RwLock<()> = RwLock::new(());

/// Set in `make test` and CI: a test that cannot run is then a failure.
const REQUIRED: &str = "PORTOLAN_LAB_REQUIRED";

/// Runs a test in the lab that all tests of this process share, with no other test beside it; the first one brings the lab up.
/// Without root the test is skipped with a loud line, or fails where `PORTOLAN_LAB_REQUIRED` is set. A failure says how to look
/// into the lab, and the logs are kept.
pub fn in_lab(name: &str, body: impl AsyncFnOnce(&'static Lab) -> anyhow::Result<()>) {
    if has_root(name) {
        let _turn = TURN.write().unwrap_or_else(PoisonError::into_inner);
        in_shared_lab(name, body);
    }
}

/// The same beside other tests: for those that touch only what is their own.
pub fn beside_others(name: &str, body: impl AsyncFnOnce(&'static Lab) -> anyhow::Result<()>) {
    if has_root(name) {
        let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
        in_shared_lab(name, body);
    }
}

/// Runs a test in a lab of its own, which goes when the test is over; that of a failed test stays until the process ends. It
/// takes its turn with those that must be alone: they measure times.
pub fn in_lab_of(name: &str, options: Options, body: impl AsyncFnOnce(&'static Lab) -> anyhow::Result<()>) {
    if !has_root(name) {
        return;
    }
    let _turn = TURN.read().unwrap_or_else(PoisonError::into_inner);
    let runtime = Runtime::new().expect("a tokio runtime");
    let lab: &'static Lab = match runtime.block_on(Lab::up(options)) {
        Ok(lab) => Box::leak(Box::new(lab)),
        Err(error) => panic!("{name}: {error:#}"),
    };
    run(name, &runtime, lab, body(lab));
    runtime.block_on(lab.down());
    runtime.shutdown_background();
}

fn in_shared_lab(name: &str, body: impl AsyncFnOnce(&'static Lab) -> anyhow::Result<()>) {
    let shared = SHARED.get_or_init(bring_up);
    match &shared.lab {
        Ok(lab) => run(name, &shared.runtime, lab, body(lab)),
        Err(error) => panic!("{error}"),
    }
}

fn run(name: &str, runtime: &Runtime, lab: &Lab, test: impl Future<Output = anyhow::Result<()>>) {
    let result = runtime.block_on(AssertUnwindSafe(test).catch_unwind());
    let (error, panic) = match result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => (format!("{error:#}"), None),
        Err(panic) => ("panicked, see above".into(), Some(panic)),
    };
    lab.keep_logs();
    let report = format!("{name}: {error}\n\n{}\n{}", lab.product_logs(15), lab.how_to_look());
    match panic {
        None => panic!("{report}"),
        Some(panic) => {
            eprintln!("{report}");
            resume_unwind(panic)
        }
    }
}

/// For tests that make namespaces of their own: false, said loudly, without root.
pub fn has_root(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        cannot_run(name, "needs root: it makes network namespaces");
    }
    root
}

/// For tests in a guest kernel, which need no root: false, said loudly, without an emulator.
pub fn has_emulator(name: &str) -> bool {
    let missing = crate::guest::missing();
    if let Some(why) = &missing {
        cannot_run(name, why);
    }
    missing.is_none()
}

fn bring_up() -> Shared {
    let runtime = Runtime::new().expect("a tokio runtime");
    let lab = runtime.block_on(Lab::up(Options::own())).map_err(|error| format!("{error:#}"));
    if let Ok(lab) = &lab {
        let logged = log_to(&lab.logs().join("lab.log"));
        logged.unwrap_or_else(|error| panic!("the lab's own log: {error:#}"));
    }
    Shared { runtime, lab }
}

/// What the parts of the lab that all share have to say, the kubelets above all, is kept with the logs of a failed test.
fn log_to(file: &Path) -> anyhow::Result<()> {
    let file = std::fs::File::create(file)?;
    let filter = EnvFilter::new("portolan_lab=info");
    let log =
        tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(Mutex::new(file));
    // A test that says where its own log goes has been here before.
    let _ = log.try_init();
    Ok(())
}

fn cannot_run(name: &str, why: &str) {
    if std::env::var_os(REQUIRED).is_some() {
        panic!("{name} {why} ({REQUIRED} is set)");
    }
    // Past the test harness, which hides what a passing test prints.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {name}: {why}\n");
}
