//! What becomes of each kind of object, and of what is wrong in it: a manifest in, model values and problems out.

use expect_test::{Expect, expect};
use portolan_index::{Change, Index, Kind, Object};
use portolan_model::{Snapshot, TrafficPolicy};

/// Folds the documents of a YAML stream, in order.
fn index(yaml: &str) -> Index {
    let mut index = Index::new(&[]);
    for document in serde_saphyr::from_multiple::<serde_json::Value>(yaml).expect("YAML") {
        index.apply(Change::Apply(Object::from_manifest(document).expect("a manifest")));
    }
    index
}

fn check(yaml: &str, show: impl Fn(&Snapshot) -> String, expected: Expect) {
    let index = index(yaml);
    let mut text = show(&index.snapshot().expect("nothing to wait for"));
    for problem in index.problems() {
        text += &format!("! {problem} ({})\n", problem.reason);
    }
    expected.assert_eq(&text);
}

fn services(snapshot: &Snapshot) -> String {
    let mut text = String::new();
    for (id, service) in &snapshot.services {
        text += &format!("{id} {:?} {:?}\n", service.kind, service.cluster_ips);
        for slice in &service.slices {
            let endpoints: Vec<String> = slice
                .endpoints
                .iter()
                .map(|endpoint| {
                    let word = |set, word| if set { word } else { "" };
                    let (ready, serving) =
                        (word(endpoint.ready, " ready"), word(endpoint.serving, " serving"));
                    format!(
                        "{}{ready}{serving}{}",
                        endpoint.address,
                        word(endpoint.terminating, " terminating")
                    )
                })
                .collect();
            text += &format!("  {} {:?} {endpoints:?}\n", slice.name, slice.ports);
        }
    }
    text
}

#[test]
fn s2_headless_and_external_name_are_not_served() {
    check(
        "
{apiVersion: v1, kind: Service, metadata: {name: headless}, spec: {clusterIP: None, clusterIPs: [None], ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: external}, spec: {type: ExternalName, externalName: example.org}}
---
{apiVersion: v1, kind: Service, metadata: {name: unassigned}, spec: {type: LoadBalancer, clusterIP: '', ports: [{port: 80}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: plain, namespace: other}, spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}}
",
        services,
        expect![[r#"
            other/plain ClusterIp [10.96.0.1]
        "#]],
    );
}

#[test]
fn s2_s3_a_service_that_turns_into_what_is_not_served_is_gone() {
    let served = "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1}}\n---\n";
    for turned in [
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {type: ExternalName}}",
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: None}}",
        "{apiVersion: v1, kind: Service, metadata: {name: a, labels: {service.kubernetes.io/service-proxy-name: ''}}, spec: {clusterIP: 10.96.0.1}}",
    ] {
        check(&format!("{served}{turned}"), services, expect![""]);
    }
}

#[test]
fn s3_a_proxy_with_a_name_has_the_services_that_carry_it() {
    let service = |name: &str, labels: &str| {
        let text = format!(
            "{{apiVersion: v1, kind: Service, metadata: {{name: {name}, labels: {{{labels}}}}}, spec: {{clusterIP: 10.96.0.1}}}}"
        );
        Object::from_manifest(serde_saphyr::from_str(&text).unwrap()).unwrap()
    };
    let label = "service.kubernetes.io/service-proxy-name: ";
    let served = |proxy_name: Option<&str>| -> String {
        let mut index = Index::new(&[Kind::Service]).claiming(proxy_name.map(Into::into));
        let all = vec![
            service("plain", ""),
            service("mine", &format!("{label}mine")),
            service("other", &format!("{label}other")),
            service("empty", &format!("{label}''")),
        ];
        index.apply(Change::Replace(Kind::Service, all));
        let names = |index: &Index| -> Vec<String> {
            index.snapshot().unwrap().services.keys().map(|id| id.name.to_string()).collect()
        };
        let before = names(&index);
        index.apply(Change::Apply(service("mine", "")));
        format!("{}; relabelled: {}", before.join(" "), names(&index).join(" "))
    };
    assert_eq!(served(None), "plain; relabelled: mine plain");
    assert_eq!(served(Some("mine")), "mine; relabelled: ");
    assert_eq!(served(Some("nobody")), "; relabelled: ");
}

