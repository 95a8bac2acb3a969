//! Debian's kernel for clouds, fetched once per version by apt-get into the user's cache.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::binaries::cache_dir;

/// Depends on the package of the newest kernel.
const PACKAGE: &str = "linux-image-cloud-amd64";

/// An unpacked kernel package.
pub struct Kernel {
    dir: PathBuf,
    /// As `uname -r` says it.
    pub release: String,
}

impl Kernel {
    /// The newest that apt's lists know; lists that are empty, or too old for the archive, are fetched anew once.
    pub fn ensure() -> anyhow::Result<Kernel> {
        Kernel::by_lists().or_else(|error| {
            eprintln!("{error:#}; fetching apt's lists");
            output(Command::new("apt-get").args(["-q", "-o", "Acquire::Retries=3", "update"]))?;
            Kernel::by_lists()
        })
    }

    fn by_lists() -> anyhow::Result<Kernel> {
        let shown = output(Command::new("apt-cache").args(["show", "--no-all-versions", PACKAGE]))?;
        let (package, version) =
            newest(&shown).with_context(|| format!("{PACKAGE} names no kernel: does apt have lists?"))?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        let dir = unpacked(&package, &version)?;
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

/// Once: other processes wait for the one that fetches, and half a package is never taken for a whole one.
fn unpacked(package: &str, version: &str) -> anyhow::Result<PathBuf> {
    let cache = cache_dir()?;
    let name = format!("{package}_{version}");
    let finished = cache.join(&name);
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock().context("lock of the cache")?;
    if finished.exists() {
        return Ok(finished);
    }
    let partial = cache.join(format!("{name}.partial"));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    eprintln!("fetching {name} (once) into {}", finished.display());
    output(
        Command::new("apt-get")
            .args(["-q", "download", &format!("{package}={version}")])
            .current_dir(&partial),
    )?;
    let archive = only_archive(&partial)?;
    output(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&partial))?;
    fs::remove_file(&archive)?;
    fs::rename(&partial, &finished)?;
    Ok(finished)
}

fn only_archive(dir: &Path) -> anyhow::Result<PathBuf> {
    let files: Vec<PathBuf> =
        fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    let archive = files.into_iter().find(|path| path.extension().is_some_and(|end| end == "deb"));
    archive.with_context(|| format!("no package in {}", dir.display()))
}

/// What a program says on its standard output; fails with what it says on the other if it fails.
pub fn output(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| name.clone())?;
    if !output.status.success() {
        bail!("{name}: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
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
