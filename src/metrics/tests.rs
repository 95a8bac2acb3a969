use std::collections::{BTreeMap, BTreeSet};

use expect_test::expect_file;

use super::*;

/// A page on which every metric was written once.
fn page() -> String {
    let metrics = Metrics::new();
    metrics.queued();
    for ip in IpFamily::ALL {
        metrics.synced(ip);
        metrics.turned(ip, true, Duration::from_millis(3));
        metrics.turned(ip, false, Duration::ZERO);
        metrics.programmed_after(ip, Duration::from_secs(7));
        metrics.conntrack_cleaned(ip, 1, Duration::ZERO);
        metrics.localhost_rejected(ip, Protocol::Udp, 1);
    }
    metrics.api_request("200".into(), "GET".into(), "10.96.0.1:443".into(), Duration::from_millis(30));
    metrics.api_request("<error>".into(), "GET".into(), "10.96.0.1:443".into(), Duration::from_secs(99));
    metrics.healthz_answered(true);
    metrics.livez_answered(false);
    metrics.render(std::iter::empty())
}

type Labels = BTreeMap<String, String>;

struct Metric {
    kind: String,
    samples: Vec<(String, Labels, f64)>,
}

/// Reads the text format as its specification has it; anything else is a failure.
fn parse(page: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    let (mut helped, mut current) = (None, String::new());
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').expect("a sentence");
            assert!(!help.is_empty() && !metrics.contains_key(name), "{line}");
            helped = Some(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').expect("a type");
            assert_eq!(helped.take().as_deref(), Some(name), "HELP stands before TYPE");
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            current = name.to_owned();
            metrics.insert(current.clone(), Metric { kind: kind.into(), samples: Vec::new() });
        } else {
            let metric = metrics.get_mut(&current).expect("a TYPE first");
            let (name, labels, value) = sample(line);
            let suffixes: &[&str] =
                if metric.kind == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
            assert!(suffixes.iter().any(|suffix| name == current.clone() + suffix), "{line} under {current}");
            metric.samples.push((name, labels, value));
        }
    }
    assert!(page.ends_with('\n') && helped.is_none());
    metrics
}