#[test]
fn s4_s7_slices_that_do_not_count() {
    check(
        "
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: nobodys}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: fqdn, labels: {kubernetes.io/service-name: a}}, addressType: FQDN, endpoints: [{addresses: [example.org]}]}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: headless, labels: {kubernetes.io/service-name: a, service.kubernetes.io/headless: ''}}, addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}]}
",
        services,
        expect![[r#"
            default/a ClusterIp [10.96.0.1]
        "#]],
    );
}

#[test]
fn s7_s8_s9_s14_endpoints_and_ports() {
    check(
        "
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: a-2, labels: {kubernetes.io/service-name: a}}, addressType: IPv6, ports: [], endpoints: []}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{name: '', port: 8080}, {name: dns, port: 53, protocol: UDP}, {port: 1}, {name: unnumbered}, {name: zero, port: 0}, {name: odd, port: 1, protocol: QUIC}, {name: large, port: 65536}]
endpoints:
  - {addresses: [10.0.0.1, 10.0.0.99]}
  - {addresses: [10.0.0.2], conditions: {ready: false, serving: true, terminating: true}}
  - {addresses: [010.000.000.003], conditions: {ready: false, serving: false}}
  - {addresses: [not-an-address]}
  - {addresses: ['fd00::1']}
  - {addresses: [127.0.0.1]}
  - {addresses: []}
---
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1}}
",
        services,
        expect![[r#"
            default/a ClusterIp [10.96.0.1]
              a-1 [("", Tcp, 8080), ("dns", Udp, 53)] ["10.0.0.1 ready serving", "10.0.0.2 serving terminating", "10.0.0.3"]
              a-2 [] []
            ! EndpointSlice default/a-1: ports[5].protocol: "QUIC" is not a protocol (Invalid)
            ! EndpointSlice default/a-1: ports[6].port: 65536 is not a port (Invalid)
            ! EndpointSlice default/a-1: endpoints[3].addresses[0]: "not-an-address" is not an IP address (Invalid)
            ! EndpointSlice default/a-1: endpoints[4].addresses[0]: "fd00::1" is not an IPv4 address (Invalid)
            ! EndpointSlice default/a-1: endpoints[5].addresses[0]: 127.0.0.1 is a loopback, link-local, multicast or unspecified address (Invalid)
        "#]],
    );
}

