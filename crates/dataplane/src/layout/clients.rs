//! Who asks: source ranges, and how pods are told from outside clients.

use portolan_model::{Detector, Family};
use portolan_nft::{Atom, Field, Name, Rule, Statement, Verdict};

use super::parts::{frontend, in_prefix, jump, rule};
use super::settings::of_family;
use super::{FW_ALLOW, FW_VIPS, MARK_NONPODS, Settings};

/// Of an interface's name, without the zero at its end.
const MAX_INTERFACE_LEN: usize = 15;

/// S27: before every other rule, so that pods and the node itself are held to the ranges too.
pub fn source_ranges() -> Rule {
    let mut with_source = frontend();
    with_source.push(Field::Saddr);
    rule([
        Statement::InSet { key: frontend(), set: FW_VIPS.into(), negate: false },
        Statement::InSet { key: with_source, set: FW_ALLOW.into(), negate: true },
        Statement::Verdict(Verdict::Drop),
    ])
}

/// S16.
pub fn mark_nonpods(settings: &Settings, family: Family) -> Vec<Rule> {
    let pods = pod_sources(settings, family)
        .into_iter()
        .map(|from_pod| rule([from_pod, Statement::Verdict(Verdict::Return)]));
    pods.chain([rule([Statement::MarkOr(settings.mark)])]).collect()
}

/// The same in one rule, without a chain's detour where pods are told by one range.
pub fn mark_unless_pod(settings: &Settings, family: Family) -> Rule {
    match &pod_sources(settings, family)[..] {
        [Statement::InPrefix { field, address, length, negate: false }] => {
            let (field, address, length) = (field.clone(), *address, *length);
            let outside = Statement::InPrefix { field, address, length, negate: true };
            rule([outside, Statement::MarkOr(settings.mark)])
        }
        _ => rule([jump(MARK_NONPODS)]),
    }
}

/// S48: one match for each range or interface of pods. What the node itself sends comes in by no interface.
pub fn pod_sources(settings: &Settings, family: Family) -> Vec<Statement> {
    match &settings.pods {
        Detector::Ranges(ranges) => {
            of_family(ranges, family).iter().map(|net| in_prefix(Field::Saddr, net)).collect()
        }
        Detector::Interface(name) => vec![comes_in_by(name)],
        // As long as a name can be, it is the name.
        Detector::InterfacePrefix(name) if name.len() >= MAX_INTERFACE_LEN => vec![comes_in_by(name)],
        Detector::InterfacePrefix(prefix) => vec![Statement::IifPrefix(prefix.clone())],
    }
}

fn comes_in_by(interface: &Name) -> Statement {
    Statement::Compare { field: Field::Iif, value: Atom::Interface(interface.clone()), negate: false }
}
