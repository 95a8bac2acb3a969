//! When the API server told its watchers of changes: a watch of our own, which reads no more of an event than that it is one.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::{Context, ensure};
use futures::AsyncBufReadExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Client;
use kube::api::{Api, ListParams};
use tokio::task::JoinHandle;

use crate::objects::NAMESPACE;

/// How an event begins.
const MODIFIED: &[u8] = br#"{"type":"MODIFIED""#;

pub struct Events {
    seen: Arc<Mutex<Vec<Instant>>>,
    task: JoinHandle<()>,
}

impl Events {
    /// Of the EndpointSlices, from now on.
    pub async fn watch(client: &Client) -> anyhow::Result<Events> {
        let slices = Api::<EndpointSlice>::namespaced(client.clone(), NAMESPACE);
        let list = slices.list_metadata(&ListParams::default().limit(1)).await?;
        let from = list.metadata.resource_version.context("resourceVersion")?;
        let path = format!(
            "/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices?watch=1&resourceVersion={from}&timeoutSeconds=1800"
        );
        let mut lines = client.request_stream(http::Request::get(path).body(Vec::new())?).await?;
        let seen: Arc<Mutex<Vec<Instant>>> = Arc::default();
        let into = seen.clone();
        let task = tokio::spawn(async move {
            let mut line = Vec::new();
            while let Ok(1..) = lines.read_until(b'\n', &mut line).await {
                let at = Instant::now();
                if line.starts_with(MODIFIED)
                    && let Ok(mut seen) = into.lock()
                {
                    seen.push(at);
                }
                line.clear();
            }
        });
        Ok(Events { seen, task })
    }

    /// The last event so far, and how many there were.
    pub fn last(&self) -> anyhow::Result<(Option<Instant>, usize)> {
        ensure!(!self.task.is_finished(), "the watch ended");
        let seen = self.seen.lock().map_err(|_| anyhow::anyhow!("the watch died"))?;
        Ok((seen.last().copied(), seen.len()))
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        self.task.abort();
    }
}