#[test]
fn s33_s34_hints_are_none_or_a_list() {
    check(
        "
{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
endpoints:
  - {addresses: [10.0.0.1], nodeName: n1, zone: z1, hints: {forZones: [{name: z1}, {name: z2}], forNodes: [{name: n1}]}}
  - {addresses: [10.0.0.2]}
",
        |snapshot| {
            let endpoints = snapshot.services.values().flat_map(|service| &service.slices[0].endpoints);
            endpoints.map(|e| format!("{:?} {:?} {:?} {:?}\n", e.node, e.zone, e.zone_hints(), e.node_hints())).collect()
        },
        expect![[r#"
            Some("n1") Some("z1") Some(["z1", "z2"]) Some(["n1"])
            None None None None
        "#]],
    );
}

#[test]
fn s6_the_first_cluster_ip_of_each_family() {
    check(
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, clusterIPs: [010.96.0.1, 'fd00::1', 10.96.0.2, x]}}",
        services,
        expect![[r#"
            default/a ClusterIp [10.96.0.1, fd00::1]
            ! Service default/a: spec.clusterIPs[3]: "x" is not an IP address (Invalid)
        "#]],
    );
}

#[test]
fn s14_s23_s24_s25_s26_s27_addresses_of_a_load_balancer() {
    check(
        "
apiVersion: v1
kind: Service
metadata: {name: a}
spec:
  type: LoadBalancer
  clusterIP: 10.96.0.1
  externalTrafficPolicy: Local
  healthCheckNodePort: 31000
  sessionAffinity: ClientIP
  externalIPs: [198.51.100.1, bad]
  loadBalancerSourceRanges: [' 10.0.0.0/8', 192.0.2.1/24, bad]
  ports: [{port: 80, nodePort: 0}, {name: dns, port: 53, nodePort: 30053, protocol: UDP}, {name: q, port: 1, protocol: QUIC}, {name: big, port: 70000}]
status:
  loadBalancer: {ingress: [{ip: 192.0.2.10}, {ip: 192.0.2.11, ipMode: VIP}, {ip: 192.0.2.12, ipMode: Proxy}, {hostname: lb.example.org}, {ip: bad}]}
",
        |snapshot| {
            let service = snapshot.services.values().next().expect("one service");
            assert_eq!(service.external_policy, TrafficPolicy::Local);
            let ports = service.ports.iter().map(|port| format!("{port:?}\n")).collect::<String>();
            format!(
                "{:?}\n{:?}\n{:?}\n{ports}{:?} {:?}\n",
                service.external_ips, service.ingress, service.source_ranges, service.affinity, service.health_check_node_port,
            )
        },
        expect![[r#"
            [198.51.100.1]
            [IngressIp { ip: 192.0.2.10, mode: Vip }, IngressIp { ip: 192.0.2.11, mode: Vip }, IngressIp { ip: 192.0.2.12, mode: Proxy }]
            Some([10.0.0.0/8, 192.0.2.0/24])
            ServicePort { name: "", protocol: Tcp, port: 80, node_port: None }
            ServicePort { name: "dns", protocol: Udp, port: 53, node_port: Some(30053) }
            Some(10800s) Some(31000)
            ! Service default/a: spec.externalIPs[1]: "bad" is not an IP address (Invalid)
            ! Service default/a: status.loadBalancer.ingress[4].ip: "bad" is not an IP address (Invalid)
            ! Service default/a: spec.ports[2].protocol: "QUIC" is not a protocol (Invalid)
            ! Service default/a: spec.ports[3].port: 70000 is not a port (Invalid)
            ! Service default/a: spec.loadBalancerSourceRanges[2]: "bad" is not a CIDR (Invalid)
        "#]],
    );
}

#[test]
fn s27_ranges_that_all_fail_to_parse_close() {
    check(
        "{apiVersion: v1, kind: Service, metadata: {name: a}, spec: {clusterIP: 10.96.0.1, loadBalancerSourceRanges: [bad]}}\n---\n\
         {apiVersion: v1, kind: Service, metadata: {name: b}, spec: {clusterIP: 10.96.0.2, loadBalancerSourceRanges: []}}",
        |snapshot| {
            snapshot.services.values().map(|service| format!("{:?}\n", service.source_ranges)).collect()
        },
        expect![[r#"
            Some([])
            None
            ! Service default/a: spec.loadBalancerSourceRanges[0]: "bad" is not a CIDR (Invalid)
        "#]],
    );
}

#[test]
fn requests_for_addresses_and_pools() {
    let services = [
        "{name: ours, annotations: {portolan.dev/ips: '192.0.2.1, fd00::1', metallb.io/loadBalancerIPs: 192.0.2.9, portolan.dev/pool: 'a, b'}}",
        "{name: metallbs, annotations: {metallb.universe.tf/loadBalancerIPs: 192.0.2.2, metallb.io/address-pool: c}}",
        "{name: invalid, annotations: {portolan.dev/ips: '192.0.2.300'}}",
        "{name: two, annotations: {portolan.dev/ips: '192.0.2.3,192.0.2.4'}}",
    ];
    let mut yaml: String = services
        .map(|metadata| format!("{{apiVersion: v1, kind: Service, metadata: {metadata}, spec: {{type: LoadBalancer, clusterIP: 10.96.0.1}}}}\n---\n"))
        .concat();
    yaml += "{apiVersion: v1, kind: Service, metadata: {name: zz, annotations: {portolan.dev/ips: 192.0.2.5}}, spec: {type: LoadBalancer, clusterIP: 10.96.0.1, loadBalancerIP: 192.0.2.6}}\n---\n";
    yaml += "{apiVersion: v1, kind: Service, metadata: {name: agreed, annotations: {portolan.dev/ips: 192.0.2.5}}, spec: {type: LoadBalancer, clusterIP: 10.96.0.1, loadBalancerIP: 192.0.2.5}}";
    check(
        &yaml,
        |snapshot| {
            let lines = snapshot.services.values().map(|service| {
                let wrong = service.request_problem.as_ref().map(|problem| problem.reason);
                format!(
                    "{}: {:?} {:?} {wrong:?}\n",
                    service.id.name, service.requested_ips, service.requested_pools
                )
            });
            lines.collect()
        },
        expect![[r#"
            agreed: [192.0.2.5] [] None
            invalid: [] [] Some("RequestedIPInvalid")
            metallbs: [192.0.2.2] ["c"] None
            ours: [192.0.2.1, fd00::1] ["a", "b"] None
            two: [192.0.2.3] [] Some("RequestAmbiguous")
            zz: [192.0.2.5] [] Some("RequestAmbiguous")
            ! Service default/invalid: metadata.annotations[portolan.dev/ips]: "192.0.2.300" is not an IP address (RequestedIPInvalid)
            ! Service default/two: metadata.annotations[portolan.dev/ips]: 192.0.2.4 is requested here, and 192.0.2.3 as well (RequestAmbiguous)
            ! Service default/zz: spec.loadBalancerIP: 192.0.2.6 is requested here, and 192.0.2.5 as well (RequestAmbiguous)
        "#]],
    );
}

#[test]
fn nodes_and_service_cidrs() {
    check(
        "
apiVersion: v1
kind: Node
metadata: {name: n1, uid: u, labels: {topology.kubernetes.io/zone: z1}}
spec: {podCIDR: 10.244.1.0/24, podCIDRs: [10.244.1.0/24, 'fd00:1::/64', bad]}
status:
  addresses: [{type: Hostname, address: n1}, {type: InternalIP, address: 172.30.0.11}, {type: InternalIP, address: 'fd00::11'}, {type: ExternalIP, address: 203.0.113.1}, {type: InternalIP, address: bad}]
  conditions: [{type: Ready, status: 'True'}, {type: NetworkUnavailable, status: 'True'}]
---
{apiVersion: networking.k8s.io/v1, kind: ServiceCIDR, metadata: {name: kubernetes}, spec: {cidrs: [10.96.0.0/16, 'fd00:96::/112']}}
",
        |snapshot| {
            let node = snapshot.nodes.values().next().expect("one node");
            let cidr = snapshot.service_cidrs.values().next().expect("one range");
            let addresses = format!("{:?} {:?} {:?}", node.internal_ips, node.external_ips, node.pod_cidrs);
            format!("{:?} {addresses} {}\n{:?}\n", node.zone, node.network_unavailable, cidr.cidrs)
        },
        expect![[r#"
            Some("z1") [172.30.0.11, fd00::11] [203.0.113.1] [10.244.1.0/24, fd00:1::/64] true
            [10.96.0.0/16, fd00:96::/112]
            ! Node n1: status.addresses[4].address: "bad" is not an IP address (Invalid)
            ! Node n1: spec.podCIDRs[2]: "bad" is not a CIDR (Invalid)
        "#]],
    );
}
