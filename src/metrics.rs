//! Metrics: kube-proxy's under their exact names (S62, services.md 1J), as far as they apply to nftables, and ours under
//! `portolan_`. Times are in seconds.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use portolan_bgp::{SessionStatus, State};
use portolan_model::{Family as IpFamily, Protocol};
use prometheus_client::encoding::text;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry};

pub mod server;

type Label = [(&'static str, &'static str); 1];
type Two = [(&'static str, &'static str); 2];
type Seconds = Gauge<f64, AtomicU64>;
type Histograms = Family<Label, Histogram, fn() -> Histogram>;

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

#[derive(Default)]
struct Process {
    cpu: Counter<f64, AtomicU64>,
    open_fds: Gauge,
    resident: Gauge,
    virtual_size: Gauge,
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
            process: Process::default(),
            transactions: Counter::default(),
            announced_prefixes: Gauge::default(),
            sessions: Family::default(),
        };
        let mut registry = Registry::default();
        metrics.register_syncs(&mut registry);
        metrics.register_others(&mut registry);
        metrics.register_process(&mut registry);
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
        add(registry, "portolan_dataplane_transactions", "nftables transactions", &self.transactions);
        let name = "portolan_announced_prefixes";
        add(registry, name, "Prefixes announced to at least one peer", &self.announced_prefixes);
        add(registry, "portolan_bgp_sessions", "BGP sessions", &self.sessions);
    }

    fn register_process(&self, registry: &mut Registry) {
        add(registry, "process_cpu_seconds", "User and system time", &self.process.cpu);
        add(registry, "process_open_fds", "Open file descriptors", &self.process.open_fds);
        add(registry, "process_resident_memory_bytes", "Resident memory", &self.process.resident);
        add(registry, "process_virtual_memory_bytes", "Virtual memory", &self.process.virtual_size);
        let start = Seconds::default();
        start.set(seconds(Timestamp::now()));
        add(registry, "process_start_time_seconds", "Start of the process", &start);
        let build = Family::<Two, Gauge>::default();
        build.get_or_create(&[("git_version", env!("CARGO_PKG_VERSION")), ("platform", PLATFORM)]).set(1);
        add(registry, "kubernetes_build_info", "Version of this proxy", &build);
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
    pub fn turned(&self, full: bool, took: Duration) {
        for labels in FAMILIES.map(|ip| [family(ip)]) {
            let kind = if full { &self.sync_full } else { &self.sync_partial };
            kind.get_or_create(&labels).observe(took.as_secs_f64());
            self.sync.get_or_create(&labels).observe(took.as_secs_f64());
        }
    }

    /// The kernel has everything that came before.
    pub fn synced(&self) {
        for ip in FAMILIES {
            self.synced_at.get_or_create(&[family(ip)]).set(seconds(Timestamp::now()));
        }
        self.endpoint_changes.pending.set(0);
        self.service_changes.pending.set(0);
    }

    pub fn sync_failed(&self) {
        for ip in FAMILIES {
            self.sync_failures.get_or_create(&[family(ip)]).inc();
        }
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

    /// All of it as OpenMetrics text, with what is only looked at when someone asks.
    pub fn render<'a>(&self, sessions: impl Iterator<Item = &'a SessionStatus>) -> String {
        self.process.read();
        let (mut up, mut down) = (0, 0);
        for session in sessions {
            *(if session.state == State::Established { &mut up } else { &mut down }) += 1;
        }
        self.sessions.get_or_create(&[("state", "established")]).set(up);
        self.sessions.get_or_create(&[("state", "other")]).set(down);
        let mut text = String::new();
        match text::encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing to a String does not fail.
            Err(error) => format!("# {error}\n"),
        }
    }
}

const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

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

impl Process {
    /// What cannot be read stays as it was.
    fn read(&self) {
        if let Some((ticks, virtual_size, pages)) = fs::read_to_string("/proc/self/stat").ok().and_then(stat)
        {
            let (per_second, page) = match (sysconf(libc::_SC_CLK_TCK), sysconf(libc::_SC_PAGESIZE)) {
                (Some(per_second), Some(page)) => (per_second, page),
                _ => return,
            };
            let cpu = ticks as f64 / per_second as f64;
            self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
            self.virtual_size.set(virtual_size);
            self.resident.set(pages * page);
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.open_fds.set(open.count() as i64);
        }
    }
}

