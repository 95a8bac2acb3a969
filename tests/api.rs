//! Our API on a real API server: the chart installs, its roles suffice and no more, what is wrong is refused with a sentence,
//! and the watches tell the index the truth through an outage. In a lab of its own, because it deletes a definition, and with
//! it would go what other tests made.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::Api;
use kube::client::Body;
use kube::config::Kubeconfig;
use portolan::config::{Config, NodeRoutes};
use portolan::watch;
use portolan_index::{Change, Dirty, Index, Kind, Object, protobuf};
use portolan_lab::product::NAMESPACE;
use portolan_lab::testing::in_lab;
use portolan_lab::{Lab, wait_for};
use portolan_model::{ServiceId, Snapshot};
use serde::Deserialize;
use tokio::sync::mpsc;

const WITHIN: Duration = Duration::from_secs(30);

const VALUES: &str = r#"
nodeRoutes: api
apiServer: { host: 192.0.2.254 }
proxy: { clusterCIDRs: [10.244.0.0/16, "fd00:10:244::/48"] }
pools:
  default: { addresses: [192.0.2.10-192.0.2.50, "2001:db8::/120"], serviceAllocation: { namespaces: [default] } }
bgp:
  asn: 4200000000
  peers:
    tor: { address: 172.30.0.254, asn: 64500, holdTime: 9s }
    tor-v6: { address: "fd00:172:30::fe", asn: external, port: 1179 }
advertise: { sources: [LoadBalancerIP, PodCIDR] }
"#;

async fn install(lab: &Lab) -> anyhow::Result<()> {
    let notes = lab.product.lock().await.helm_install(VALUES).await?;
    ensure!(notes.contains("is installed in portolan-system"), "{notes}");
    Ok(())
}

fn manifest_file(lab: &Lab, name: &str, text: &str) -> anyhow::Result<String> {
    let path = lab.dir().join(name);
    std::fs::write(&path, text)?;
    Ok(path.display().to_string())
}

#[test]
fn the_chart_renders_what_the_binary_reads_and_the_server_accepts() {
    in_lab("the_chart_renders_what_the_binary_reads_and_the_server_accepts", async |lab| {
        install(lab).await?;
        let maps: Api<ConfigMap> = Api::namespaced(lab.client(), NAMESPACE);
        let data = maps.get("portolan").await?.data.context("the ConfigMap's data")?;
        let config = lab.dir().join("api-config.yaml");
        std::fs::write(&config, &data["config.yaml"])?;
        let config = Config::read(&config)?;
        ensure!(config.node_routes == NodeRoutes::Api && config.bgp.asn == Some(4_200_000_000), "{config:?}");
        ensure!(config.proxy.cluster_cidrs.len() == 2, "{config:?}");
        let objects = manifest_file(lab, "objects.yaml", &data["objects.yaml"])?;
        let applied = lab
            .kubectl(&["apply", "--dry-run=server", "--validate=strict", "-o", "name", "-f", &objects])
            .await?;
        let expected = "ipaddresspool.portolan.dev/default\nbgppeer.portolan.dev/tor\nbgppeer.portolan.dev/tor-v6\n\
                        advertisement.portolan.dev/default\n";
        ensure!(applied == expected, "{applied}");
        Ok(())
    });
}

#[test]
fn wrong_values_stop_the_install_and_name_the_path() {
    in_lab("wrong_values_stop_the_install_and_name_the_path", async |lab| {
        let chart = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("charts/portolan").display().to_string();
        for (value, expected) in [
            (
                "pools.a.addresses={192.0.2.300-192.0.2.310}",
                "pools.a.addresses[0]: \"192.0.2.300-192.0.2.310\" is neither",
            ),
            ("pools.a.addresses={here}", "'/pools/a/addresses/0'"),
            ("pools.a.adresses={192.0.2.0/24}", "'/pools/a': additional properties 'adresses' not allowed"),
            ("bgp.asn=4294967296", "'/bgp/asn'"),
            ("bgp.peers.tor.asn=64500", "'/bgp/peers/tor': missing property 'address'"),
            ("advertise.sources={ExternalIP}", "'/advertise/externalIPCIDRs'"),
            ("proxy.mode=iptables", "'/proxy/mode'"),
            ("proxy.clusterCIDRs={10.0.0.0/33}", "proxy.clusterCIDRs[0]: \"10.0.0.0/33\" is not a CIDR"),
            ("nodeRoutes=maybe", "'/nodeRoutes'"),
            ("bpg.asn=1", "additional properties 'bpg' not allowed"),
        ] {
            let Err(error) = lab.helm(&["template", "portolan", &chart, "--set", value]).await else {
                anyhow::bail!("{value} was accepted");
            };
            let error = format!("{error:#}");
            ensure!(error.contains(expected), "{value}: {error}");
        }
        Ok(())
    });
}

