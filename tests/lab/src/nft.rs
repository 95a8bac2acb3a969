//! nft(8) in more versions than the machine's own.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::netns::Namespace;
use crate::{apt, cache};

/// The Debian release after the one of Portolan's own images: nft 1.1.
const RELEASE: &str = "trixie";
const PACKAGES: [&str; 12] = [
    "nftables",
    "libnftables1",
    "libnftnl11",
    "libmnl0",
    "libc6",
    "libedit2",
    "libgmp10",
    "libjansson4",
    "libbsd0",
    "libmd0",
    "libtinfo6",
    "libxtables12",
];

/// Portolan's maps of endpoints in a node's table of this family (`ip`, `ip6`), as nft(8) lists them.
pub async fn endpoints(node: &Namespace, family: &str) -> anyhow::Result<String> {
    let table = node.output(&["nft", "list", "table", family, "portolan"]).await?;
    let maps = table.split("\n\tmap ").filter(|map| map.starts_with("endpoints-"));
    Ok(maps.filter_map(|map| map.split("\n\t}").next()).collect::<Vec<_>>().join("\n"))
}

/// A program that is nft of a newer Debian release, with that release's libraries: fetched once, nothing is installed.
pub fn newer() -> anyhow::Result<PathBuf> {
    let dir = cache::once(&format!("nft-{RELEASE}"), fetch)?;
    let nft = dir.join("nft");
    apt::output(Command::new(&nft).arg("--version")).context("the newer nft")?;
    Ok(nft)
}

fn fetch(dir: &Path) -> anyhow::Result<()> {
    let apt = dir.join("apt");
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(apt.join(folder))?;
    }
    let sources = apt.join("debian.sources");
    let text = format!(
        "Types: deb\nURIs: {}\nSuites: {RELEASE}\nComponents: main\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n",
        apt::archive()?
    );
    fs::write(&sources, text)?;
    let options: Vec<String> = [
        format!("Dir::Etc::sourcelist={}", sources.display()),
        "Dir::Etc::sourceparts=-".into(),
        "Dir::State::status=/dev/null".into(),
        format!("Dir::State::lists={}", apt.join("lists").display()),
        format!("Dir::Cache={}", apt.join("cache").display()),
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled=false".into(),
        "Acquire::Languages=none".into(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".into(), option])
    .collect();
    apt::update(&options)?;
    apt::unpack(&PACKAGES, &options, dir)?;
    fs::remove_dir_all(&apt)?;
    let script = dir.join("nft");
    fs::write(&script, SCRIPT)?;
    Ok(fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?)
}

/// The program's own loader and libraries, wherever the folder lies; the C library is newer than the machine's.
const SCRIPT: &str = r#"#!/bin/sh
root=$(dirname "$(readlink -f "$0")")
for loader in "$root"/usr/lib/*/ld-linux*.so.*; do
  exec "$loader" --library-path "$(dirname "$loader")" "$root/usr/sbin/nft" "$@"
done
"#;
