//! What administrators write: IPAddressPool, Advertisement, BGPPeer (vips.md 2.1–2.3).
//!
//! The API server has checked them against schema and CEL; they are checked here once more, because a manifest read
//! offline has met no API server and because some rules (a range that ends before it begins) cannot be said in CEL.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as KubeSelector;
use portolan_api as api;
use portolan_api::conditions::object::INVALID;
use portolan_bgp::PeerAsn;
use portolan_model::{
    Advertisement, BgpAdvertisement, Family, LabelSelector, Name, Operator, Peer, Pool, Requirement,
    ServiceAllocation, Source, WhenNoEndpoints,
};

use crate::change::Value;
use crate::problems::Problems;
use crate::service::{created, labels};
use crate::{Key, Kind, Object, text};

const MAX_REUSE_DELAY: Duration = Duration::from_secs(24 * 3600);
const MAX_SECS: Duration = Duration::from_secs(65535);

impl From<api::IPAddressPool> for Object {
    fn from(pool: api::IPAddressPool) -> Object {
        whole(Kind::Pool, Key::of(&pool.metadata), |key, check| {
            Value::Pool(Arc::new(parse_pool(&pool, key, check)))
        })
        .seen_as(&pool.metadata, pool.status.map_or_else(Vec::new, |status| status.conditions))
    }
}

impl From<api::Advertisement> for Object {
    fn from(advertisement: api::Advertisement) -> Object {
        whole(Kind::Advertisement, Key::of(&advertisement.metadata), |key, check| {
            Value::Advertisement(Arc::new(parse_advertisement(&advertisement.spec, key, check)))
        })
        .seen_as(
            &advertisement.metadata,
            advertisement.status.map_or_else(Vec::new, |status| status.conditions),
        )
    }
}

impl From<api::BGPPeer> for Object {
    fn from(peer: api::BGPPeer) -> Object {
        whole(Kind::Peer, Key::of(&peer.metadata), |key, check| match parse_peer(&peer, key, check) {
            Some(peer) => Value::Peer(Arc::new(peer)),
            None => Value::Invalid,
        })
        .seen_as(&peer.metadata, peer.status.map_or_else(Vec::new, |status| status.conditions))
    }
}

/// One of ours counts as a whole or not at all: half a pool would be another pool.
pub fn whole(kind: Kind, key: Key, parse: impl FnOnce(&Key, &mut Checks) -> Value) -> Object {
    let mut checks = Checks(Problems::new(kind, &key));
    let value = parse(&key, &mut checks);
    let value = if checks.0.is_empty() { value } else { Value::Invalid };
    let problems = checks.0.into_vec();
    Object::new(kind, key, value, problems)
}

/// Parsers whose complaint is noted with the field's name.
pub struct Checks<'a>(Problems<'a>);

impl Checks<'_> {
    pub fn wrong(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.0.add(field, INVALID, message);
    }

    fn require(&mut self, holds: bool, field: &str, message: &str) {
        if !holds {
            self.wrong(field, message);
        }
    }

    fn one<T>(&mut self, field: &str, parsed: Result<T, String>) -> Option<T> {
        parsed.map_err(|message| self.wrong(field, message)).ok()
    }

    fn each<T>(&mut self, field: &str, texts: &[String], parse: fn(&str) -> Result<T, String>) -> Vec<T> {
        let texts = texts.iter().enumerate();
        texts.filter_map(|(at, text)| self.one(&format!("{field}[{at}]"), parse(text))).collect()
    }

    pub fn address(&mut self, field: &str, text: &str) -> Option<IpAddr> {
        self.one(field, text.parse().map_err(|_| format!("\"{text}\" is not an IP address")))
    }

    fn duration(&mut self, field: &str, text: &str) -> Duration {
        self.one(field, text::duration(text)).unwrap_or_default()
    }

    fn selectors(&mut self, field: &str, selectors: &[KubeSelector]) -> Vec<LabelSelector> {
        let selectors = selectors.iter().enumerate();
        selectors.map(|(at, each)| self.selector(&format!("{field}[{at}]"), each)).collect()
    }

    fn selector(&mut self, field: &str, selector: &KubeSelector) -> LabelSelector {
        let equal = selector.match_labels.iter().flatten().map(|(key, value)| Requirement {
            key: key.as_str().into(),
            operator: Operator::In,
            values: vec![value.as_str().into()],
        });
        let mut requirements: Vec<Requirement> = equal.collect();
        for (at, expression) in selector.match_expressions.iter().flatten().enumerate() {
            let field = format!("{field}.matchExpressions[{at}]");
            let values: Vec<Name> = names(expression.values.as_deref().unwrap_or_default());
            let Some(operator) = operator(&expression.operator) else {
                self.wrong(
                    format!("{field}.operator"),
                    format!("\"{}\" is not an operator", expression.operator),
                );
                continue;
            };
            let wants_values = matches!(operator, Operator::In | Operator::NotIn);
            self.require(
                wants_values != values.is_empty(),
                &format!("{field}.values"),
                "must be given with In and NotIn, and only with them",
            );
            requirements.push(Requirement { key: expression.key.as_str().into(), operator, values });
        }
        LabelSelector(requirements)
    }
}

