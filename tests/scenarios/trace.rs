//! `portolan trace` on the examples: a packet in, what becomes of it and why out.

use std::path::Path;

use clap::Parser;
use expect_test::{Expect, expect};
use portolan::cli::{Cli, Command};
use portolan::config::Config;
use portolan::offline::Offline;
use portolan::trace::{self, Rules, Source};
use portolan_model::Family;
use portolan_plan::node_ports::Selector;

fn parsed(from: &str, to: &str) -> Result<portolan::cli::Trace, String> {
    let line = ["portolan", "trace", "--from", from, "--to", to];
    match Cli::try_parse_from(line).map_err(|error| error.to_string())?.command {
        Command::Trace(arguments) => Ok(arguments),
        other => panic!("{other:?}"),
    }
}

/// `example/node`, from, to.
fn check(place: &str, from: &str, to: &str, expected: Expect) {
    check_with(place, from, to, |_| {}, |_| {}, expected);
}

/// The same with changes to the example's configuration, and to what is known of the node.
fn check_with(
    place: &str,
    from: &str,
    to: &str,
    configure: impl Fn(&mut Config),
    change: impl Fn(&mut Rules),
    expected: Expect,
) {
    let (example, node) = place.split_once('/').expect("example/node");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(example);
    let mut config = Config::read(&folder.join("config.yaml")).expect("a configuration");
    configure(&mut config);
    let cluster = Offline::open(&folder.join("cluster.yaml"), config).expect("a cluster");
    let arguments = parsed(from, to).expect("arguments");
    let (Source(from), to) = (arguments.from, arguments.to);
    let mut rules = cluster.rules(node, Family::of(&to.to.ip())).expect("a node of the file");
    change(&mut rules);
    expected.assert_eq(&trace::explain(&rules, from, to, arguments.interface.map(Into::into)));
}

