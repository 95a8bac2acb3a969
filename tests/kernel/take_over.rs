//! A kube-proxy's leftovers in a real kernel, and what others have beside them.

use portolan::dataplane::take_over;

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
