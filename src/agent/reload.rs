//! The configuration as it is now: its files are looked at again and again, and on SIGHUP, and a change is handed on (S72).

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::config::{Config, Given, Sources};

/// Mounted ConfigMaps change by a link that is replaced, which no watch on a file sees; two small files are read in no time.
const BETWEEN_LOOKS: Duration = Duration::from_secs(2);

/// Runs for ever. What cannot be read or understood is said once, and the configuration stays as it is.
pub async fn run(sources: Sources, config: watch::Sender<Config>) -> anyhow::Result<()> {
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
            Ok(given) => hand_on(given, &config),
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

fn hand_on(given: Given, config: &watch::Sender<Config>) {
    if *config.borrow() == given.config {
        return;
    }
    given.notes.iter().for_each(|note| tracing::warn!("KubeProxyConfiguration: {note}"));
    for field in restart_fields(&config.borrow(), &given.config) {
        tracing::warn!(field, "this setting changed and takes effect when the agent starts again");
    }
    tracing::info!("the changed configuration is applied");
    config.send_replace(given.config);
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
mod tests {
    use super::*;

    #[test]
    fn s72_settings_that_need_a_restart_are_named() {
        let with = |text: &str| Config::over(serde_json::Value::Null, text).unwrap();
        let fields = |text: &str| restart_fields(&Config::default(), &with(text));
        assert_eq!(fields("proxy: { takeOver: false, masqueradeAll: true }"), ["proxy.takeOver"]);
        assert!(fields("bgp: { asn: 64512 }\nproxy: { clusterCIDRs: [10.0.0.0/8] }").is_empty());
    }

    #[tokio::test]
    async fn s72_a_changed_file_is_handed_on_and_a_broken_one_is_not() {
        let path = std::env::temp_dir().join(format!("portolan-reload-{}.yaml", std::process::id()));
        std::fs::write(&path, "bgp: { asn: 1 }").unwrap();
        let sources = Sources { own: Some(path.clone()), kube_proxy: None };
        let (sender, mut config) = watch::channel(sources.read().unwrap().config);
        let task = tokio::spawn(run(sources, sender));
        for (text, asn) in [("bgp: { asn: 2 }", 2), ("bgp: { asn: 3 }", 3)] {
            std::fs::write(&path, "bgp: { asn").unwrap();
            std::fs::write(&path, text).unwrap();
            config.wait_for(|config| config.bgp.asn == Some(asn)).await.unwrap();
        }
        task.abort();
        std::fs::remove_file(&path).unwrap();
    }
}