#[test]
fn the_server_refuses_what_cannot_be_and_names_the_field() {
    in_lab("the_server_refuses_what_cannot_be_and_names_the_field", async |lab| {
        install(lab).await?;
        for (kind, spec, expected) in [
            (
                "IPAddressPool",
                "addresses: [192.0.2.300]",
                "spec.addresses[0]: Invalid value: \"192.0.2.300\": '192.0.2.300' is neither a CIDR",
            ),
            ("IPAddressPool", "addresses: [192.0.2.1/24]", "'192.0.2.1/24' has host bits set"),
            ("IPAddressPool", "addresses: ['192.0.2.1-2001:db8::1']", "has ends of two families"),
            ("IPAddressPool", "addresses: []", "spec.addresses"),
            (
                "IPAddressPool",
                "addresses: [192.0.2.0/24], avoid: FirstLast",
                "spec.avoid: Unsupported value: \"FirstLast\"",
            ),
            (
                "IPAddressPool",
                "addresses: [192.0.2.0/24], reuseDelay: 25h",
                "spec.reuseDelay must be from 0s to 24h",
            ),
            ("IPAddressPool", "addresses: [192.0.2.0/24], adresses: []", "unknown field \"spec.adresses\""),
            (
                "IPAddressPool",
                "addresses: [192.0.2.0/24], serviceAllocation: {serviceSelectors: [{matchExpressions: [{key: a, operator: In}]}]}",
                "values must be given with In and NotIn",
            ),
            (
                "BGPPeer",
                "peerAddress: 192.0.2.300, peerASN: 1",
                "spec.peerAddress: Invalid value: \"192.0.2.300\"",
            ),
            ("BGPPeer", "peerAddress: 192.0.2.1, peerASN: 4294967296", "spec.peerASN"),
            (
                "BGPPeer",
                "peerAddress: 192.0.2.1, peerASN: elsewhere",
                "must be an AS number from 1 to 4294967295, or one of external",
            ),
            (
                "BGPPeer",
                "peerAddress: 192.0.2.1, peerASN: 1, holdTime: 2s",
                "spec.holdTime must be 0s, or from 3s to 65535s",
            ),
            (
                "BGPPeer",
                "peerAddress: 192.0.2.1, peerASN: 1, holdTime: 9s, keepaliveTime: 4s",
                "spec.keepaliveTime must be at most a third",
            ),
            ("BGPPeer", "peerAddress: 192.0.2.1, peerASN: 1, holdTime: soon", "spec.holdTime"),
            (
                "BGPPeer",
                "peerAddress: 192.0.2.1, peerASN: 1, sourceAddress: 'fd00::1'",
                "spec.sourceAddress must be of the same family",
            ),
            (
                "BGPPeer",
                "peerAddress: 192.0.2.1, peerASN: 1, families: [l2vpn]",
                "spec.families[0]: Unsupported value",
            ),
            ("Advertisement", "sources: [LoadBalancerIP]", "spec.bgp must be given"),
            ("Advertisement", "sources: [ExternalIP], bgp: {}", "spec.externalIPCIDRs must be given"),
            (
                "Advertisement",
                "sources: [PodCIDR], ipAddressPools: [a], bgp: {}",
                "belong to no service and no pool",
            ),
            ("Advertisement", "sources: [PodIP], bgp: {}", "spec.sources[0]: Unsupported value"),
            ("Advertisement", "serviceSelectors: [{}], bgp: {aggregationLength: 24}", "aggregationLength"),
            ("Advertisement", "bgp: {communities: ['70000:1']}", "spec.bgp.communities[0]"),
            ("Advertisement", "bgp: {communities: [nowhere]}", "spec.bgp.communities[0]"),
            ("IPAllocation", "address: here, pool: a", "spec.address: Invalid value: \"here\""),
        ] {
            let text = format!(
                "{{apiVersion: portolan.dev/v1alpha1, kind: {kind}, metadata: {{name: x}}, spec: {{{spec}}}}}"
            );
            let file = manifest_file(lab, "refused.yaml", &text)?;
            let Err(error) = lab.kubectl(&["create", "--dry-run=server", "-f", &file]).await else {
                anyhow::bail!("{kind} {spec} was accepted");
            };
            let error = format!("{error:#}");
            ensure!(error.contains(expected), "{kind} {spec}: {error}");
        }
        Ok(())
    });
}

