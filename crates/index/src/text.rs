//! Addresses, ranges, durations and communities as people write them. Every parser answers None, or a sentence that
//! quotes the text, and never guesses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use portolan_api::{PeerAsn as ApiPeerAsn, WELL_KNOWN_COMMUNITIES as WELL_KNOWN};
use portolan_bgp::{Community, PeerAsn};
use portolan_model::{Family, IpRange};

/// An address of a stored Kubernetes object: leading zeros are decimal (S14), and an IPv4 address in IPv6 clothes is
/// the IPv4 address, as in Kubernetes.
pub fn ip(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let ip = text.parse::<IpAddr>().ok().or_else(|| leading_zeros(text).map(IpAddr::V4))?;
    Some(ip.to_canonical())
}

/// An address that clients reach or connections go to. Kubernetes takes none for external IPs and endpoints that means
/// something else on every machine; a rule for one would open a node's own loopback or its cloud's metadata to others.
pub fn reachable(text: &str) -> Result<IpAddr, String> {
    let ip = ip(text).ok_or_else(|| format!("\"{text}\" is not an IP address"))?;
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_broadcast(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    match is_link_local || ip.is_loopback() || ip.is_unspecified() || ip.is_multicast() {
        true => Err(format!("{ip} is a loopback, link-local, multicast or unspecified address")),
        false => Ok(ip),
    }
}

fn leading_zeros(text: &str) -> Option<Ipv4Addr> {
    let mut parts = text.split('.').map(|part| {
        let digits = !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| part.parse::<u8>().ok()).flatten()
    });
    let octets = [parts.next()??, parts.next()??, parts.next()??, parts.next()??];
    parts.next().is_none().then(|| octets.into())
}

/// A CIDR of a stored Kubernetes object; host bits are dropped, whitespace is not looked at (S14).
pub fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.trim().split_once('/')?;
    let digits = !length.is_empty() && length.bytes().all(|byte| byte.is_ascii_digit());
    let length = digits.then(|| length.parse::<u8>().ok()).flatten()?;
    let address = address.parse::<IpAddr>().ok().or_else(|| leading_zeros(address).map(IpAddr::V4))?;
    Some(IpNet::new(address, length).ok()?.trunc())
}

/// A CIDR of one of our own objects: the text must be the network itself.
pub fn network(text: &str) -> Result<IpNet, String> {
    let net: IpNet = text.parse().map_err(|_| format!("\"{text}\" is not a CIDR"))?;
    if net.addr() != net.network() {
        return Err(format!("\"{text}\" has host bits set: write {}", net.trunc()));
    }
    Ok(net)
}

/// A CIDR or a range `a-b`.
pub fn range(text: &str) -> Result<IpRange, String> {
    if text.contains('/') {
        let net = network(text)?;
        return Ok(IpRange { first: net.network(), last: last(&net) });
    }
    let neither = || format!("\"{text}\" is not a CIDR or a range a-b");
    let (first, end) = text.split_once('-').ok_or_else(neither)?;
    let first: IpAddr = first.trim().parse().map_err(|_| neither())?;
    let last: IpAddr = end.trim().parse().map_err(|_| neither())?;
    if Family::of(&first) != Family::of(&last) {
        return Err(format!("\"{text}\" has ends of two families"));
    }
    if first > last {
        return Err(format!("\"{text}\" ends before it begins"));
    }
    Ok(IpRange { first, last })
}

/// The highest address of a network: what a range means by its end, for both families.
fn last(net: &IpNet) -> IpAddr {
    match net {
        IpNet::V4(v4) => IpAddr::V4(Ipv4Addr::from_bits(v4.network().to_bits() | !v4.netmask().to_bits())),
        IpNet::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.network().to_bits() | !v6.netmask().to_bits())),
    }
}

