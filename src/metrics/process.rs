//! What Go's Prometheus client says of every process (1J), and which build this is.

use std::fs;
use std::sync::atomic::AtomicU64;

use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use super::{Seconds, add};

const PLATFORM: &str = if cfg!(target_arch = "aarch64") { "linux/arm64" } else { "linux/amd64" };

#[derive(Default)]
pub struct Process {
    cpu: Counter<f64, AtomicU64>,
    open_fds: Gauge,
    max_fds: Gauge,
    resident: Gauge,
    virtual_size: Gauge,
    virtual_max: Gauge<f64, AtomicU64>,
    received: Counter,
    sent: Counter,
}

impl Process {
    pub fn register(&self, registry: &mut Registry) {
        add(registry, "process_cpu_seconds", "Total user and system CPU time spent in seconds", &self.cpu);
        add(registry, "process_open_fds", "Number of open file descriptors", &self.open_fds);
        add(registry, "process_max_fds", "Maximum number of open file descriptors", &self.max_fds);
        add(registry, "process_resident_memory_bytes", "Resident memory size in bytes", &self.resident);
        add(registry, "process_virtual_memory_bytes", "Virtual memory size in bytes", &self.virtual_size);
        let help = "Maximum amount of virtual memory available in bytes";
        add(registry, "process_virtual_memory_max_bytes", help, &self.virtual_max);
        let help = "Number of bytes received by the process over the network";
        add(registry, "process_network_receive_bytes", help, &self.received);
        let help = "Number of bytes sent by the process over the network";
        add(registry, "process_network_transmit_bytes", help, &self.sent);
        let start = Seconds::default();
        start.set(super::seconds(Timestamp::now()));
        let help = "Start time of the process since unix epoch in seconds";
        add(registry, "process_start_time_seconds", help, &start);
        let build = Family::<Vec<(&str, &str)>, Gauge>::default();
        build.get_or_create(&build_labels()).set(1);
        add(
            registry,
            "kubernetes_build_info",
            "The build of this proxy, which is not Kubernetes' own",
            &build,
        );
    }

    /// What cannot be read stays as it was.
    pub fn read(&self) {
        if let Some((ticks, virtual_size, pages)) = fs::read_to_string("/proc/self/stat").ok().and_then(stat)
            && let Some(per_second) = sysconf(libc::_SC_CLK_TCK)
            && let Some(page) = sysconf(libc::_SC_PAGESIZE)
        {
            let cpu = ticks as f64 / per_second as f64;
            self.cpu.inc_by((cpu - self.cpu.get()).max(0.0));
            self.virtual_size.set(virtual_size);
            self.resident.set(pages * page);
        }
        if let Ok(open) = fs::read_dir("/proc/self/fd") {
            self.open_fds.set(open.count() as i64);
        }
        if let Ok(limits) = fs::read_to_string("/proc/self/limits") {
            self.max_fds.set(limit(&limits, "Max open files").map_or(i64::MAX, |limit| limit as i64));
            // As Go's client writes "unlimited".
            self.virtual_max.set(limit(&limits, "Max address space").unwrap_or(u64::MAX) as f64);
        }
        if let Some((received, sent)) = fs::read_to_string("/proc/self/net/netstat").ok().and_then(octets) {
            self.received.inc_by(received.saturating_sub(self.received.get()));
            self.sent.inc_by(sent.saturating_sub(self.sent.get()));
        }
    }
}

fn build_labels() -> Vec<(&'static str, &'static str)> {
    vec![
        ("major", env!("CARGO_PKG_VERSION_MAJOR")),
        ("minor", env!("CARGO_PKG_VERSION_MINOR")),
        ("git_version", concat!("v", env!("CARGO_PKG_VERSION"))),
        ("git_commit", ""),
        ("git_tree_state", ""),
        ("build_date", ""),
        ("go_version", ""),
        ("compiler", "rustc"),
        ("platform", PLATFORM),
    ]
}

/// Processor time in ticks, virtual size in bytes, resident size in pages, of /proc/self/stat.
fn stat(text: String) -> Option<(i64, i64, i64)> {
    // The second field is a name that may hold spaces; fields count from 3 behind it.
    let (_, rest) = text.rsplit_once(')')?;
    let field = |number: usize| rest.split_whitespace().nth(number - 3)?.parse::<i64>().ok();
    Some((field(14)? + field(15)?, field(23)?, field(24)?))
}

/// The soft limit of /proc/self/limits; None where there is none.
fn limit(limits: &str, name: &str) -> Option<u64> {
    let values = limits.lines().find_map(|line| line.strip_prefix(name))?;
    values.split_whitespace().next()?.parse().ok()
}

/// IpExt's InOctets and OutOctets of /proc/self/net/netstat: of the network namespace, as Go's client has it.
fn octets(text: String) -> Option<(u64, u64)> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("IpExt: "));
    let (names, values) = (lines.next()?.split(' '), lines.next()?.split(' '));
    let value =
        |name: &str| names.clone().zip(values.clone()).find(|(n, _)| *n == name)?.1.parse::<u64>().ok();
    Some((value("InOctets")?, value("OutOctets")?))
}

fn sysconf(name: libc::c_int) -> Option<i64> {
    // SAFETY: sysconf only reads.
    let value = unsafe { libc::sysconf(name) };
    (value > 0).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_with_spaces_and_brackets() {
        let text =
            format!("1 (a ) b) S {} 7 8 {} 900 5 x", "0 ".repeat(10).trim_end(), "0 ".repeat(7).trim_end());
        assert_eq!(stat(text), Some((15, 900, 5)));
    }

    #[test]
    fn limits_and_octets() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax address space  unlimited  unlimited  bytes\n\
                      Max open files            1024                 524288               files\n";
        assert_eq!((limit(limits, "Max open files"), limit(limits, "Max address space")), (Some(1024), None));
        let netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: InNoRoutes InOctets OutOctets\nIpExt: 0 77 88\n";
        assert_eq!(octets(netstat.into()), Some((77, 88)));
    }
}