#[test]
fn s79_the_roles_suffice_and_no_more() {
    in_lab("s79_the_roles_suffice_and_no_more", async |lab| {
        install(lab).await?;
        let agent = "portolan-agent";
        let controller = "portolan-controller";
        for (account, verb, resource, expected) in [
            (agent, "watch", "endpointslices.discovery.k8s.io", true),
            (agent, "watch", "servicecidrs.networking.k8s.io", true),
            (agent, "watch", "ipallocations.portolan.dev", true),
            (agent, "patch", "nodestatuses.portolan.dev", true),
            (agent, "create", "events.events.k8s.io", true),
            (agent, "delete", "nodestatuses.portolan.dev", false),
            (agent, "patch", "services/status", false),
            (agent, "create", "ipallocations.portolan.dev", false),
            (agent, "get", "secrets", false),
            (agent, "get", "pods", false),
            (controller, "patch", "services/status", true),
            (controller, "create", "ipallocations.portolan.dev", true),
            (controller, "delete", "bgppeers.portolan.dev", true),
            (controller, "patch", "advertisements.portolan.dev/status", true),
            (controller, "update", "leases.coordination.k8s.io", true),
            (controller, "patch", "services", false),
            (controller, "patch", "nodes", false),
            (controller, "get", "secrets", false),
            (controller, "patch", "customresourcedefinitions.apiextensions.k8s.io", false),
        ] {
            let (resource_name, subresource) = resource.split_once('/').unwrap_or((resource, ""));
            let account = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
            let subresource = format!("--subresource={subresource}");
            let asked = [
                "auth",
                "can-i",
                verb,
                resource_name,
                &subresource,
                &account,
                "--namespace",
                NAMESPACE,
                "--quiet",
            ];
            let allowed = lab.kubectl(&asked).await.is_ok();
            ensure!(allowed == expected, "{account} {verb} {resource}: allowed {allowed}");
        }
        Ok(())
    });
}

/// What the agent's watches, with the agent's own token, make of the cluster.
struct View {
    changes: mpsc::Receiver<Change>,
    index: Index,
    dirty: Dirty,
}

impl View {
    async fn start(lab: &Lab) -> anyhow::Result<View> {
        View::of_proxy(lab, None).await
    }

    /// Of the proxy of this name (S3).
    async fn of_proxy(lab: &Lab, name: Option<&str>) -> anyhow::Result<View> {
        let token = lab.kubectl(&["create", "token", "portolan-agent", "--namespace", NAMESPACE]).await?;
        let mut kubeconfig = Kubeconfig::read_from(lab.kubeconfig())?;
        for user in &mut kubeconfig.auth_infos {
            let auth = user.auth_info.as_mut().context("a user of the kubeconfig")?;
            auth.token = Some(token.trim().to_owned().into());
        }
        let path = manifest_file(lab, "agent-kubeconfig", &serde_saphyr::to_string(&kubeconfig)?)?;
        let client = watch::client(Some(path.as_ref())).await?;
        let changes = watch::start(&client, &Kind::ALL, name);
        let index = Index::new(&Kind::ALL).claiming(name.map(Into::into));
        Ok(View { changes, index, dirty: Dirty::default() })
    }

