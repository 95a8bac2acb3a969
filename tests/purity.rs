//! Invariant 1: no crate under `crates/` can reach a clock, a socket or a runtime through its dependencies.

use std::path::Path;
use std::process::Command;

/// What only the root package and the lab may depend on.
const WORLD: [&str; 8] =
    ["tokio", "hyper", "nix", "rtnetlink", "netlink-sys", "socket2", "kube-client", "kube-runtime"];

#[test]
fn crates_reach_nothing_of_the_world() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("crates");
    let is_crate = |path: &std::path::PathBuf| path.join("Cargo.toml").exists();
    let crates: Vec<_> = folder
        .read_dir()
        .expect("crates/")
        .map(|entry| entry.expect("an entry").path())
        .filter(is_crate)
        .collect();
    assert!(crates.len() >= 7, "found only {crates:?}");
    for path in crates {
        let package = format!("portolan-{}", path.file_name().expect("a folder's name").display());
        let reached = ordinary_dependencies(&package);
        assert!(reached.contains(&package), "cargo tree says nothing of {package}");
        let world: Vec<_> =
            WORLD.iter().filter(|name| reached.iter().any(|dependency| dependency == *name)).collect();
        assert!(world.is_empty(), "{package} reaches {world:?}");
    }
}

/// Names of all packages that `package` is built with, itself included; what only tests use is not in the product.
/// `cargo tree` resolves features for this package alone, where `cargo metadata` has those of the whole workspace.
fn ordinary_dependencies(package: &str) -> Vec<String> {
    let output = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--locked",
            "--edges",
            "normal",
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--package",
            package,
        ])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("cargo prints UTF-8");
    text.lines().filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}