/// Go's duration text with whole numbers: `90s`, `1m30s`, `500ms`; also a bare `0`.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("\"{text}\" is not a duration such as 90s or 1m30s");
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let (number, tail) = rest.split_at(digits);
        let letters = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(letters);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let millis_per_unit = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "" if number == 0 => 0,
            _ => return Err(wrong()),
        };
        let millis = number.checked_mul(millis_per_unit).ok_or_else(wrong)?;
        total = total.checked_add(Duration::from_millis(millis)).ok_or_else(wrong)?;
        rest = tail;
    }
    if text.is_empty() { Err(wrong()) } else { Ok(total) }
}

/// `a:b` (RFC 1997), `large:a:b:c` (RFC 8092) or a well-known name.
pub fn community(text: &str) -> Result<Community, String> {
    let wrong = || {
        format!("\"{text}\" is not a community: write 64500:100, large:64500:1:2 or a name such as no-export")
    };
    if let Some((_, value)) = WELL_KNOWN.iter().find(|(name, _)| *name == text) {
        return Ok(Community::Standard(*value));
    }
    let part = |part: &str| part.parse::<u32>().map_err(|_| wrong());
    match text.split(':').collect::<Vec<_>>()[..] {
        ["large", a, b, c] => Ok(Community::Large(part(a)?, part(b)?, part(c)?)),
        [a, b] => {
            let half = |text: &str| text.parse::<u16>().map(u32::from).map_err(|_| wrong());
            Ok(Community::Standard(half(a)? << 16 | half(b)?))
        }
        _ => Err(wrong()),
    }
}

