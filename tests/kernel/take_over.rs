//! A kube-proxy's leftovers in a real kernel, and what others have beside them.

use portolan::dataplane::take_over;
use portolan::dataplane::take_over::ipvs::{self, Connections};

use crate::namespace::{in_namespace, run, run_with_input};

const NAT: &str = "*nat
:PREROUTING ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-HOSTPORT-DNAT - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SEP-DEF - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-SVC-ABC - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A CNI-HOSTPORT-DNAT -p tcp --dport 8080 -j DNAT --to-destination 10.244.1.2:80
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE --random-fully
-A KUBE-SEP-DEF -s 10.244.1.3/32 -j KUBE-MARK-MASQ
-A KUBE-SEP-DEF -p tcp -j DNAT --to-destination 10.244.1.3:80
-A KUBE-SERVICES -d 10.96.0.10/32 -p tcp --dport 80 -j KUBE-SVC-ABC
-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp --dport 30080 -g KUBE-SVC-ABC
-A KUBE-SVC-ABC -m statistic --mode random --probability 0.5 -j KUBE-SEP-DEF
COMMIT
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP
-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

#[test]
fn s74_leftovers_of_every_mode_go_and_s80_foreign_rules_stay() {
    in_namespace("s74_leftovers_of_every_mode_go_and_s80_foreign_rules_stay", || {
        run_with_input("iptables-nft-restore", &["--noflush"], NAT);
        run_with_input(
            "ip6tables-nft-restore",
            &["--noflush"],
            "*mangle\n:KUBE-PROXY-CANARY - [0:0]\nCOMMIT\n",
        );
        for family in ["ip", "ip6"] {
            run("nft", &["add", "table", family, "kube-proxy"]);
            let hook = "{ type nat hook prerouting priority -100; }";
            run("nft", &["add", "chain", family, "kube-proxy", "nat-prerouting", hook]);
        }
        run("nft", &["add", "table", "ip", "portolan"]);

        let outcome = take_over::remove();
        assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
        assert_eq!(
            outcome.removed,
            [
                "table ip kube-proxy: the whole table",
                "table ip filter: 1 chains, 1 rules that led to them",
                "table ip nat: 6 chains, 3 rules that led to them",
                "table ip6 kube-proxy: the whole table",
                "table ip6 mangle: 1 chains, 0 rules that led to them",
            ]
        );
        let left = run("iptables-nft-save", &[]);
        let mut rules: Vec<&str> = left.lines().filter(|line| line.starts_with("-A")).collect();
        rules.sort_unstable();
        assert_eq!(
            rules,
            [
                "-A CNI-HOSTPORT-DNAT -p tcp -m tcp --dport 8080 -j DNAT --to-destination 10.244.1.2:80",
                "-A INPUT -j KUBE-FIREWALL",
                "-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -j DROP",
                "-A PREROUTING -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT",
            ]
        );
        assert!(run("nft", &["list", "tables"]).contains("table ip portolan"));
        let again = take_over::remove();
        assert!(again.removed.is_empty() && again.failed.is_empty(), "{again:?}");
    });
}

#[test]
fn s74_legacy_iptables_is_cleaned_by_its_own_programs() {
    in_namespace("s74_legacy_iptables_is_cleaned_by_its_own_programs", || {
        // Not every kernel has the older half.
        let probe = std::process::Command::new("iptables-legacy").args(["-t", "nat", "-S"]).output();
        if !probe.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: no iptables-legacy, or a kernel without it");
            return;
        }
        run_with_input("iptables-legacy-restore", &["--noflush"], NAT);
        let outcome = take_over::remove();
        assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
        let left = run("iptables-legacy-save", &[]);
        assert!(!left.contains("KUBE-S") && left.contains("CNI-HOSTPORT-DNAT"), "{left}");
        assert!(left.contains("KUBE-FIREWALL"), "{left}");
    });
}

/// Without virtual servers (most kernels have no IPVS) the interface goes, and nothing is said of what is not there.
#[test]
fn s74_the_ipvs_modes_interface_goes_and_the_rest_need_not_be_there() {
    in_namespace("s74_the_ipvs_modes_interface_goes_and_the_rest_need_not_be_there", || {
        for device in ["kube-ipvs0", "somebody"] {
            run("ip", &["link", "add", device, "type", "bridge"]);
        }
        run("ip", &["address", "add", "10.96.0.1/32", "dev", "kube-ipvs0"]);
        let pass = ipvs::remove(Connections::Drain, None).expect("a pass");
        assert_eq!(pass.removed.as_deref(), Some("interface kube-ipvs0"));
        assert!(pass.draining.is_empty() && pass.foreign.is_none() && !pass.returned, "{pass:?}");
        let links = run("ip", &["-o", "link"]);
        assert!(!links.contains("kube-ipvs0") && links.contains("somebody"), "{links}");

        let again = ipvs::remove(Connections::End, None).expect("a pass");
        assert_eq!(again.removed, None);
    });
}

#[test]
fn s74_sets_go_once_no_rule_asks_them_and_s80_foreign_sets_stay() {
    in_namespace("s74_sets_go_once_no_rule_asks_them_and_s80_foreign_sets_stay", || {
        let probe = std::process::Command::new("ipset").arg("list").output();
        if !probe.is_ok_and(|output| output.status.success()) {
            eprintln!("SKIPPED: no ipset, or a kernel without it");
            return;
        }
        for set in ["KUBE-CLUSTER-IP", "KUBE-LOOP-BACK", "KUBE-SRC-OF-OTHERS"] {
            run("ipset", &["create", set, "hash:ip"]);
        }
        run("ipset", &["create", "KUBE-6-LOAD-BALANCER-SOURCE-CID", "hash:ip", "family", "inet6"]);
        run("ipset", &["add", "KUBE-CLUSTER-IP", "10.96.0.1"]);
        let asked = "*nat
:KUBE-SERVICES - [0:0]
-A PREROUTING -j KUBE-SERVICES
-A KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst -j ACCEPT
-A POSTROUTING -m set --match-set KUBE-LOOP-BACK dst -j MASQUERADE
COMMIT
";
        run_with_input("iptables-nft-restore", &["--noflush"], asked);
        let outcome = take_over::remove();
        assert_eq!(outcome.removed, ["table ip nat: 1 chains, 1 rules that led to them"]);
        let failed: Vec<String> = outcome.failed.iter().map(|error| format!("{error:#}")).collect();
        assert_eq!(failed, ["ipsets: KUBE-LOOP-BACK is in use"]);
        assert_eq!(run("ipset", &["list", "-name"]), "KUBE-LOOP-BACK\nKUBE-SRC-OF-OTHERS\n");

        run("iptables-nft", &["-t", "nat", "-F", "POSTROUTING"]);
        let outcome = take_over::remove();
        assert!(outcome.failed.is_empty(), "{:?}", outcome.failed);
        assert_eq!(outcome.removed, ["1 ipsets"]);
        assert_eq!(run("ipset", &["list", "-name"]), "KUBE-SRC-OF-OTHERS\n");
    });
}
