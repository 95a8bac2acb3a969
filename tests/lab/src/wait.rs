//! Waiting for a condition, with a deadline and what was last seen.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;

const PAUSE: Duration = Duration::from_millis(25);

/// Asks until the answer is `Ok(Ok(value))`. `Ok(Err(seen))` is "not yet" and what was seen instead; `Err` ends the waiting.
pub async fn wait_for<T, S: std::fmt::Display>(
    what: &str,
    within: Duration,
    mut ask: impl AsyncFnMut() -> anyhow::Result<Result<T, S>>,
) -> anyhow::Result<T> {
    let deadline = Instant::now() + within;
    let mut last = None;
    loop {
        match tokio::time::timeout_at(deadline, ask()).await {
            Ok(Ok(Ok(value))) => return Ok(value),
            Ok(Ok(Err(seen))) => last = Some(seen.to_string()),
            Ok(Err(error)) => return Err(error).with_context(|| format!("waiting until {what}")),
            Err(_) => {}
        }
        if Instant::now() + PAUSE >= deadline {
            let seen = last.unwrap_or_else(|| "no answer at all".into());
            bail!("after {within:?} it is not so that {what}; last seen: {seen}");
        }
        tokio::time::sleep(PAUSE).await;
    }
}
