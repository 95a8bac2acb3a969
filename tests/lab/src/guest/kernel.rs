//! Debian's kernel for clouds, fetched once per version by apt-get into the user's cache.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;

use crate::{apt, cache};

/// Depends on the package of the newest kernel.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
pub struct Kernel {
    dir: PathBuf,
    /// As `uname -r` says it.
    pub release: String,
}

impl Kernel {
    /// The newest that apt's lists know.
    pub fn ensure() -> anyhow::Result<Kernel> {
        apt::with_lists(Kernel::by_lists)
    }

    fn by_lists() -> anyhow::Result<Kernel> {
        let shown = apt::output(Command::new("apt-cache").args(["show", "--no-all-versions", PACKAGE]))?;
        let (package, version) =
            newest(&shown).with_context(|| format!("{PACKAGE} names no kernel: does apt have lists?"))?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        let dir = cache::once(&format!("{package}_{version}"), |dir| {
            apt::unpack(&[&format!("{package}={version}")], &[], dir)
        })?;
        Ok(Kernel { dir, release })
    }

    pub fn image(&self) -> PathBuf {
        self.dir.join(format!("boot/vmlinuz-{}", self.release))
    }

    pub fn modules(&self) -> PathBuf {
        self.dir.join("lib/modules").join(&self.release)
    }
}

/// The package and version in `Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)`.
fn newest(shown: &str) -> Option<(String, String)> {
    let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    let (package, rest) = depends.split_once(" (= ")?;
    let (version, _) = rest.split_once(')')?;
    Some((package.into(), version.into()))
}

#[cfg(test)]
mod tests {
    use super::newest;

    #[test]
    fn the_kernel_is_what_the_package_depends_on() {
        let shown =
            "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)\n";
        let expected = ("linux-image-6.1.0-56-cloud-amd64".to_owned(), "6.1.192-2".to_owned());
        assert_eq!(newest(shown), Some(expected));
        assert_eq!(newest(""), None);
    }
}
