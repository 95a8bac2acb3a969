//! Metrics: kube-proxy's under their exact names (S62, services.md 1J), as far as they apply to nftables, and ours under
//! `portolan_`. Times are in seconds.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use portolan_bgp::{SessionStatus, State};
use portolan_model::{Family as IpFamily, Protocol};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

pub mod api_requests;
mod process;
pub mod server;
mod text;

use process::Process;

type Label = [(&'static str, &'static str); 1];
type Two = [(&'static str, &'static str); 2];
type Seconds = Gauge<f64, AtomicU64>;
type Histograms = Family<Label, Histogram, fn() -> Histogram>;
type Requests<const N: usize> = [(&'static str, String); N];

/// Every metric; each may be written by anyone at any time.
pub struct Metrics {
    registry: Registry,
    sync: Histograms,
    sync_full: Histograms,
    sync_partial: Histograms,
    network_programming: Histograms,
    synced_at: Family<Label, Seconds>,
    queued_at: Family<Label, Seconds>,
    pub endpoint_changes: Changes,
    pub service_changes: Changes,
    no_local_endpoints: Family<Two, Gauge>,
    sync_failures: Family<Label, Counter>,
    /// Always zero: here what is stale goes in the transaction that replaces it.
    cleanup_failures: Family<Label, Counter>,
    healthz: Family<Label, Counter>,
    livez: Family<Label, Counter>,
    conntrack_sync: Histograms,
    conntrack_deleted: Family<Label, Counter>,
    localhost_listeners: Family<Label, Gauge>,
    localhost_failures: Family<Label, Counter>,
    localhost_rejected: Family<Two, Counter>,
    api_requests: Family<Requests<3>, Counter>,
    api_request_durations: Family<Requests<2>, Histogram, fn() -> Histogram>,
    process: Process,
    pub transactions: Counter,
    pub announced_prefixes: Gauge,
    sessions: Family<Label, Gauge>,
}

/// Changes of one kind: all, and those that the kernel does not have yet.
#[derive(Default)]
pub struct Changes {
    pub total: Counter,
    pub pending: Gauge,
}

const FAMILIES: [IpFamily; 2] = IpFamily::ALL;

fn family(family: IpFamily) -> (&'static str, &'static str) {
    let name = match family {
        IpFamily::Ipv4 => "IPv4",
        IpFamily::Ipv6 => "IPv6",
    };
    ("ip_family", name)
}

fn histograms(new: fn() -> Histogram) -> Histograms {
    Family::new_with_constructor(new)
}

/// 1 ms, doubling, 15 buckets.
fn sync_buckets() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 15))
}

fn network_programming_buckets() -> Histogram {
    let seconds = (1..60).chain((60..120).step_by(5)).chain((120..=300).step_by(30));
    Histogram::new([0.25, 0.5].into_iter().chain(seconds.map(f64::from)))
}