    /// Folds changes until the snapshot is as wanted; `always` must hold of every snapshot on the way.
    async fn until(
        &mut self,
        what: &str,
        always: impl Fn(&Snapshot) -> bool,
        wanted: impl Fn(&Snapshot) -> bool,
    ) -> anyhow::Result<Snapshot> {
        let folding = async {
            loop {
                let change = self.changes.recv().await.context("the watches ended")?;
                self.dirty.merge(self.index.apply(change));
                let Some(snapshot) = self.index.snapshot() else { continue };
                ensure!(always(&snapshot), "on the way to {what}: {snapshot:?}");
                if wanted(&snapshot) {
                    return Ok(snapshot);
                }
            }
        };
        let folded = tokio::time::timeout(WITHIN, folding).await;
        folded.with_context(|| {
            format!("{what}; still unlisted: {:?}", self.index.unlisted().collect::<Vec<_>>())
        })?
    }
}

#[test]
fn a2_a56_the_watches_sync_follow_and_outlive_an_outage() {
    in_lab("a2_a56_the_watches_sync_follow_and_outlive_an_outage", async |lab| {
        install(lab).await?;
        let pool = "{apiVersion: portolan.dev/v1alpha1, kind: IPAddressPool, metadata: {name: watched}, spec: {addresses: [198.51.100.0/24]}}";
        lab.kubectl(&["apply", "-f", &manifest_file(lab, "pool.yaml", pool)?]).await?;
        lab.kubectl(&["create", "service", "clusterip", "headless", "--clusterip=None"]).await?;
        let mut view = View::start(lab).await?;
        let nodes = lab.node_names().len();
        let complete = move |snapshot: &Snapshot| {
            snapshot.pools.contains_key("watched")
                && snapshot.nodes.size() == nodes
                && !snapshot.service_cidrs.is_empty()
        };
        let api = ServiceId::new("default", "kubernetes");
        let has_endpoints = |snapshot: &Snapshot| {
            snapshot.services.get(&api).is_some_and(|service| !service.slices.is_empty())
        };
        let first = view.until("every kind is listed", |_| true, |s| complete(s) && has_endpoints(s)).await?;
        ensure!(view.dirty.synced && !first.services.contains_key(&ServiceId::new("default", "headless")));

        let watched = ServiceId::new("default", "watched");
        lab.kubectl(&["create", "service", "clusterip", "watched", "--tcp=80"]).await?;
        view.until("a new Service is seen", complete, |s| s.services.contains_key(&watched)).await?;

        lab.stop_apiserver().await?;
        lab.start_apiserver().await?;
        let after = ServiceId::new("default", "after");
        lab.kubectl(&["create", "service", "clusterip", "after", "--tcp=80"]).await?;
        let kept = |s: &Snapshot| complete(s) && s.services.contains_key(&watched) && has_endpoints(s);
        view.until("the watches are back", kept, |s| s.services.contains_key(&after)).await?;

        lab.kubectl(&["delete", "service", "headless", "watched", "after"]).await?;
        lab.kubectl(&["delete", "ippool", "watched"]).await?;
        let gone = |s: &Snapshot| !s.services.contains_key(&watched) && !s.pools.contains_key("watched");
        view.until("deletions are seen", |_| true, gone).await?;
        Ok(())
    });
}

const IN_BOTH_ENCODINGS: &str = r#"
apiVersion: v1
kind: Service
metadata:
  name: full
  labels: { app: full, empty: "" }
  annotations: { portolan.dev/ips: "192.0.2.300, 2001:db8::1", portolan.dev/pool: "a, b" }
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  externalIPs: [198.51.100.1, 198.51.100.2]
  loadBalancerClass: example.com/class
  loadBalancerIP: 192.0.2.7
  loadBalancerSourceRanges: [10.0.0.0/8, "2001:db8::/32"]
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  sessionAffinity: ClientIP
  sessionAffinityConfig: { clientIP: { timeoutSeconds: 77 } }
  selector: { app: full }
  ports:
  - { name: http, port: 80, targetPort: http, nodePort: 30080, appProtocol: http }
  - { name: dns, port: 53, protocol: UDP }
  - { name: sctp, port: 132, protocol: SCTP }
