//! Sets of addresses as sorted, disjoint, inclusive ranges: their cost follows what people wrote, not how many
//! addresses that means.

use std::net::IpAddr;

use portolan_model::{Family, IpRange, next, previous};

/// Sorts, and joins what overlaps or touches.
pub fn normalize(mut ranges: Vec<IpRange>) -> Vec<IpRange> {
    ranges.sort();
    let mut out: Vec<IpRange> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match out.last_mut() {
            Some(last) if touches(last, &range) => last.last = last.last.max(range.last),
            _ => out.push(range),
        }
    }
    out
}

/// Whether `range`, which starts no earlier, continues `last`.
fn touches(last: &IpRange, range: &IpRange) -> bool {
    let one_family = Family::of(&last.first) == Family::of(&range.first);
    one_family && (range.first <= last.last || next(last.last) == Some(range.first))
}

/// `from` without `what`; both normalized.
pub fn subtract(from: &[IpRange], what: &[IpRange]) -> Vec<IpRange> {
    let mut out = Vec::new();
    for range in from {
        let start = what.partition_point(|hole| hole.last < range.first);
        let mut first = Some(range.first);
        for hole in what[start..].iter().take_while(|hole| hole.first <= range.last) {
            let Some(at) = first else { break };
            if let Some(last) = previous(hole.first).filter(|last| at < hole.first && at <= *last) {
                out.push(IpRange { first: at, last });
            }
            first = next(hole.last).map(|after| after.max(at));
        }
        if let Some(first) = first.filter(|first| *first <= range.last) {
            out.push(IpRange { first, last: range.last });
        }
    }
    out
}

/// What two normalized sets have in common, as one range of it.
pub fn overlap(a: &[IpRange], b: &[IpRange]) -> Option<IpRange> {
    a.iter().find_map(|range| {
        let other = b.get(b.partition_point(|other| other.last < range.first))?;
        let (first, last) = (range.first.max(other.first), range.last.min(other.last));
        (Family::of(&first) == Family::of(&last) && first <= last).then_some(IpRange { first, last })
    })
}

pub fn contains(ranges: &[IpRange], address: IpAddr) -> bool {
    let at = ranges.partition_point(|range| range.last < address);
    ranges.get(at).is_some_and(|range| range.contains(&address))
}

/// How many addresses; 2^128 is said as one less.
pub fn size(range: &IpRange) -> u128 {
    (bits(range.last) - bits(range.first)).saturating_add(1)
}

pub fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::fixture::ranges;

    fn render(ranges: &[IpRange]) -> String {
        ranges.iter().map(|range| format!("{}-{}\n", range.first, range.last)).collect()
    }

    fn check(from: &str, what: &str, expect: Expect) {
        expect.assert_eq(&render(&subtract(&normalize(ranges(from)), &normalize(ranges(what)))));
    }

    #[test]
    fn subtraction_leaves_what_is_left() {
        check(
            "10.0.0.0-10.0.0.9",
            "10.0.0.3-10.0.0.5 10.0.0.9",
            expect![[r#"
            10.0.0.0-10.0.0.2
            10.0.0.6-10.0.0.8
        "#]],
        );
        check("10.0.0.0-10.0.0.9", "10.0.0.0-10.0.0.9", expect![[""]]);
        check(
            "10.0.0.4-10.0.0.9",
            "9.0.0.0-10.0.0.4 10.0.0.4-10.0.0.6",
            expect![[r#"
            10.0.0.7-10.0.0.9
        "#]],
        );
        check(
            "255.255.255.250-255.255.255.255 ::-::5",
            "255.255.255.254-255.255.255.255 ::",
            expect![[r#"
            255.255.255.250-255.255.255.253
            ::1-::5
        "#]],
        );
    }

    #[test]
    fn normalizing_joins_neighbours_of_one_family() {
        let joined = normalize(ranges("10.0.0.5-10.0.0.9 10.0.0.0-10.0.0.4 10.0.0.2 ::1 ::0 10.0.0.11"));
        expect![[r#"
            10.0.0.0-10.0.0.9
            10.0.0.11-10.0.0.11
            ::-::1
        "#]]
        .assert_eq(&render(&joined));
    }

    #[test]
    fn every_address_is_in_or_out_as_it_should() {
        arbtest::arbtest(|u| {
            let small = |u: &mut arbitrary::Unstructured| -> arbitrary::Result<Vec<IpRange>> {
                let mut out = Vec::new();
                for _ in 0..u.int_in_range(0..=5)? {
                    let (a, b) = (u.int_in_range(0..=30u8)?, u.int_in_range(0..=30u8)?);
                    let ip = |n: u8| IpAddr::from([10, 0, 0, n]);
                    out.push(IpRange { first: ip(a.min(b)), last: ip(a.max(b)) });
                }
                Ok(out)
            };
            let (a, b) = (small(u)?, small(u)?);
            let (na, nb) = (normalize(a.clone()), normalize(b.clone()));
            let difference = subtract(&na, &nb);
            let mut common = false;
            for n in 0..=31u8 {
                let ip = IpAddr::from([10, 0, 0, n]);
                let (in_a, in_b) = (a.iter().any(|r| r.contains(&ip)), b.iter().any(|r| r.contains(&ip)));
                assert_eq!(contains(&na, ip), in_a);
                assert_eq!(contains(&difference, ip), in_a && !in_b);
                common |= in_a && in_b;
            }
            assert_eq!(overlap(&na, &nb).is_some(), common);
            assert_eq!(difference, normalize(difference.clone()));
            Ok(())
        });
    }
}
