use std::net::UdpSocket;

use portolan::dataplane::conntrack::{Conntrack, tune};
use portolan_conntrack::Flow;
use portolan_conntrack::sysctl::Tuning;
use portolan_model::{Family, Protocol};

use crate::namespace::{in_namespace, run, run_with_input};

/// Something that asks for tracking of both families, and a VIP.
const RULES: &str = "
    table inet t {
        chain out { type nat hook output priority -100; ct state new counter; ip daddr 192.0.2.1 udp dport 53 dnat ip to 127.0.0.1:5353; }
    }";

fn udp(from: &str, to: &str) -> UdpSocket {
    let socket = UdpSocket::bind(from).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"x").unwrap();
    socket
}

#[test]
fn s51_entries_are_read_and_deleted_one_by_one() {
    in_namespace("s51_entries_are_read_and_deleted_one_by_one", || {
        run("ip", &["link", "set", "lo", "up"]);
        run("ip", &["route", "add", "default", "dev", "lo"]);
        run_with_input("nft", &["-f", "-"], RULES);
        let _server = UdpSocket::bind("127.0.0.1:5353").unwrap();
        let _server6 = UdpSocket::bind("[::1]:5353").unwrap();
        let tcp = std::net::TcpListener::bind("127.0.0.1:80").unwrap();
        let _connection = std::net::TcpStream::connect(tcp.local_addr().unwrap()).unwrap();
        let _flows = [udp("127.0.0.1:4001", "192.0.2.1:53"), udp("127.0.0.1:4002", "127.0.0.1:5353")];
        let _flow6 = udp("[::1]:4003", "[::1]:5353");

        let mut conntrack = Conntrack::open().unwrap();
        let mut read = |family, protocol| {
            let mut flows = conntrack.flows(family, protocol).unwrap();
            flows.sort_by_key(|flow| flow.original.src);
            flows
        };
        let show =
            |flow: &Flow| format!("{} -> {} = {}", flow.original.src, flow.original.dst, flow.reply.src);
        let v4 = read(Family::Ipv4, Protocol::Udp);
        assert_eq!(
            v4.iter().map(show).collect::<Vec<_>>(),
            [
                "127.0.0.1:4001 -> 192.0.2.1:53 = 127.0.0.1:5353",
                "127.0.0.1:4002 -> 127.0.0.1:5353 = 127.0.0.1:5353",
            ]
        );
        assert_eq!(
            read(Family::Ipv6, Protocol::Udp).iter().map(show).collect::<Vec<_>>(),
            ["[::1]:4003 -> [::1]:5353 = [::1]:5353"]
        );
        assert_eq!(read(Family::Ipv4, Protocol::Tcp).len(), 1);

        assert_eq!(conntrack.delete(&v4[..1]).unwrap(), 1);
        assert_eq!(conntrack.flows(Family::Ipv4, Protocol::Udp).unwrap(), v4[1..]);
        assert_eq!(conntrack.delete(&v4).unwrap(), 1, "the first is gone already");
        assert_eq!(conntrack.flows(Family::Ipv4, Protocol::Udp).unwrap(), []);
        assert_eq!(conntrack.flows(Family::Ipv6, Protocol::Udp).unwrap().len(), 1);
        assert_eq!(conntrack.flows(Family::Ipv4, Protocol::Tcp).unwrap().len(), 1);
    });
}

/// e75; and a namespace cannot set its number of entries, which is no reason to stop.
#[test]
fn s54_s55_e75_settings_are_written_as_far_as_the_kernel_lets_us() {
    in_namespace("s54_s55_e75_settings_are_written_as_far_as_the_kernel_lets_us", || {
        let read = |name: &str| {
            let text = std::fs::read_to_string(format!("/proc/sys/net/netfilter/nf_conntrack_{name}"));
            text.unwrap().trim().to_owned()
        };
        let max = read("max");
        tune(&Tuning { min: 100_000_000, tcp_be_liberal: true, ..Tuning::default() });
        assert_eq!(read("tcp_timeout_close_wait"), "3600");
        assert_eq!(read("tcp_timeout_established"), "86400");
        assert_eq!(read("tcp_be_liberal"), "1");
        assert_eq!(read("max"), max);
    });
}