---
{ apiVersion: v1, kind: Service, metadata: { name: least }, spec: { ports: [{ port: 80 }] } }
---
{ apiVersion: v1, kind: Service, metadata: { name: elsewhere }, spec: { type: ExternalName, externalName: example.com } }
---
{ apiVersion: v1, kind: Service, metadata: { name: headless }, spec: { clusterIP: None, ports: [{ port: 80 }] } }
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: full
  labels: { kubernetes.io/service-name: full }
  annotations: { endpoints.kubernetes.io/last-change-trigger-time: "2026-01-02T03:04:05.678901234Z" }
addressType: IPv4
endpoints:
- addresses: [10.244.1.5]
  conditions: { ready: false, serving: true, terminating: true }
  nodeName: n1
  zone: west
  hostname: full-0
  targetRef: { kind: Pod, name: full-0 }
  hints: { forZones: [{ name: west }, { name: east }], forNodes: [{ name: n1 }] }
- { addresses: [10.244.2.5], conditions: { ready: true } }
- { addresses: [10.244.2.6], hints: {} }
ports:
- { name: http, port: 8080 }
- { name: "", port: 53, protocol: UDP }
- { name: unset }
---
{ apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: { name: least }, addressType: IPv6, endpoints: [] }
---
apiVersion: v1
kind: Node
metadata: { name: full, labels: { topology.kubernetes.io/zone: west } }
spec:
  podCIDRs: [10.250.1.0/24, "fd00:250::/64"]
  taints: [{ key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule, value: now }]
---
{ apiVersion: v1, kind: Node, metadata: { name: least } }
"#;

/// What else stands in `status`, which only its own resource takes.
const STATUS: [(&str, &str, &str); 2] = [
    (
        "service",
        "full",
        r#"{"status": {
            "loadBalancer": {"ingress": [{"ip": "192.0.2.9", "ipMode": "Proxy"}, {"ip": "192.0.2.8"}, {"hostname": "example.com"}]},
            "conditions": [
                {"type": "portolan.dev/Allocated", "status": "False", "reason": "Why", "message": "so", "observedGeneration": 3,
                 "lastTransitionTime": "2026-01-02T03:04:05Z"},
                {"type": "other", "status": "True", "reason": "Why", "message": "", "lastTransitionTime": "2026-01-02T03:04:05Z"}
            ]}}"#,
    ),
    (
        "node",
        "full",
        r#"{"status": {
            "addresses": [{"type": "InternalIP", "address": "172.30.0.99"}, {"type": "ExternalIP", "address": "2001:db8::99"},
                {"type": "Hostname", "address": "full"}],
            "conditions": [{"type": "NetworkUnavailable", "status": "True", "reason": "Why", "message": "so"}],
            "images": [{"names": ["example.com/image"], "sizeBytes": 7}], "capacity": {"cpu": "2"}}}"#,
    ),
];

async fn answer(lab: &Lab, path: &str, accept: &'static str) -> anyhow::Result<Bytes> {
    let request = http::Request::get(path).header(http::header::ACCEPT, accept).body(Body::empty())?;
    let answer = lab.client().send(request).await?;
    ensure!(answer.status().is_success(), "{path}: {}", answer.status());
    let content_type = answer.headers().get(http::header::CONTENT_TYPE).context("a content type")?;
    ensure!(content_type.to_str()?.starts_with(accept), "{path}: {content_type:?}");
    Ok(answer.into_body().collect().await?.to_bytes())
}

/// Every object of a path in both encodings; returns how many there are.
async fn compare(lab: &Lab, kind: Kind, path: &str) -> anyhow::Result<usize> {
    // The kubelets and leaders may write between the two.
    wait_for(path, WITHIN, async || {
        let list = answer(lab, path, "application/json").await?;
        let list: serde_json::Value = serde_json::from_slice(&list)?;
        let listed = list["items"].as_array().context("a list")?;
        let in_json: anyhow::Result<Vec<Object>> = listed.iter().map(|item| in_json(kind, item)).collect();
        let in_json = in_json?;
        let body = answer(lab, path, "application/vnd.kubernetes.protobuf").await?;
        let page = protobuf::page(kind, body)?;
        let count = in_json.len();
        let (in_json, in_protobuf) = (format!("{in_json:#?}"), format!("{:#?}", page.objects));
        Ok(if in_json == in_protobuf { Ok(count) } else { Err(format!("{in_json}\n{in_protobuf}")) })
    })
    .await
}