#[test]
fn s15_s46_a_pod_to_a_cluster_ip() {
    check(
        "first-service/n1",
        "10.244.1.5",
        "10.96.0.10:80/tcp",
        expect![[r#"
            10.244.1.5 to 10.96.0.10:80/tcp on n1: forwarded to one of 4
              10.244.1.5:8080  masqueraded: it sees an address of the node
              10.244.2.5:8080  it sees the client's address
              10.244.2.6:8080  it sees the client's address
              10.244.3.5:8080  it sees the client's address
            because
              services: 10.96.0.10:80/tcp is in services
              nonpod-pick-4-from-2: goto dnat-from-2
              dnat-from-2: 4 of 4 draws find an endpoint in endpoints-2
              to 10.244.1.5:8080: nat-postrouting: masqueraded
        "#]],
    );
}

#[test]
fn s16_the_node_itself() {
    check(
        "first-service/n1",
        "172.30.0.11",
        "10.96.0.10:80",
        expect![[r#"
            172.30.0.11 (the node itself) to 10.96.0.10:80/tcp on n1: forwarded to one of 4
              10.244.1.5:8080  masqueraded: it sees an address of the node
              10.244.2.5:8080  masqueraded: it sees an address of the node
              10.244.2.6:8080  masqueraded: it sees an address of the node
              10.244.3.5:8080  masqueraded: it sees an address of the node
            because
              services: 10.96.0.10:80/tcp is in services
              nonpod-pick-4-from-2: marked 0x4000
              nonpod-pick-4-from-2: goto dnat-from-2
              dnat-from-2: 4 of 4 draws find an endpoint in endpoints-2
              to 10.244.1.5:8080: nat-postrouting: masqueraded
              to 10.244.2.5:8080: nat-postrouting: masqueraded
              to 10.244.2.6:8080: nat-postrouting: masqueraded
              to 10.244.3.5:8080: nat-postrouting: masqueraded
        "#]],
    );
}

#[test]
fn s43_a_client_outside_at_a_node_port() {
    check(
        "first-service/n1",
        "198.51.100.7:51515",
        "172.30.0.11:30080/tcp",
        expect![[r#"
            198.51.100.7 to 172.30.0.11:30080/tcp on n1: forwarded to one of 4
              10.244.1.5:8080  masqueraded: it sees an address of the node
              10.244.2.5:8080  masqueraded: it sees an address of the node
              10.244.2.6:8080  masqueraded: it sees an address of the node
              10.244.3.5:8080  masqueraded: it sees an address of the node
            because
              services: 172.30.0.11:30080/tcp is in services
              masq-pick-4-from-3: marked 0x4000
              masq-pick-4-from-3: goto dnat-from-3
              dnat-from-3: 4 of 4 draws find an endpoint in endpoints-3
              to 10.244.1.5:8080: nat-postrouting: masqueraded
              to 10.244.2.5:8080: nat-postrouting: masqueraded
              to 10.244.2.6:8080: nat-postrouting: masqueraded
              to 10.244.3.5:8080: nat-postrouting: masqueraded
        "#]],
    );
}

/// No rule knows of it: the agent itself listens there.
#[test]
fn s22_a_node_port_at_a_loopback_address() {
    let check = |to: &str, localhost: bool, live: bool, expected: Expect| {
        let configure = |config: &mut Config| {
            if localhost {
                config.proxy.node_port_addresses = vec![Selector::Primary, Selector::Localhost];
            }
        };
        let change = |rules: &mut Rules| rules.relays = rules.relays.take().filter(|_| !live);
        check_with("first-service/n1", "127.0.0.1", to, configure, change, expected);
    };
    check(
        "127.0.0.1:30080",
        true,
        false,
        expect![[r#"
        127.0.0.1 (the node itself) to 127.0.0.1:30080/tcp on n1: taken by the agent, which relays default/web to one of 4
          10.244.1.5:8080  it sees an address of the node
          10.244.2.5:8080  it sees an address of the node
          10.244.2.6:8080  it sees an address of the node
          10.244.3.5:8080  it sees an address of the node
    "#]],
    );
    check(
        "127.0.0.1:30080",
        false,
        false,
        expect![[r#"
        127.0.0.1 (the node itself) to 127.0.0.1:30080/tcp on n1: passed on as it is, no rule of Portolan's is for it
    "#]],
    );
    check(
        "127.0.0.1:30081",
        true,
        false,
        expect![[r#"
        127.0.0.1 (the node itself) to 127.0.0.1:30081/tcp on n1: passed on as it is, no rule of Portolan's is for it
    "#]],
    );
    check(
        "127.0.0.1:30080",
        true,
        true,
        expect![[r#"
        127.0.0.1 (the node itself) to 127.0.0.1:30080/tcp on n1: passed on as it is, no rule of Portolan's is for it
          perhaps to the agent: it listens at node ports here, if proxy.nodePortAddresses has localhost, and relays
    "#]],
    );
    check(
        "127.0.0.1:30080/udp",
        true,
        false,
        expect![[r#"
        127.0.0.1 (the node itself) to 127.0.0.1:30080/udp on n1: passed on as it is, no rule of Portolan's is for it
    "#]],
    );
}

#[test]
fn s44_policy_local_where_the_endpoint_is() {
    check(
        "local-policy/n1",
        "198.51.100.7",
        "192.0.2.0:80/tcp",
        expect![[r#"
            198.51.100.7 to 192.0.2.0:80/tcp on n1: forwarded
              10.244.1.5:8080  it sees the client's address
            because
              services: 192.0.2.0:80/tcp is in services
              pick-1-from-0: goto dnat-from-0
              dnat-from-0: 1 of 1 draws find an endpoint in endpoints-0
        "#]],
    );
}

#[test]
fn s39_policy_local_where_it_is_not() {
    check(
        "local-policy/n2",
        "198.51.100.7",
        "192.0.2.0:80/tcp",
        expect![[r#"
        198.51.100.7 to 192.0.2.0:80/tcp on n2: dropped without an answer
        because
          services: 192.0.2.0:80/tcp is in services
          services: dropped
    "#]],
    );
}

#[test]
fn s17_another_port_is_refused() {
    check(
        "first-service/n1",
        "10.244.2.5",
        "10.96.0.10:443/tcp",
        expect![[r#"
        10.244.2.5 to 10.96.0.10:443/tcp on n1: refused, with an ICMP port unreachable
        because
          services: goto raced
          raced: goto refuse
          refuse: rejected
    "#]],
    );
    check(
        "first-service/n1",
        "10.244.2.5",
        "10.96.0.10:80/udp",
        expect![[r#"
        10.244.2.5 to 10.96.0.10:80/udp on n1: refused, with an ICMP port unreachable
        because
          services: goto raced
          raced: goto refuse
          refuse: rejected
    "#]],
    );
}

#[test]
fn not_for_us() {
    check(
        "first-service/n1",
        "10.244.1.5",
        "203.0.113.1:443/tcp",
        expect![[r#"
        10.244.1.5 to 203.0.113.1:443/tcp on n1: passed on as it is, no rule of Portolan's is for it
    "#]],
    );
}

#[test]
fn s06_the_other_family() {
    check(
        "dual-stack/n1",
        "fd00:10:244:1::9",
        "[2001:db8::]:53/udp",
        expect![[r#"
            fd00:10:244:1::9 to [2001:db8::]:53/udp on n1: forwarded
              [fd00:10:244:1::53]:53  masqueraded: it sees an address of the node
            because
              services: [2001:db8::]:53/udp is in services
              masq-pick-1-from-0: marked 0x4000
              masq-pick-1-from-0: goto dnat-from-0
              dnat-from-0: 1 of 1 draws find an endpoint in endpoints-0
              to [fd00:10:244:1::53]:53: nat-postrouting: masqueraded
        "#]],
    );
}

/// What is wrong is said in one sentence, with an example of what would be right.
#[tokio::test]
async fn arguments_that_cannot_be_read() {
    let sentence = |from: &str, to: &str| {
        let error = parsed(from, to).expect_err("an error");
        error.lines().next().unwrap_or_default().to_owned()
    };
    expect!["error: invalid value 'pod-7' for '--from <ADDRESS[:PORT]>': an IP address is wanted, alone or with a port, like 10.244.1.5 or [fd00::5]:40000"].assert_eq(&sentence("pod-7", "10.96.0.10:80/tcp"));
    expect!["error: invalid value '10.96.0.10' for '--to <ADDRESS:PORT[/PROTOCOL]>': an address with a port is wanted, like 10.96.0.10:80/tcp or [fd00::a]:53/udp"].assert_eq(&sentence("10.244.1.5", "10.96.0.10"));
    expect![[r#"error: invalid value '10.96.0.10:80/icmp' for '--to <ADDRESS:PORT[/PROTOCOL]>': "icmp" is no protocol: tcp, udp or sctp are wanted"#]].assert_eq(&sentence("10.244.1.5", "10.96.0.10:80/icmp"));
    let both = parsed("fd00::5", "10.96.0.10:80").expect("each is well formed");
    let error = trace::run(both).await.expect_err("an error");
    expect!["--from is an IPv6 address and --to an IPv4 one: no packet has both"]
        .assert_eq(&error.to_string());
}

#[test]
fn nodes_and_files_that_are_not_there() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/first-service");
    let cluster = Offline::open(&folder.join("cluster.yaml"), Config::default()).expect("a cluster");
    let error = cluster.rules("n9", Family::Ipv4).err().expect("an error");
    expect![[r#"there is no Node "n9": the file has n1, n2, n3"#]].assert_eq(&error.to_string());
}