pub fn peer_asn(asn: ApiPeerAsn) -> Result<PeerAsn, String> {
    use portolan_api::AsnRelation::{Any, External, Internal};
    match asn {
        ApiPeerAsn::Number(0) => Err("0 is not an AS number".into()),
        ApiPeerAsn::Number(number) => Ok(PeerAsn::Number(number)),
        ApiPeerAsn::Relation(External) => Ok(PeerAsn::External),
        ApiPeerAsn::Relation(Internal) => Ok(PeerAsn::Internal),
        ApiPeerAsn::Relation(Any) => Ok(PeerAsn::Any),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use expect_test::{Expect, expect};

    use super::*;

    fn check<T: Debug>(parse: impl Fn(&str) -> T, texts: &[&str], expected: Expect) {
        let lines: Vec<String> = texts.iter().map(|text| format!("{text:?}: {:?}", parse(text))).collect();
        expected.assert_eq(&lines.join("\n"));
    }

    #[test]
    fn s14_addresses_with_leading_zeros_and_blanks() {
        check(
            ip,
            &[
                "010.096.000.001",
                " 10.0.0.1 ",
                "::ffff:10.0.0.1",
                "fd00::1",
                "10.0.0.256",
                "10.0.0",
                "1.2.3.4.5",
                "+1.2.3.4",
                "",
            ],
            expect![[r#"
                "010.096.000.001": Some(10.96.0.1)
                " 10.0.0.1 ": Some(10.0.0.1)
                "::ffff:10.0.0.1": Some(10.0.0.1)
                "fd00::1": Some(fd00::1)
                "10.0.0.256": None
                "10.0.0": None
                "1.2.3.4.5": None
                "+1.2.3.4": None
                "": None"#]],
        );
    }

    #[test]
    fn s14_addresses_that_no_one_else_can_reach() {
        check(
            |text| reachable(text).err().is_some_and(|error| error.contains("loopback")),
            &[
                "127.0.0.1",
                "0.0.0.0",
                "169.254.169.254",
                "224.0.0.1",
                "255.255.255.255",
                "::1",
                "::",
                "fe80::1",
                "ff02::1",
                "::ffff:127.0.0.1",
                "127.000.000.001",
                "10.0.0.1",
                "fd00::1",
            ],
            expect![[r#"
                "127.0.0.1": true
                "0.0.0.0": true
                "169.254.169.254": true
                "224.0.0.1": true
                "255.255.255.255": true
                "::1": true
                "::": true
                "fe80::1": true
                "ff02::1": true
                "::ffff:127.0.0.1": true
                "127.000.000.001": true
                "10.0.0.1": false
                "fd00::1": false"#]],
        );
    }

    #[test]
    fn s14_source_ranges() {
        check(
            cidr,
            &[
                " 10.0.0.0/8 ",
                "10.1.2.3/8",
                "010.0.0.0/08",
                "fd00::/8",
                "10.0.0.0",
                "10.0.0.0/33",
                "10.0.0.0/+8",
            ],
            expect![[r#"
                " 10.0.0.0/8 ": Some(10.0.0.0/8)
                "10.1.2.3/8": Some(10.0.0.0/8)
                "010.0.0.0/08": Some(10.0.0.0/8)
                "fd00::/8": Some(fd00::/8)
                "10.0.0.0": None
                "10.0.0.0/33": None
                "10.0.0.0/+8": None"#]],
        );
    }

    #[test]
    fn ranges() {
        check(
            range,
            &[
                "192.0.2.0/30",
                "192.0.2.1 - 192.0.2.3",
                "2001:db8::/127",
                "0.0.0.0/0",
                "192.0.2.1/30",
                "192.0.2.300-192.0.2.310",
                "192.0.2.9-192.0.2.1",
                "192.0.2.1-fd00::1",
                "192.0.2.1",
                "a-b-c",
                "",
            ],
            expect![[r#"
                "192.0.2.0/30": Ok(IpRange { first: 192.0.2.0, last: 192.0.2.3 })
                "192.0.2.1 - 192.0.2.3": Ok(IpRange { first: 192.0.2.1, last: 192.0.2.3 })
                "2001:db8::/127": Ok(IpRange { first: 2001:db8::, last: 2001:db8::1 })
                "0.0.0.0/0": Ok(IpRange { first: 0.0.0.0, last: 255.255.255.255 })
                "192.0.2.1/30": Err("\"192.0.2.1/30\" has host bits set: write 192.0.2.0/30")
                "192.0.2.300-192.0.2.310": Err("\"192.0.2.300-192.0.2.310\" is not a CIDR or a range a-b")
                "192.0.2.9-192.0.2.1": Err("\"192.0.2.9-192.0.2.1\" ends before it begins")
                "192.0.2.1-fd00::1": Err("\"192.0.2.1-fd00::1\" has ends of two families")
                "192.0.2.1": Err("\"192.0.2.1\" is not a CIDR or a range a-b")
                "a-b-c": Err("\"a-b-c\" is not a CIDR or a range a-b")
                "": Err("\"\" is not a CIDR or a range a-b")"#]],
        );
    }

    #[test]
    fn durations() {
        check(
            |text| duration(text).ok(),
            &[
                "90s",
                "1m30s",
                "500ms",
                "0s",
                "0",
                "24h",
                "",
                "90",
                "s",
                "-1s",
                "1.5s",
                "99999999999999999999s",
            ],
            expect![[r#"
                "90s": Some(90s)
                "1m30s": Some(90s)
                "500ms": Some(500ms)
                "0s": Some(0ns)
                "0": Some(0ns)
                "24h": Some(86400s)
                "": None
                "90": None
                "s": None
                "-1s": None
                "1.5s": None
                "99999999999999999999s": None"#]],
        );
    }

    #[test]
    fn communities() {
        check(
            |text| community(text).ok(),
            &[
                "64500:100",
                "large:64500:1:4294967295",
                "no-export",
                "graceful-shutdown",
                "70000:1",
                "large:1:2",
                "foo",
                "1:2:3",
            ],
            expect![[r#"
                "64500:100": Some(Standard(4227072100))
                "large:64500:1:4294967295": Some(Large(64500, 1, 4294967295))
                "no-export": Some(Standard(4294967041))
                "graceful-shutdown": Some(Standard(4294901760))
                "70000:1": None
                "large:1:2": None
                "foo": None
                "1:2:3": None"#]],
        );
    }
}
