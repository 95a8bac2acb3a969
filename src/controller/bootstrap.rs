//! The pools, peers and Advertisements of the chart's values: applied by the leader, pruned when they go (vips.md 5.3).

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use portolan_api::service::MANAGED_BY_LABEL;
use portolan_api::{Advertisement, BGPPeer, IPAddressPool};
use serde_json::{Value, json};
use tracing::{error, info, warn};

use super::sentence;
use crate::lease::Leadership;

/// The value of `app.kubernetes.io/managed-by`, and the field manager.
const MANAGER: &str = "portolan-chart";
const LOOK_AGAIN: Duration = Duration::from_secs(5);

/// Applies each object when we begin to lead and when it changes, and what failed again and again.
pub async fn keep_applied(client: Client, path: PathBuf, mut leadership: Leadership) {
    let mut applied = Objects::new();
    let mut said = BTreeSet::new();
    loop {
        if !leadership.holds() {
            applied.clear();
            said.clear();
            leadership.changed().await;
            continue;
        }
        let failures = apply_file(&client, &path, &mut applied).await;
        for Failure { sentence, refused } in failures.iter().filter(|failure| !said.contains(*failure)) {
            match refused {
                true => error!("{sentence}"),
                false => warn!("{sentence}; trying again"),
            }
        }
        said = failures.into_iter().collect();
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Failure {
    /// Names the object and, where the API server does, the field.
    sentence: String,
    /// It stays so until a person mends it.
    refused: bool,
}

impl Failure {
    fn of(what: &str, error: &kube::Error) -> Failure {
        let refused = matches!(error, kube::Error::Api(_));
        Failure { sentence: format!("{what}: {}", without_name(&sentence(error))), refused }
    }

    fn of_file(path: &Path, error: impl std::fmt::Display) -> Failure {
        Failure { sentence: format!("bootstrap file {}: {error:#}", path.display()), refused: true }
    }
}

/// Answers what went wrong, one sentence each; `applied` is what the API server has taken.
async fn apply_file(client: &Client, path: &Path, applied: &mut Objects) -> Vec<Failure> {
    let text = match tokio::fs::read_to_string(path).await {
        Ok(text) => text,
        Err(error) => return vec![Failure::of_file(path, error)],
    };
    match objects(&text) {
        Ok((objects, unknown)) => {
            let mut failures = apply_all(client, &objects, applied).await;
            failures.extend(unknown.into_iter().map(|sentence| Failure { sentence, refused: true }));
            failures
        }
        Err(error) => vec![Failure::of_file(path, error)],
    }
}

/// Objects by kind and name.
type Objects = BTreeMap<(String, String), Value>;

/// Objects, and a sentence for each that is none of ours. An error when the text is no YAML: nothing is pruned then.
fn objects(text: &str) -> anyhow::Result<(Objects, Vec<String>)> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text).context("is not YAML")?;
    let (mut objects, mut failures) = (Objects::new(), Vec::new());
    for (at, document) in documents.into_iter().enumerate().filter(|(_, document)| !document.is_null()) {
        match named(&document) {
            Ok(key) => drop(objects.insert(key, labelled(document))),
            Err(error) => failures.push(format!("bootstrap object {}: {error:#}", at + 1)),
        }
    }
    Ok((objects, failures))
}

fn named(document: &Value) -> anyhow::Result<(String, String)> {
    let text = |pointer: &str| document.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (kind, name) = (text("/kind"), text("/metadata/name"));
    if resource(kind).is_none() {
        bail!("kind: {kind:?} is none of IPAddressPool, Advertisement, BGPPeer");
    }
    if name.is_empty() {
        bail!("metadata.name: a {kind} needs one");
    }
    Ok((kind.into(), name.into()))
}

fn labelled(mut document: Value) -> Value {
    if let Some(metadata) = document.get_mut("metadata").and_then(Value::as_object_mut) {
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if let Some(labels) = labels.as_object_mut() {
            labels.insert(MANAGED_BY_LABEL.into(), MANAGER.into());
        }
    }
    document
}