fn in_json(kind: Kind, item: &serde_json::Value) -> anyhow::Result<Object> {
    Ok(match kind {
        Kind::Service => Service::deserialize(item)?.into(),
        Kind::EndpointSlice => EndpointSlice::deserialize(item)?.into(),
        Kind::Node => Node::deserialize(item)?.into(),
        other => anyhow::bail!("{other} objects are not read in protobuf"),
    })
}

#[test]
fn s14_an_object_means_the_same_in_protobuf_and_in_json() {
    in_lab("s14_an_object_means_the_same_in_protobuf_and_in_json", async |lab| {
        let file = manifest_file(lab, "encodings.yaml", IN_BOTH_ENCODINGS)?;
        lab.kubectl(&["apply", "-f", &file]).await?;
        for (kind, name, status) in STATUS {
            let patch = ["patch", kind, name, "--subresource=status", "--type=merge", "-p", status];
            lab.kubectl(&patch).await?;
        }
        let services = compare(lab, Kind::Service, "/api/v1/namespaces/default/services").await?;
        let slices = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices";
        let slices = compare(lab, Kind::EndpointSlice, slices).await?;
        let nodes = compare(lab, Kind::Node, "/api/v1/nodes").await?;
        ensure!(services >= 5 && slices >= 2 && nodes >= 3, "{services} {slices} {nodes}");
        lab.kubectl(&["delete", "-f", &file]).await?;
        Ok(())
    });
}

#[test]
fn s3_a_proxy_with_a_name_is_sent_the_services_that_carry_it() {
    in_lab("s3_a_proxy_with_a_name_is_sent_the_services_that_carry_it", async |lab| {
        install(lab).await?;
        let mut named = View::of_proxy(lab, Some("mine")).await?;
        let mine = ServiceId::new("default", "s3");
        lab.kubectl(&["create", "service", "clusterip", "s3", "--tcp=80"]).await?;
        let label = async |value: &str| {
            let label = format!("service.kubernetes.io/service-proxy-name{value}");
            lab.kubectl(&["label", "--overwrite", "service", "s3", &label]).await
        };
        let only = |count| move |s: &Snapshot| s.services.size() <= count;
        named.until("the Services without a label are not sent", only(0), |s| s.services.is_empty()).await?;
        label("=mine").await?;
        named.until("a labelled one is", only(1), |s| s.services.contains_key(&mine)).await?;
        label("=other").await?;
        named.until("another's is not", only(1), |s| s.services.is_empty()).await?;
        label("=mine").await?;
        named.until("it is back", only(1), |s| s.services.contains_key(&mine)).await?;
        lab.kubectl(&["delete", "service", "s3"]).await?;
        Ok(())
    });
}

#[test]
fn a_definition_that_is_missing_is_waited_for() {
    in_lab("a_definition_that_is_missing_is_waited_for", async |lab| {
        install(lab).await?;
        lab.kubectl(&["delete", "crd", "ipallocations.portolan.dev"]).await?;
        let mut view = View::start(lab).await?;
        let listed = |index: &Index| index.unlisted().collect::<Vec<_>>();
        let others = async {
            while listed(&view.index) != [Kind::Allocation] {
                let change = view.changes.recv().await.context("the watches ended")?;
                view.index.apply(change);
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(WITHIN, others).await.context("every other kind is listed")??;
        ensure!(view.index.snapshot().is_none());
        install(lab).await?;
        wait_for("the definition is back", WITHIN, async || {
            Ok(lab.kubectl(&["get", "ipallocations"]).await.map_err(|error| error.to_string()))
        })
        .await?;
        view.until("the kind is listed", |_| true, |_| true).await?;
        Ok(())
    });
}