fn sample(line: &str) -> (String, Labels, f64) {
    let (series, value) = line.rsplit_once(' ').expect("a value");
    let (name, rest) = series.split_once('{').unwrap_or((series, "}"));
    let is_name = |text: &str| {
        let first = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
        first && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    assert!(is_name(name), "{line}");
    let mut labels = Labels::new();
    for pair in rest.strip_suffix('}').expect("a brace").split(',').filter(|pair| !pair.is_empty()) {
        let (key, text) = pair.split_once('=').expect("a label");
        let text = text.strip_prefix('"').and_then(|text| text.strip_suffix('"')).expect("quotes");
        assert!(is_name(key) && !text.contains(['"', '\\', '\n']), "{line}");
        assert!(labels.insert(key.into(), text.into()).is_none(), "{line}");
    }
    (name.into(), labels, value.parse().unwrap_or_else(|_| panic!("{line}")))
}

/// Names, types and labels are a contract with dashboards (1J): names.txt is changed by hand and on purpose.
#[test]
fn s62_names_types_and_labels() {
    let (mut kinds, mut samples) = (String::new(), BTreeSet::new());
    for (name, metric) in parse(&page()) {
        kinds += &format!("{name} {}\n", metric.kind);
        for (name, labels, _) in metric.samples {
            let keys: Vec<&str> = labels.keys().map(String::as_str).collect();
            samples.insert(format!("{name} {{{}}}\n", keys.join(", ")));
        }
    }
    expect_file!["names.txt"].assert_eq(&format!("{kinds}\n{}", String::from_iter(samples)));
}

/// Of services.md 1J, what a proxy of nftables has: no name is lost, whatever names.txt says.
#[test]
fn s62_every_metric_that_dashboards_rely_on() {
    let expected = [
        ("kubeproxy_sync_proxy_rules_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_sync_full_proxy_rules_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_sync_partial_proxy_rules_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_network_programming_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_sync_proxy_rules_last_timestamp_seconds", "gauge", "ip_family"),
        ("kubeproxy_sync_proxy_rules_last_queued_timestamp_seconds", "gauge", "ip_family"),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_pending", "gauge", ""),
        ("kubeproxy_sync_proxy_rules_endpoint_changes_total", "counter", ""),
        ("kubeproxy_sync_proxy_rules_service_changes_pending", "gauge", ""),
        ("kubeproxy_sync_proxy_rules_service_changes_total", "counter", ""),
        ("kubeproxy_sync_proxy_rules_no_local_endpoints_total", "gauge", "ip_family traffic_policy"),
        ("kubeproxy_sync_proxy_rules_nftables_sync_failures_total", "counter", "ip_family"),
        ("kubeproxy_sync_proxy_rules_nftables_cleanup_failures_total", "counter", "ip_family"),
        ("kubeproxy_nftables_localhost_nodeport_listeners", "gauge", "ip_family"),
        ("kubeproxy_nftables_localhost_nodeport_listener_creation_failures_total", "counter", "ip_family"),
        ("kubeproxy_nftables_localhost_nodeport_rejected_packets_total", "counter", "ip_family protocol"),
        ("kubeproxy_proxy_healthz_total", "counter", "code"),
        ("kubeproxy_proxy_livez_total", "counter", "code"),
        ("kubeproxy_conntrack_reconciler_sync_duration_seconds", "histogram", "ip_family"),
        ("kubeproxy_conntrack_reconciler_deleted_entries_total", "counter", "ip_family"),
        ("rest_client_requests_total", "counter", "code host method"),
        ("rest_client_request_duration_seconds", "histogram", "host verb"),
        (
            "kubernetes_build_info",
            "gauge",
            "build_date compiler git_commit git_tree_state git_version go_version major minor platform",
        ),
        ("process_cpu_seconds_total", "counter", ""),
        ("process_open_fds", "gauge", ""),
        ("process_max_fds", "gauge", ""),
        ("process_resident_memory_bytes", "gauge", ""),
        ("process_virtual_memory_bytes", "gauge", ""),
        ("process_virtual_memory_max_bytes", "gauge", ""),
        ("process_start_time_seconds", "gauge", ""),
        ("process_network_receive_bytes_total", "counter", ""),
        ("process_network_transmit_bytes_total", "counter", ""),
    ];
    let metrics = parse(&page());
    for (name, kind, keys) in expected {
        let metric = metrics.get(name).unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(metric.kind, kind, "{name}");
        assert!(!metric.samples.is_empty(), "{name}");
        for (_, labels, _) in &metric.samples {
            let labels = labels.keys().filter(|key| *key != "le").map(String::as_str);
            assert_eq!(labels.collect::<Vec<_>>().join(" "), keys, "{name}");
        }
    }
}

/// Each series once; buckets grow, in limits and counts, up to +Inf, which is the count.
#[test]
fn s62_the_page_is_sound() {
    for (name, metric) in parse(&page()) {
        let mut seen = BTreeSet::new();
        let mut buckets: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
        let mut counts: BTreeMap<Labels, f64> = BTreeMap::new();
        for (sample, labels, value) in &metric.samples {
            assert!(seen.insert((sample, labels)), "{sample} {labels:?} twice");
            assert!(metric.kind == "gauge" || *value >= 0.0, "{sample} {value}");
            let mut others = labels.clone();
            let limit = others.remove("le");
            if let Some(limit) = limit {
                buckets.entry(others).or_default().push((limit.parse().expect("a limit"), *value));
            } else if sample.ends_with("_count") {
                counts.insert(others, *value);
            }
        }
        for (labels, buckets) in &buckets {
            assert!(buckets.is_sorted_by(|a, b| a.0 < b.0 && a.1 <= b.1), "{name} {labels:?}: {buckets:?}");
            assert_eq!(buckets.last(), Some(&(f64::INFINITY, counts[labels])), "{name}");
        }
    }
}

/// The texts of the limits are labels: a dashboard's or a recording rule's `le="1"` must find them.
#[test]
fn s67_buckets() {
    let metrics = parse(&page());
    let limits = |name: &str| -> Vec<String> {
        let of = metrics[name].samples.iter().filter(|(_, labels, _)| {
            labels.contains_key("le") && labels.get("ip_family").is_none_or(|ip| ip == "IPv6")
        });
        of.map(|(_, labels, _)| labels["le"].clone()).collect()
    };
    let network = limits("kubeproxy_network_programming_duration_seconds");
    assert_eq!(network.len(), 81);
    assert_eq!(network[..4], ["0.25", "0.5", "1", "2"]);
    assert_eq!(network[60..64], ["59", "60", "65", "70"]);
    assert_eq!(network[73..], ["120", "150", "180", "210", "240", "270", "300", "+Inf"]);
    let sync = limits("kubeproxy_sync_proxy_rules_duration_seconds");
    assert_eq!((sync.len(), &*sync[0], &*sync[10], &*sync[14]), (16, "0.001", "1.024", "16.384"));
    let api = limits("rest_client_request_duration_seconds").join(" ");
    assert_eq!(api, "0.005 0.025 0.1 0.25 0.5 1 2 4 8 15 30 60 +Inf");
}