fn operator(word: &str) -> Option<Operator> {
    match word {
        "In" => Some(Operator::In),
        "NotIn" => Some(Operator::NotIn),
        "Exists" => Some(Operator::Exists),
        "DoesNotExist" => Some(Operator::DoesNotExist),
        _ => None,
    }
}

fn parse_pool(pool: &api::IPAddressPool, key: &Key, check: &mut Checks) -> Pool {
    let spec = &pool.spec;
    let allocation = spec.service_allocation.clone().unwrap_or_default();
    let selectors = &allocation.service_selectors;
    check.require(!spec.addresses.is_empty(), "spec.addresses", "must name at least one range");
    let reuse_delay = check.duration("spec.reuseDelay", &spec.reuse_delay);
    check.require(reuse_delay <= MAX_REUSE_DELAY, "spec.reuseDelay", "must be from 0s to 24h");
    Pool {
        name: key.name.clone(),
        labels: labels(&pool.metadata),
        created: created(&pool.metadata),
        addresses: check.each("spec.addresses", &spec.addresses, text::range),
        exclude: check.each("spec.exclude", &spec.exclude, text::range),
        auto_assign: spec.auto_assign,
        avoid_dot0_dot255: spec.avoid == api::Avoid::Dot0Dot255,
        service_allocation: ServiceAllocation {
            priority: allocation.priority,
            namespaces: names(&allocation.namespaces),
            service_selectors: check.selectors("spec.serviceAllocation.serviceSelectors", selectors),
        },
        reuse_delay,
        disabled: spec.disabled,
    }
}

fn parse_advertisement(spec: &api::AdvertisementSpec, key: &Key, check: &mut Checks) -> Advertisement {
    let sources: Vec<Source> = spec.sources.iter().map(|each| source(*each)).collect();
    let fenced = !sources.contains(&Source::ExternalIp) || !spec.external_ip_cidrs.is_empty();
    check.require(fenced, "spec.externalIPCIDRs", "must be given when spec.sources has ExternalIP");
    check.require(spec.bgp.is_some(), "spec.bgp", "must be given; {} takes every default");
    Advertisement {
        name: key.name.clone(),
        pools: names(&spec.ip_address_pools),
        pool_selectors: check.selectors("spec.ipAddressPoolSelectors", &spec.ip_address_pool_selectors),
        service_selectors: check.selectors("spec.serviceSelectors", &spec.service_selectors),
        namespaces: Vec::new(),
        node_selectors: check.selectors("spec.nodeSelectors", &spec.node_selectors),
        sources,
        external_ip_cidrs: check.each("spec.externalIPCIDRs", &spec.external_ip_cidrs, text::network),
        disabled: spec.disabled,
        bgp: spec.bgp.as_ref().map(|bgp| parse_bgp(bgp, check)),
    }
}