/// As client-go has them.
fn api_request_buckets() -> Histogram {
    Histogram::new([0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    pub fn new() -> Metrics {
        let mut metrics = Metrics {
            registry: Registry::default(),
            sync: histograms(sync_buckets),
            sync_full: histograms(sync_buckets),
            sync_partial: histograms(sync_buckets),
            network_programming: histograms(network_programming_buckets),
            synced_at: Family::default(),
            queued_at: Family::default(),
            endpoint_changes: Changes::default(),
            service_changes: Changes::default(),
            no_local_endpoints: Family::default(),
            sync_failures: Family::default(),
            cleanup_failures: Family::default(),
            healthz: Family::default(),
            livez: Family::default(),
            conntrack_sync: histograms(sync_buckets),
            conntrack_deleted: Family::default(),
            localhost_listeners: Family::default(),
            localhost_failures: Family::default(),
            localhost_rejected: Family::default(),
            api_requests: Family::default(),
            api_request_durations: Family::new_with_constructor(api_request_buckets),
            process: Process::default(),
            transactions: Counter::default(),
            announced_prefixes: Gauge::default(),
            sessions: Family::default(),
        };
        let mut registry = Registry::default();
        metrics.register_syncs(&mut registry);
        metrics.register_others(&mut registry);
        metrics.process.register(&mut registry);
        metrics.registry = registry;
        metrics.begin();
        metrics
    }

    fn register_syncs(&self, registry: &mut Registry) {
        let kube = registry.sub_registry_with_prefix("kubeproxy");
        let mut add = |name: &str, help: &str, metric: &Histograms| kube.register(name, help, metric.clone());
        add("sync_proxy_rules_duration_seconds", "Duration of a turn that programs rules", &self.sync);
        add("sync_full_proxy_rules_duration_seconds", "Of turns about every Service", &self.sync_full);
        add("sync_partial_proxy_rules_duration_seconds", "Of turns about some Services", &self.sync_partial);
        let help = "From a change of pods or Services to the rules that follow it";
        add("network_programming_duration_seconds", help, &self.network_programming);
        add("conntrack_reconciler_sync_duration_seconds", "Duration of a cleaning", &self.conntrack_sync);
    }

    fn register_others(&self, registry: &mut Registry) {
        add(registry, "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "Last success", &self.synced_at);
        let name = "kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds";
        add(registry, name, "Last time that changes came", &self.queued_at);
        for (kind, changes) in [("endpoint", &self.endpoint_changes), ("service", &self.service_changes)] {
            let name = format!("kubeproxy_sync_proxy_rules_{kind}_changes");
            add(registry, &format!("{name}_pending"), "Changes not yet programmed", &changes.pending);
            add(registry, &name, "Changes", &changes.total);
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        add(registry, name, "Services of a policy Local without an endpoint here", &self.no_local_endpoints);
        let name = "kubeproxy_sync_proxy_rules_nftables_sync_failures";
        add(registry, name, "Turns that the kernel refused", &self.sync_failures);
        let name = "kubeproxy_sync_proxy_rules_nftables_cleanup_failures";
        add(registry, name, "Cleanings that the kernel refused", &self.cleanup_failures);
        add(registry, "kubeproxy_proxy_healthz", "Answers of /healthz", &self.healthz);
        add(registry, "kubeproxy_proxy_livez", "Answers of /livez", &self.livez);
        let name = "kubeproxy_conntrack_reconciler_deleted_entries";
        add(registry, name, "Tracked connections deleted", &self.conntrack_deleted);
        let name = "kubeproxy_nftables_localhost_nodeport_listeners";
        add(registry, name, "Node ports relayed on loopback addresses", &self.localhost_listeners);
        let name = "kubeproxy_nftables_localhost_nodeport_listener_creation_failures";
        add(registry, name, "Listeners that could not be bound", &self.localhost_failures);
        let name = "kubeproxy_nftables_localhost_nodeport_rejected_packets";
        add(registry, name, "Packets to node ports on loopback that are not TCP", &self.localhost_rejected);
        let help = "Number of HTTP requests, partitioned by status code, method, and host";
        add(registry, "rest_client_requests", help, &self.api_requests);
        let help = "Request latency in seconds. Broken down by verb, and host";
        add(registry, "rest_client_request_duration_seconds", help, &self.api_request_durations);
        add(registry, "portolan_dataplane_transactions", "nftables transactions", &self.transactions);
        let name = "portolan_announced_prefixes";
        add(registry, name, "Prefixes announced to at least one peer", &self.announced_prefixes);
        add(registry, "portolan_bgp_sessions", "BGP sessions", &self.sessions);
    }

    /// What counts from zero is shown from the beginning.
    fn begin(&self) {
        let from_zero =
            [&self.sync_failures, &self.cleanup_failures, &self.conntrack_deleted, &self.localhost_failures];
        for ip in FAMILIES {
            for family_of in from_zero {
                family_of.get_or_create(&[family(ip)]).inc_by(0);
            }
            self.localhost_listeners(ip, 0);
        }
        self.no_local(|_, _| 0);
    }

    /// Changes came that are to be programmed.
    pub fn queued(&self) {
        for ip in FAMILIES {
            self.queued_at.get_or_create(&[family(ip)]).set(seconds(Timestamp::now()));
        }
    }

    /// A turn that had something to program is done, whether the kernel took it or not; `full`: it was about every Service.
    pub fn turned(&self, ip: IpFamily, full: bool, took: Duration) {
        let labels = [family(ip)];
        let kind = if full { &self.sync_full } else { &self.sync_partial };
        kind.get_or_create(&labels).observe(took.as_secs_f64());
        self.sync.get_or_create(&labels).observe(took.as_secs_f64());
    }

    /// The kernel has everything of a family that came before.
    pub fn synced(&self, ip: IpFamily) {
        self.synced_at.get_or_create(&[family(ip)]).set(seconds(Timestamp::now()));
    }

    /// The kernel has everything that came before.
    pub fn nothing_pending(&self) {
        self.endpoint_changes.pending.set(0);
        self.service_changes.pending.set(0);
    }

    pub fn sync_failed(&self, ip: IpFamily) {
        self.sync_failures.get_or_create(&[family(ip)]).inc();
    }

    /// The API server answered `method` with `code`.
    pub fn api_request(&self, code: String, method: String, host: String, took: Duration) {
        let labels = [("verb", method.clone()), ("host", host.clone())];
        self.api_request_durations.get_or_create(&labels).observe(took.as_secs_f64());
        self.api_requests.get_or_create(&[("code", code), ("method", method), ("host", host)]).inc();
    }

    /// S67: the rules for what happened this long ago are there.
    pub fn programmed_after(&self, ip: IpFamily, took: Duration) {
        self.network_programming.get_or_create(&[family(ip)]).observe(took.as_secs_f64());
    }

    /// `count` by family and whether clients inside are meant.
    pub fn no_local(&self, count: impl Fn(IpFamily, bool) -> usize) {
        for ip in FAMILIES {
            for (inside, policy) in [(true, "internal"), (false, "external")] {
                let labels = [family(ip), ("traffic_policy", policy)];
                self.no_local_endpoints.get_or_create(&labels).set(count(ip, inside) as i64);
            }
        }
    }

    pub fn conntrack_cleaned(&self, ip: IpFamily, deleted: usize, took: Duration) {
        self.conntrack_sync.get_or_create(&[family(ip)]).observe(took.as_secs_f64());
        self.conntrack_deleted.get_or_create(&[family(ip)]).inc_by(deleted as u64);
    }

    pub fn localhost_listeners(&self, ip: IpFamily, open: usize) {
        self.localhost_listeners.get_or_create(&[family(ip)]).set(open as i64);
    }

    pub fn localhost_listener_failed(&self, ip: IpFamily) {
        self.localhost_failures.get_or_create(&[family(ip)]).inc();
    }

    /// `packets` as the kernel has counted them.
    pub fn localhost_rejected(&self, ip: IpFamily, protocol: Protocol, packets: u64) {
        let labels = [family(ip), ("protocol", protocol_label(protocol))];
        self.localhost_rejected.get_or_create(&labels).inner().store(packets, Ordering::Relaxed);
    }

    pub fn healthz_answered(&self, is_well: bool) {
        self.healthz.get_or_create(&[code(is_well)]).inc();
    }

    pub fn livez_answered(&self, is_well: bool) {
        self.livez.get_or_create(&[code(is_well)]).inc();
    }

    /// All of it as [`text::CONTENT_TYPE`], with what is only looked at when someone asks.
    pub fn render<'a>(&self, sessions: impl Iterator<Item = &'a SessionStatus>) -> String {
        self.process.read();
        let (mut up, mut down) = (0, 0);
        for session in sessions {
            *(if session.state == State::Established { &mut up } else { &mut down }) += 1;
        }
        self.sessions.get_or_create(&[("state", "established")]).set(up);
        self.sessions.get_or_create(&[("state", "other")]).set(down);
        let mut page = String::new();
        match encode(&mut page, &self.registry) {
            Ok(()) => text::classic(&page),
            // Writing to a String does not fail.
            Err(error) => format!("# {error}\n"),
        }
    }
}

fn add(registry: &mut Registry, name: &str, help: &str, metric: &(impl Metric + Clone)) {
    registry.register(name, help, metric.clone());
}

fn protocol_label(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "TCP",
        Protocol::Udp => "UDP",
        Protocol::Sctp => "SCTP",
    }
}

fn code(is_well: bool) -> (&'static str, &'static str) {
    ("code", if is_well { "200" } else { "503" })
}

fn seconds(at: Timestamp) -> f64 {
    at.as_duration().as_secs_f64()
}

#[cfg(test)]
mod tests;
