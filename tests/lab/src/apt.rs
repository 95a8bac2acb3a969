//! Debian packages that are unpacked into a folder, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

/// Fetches packages by `apt-get download` with these options, and unpacks them into `dir`.
pub fn unpack(packages: &[&str], options: &[String], dir: &Path) -> anyhow::Result<()> {
    let archives = dir.join("archives");
    fs::create_dir_all(&archives)?;
    let mut download = Command::new("apt-get");
    download.args(["-q", "-o", "Acquire::Retries=3"]).args(options).arg("download").args(packages);
    output(download.current_dir(&archives))?;
    let files: Vec<PathBuf> =
        fs::read_dir(&archives)?.map(|entry| Ok(entry?.path())).collect::<std::io::Result<_>>()?;
    if files.len() != packages.len() {
        bail!("{} packages of {} in {}", files.len(), packages.len(), archives.display());
    }
    for file in &files {
        output(Command::new("dpkg-deb").arg("-x").arg(file).arg(dir))?;
    }
    Ok(fs::remove_dir_all(&archives)?)
}

/// Fetches apt's lists anew, with these options.
pub fn update(options: &[String]) -> anyhow::Result<()> {
    let mut command = Command::new("apt-get");
    output(command.args(["-q", "-o", "Acquire::Retries=3"]).args(options).arg("update")).map(drop)
}

/// Where this machine gets the packages of its own Debian release from.
pub fn archive() -> anyhow::Result<String> {
    let system = fs::read_to_string("/etc/os-release").context("/etc/os-release")?;
    let release =
        system.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME=")).context("no release")?;
    with_lists(|| {
        let format = "$(CODENAME) $(COMPONENT) $(REPO_URI)";
        let mut list = Command::new("apt-get");
        let targets = output(list.args(["indextargets", "--format", format, "Created-By: Packages"]))?;
        let wanted = format!("{release} main ");
        let found = targets.lines().find_map(|line| line.strip_prefix(&wanted));
        found.map(str::to_owned).with_context(|| format!("apt knows no archive of {release}"))
    })
}

/// Does again what failed, after fetching apt's lists: they may be empty, or too old for the archive.
pub fn with_lists<T>(ask: impl Fn() -> anyhow::Result<T>) -> anyhow::Result<T> {
    ask().or_else(|error| {
        eprintln!("{error:#}; fetching apt's lists");
        update(&[])?;
        ask()
    })
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
