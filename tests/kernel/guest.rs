//! In a guest kernel that has IPVS, ipset and dummy interfaces: what kube-proxy's IPVS mode leaves.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use portolan_lab::guest::{Guest, IPTABLES_EXTENSIONS, NETWORK_MODULES};
use portolan_lab::testing::has_emulator;

const PORTOLAN: &str = env!("CARGO_BIN_EXE_portolan");
/// Emulated on a busy machine; alone it takes fifteen seconds.
const WITHIN: Duration = Duration::from_secs(180);

const PROGRAMS: [&str; 9] = [
    PORTOLAN,
    "ip",
    "nft",
    "ipvsadm",
    "ipset",
    "iptables-nft-restore",
    "iptables-nft-save",
    "ip6tables-nft-restore",
    "ip6tables-nft-save",
];

/// The lines of /proc/net/ip_vs name addresses and ports in hexadecimal: here 172.30.0.11:8443.
const OTHERS_SERVER: &str = "TCP/AC1E000B:20FB";

#[test]
fn s74_leftovers_of_the_ipvs_mode_go_without_a_lost_request_and_others_stay() {
    let name = "s74_leftovers_of_the_ipvs_mode_go_without_a_lost_request_and_others_stay";
    if !has_emulator(name) {
        return;
    }
    let guest = Guest {
        modules: NETWORK_MODULES.to_vec(),
        programs: PROGRAMS.map(Into::into).to_vec(),
        folders: vec![IPTABLES_EXTENSIONS.into()],
        files: vec![
            ("node.sh", include_str!("guest/node.sh").into()),
            ("kube_proxy.sets", include_str!("guest/kube_proxy.sets").into()),
            ("kube_proxy.rules", include_str!("guest/kube_proxy.rules").into()),
            ("kube_proxy.rules6", include_str!("guest/kube_proxy.rules6").into()),
            ("portolan.nft", planned()),
        ],
        uplink: None,
    };
    let said = guest
        .run(include_str!("guest/kube_proxy_ipvs.sh"), WITHIN)
        .unwrap_or_else(|error| panic!("{error:#}"));
    let (before, after): (Vec<&str>, Vec<&str>) =
        said.iter().map(String::as_str).partition(|line| line.starts_with("before: "));
    assert_eq!(before.len(), 4, "{said:#?}");
    assert!(before[0].contains(OTHERS_SERVER) && before[0].contains("UDP/AC1E000B:7565"), "{}", before[0]);
    assert!(before[2].contains("KUBE-CLUSTER-IP") && before[2].contains("blocked"), "{}", before[2]);
    assert_eq!(
        after,
        [
            "ipvs: 10.96.0.10 80: answer",
            "ipvs: 192.0.2.10 80: answer",
            "ipvs: 172.30.0.11 30080: answer",
            "ipvs: 172.30.0.11 8443: answer",
            "cleanup: 0, connections ended",
            // docs/take-over.md: its packets are dropped.
            "held:",
            "lost: 0",
            &format!("after: virtual servers: {OTHERS_SERVER}"),
            "after: interfaces: client lo pod",
            "after: sets: blocked",
            "after: named in rules:",
            "portolan: 10.96.0.10 80: answer",
            "portolan: 192.0.2.10 80: answer",
            "portolan: 172.30.0.11 30080: answer",
            "portolan: 172.30.0.11 8443: answer",
            "again: 0",
        ]
    );
}

/// Our rules for the same Service, as `portolan plan` prints them.
fn planned() -> String {
    let cluster = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernel/guest/cluster.yaml");
    let mut command = Command::new(PORTOLAN);
    command.args(["plan", "--node", "n1", "--only", "nft", "--filename"]).arg(cluster);
    let output = command.output().expect("portolan runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