fn resource(kind: &str) -> Option<ApiResource> {
    match kind {
        "IPAddressPool" => Some(ApiResource::erase::<IPAddressPool>(&())),
        "Advertisement" => Some(ApiResource::erase::<Advertisement>(&())),
        "BGPPeer" => Some(ApiResource::erase::<BGPPeer>(&())),
        _ => None,
    }
}

/// One bad object costs no other one.
async fn apply_all(client: &Client, objects: &Objects, applied: &mut Objects) -> Vec<Failure> {
    if objects == applied {
        return Vec::new();
    }
    let mut failures = Vec::new();
    for (key, object) in objects {
        let (kind, name) = key;
        if applied.get(key) == Some(object) {
            continue;
        }
        let Some(resource) = resource(kind) else { continue };
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let params = PatchParams::apply(MANAGER).force();
        match api.patch(name, &params, &Patch::Apply(object)).await {
            Ok(_) => {
                info!(kind, name, "applied");
                applied.insert(key.clone(), object.clone());
            }
            Err(error) => failures.push(Failure::of(&format!("{kind} {name}"), &error)),
        }
    }
    failures.extend(prune::<IPAddressPool>(client, objects).await);
    failures.extend(prune::<Advertisement>(client, objects).await);
    failures.extend(prune::<BGPPeer>(client, objects).await);
    if failures.is_empty() {
        applied.retain(|key, _| objects.contains_key(key));
    }
    failures
}

/// `IPAddressPool.portolan.dev "lab" is invalid: spec.addresses: ..` from the field on.
fn without_name(message: &str) -> &str {
    message.split_once(" is invalid: ").map_or(message, |(_, rest)| rest)
}

/// Deletes what an earlier file had and this one has not.
async fn prune<K: Resource<DynamicType = ()>>(client: &Client, objects: &Objects) -> Option<Failure> {
    let kind = K::kind(&()).into_owned();
    let api: Api<DynamicObject> = Api::all_with(client.clone(), &ApiResource::erase::<K>(&()));
    let ours = ListParams::default().labels(&format!("{MANAGED_BY_LABEL}={MANAGER}"));
    let listed = match api.list_metadata(&ours).await {
        Ok(listed) => listed,
        Err(error) => return Some(Failure::of(&format!("{kind} objects to prune"), &error)),
    };
    let mut failure = None;
    for name in listed.items.iter().map(ResourceExt::name_any) {
        if objects.contains_key(&(kind.clone(), name.clone())) {
            continue;
        }
        warn!(kind, name, "deleted: it is no longer in the bootstrap file");
        if let Err(error) = api.delete(&name, &DeleteParams::default()).await {
            failure = Some(Failure::of(&format!("{kind} {name}"), &error));
        }
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_object_stands_for_itself() {
        let text = "\n---\nkind: IPAddressPool\nmetadata: { name: lab }\nspec: {}\n---\nkind: Service\n---\nkind: BGPPeer\n";
        let (objects, failures) = objects(text).expect("YAML");
        let lab = &objects[&("IPAddressPool".to_owned(), "lab".to_owned())];
        assert_eq!(lab["metadata"]["labels"][MANAGED_BY_LABEL], MANAGER);
        assert_eq!(objects.len(), 1);
        let expected = [
            "kind: \"Service\" is none of IPAddressPool, Advertisement, BGPPeer",
            "metadata.name: a BGPPeer needs one",
        ];
        assert!(
            failures.iter().zip(expected).all(|(said, expected)| said.ends_with(expected)),
            "{failures:?}"
        );
        assert_eq!(failures.len(), 2);
    }

    #[test]
    fn an_empty_file_is_no_object() {
        assert_eq!(objects("").expect("YAML").0.len(), 0);
        assert!(objects("a: [").is_err());
    }
}
