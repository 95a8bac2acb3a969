//! Kubernetes' and Helm's own binaries, built once per version from the Go modules beside this crate.
//!
//! Where `KUBEBUILDER_ASSETS` names a folder (the convention of envtest), the binaries there are used and nothing is built.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::cache;

/// Where the programs are.
#[derive(Clone, Debug)]
pub struct Binaries {
    pub kubernetes: PathBuf,
    pub helm: PathBuf,
}

const KUBERNETES: [&str; 4] = ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"];

impl Binaries {
    /// Finds the binaries, or builds them, which takes minutes once; says so on standard error.
    pub fn ensure() -> anyhow::Result<Binaries> {
        let assets = std::env::var_os("KUBEBUILDER_ASSETS").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let kubernetes = match &assets {
            Some(dir) => given(dir)?,
            None => kubernetes()?,
        };
        let beside = assets.map(|dir| dir.join("helm")).filter(|path| path.exists());
        let helm = match beside.or_else(|| on_path("helm")) {
            Some(path) => path,
            None => helm()?.join("helm"),
        };
        Ok(Binaries { kubernetes, helm })
    }

    pub fn kubectl(&self) -> PathBuf {
        self.kubernetes.join("kubectl")
    }
}

fn given(dir: &Path) -> anyhow::Result<PathBuf> {
    for name in KUBERNETES {
        if !dir.join(name).exists() {
            bail!("KUBEBUILDER_ASSETS={} has no {name}", dir.display());
        }
    }
    Ok(dir.into())
}

fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|path| path.is_file())
}

fn kubernetes() -> anyhow::Result<PathBuf> {
    let module = module("kubernetes");
    let version = version(&module, "k8s.io/kubernetes")?;
    let mut numbers = version.trim_start_matches('v').split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    // Without these the server calls itself v0.0.0 and clients misjudge it.
    let package = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {package}.gitVersion={version} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}"
    );
    build(&module, &format!("kubernetes-{version}"), &flags)
}

fn helm() -> anyhow::Result<PathBuf> {
    let module = module("helm");
    let version = version(&module, "helm.sh/helm/v4")?;
    build(&module, &format!("helm-{version}"), "-s -w")
}

fn module(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// The version that `go.mod` requires of `package`.
fn version(module: &Path, package: &str) -> anyhow::Result<String> {
    let path = module.join("go.mod");
    let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    required_version(&text, package).with_context(|| format!("{} requires no {package}", path.display()))
}

fn required_version(go_mod: &str, package: &str) -> Option<String> {
    go_mod.lines().find_map(|line| {
        let mut words = line.split_whitespace().skip_while(|word| *word == "require");
        (words.next()? == package)
            .then(|| words.next())
            .flatten()
            .filter(|v| v.starts_with('v'))
            .map(String::from)
    })
}

/// Builds all tools of `module` into the cache.
fn build(module: &Path, name: &str, ldflags: &str) -> anyhow::Result<PathBuf> {
    cache::once(name, |dir| {
        eprintln!("building {name} from its Go module takes minutes");
        let mut command = Command::new("go");
        command.args(["build", "-ldflags", ldflags, "-o"]).arg(dir).arg("tool");
        command
            .current_dir(module)
            .env("CGO_ENABLED", "0")
            .env("GOFLAGS", "-mod=readonly")
            .stdin(Stdio::null());
        watch_build(command, name)
    })
}

fn watch_build(mut command: Command, name: &str) -> anyhow::Result<()> {
    let start = Instant::now();
    let mut child = command.spawn().context("start go: the lab builds Kubernetes with Go 1.26 or newer")?;
    let (mut seconds, pause) = (0, Duration::from_secs(1));
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        std::thread::sleep(pause);
        seconds += 1;
        if seconds % 20 == 0 {
            eprintln!("  {name}: still building, {seconds} s");
        }
    };
    if !status.success() {
        bail!("go build of {name}: {status}");
    }
    eprintln!("  {name}: built in {} s", start.elapsed().as_secs());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_from_the_modules() {
        for (name, package) in [("kubernetes", "k8s.io/kubernetes"), ("helm", "helm.sh/helm/v4")] {
            assert!(version(&module(name), package).unwrap().starts_with('v'), "{package}");
        }
    }

    #[test]
    fn a_required_version_is_read_in_both_forms() {
        assert_eq!(required_version("require a.b/c v1.2.3", "a.b/c"), Some("v1.2.3".into()));
        assert_eq!(
            required_version("require (\n\ta.b/c v1.2.3 // indirect\n)", "a.b/c"),
            Some("v1.2.3".into())
        );
        assert_eq!(required_version("replace a.b/c => a.b/c v1.0.0", "a.b/c"), None);
    }
}
