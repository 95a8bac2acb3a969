//! `portolan plan`, and `portolan trace` on a file: what a node would do for the objects of a YAML file. No cluster, no
//! kernel, no root.
//!
//! The same code as the agent's and the controller's, with the file in place of the watches: the controller's allocations
//! are made first, then the node's plan, tables and routes follow, as if the kernel had taken all of it.

use std::path::Path;

use anyhow::{Context, ensure};
use portolan_index::{Change, Index, Kind, Object};
use portolan_model::{Family, Name, Problem, Snapshot};

use crate::cli::{self, Part};
use crate::config::Config;
use crate::trace::Rules;

mod allocate;
mod render;

/// A cluster read from a file, with the addresses that the controller would give.
pub struct Offline {
    pub snapshot: Snapshot,
    /// What is wrong in the file itself.
    pub problems: Vec<Problem>,
    /// One line for each allocation made.
    pub allocations: Vec<String>,
    pub config: Config,
}

impl Offline {
    /// Fails when the text is not YAML, or an object is not one that Portolan reads; an error in an object's fields
    /// is a problem of that object and nothing more.
    pub fn read(text: &str, config: Config) -> anyhow::Result<Offline> {
        let mut index = Index::new(&Kind::ALL).claiming(config.proxy.service_proxy_name.clone());
        for (kind, objects) in by_kind(text)? {
            index.apply(Change::Replace(kind, objects));
        }
        let mut snapshot = index.snapshot().context("every kind was listed")?;
        let made = allocate::all(&mut snapshot, &(&config.classes).into());
        let problems = index.problems().cloned().chain(made.problems).collect();
        Ok(Offline { snapshot, problems, allocations: made.lines, config })
    }

    pub fn open(file: &Path, config: Config) -> anyhow::Result<Offline> {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        Offline::read(&text, config).with_context(|| format!("in {}", file.display()))
    }

    /// One part of what `node` would do; fails when there is no such node.
    pub fn render(&self, node: &str, part: Part) -> anyhow::Result<String> {
        let node = self.node(node)?;
        let view = render::Node::new(self, &node);
        Ok(match part {
            Part::Status => view.status(),
            Part::Nft => view.nft(),
            Part::Routes => view.routes(),
        })
    }

    /// What packets of a family meet on `node`; fails when there is no such node.
    pub fn rules(&self, node: &str, family: Family) -> anyhow::Result<Rules> {
        let node = self.node(node)?;
        Ok(render::Node::new(self, &node).rules(family))
    }

    fn node(&self, name: &str) -> anyhow::Result<Name> {
        let names: Vec<&str> = self.snapshot.nodes.keys().map(|name| &**name).collect();
        ensure!(names.contains(&name), "there is no Node {name:?}: the file has {}", names.join(", "));
        Ok(name.into())
    }
}

/// All kinds, so that the index is in sync: a kind that the file lacks is an empty list.
fn by_kind(text: &str) -> anyhow::Result<Vec<(Kind, Vec<Object>)>> {
    let documents: Vec<serde_json::Value> = serde_saphyr::from_multiple(text)?;
    let mut kinds: Vec<(Kind, Vec<Object>)> = Kind::ALL.iter().map(|kind| (*kind, Vec::new())).collect();
    for (number, document) in documents.into_iter().enumerate().filter(|(_, document)| !document.is_null()) {
        let object = Object::from_manifest(document).with_context(|| format!("document {}", number + 1))?;
        let list = kinds.iter_mut().find(|(kind, _)| *kind == object.kind());
        list.context("a kind of the index")?.1.push(object);
    }
    Ok(kinds)
}

pub fn run(arguments: &cli::Plan) -> anyhow::Result<()> {
    let config = arguments.config.as_deref().map(Config::read).transpose()?.unwrap_or_default();
    let offline = Offline::open(&arguments.file, config)?;
    let parts = match arguments.only {
        Some(part) => vec![part],
        None => vec![Part::Status, Part::Routes, Part::Nft],
    };
    for part in parts {
        print!("{}", offline.render(&arguments.node, part)?);
    }
    Ok(())
}
