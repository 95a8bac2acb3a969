//! The files that an agent's configuration is read from.

use std::path::{Path, PathBuf};

use anyhow::Context;

use super::{Config, kube_proxy};

/// Where an agent's configuration is read from, at its start and again when a file changes.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Our own file.
    pub own: Option<PathBuf>,
    /// A KubeProxyConfiguration, which our own file lies over (S70).
    pub kube_proxy: Option<PathBuf>,
}

/// What the [`Sources`] say.
#[derive(Clone, Debug, Default)]
pub struct Given {
    pub config: Config,
    /// `hostnameOverride` of a KubeProxyConfiguration.
    pub node_name: Option<String>,
    /// To be logged: fields of a KubeProxyConfiguration that are unknown or have no meaning here.
    pub notes: Vec<String>,
}

impl Sources {
    pub fn read(&self) -> anyhow::Result<Given> {
        let Some(path) = &self.kube_proxy else {
            let config = self.own.as_deref().map_or_else(|| Ok(Config::default()), Config::read)?;
            return Ok(Given { config, ..Given::default() });
        };
        let named = || format!("KubeProxyConfiguration {}", path.display());
        let file = kube_proxy::translate(&text_of(path)?).with_context(named)?;
        let own = self.own.as_deref().map_or_else(|| Ok(String::new()), text_of)?;
        let config = Config::over(file.config, &own).with_context(|| match &self.own {
            Some(own) => format!("config file {} over {}", own.display(), named()),
            None => named(),
        })?;
        Ok(Given { config, node_name: file.node_name, notes: file.notes })
    }

    /// The files' bytes: what a change is noticed by.
    pub fn texts(&self) -> anyhow::Result<Vec<String>> {
        self.own.iter().chain(&self.kube_proxy).map(|path| text_of(path)).collect()
    }
}

pub(super) fn text_of(path: &Path) -> anyhow::Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("config file {}", path.display()))
}
