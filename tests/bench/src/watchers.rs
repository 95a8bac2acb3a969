//! What one more watcher of the EndpointSlices costs the API server: the figure that a large cluster multiplies by its nodes.

use std::time::Duration;

use anyhow::Context;
use futures::future::try_join_all;
use portolan_lab::wait_for;

use crate::events::Events;
use crate::measure;
use crate::objects::{self, spare_endpoint};
use crate::world::World;

const WATCHERS: usize = 300;
const CHANGES: u32 = 100;
const PATIENCE: Duration = Duration::from_secs(120);

/// CPU of the API server for one event to one watcher. The objects are left as they were.
pub async fn measure(world: &World) -> anyhow::Result<Duration> {
    let alone = changes(world, 0).await?;
    let together = changes(world, WATCHERS).await?;
    Ok(together.saturating_sub(alone) / (WATCHERS as u32 * CHANGES))
}

/// CPU of the API server while CHANGES Services change to and fro before this many watchers, half of them each way.
async fn changes(world: &World, watchers: usize) -> anyhow::Result<Duration> {
    let opened = (0..watchers).map(|_| Events::watch(&world.client));
    let watchers = try_join_all(opened).await.context("watchers")?;
    let before = world.apiserver_cpu()?;
    for service in 0..CHANGES / 2 {
        let first = objects::first_endpoints(service, world.size);
        let mut other = first.clone();
        other[0] = spare_endpoint(service, world.size, 0);
        measure::set_endpoints(&world.client, service, &other).await?;
        measure::set_endpoints(&world.client, service, &first).await?;
    }
    for watcher in &watchers {
        wait_for("each watcher was told of each change", PATIENCE, async || {
            let (_, seen) = watcher.last()?;
            Ok(if seen >= CHANGES as usize { Ok(()) } else { Err(format!("{seen}")) })
        })
        .await?;
    }
    Ok(world.apiserver_cpu()? - before)
}
