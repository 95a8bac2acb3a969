//! The configuration as it is now: its files are looked at again and again, and on SIGHUP, and a change is handed on (S72).

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{Config, Given, Sources};

/// Mounted ConfigMaps change by a link that is replaced, which no watch on a file sees; two small files are read in no time.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Runs for ever. What cannot be read or understood is said once, and the configuration stays as it is. `node_name` is this
/// agent's where `hostnameOverride` gave it, and not the command line.
pub async fn run(
    sources: Sources,
    node_name: Option<String>,
    config: watch::Sender<Config>,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut ticks = tokio::time::interval(BETWEEN_LOOKS);
    // Whatever came between the agent's own reading and this one is seen at the first look.
    let mut last = Ok(Vec::new());
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = hangup.recv() => {}
        }
        let texts = sources.texts().map_err(|error| format!("{error:#}"));
        if texts == last {
            continue;
        }
        match sources.read() {
            Ok(given) => hand_on(given, node_name.as_deref(), &config),
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(
                    error,
                    "the changed configuration is not applied: the one before stays in force"
                );
            }
        }
        last = texts;
    }
}

fn hand_on(given: Given, node_name: Option<&str>, config: &watch::Sender<Config>) {
    let renamed = is_renamed(node_name, &given);
    let fields = renamed.then_some("hostnameOverride").into_iter();
    for field in fields.chain(restart_fields(&config.borrow(), &given.config)) {
        tracing::warn!(field, "this setting changed and takes effect when the agent starts again");
    }
    if *config.borrow() == given.config {
        return;
    }
    given.notes.iter().for_each(|note| tracing::warn!("KubeProxyConfiguration: {note}"));
    tracing::info!("the changed configuration is applied");
    config.send_replace(given.config);
}

/// The file gave this agent its name, and gives another one now.
fn is_renamed(node_name: Option<&str>, given: &Given) -> bool {
    node_name.is_some() && given.node_name.as_deref() != node_name
}

/// Those that changed and are only read at the start.
fn restart_fields(old: &Config, new: &Config) -> Vec<&'static str> {
    let listen = old.bgp.listen != new.bgp.listen;
    let (old, new) = (&old.proxy, &new.proxy);
    let fields = [
        ("bgp.listen", listen),
        ("proxy.mode", old.mode != new.mode),
        ("proxy.healthzBindAddress", old.healthz_bind_address != new.healthz_bind_address),
        ("proxy.metricsBindAddress", old.metrics_bind_address != new.metrics_bind_address),
        ("proxy.bindAddressHardFail", old.bind_address_hard_fail != new.bind_address_hard_fail),
        ("proxy.serviceProxyName", old.service_proxy_name != new.service_proxy_name),
        ("proxy.takeOver", old.take_over != new.take_over),
        ("proxy.conntrack.cutVanishedTcp", old.conntrack.cut_vanished_tcp != new.conntrack.cut_vanished_tcp),
    ];
    fields.into_iter().filter(|(_, changed)| *changed).map(|(field, _)| field).collect()
}

#[cfg(test)]
mod tests;
