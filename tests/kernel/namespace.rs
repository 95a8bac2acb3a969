use std::io::Write;
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a new network namespace, which goes with the test's thread and its children.
pub fn in_namespace(name: &str, test: impl FnOnce() + Send + 'static) {
    if !nix::unistd::geteuid().is_root() {
        // past the test harness' capture: a test that did not run must be seen
        let _ = writeln!(std::io::stderr(), "SKIPPED (needs root): {name}");
        return;
    }
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a new network namespace");
        test();
    });
    if let Err(panic) = thread.expect("a thread").join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a program in the calling thread's namespace, and gives its output.
pub fn run(program: &str, args: &[&str]) -> String {
    run_with_input(program, args, "")
}

pub fn run_with_input(program: &str, args: &[&str], input: &str) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be started: {error}"));
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("the program reads its input");
    let output = child.wait_with_output().expect("the program ends");
    assert!(
        output.status.success(),
        "{program} {args:?}: {}\n{}\n{input}",
        output.status,
        String::from_utf8_lossy(&output.stderr),
    );
    String::from_utf8(output.stdout).expect("text")
}
