//! The kernel settings of connection tracking (S54, S55), with kube-proxy's defaults.

use std::time::Duration;

/// Zero leaves the kernel's own value, everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuning {
    /// Entries per processor core.
    pub max_per_core: u32,
    /// Entries at least, however few cores there are.
    pub min: u32,
    pub tcp_established_timeout: Duration,
    pub tcp_close_wait_timeout: Duration,
    /// Segments outside the window do not make a connection INVALID (S54): kernels before 6.1 need it.
    pub tcp_be_liberal: bool,
    pub udp_timeout: Duration,
    pub udp_stream_timeout: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Tuning {
            max_per_core: 32768,
            min: 131_072,
            tcp_established_timeout: Duration::from_hours(24),
            tcp_close_wait_timeout: Duration::from_hours(1),
            tcp_be_liberal: false,
            udp_timeout: Duration::ZERO,
            udp_stream_timeout: Duration::ZERO,
        }
    }
}

/// A file of the kernel with a number in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    pub file: &'static str,
    pub value: u64,
    /// A larger number that is there already stays.
    pub at_least: bool,
}

/// The hash table's size; only the machine's first network namespace may write it.
pub const HASH_SIZE: &str = "/sys/module/nf_conntrack/parameters/hashsize";

/// More entries than this come from `min` alone, not from many cores.
const MAX_SCALED: u64 = 1 << 20;

/// What a node of this many cores is to have, in the order of writing.
pub fn wanted(tuning: &Tuning, cores: usize) -> Vec<Setting> {
    let mut settings = Vec::new();
    let max = max_entries(tuning, cores);
    if max > 0 {
        settings.push(Setting {
            file: "/proc/sys/net/netfilter/nf_conntrack_max",
            value: max,
            at_least: true,
        });
        settings.push(Setting { file: HASH_SIZE, value: max / 4, at_least: true });
    }
    let exactly = [
        (
            "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established",
            tuning.tcp_established_timeout.as_secs(),
        ),
        (
            "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait",
            tuning.tcp_close_wait_timeout.as_secs(),
        ),
        ("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", tuning.tcp_be_liberal.into()),
        ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", tuning.udp_timeout.as_secs()),
        ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", tuning.udp_stream_timeout.as_secs()),
    ];
    let given = exactly.into_iter().filter(|(_, value)| *value > 0);
    settings.extend(given.map(|(file, value)| Setting { file, value, at_least: false }));
    settings
}

fn max_entries(tuning: &Tuning, cores: usize) -> u64 {
    let scaled = u64::from(tuning.max_per_core).saturating_mul(cores as u64).min(MAX_SCALED);
    match tuning.max_per_core {
        0 => 0,
        _ => scaled.max(tuning.min.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn s55_entries_follow_the_cores() {
        let check = |max_per_core, min, cores, expected| {
            let tuning = Tuning { max_per_core, min, ..Tuning::default() };
            let found = wanted(&tuning, cores).into_iter().find(|s| s.file.ends_with("nf_conntrack_max"));
            assert_eq!(found.map(|s| (s.value, s.at_least)), expected, "{max_per_core} {min} {cores}");
        };
        check(32768, 131_072, 2, Some((131_072, true)));
        check(32768, 131_072, 8, Some((262_144, true)));
        check(32768, 131_072, 256, Some((1_048_576, true)));
        check(32768, 4_000_000, 256, Some((4_000_000, true)));
        check(0, 131_072, 8, None);
    }

    #[test]
    fn s54_s55_zero_leaves_the_kernels_value() {
        let names = |tuning: &Tuning| -> Vec<_> {
            let wanted = wanted(tuning, 4).into_iter();
            wanted.map(|s| format!("{}={}", s.file.rsplit('/').next().unwrap(), s.value)).collect()
        };
        let default = [
            "nf_conntrack_max=131072",
            "hashsize=32768",
            "nf_conntrack_tcp_timeout_established=86400",
            "nf_conntrack_tcp_timeout_close_wait=3600",
        ];
        assert_eq!(names(&Tuning::default()), default);
        let other = Tuning {
            max_per_core: 0,
            min: 0,
            tcp_established_timeout: Duration::ZERO,
            tcp_close_wait_timeout: Duration::ZERO,
            tcp_be_liberal: true,
            udp_timeout: Duration::from_secs(10),
            udp_stream_timeout: Duration::from_secs(60),
        };
        let given = [
            "nf_conntrack_tcp_be_liberal=1",
            "nf_conntrack_udp_timeout=10",
            "nf_conntrack_udp_timeout_stream=60",
        ];
        assert_eq!(names(&other), given);
    }
}