fn parse_bgp(bgp: &api::BgpAdvertisement, check: &mut Checks) -> BgpAdvertisement {
    let (v4, v6) = (bgp.aggregation_length, bgp.aggregation_length_v6);
    check.require((1..=32).contains(&v4), "spec.bgp.aggregationLength", "must be from 1 to 32");
    check.require((1..=128).contains(&v6), "spec.bgp.aggregationLengthV6", "must be from 1 to 128");
    check.require(bgp.as_path_prepend <= 10, "spec.bgp.asPathPrepend", "must be at most 10");
    let mut communities = check.each("spec.bgp.communities", &bgp.communities, text::community);
    communities.sort();
    communities.dedup();
    BgpAdvertisement {
        peers: names(&bgp.peers),
        aggregation_length: v4,
        aggregation_length_v6: v6,
        local_pref: bgp.local_pref,
        med: bgp.med,
        as_path_prepend: bgp.as_path_prepend,
        communities,
        when_no_endpoints: match bgp.when_no_endpoints {
            api::WhenNoEndpoints::Withdraw => WhenNoEndpoints::Withdraw,
            api::WhenNoEndpoints::Keep => WhenNoEndpoints::Keep,
        },
    }
}

/// None where nothing could stand for what is wrong; the problem is noted either way.
fn parse_peer(peer: &api::BGPPeer, key: &Key, check: &mut Checks) -> Option<Peer> {
    let spec = &peer.spec;
    let address = check.address("spec.peerAddress", &spec.peer_address);
    let source = spec.source_address.as_ref();
    let source_address = source.and_then(|text| check.address("spec.sourceAddress", text));
    let one_family = address.zip(source_address).is_none_or(|(a, b)| Family::of(&a) == Family::of(&b));
    check.require(one_family, "spec.sourceAddress", "must be of the same family as spec.peerAddress");
    let peer_asn: Option<PeerAsn> = check.one("spec.peerASN", text::peer_asn(spec.peer_asn));
    check.require(spec.my_asn != Some(0), "spec.myASN", "0 is not an AS number");
    check.require(spec.peer_port != 0, "spec.peerPort", "0 is not a port");
    check.require(!spec.families.is_empty(), "spec.families", "must name at least one");
    let ttl = spec.multihop_ttl.unwrap_or(1);
    check.require(ttl != 0, "spec.multihopTTL", "must be from 1 to 255");
    let (hold_time, keepalive_time, connect_time) = timers(spec, check);
    Some(Peer {
        name: key.name.clone(),
        labels: labels(&peer.metadata),
        address: address?,
        port: spec.peer_port,
        peer_asn: peer_asn?,
        my_asn: spec.my_asn,
        passive: spec.passive,
        source_address,
        hold_time,
        keepalive_time,
        connect_time,
        families: families(&spec.families),
        multihop_ttl: ttl,
        node_selectors: check.selectors("spec.nodeSelectors", &spec.node_selectors),
    })
}

fn timers(spec: &api::BGPPeerSpec, check: &mut Checks) -> (Duration, Option<Duration>, Duration) {
    let hold = check.duration("spec.holdTime", &spec.hold_time);
    // RFC 4271 4.2: zero, or at least three seconds; two octets of whole seconds.
    let hold_allowed = hold.is_zero() || (Duration::from_secs(3) <= hold && hold <= MAX_SECS);
    check.require(hold_allowed, "spec.holdTime", "must be 0s, or from 3s to 65535s");
    let keepalive = spec.keepalive_time.as_ref().map(|text| check.duration("spec.keepaliveTime", text));
    let third = keepalive.is_none_or(|keepalive| keepalive * 3 <= hold);
    check.require(third, "spec.keepaliveTime", "must be at most a third of spec.holdTime");
    let connect = check.duration("spec.connectTime", &spec.connect_time);
    let connect_allowed = Duration::from_secs(1) <= connect && connect <= MAX_SECS;
    check.require(connect_allowed, "spec.connectTime", "must be from 1s to 65535s");
    (hold, keepalive, connect)
}

fn families(listed: &[api::Family]) -> Vec<Family> {
    let family = |family: &api::Family| match family {
        api::Family::Ipv4Unicast => Family::Ipv4,
        api::Family::Ipv6Unicast => Family::Ipv6,
    };
    let mut families: Vec<Family> = listed.iter().map(family).collect();
    families.sort();
    families.dedup();
    families
}

fn source(source: api::Source) -> Source {
    match source {
        api::Source::LoadBalancerIP => Source::LoadBalancerIp,
        api::Source::ClusterIP => Source::ClusterIp,
        api::Source::ExternalIP => Source::ExternalIp,
        api::Source::ServiceCIDR => Source::ServiceCidr,
        api::Source::PodCIDR => Source::PodCidr,
    }
}

fn names(texts: &[String]) -> Vec<Name> {
    texts.iter().map(|text| text.as_str().into()).collect()
}