/// Processor time in ticks, virtual size in bytes, resident size in pages, of /proc/self/stat.
fn stat(text: String) -> Option<(i64, i64, i64)> {
    // The second field is a name that may hold spaces; fields count from 3 behind it.
    let (_, rest) = text.rsplit_once(')')?;
    let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<i64>().ok();
    Some((field(14)? + field(15)?, field(23)?, field(24)?))
}

fn sysconf(name: libc::c_int) -> Option<i64> {
    // SAFETY: sysconf only reads.
    let value = unsafe { libc::sysconf(name) };
    (value > 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use expect_test::expect_file;

    use super::*;

    /// Names, types and labels are a contract with dashboards (1J): names.txt is changed by hand and on purpose.
    #[test]
    fn s62_names_types_and_labels() {
        let metrics = Metrics::new();
        metrics.queued();
        metrics.synced();
        metrics.turned(true, Duration::ZERO);
        metrics.turned(false, Duration::ZERO);
        metrics.programmed_after(IpFamily::Ipv4, Duration::ZERO);
        metrics.conntrack_cleaned(IpFamily::Ipv4, 1, Duration::ZERO);
        metrics.localhost_rejected(IpFamily::Ipv4, Protocol::Udp, 1);
        metrics.healthz_answered(true);
        metrics.livez_answered(false);
        let text = metrics.render(std::iter::empty());
        let mut kinds = std::collections::BTreeMap::new();
        let mut lines = BTreeSet::new();
        for line in text.lines() {
            if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|line| line.split_once(' ')) {
                kinds.insert(name.to_owned(), kind.to_owned());
            } else if !line.starts_with('#') {
                let series = line.rsplit_once(' ').map_or(line, |(series, _)| series);
                let (name, labels) = series.split_once('{').unwrap_or((series, ""));
                let keys: Vec<_> =
                    labels.split(',').filter_map(|pair| pair.split_once('=')).map(|(key, _)| key).collect();
                lines.insert(format!("{name} {{{}}}", keys.join(", ")));
            }
        }
        let kinds: String = kinds.iter().map(|(name, kind)| format!("{name} {kind}\n")).collect();
        let lines: String = lines.iter().map(|line| format!("{line}\n")).collect();
        expect_file!["metrics/names.txt"].assert_eq(&format!("{kinds}\n{lines}"));
    }

    #[test]
    fn s67_buckets() {
        let metrics = Metrics::new();
        metrics.programmed_after(IpFamily::Ipv6, Duration::from_secs(7));
        metrics.turned(true, Duration::from_millis(3));
        let text = metrics.render(std::iter::empty());
        let limits = |name: &str| -> Vec<f64> {
            let start = format!("kubeproxy_{name}_bucket{{le=\"");
            let of = text
                .lines()
                .filter(|line| line.contains("IPv6"))
                .filter_map(|line| line.strip_prefix(&start));
            of.filter_map(|rest| rest.split('"').next()?.parse().ok())
                .filter(|le: &f64| le.is_finite())
                .collect()
        };
        let network = limits("network_programming_duration_seconds");
        assert_eq!((network.len(), network[0], network[1], network[2]), (80, 0.25, 0.5, 1.0));
        assert_eq!(
            network[60..],
            [
                59.0, 60.0, 65.0, 70.0, 75.0, 80.0, 85.0, 90.0, 95.0, 100.0, 105.0, 110.0, 115.0, 120.0,
                150.0, 180.0, 210.0, 240.0, 270.0, 300.0
            ]
        );
        let sync = limits("sync_proxy_rules_duration_seconds");
        assert_eq!((sync.len(), sync[0], sync[1], sync[14]), (15, 0.001, 0.002, 16.384));
    }

    #[test]
    fn a_process_name_with_spaces_and_brackets() {
        let text =
            format!("1 (a ) b) S {} 7 8 {} 900 5 x", "0 ".repeat(10).trim_end(), "0 ".repeat(7).trim_end());
        assert_eq!(stat(text), Some((15, 900, 5)));
    }
}
