//! For test binaries: one lab for all tests of the process, which take turns.

use std::io::Write;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Mutex, OnceLock, PoisonError};

use futures::FutureExt;
use tokio::runtime::Runtime;

use crate::lab::{Lab, Options};

struct Shared {
    runtime: Runtime,
    /// The error of a lab that did not come up, so that later tests fail at once.
    lab: Result<Lab, String>,
}

static SHARED: OnceLock<Shared> = OnceLock::new();
static TURN: Mutex<()> = Mutex::new(());

/// Set in `make test` and CI: a test that cannot run is then a failure.
const REQUIRED: &str = "PORTOLAN_LAB_REQUIRED";

/// Runs a test in the lab that all tests of this process share; the first one brings it up. Without root the test is skipped
/// with a loud line, or fails where `PORTOLAN_LAB_REQUIRED` is set. A failure says how to look into the lab, and the logs
/// are kept.
pub fn in_lab(name: &str, body: impl AsyncFnOnce(&'static Lab) -> anyhow::Result<()>) {
    if !has_root(name) {
        return;
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let shared = SHARED.get_or_init(bring_up);
    let lab = match &shared.lab {
        Ok(lab) => lab,
        Err(error) => panic!("{error}"),
    };
    let result = shared.runtime.block_on(AssertUnwindSafe(body(lab)).catch_unwind());
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

fn bring_up() -> Shared {
    let runtime = Runtime::new().expect("a tokio runtime");
    let lab = runtime.block_on(Lab::up(Options::own())).map_err(|error| format!("{error:#}"));
    Shared { runtime, lab }
}

fn cannot_run(name: &str, why: &str) {
    if std::env::var_os(REQUIRED).is_some() {
        panic!("{name} {why} ({REQUIRED} is set)");
    }
    // Past the test harness, which hides what a passing test prints.
    let _ = writeln!(std::io::stderr(), "\nSKIPPED {name}: {why}\n");
}
