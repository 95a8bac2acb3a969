//! Every folder of `examples/` through the pure pipeline: `cluster.yaml` (and `config.yaml`) in, what each node would do
//! out, compared with `expected.<part>` files. `UPDATE_EXPECT=1` writes them: read them before you commit them.

use std::path::{Path, PathBuf};
use std::process::Command;

use expect_test::expect_file;
use portolan::cli::Part;
use portolan::config::Config;
use portolan::offline::Offline;

fn examples() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    let mut examples: Vec<PathBuf> =
        folder.read_dir().expect("examples/").map(|entry| entry.expect("an entry").path()).collect();
    examples.retain(|path| path.is_dir());
    examples.sort();
    assert!(examples.len() >= 4, "found only {examples:?}");
    examples
}

fn read(example: &Path) -> Offline {
    let config = example.join("config.yaml");
    let config =
        if config.exists() { Config::read(&config).expect("a configuration") } else { Config::default() };
    Offline::open(&example.join("cluster.yaml"), config).expect("a cluster")
}

#[test]
fn examples_give_what_they_say() {
    for example in examples() {
        let cluster = read(&example);
        let nodes: Vec<String> = cluster.snapshot.nodes.keys().map(|name| name.to_string()).collect();
        let render = |node: &str, part| cluster.render(node, part).expect("a node of the file");
        expect_file![example.join("expected.status")].assert_eq(&render(&nodes[0], Part::Status));
        for node in &nodes {
            expect_file![example.join(format!("expected.{node}.nft"))].assert_eq(&render(node, Part::Nft));
            expect_file![example.join(format!("expected.{node}.routes"))]
                .assert_eq(&render(node, Part::Routes));
        }
    }
}

/// The order in which objects stand in the file means nothing (invariants 2 and 11).
#[test]
fn order_of_objects_changes_nothing() {
    for example in examples() {
        let text = std::fs::read_to_string(example.join("cluster.yaml")).expect("a cluster");
        let mut documents: Vec<&str> = text.split("\n---\n").collect();
        documents.reverse();
        let reversed = Offline::read(&documents.join("\n---\n"), read(&example).config).expect("a cluster");
        for node in reversed.snapshot.nodes.keys() {
            for part in [Part::Status, Part::Nft, Part::Routes] {
                let expected = read(&example).render(node, part).expect("a node of the file");
                assert_eq!(
                    reversed.render(node, part).expect("a node of the file"),
                    expected,
                    "{example:?} {node}"
                );
            }
        }
    }
}

/// The golden tables are what nft itself accepts; `nft -c` needs root to open its socket.
#[test]
fn golden_tables_pass_nft_check() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("\n!!! SKIPPED (needs root): golden_tables_pass_nft_check\n");
        return;
    }
    let mut checked = 0;
    for example in examples() {
        for file in example.read_dir().expect("a folder").map(|entry| entry.expect("an entry").path()) {
            if file.extension().is_some_and(|extension| extension == "nft") {
                let output = Command::new("unshare")
                    .args(["--net", "nft", "-c", "-f"])
                    .arg(&file)
                    .output()
                    .expect("nft runs");
                assert!(output.status.success(), "{file:?}: {}", String::from_utf8_lossy(&output.stderr));
                checked += 1;
            }
        }
    }
    assert!(checked >= 4, "only {checked} golden tables");
}

/// What is wrong in the input is named, object and field; everything else is allocated and announced.
#[test]
fn bad_input_is_named_and_costs_nothing_else() {
    let cluster = read(&Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/bad-input"));
    let status = cluster.render("n1", Part::Status).expect("node n1");
    for sentence in [
        "IPAddressPool broken: spec.addresses[0]: ",
        "Advertisement vips: spec.bgp.peers[1]: ",
        "Service default/outside: ",
        "EndpointSlice default/good-1: endpoints[1].addresses[0]: ",
    ] {
        assert!(status.contains(sentence), "{sentence:?} is missing in:\n{status}");
    }
    let routes = cluster.render("n1", Part::Routes).expect("node n1");
    assert!(routes.contains("\n198.51.100.0/32\n"), "the good Service is announced:\n{routes}");
}
