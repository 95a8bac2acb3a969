//! What the lab makes or fetches once, in the user's cache: outside the clone, so that a fresh clone finds it there.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::Context;

/// `$XDG_CACHE_HOME/portolan`.
pub fn dir() -> anyhow::Result<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")));
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("portolan"))
}

/// The cache's folder `name`, filled by `fill` if it is not there: once, since other processes wait for the one that fills it, and
/// one that was left half full is never taken for a whole one.
pub fn once(name: &str, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let cache = dir()?;
    let finished = cache.join(name);
    fs::create_dir_all(&cache).with_context(|| cache.display().to_string())?;
    let lock = File::create(cache.join(format!("{name}.lock")))?;
    lock.lock().context("lock of the cache")?;
    if finished.exists() {
        return Ok(finished);
    }
    let partial = cache.join(format!("{name}.partial"));
    let _ = fs::remove_dir_all(&partial);
    fs::create_dir_all(&partial)?;
    eprintln!("making {} (once)", finished.display());
    fill(&partial)?;
    fs::rename(&partial, &finished)?;
    Ok(finished)
}
