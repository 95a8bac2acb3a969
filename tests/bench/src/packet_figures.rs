//! The figures about packets: each subject's, and how they compare.

use std::collections::BTreeSet;

use crate::objects::{self, Size};
use crate::pace::Quickest;
use crate::packets;
use crate::report::Report;
use crate::stats::median;
use crate::subject::Kind;
use crate::world::Wires;

/// Services whose packets are measured.
const ASKED: usize = 64;
const NEW_CONNECTION: &str = "packets: new connection, over routing";

/// By the last Services, for which a proxy that walks through its rules walks longest. Of each subject the median of its nodes.
pub async fn add(
    report: &mut Report,
    size: Size,
    (plain, quickest): (&Wires, &mut Quickest),
    used: &[(Kind, Wires)],
    quick: bool,
) -> anyhow::Result<()> {
    let last: Vec<_> = (0..size.services).rev().take(ASKED).map(objects::frontend).collect();
    let nodes: Vec<&Wires> = used.iter().map(|(_, wires)| wires).collect();
    let costs = packets::measure(plain, quickest, &nodes, &last, quick).await?;
    for kind in used.iter().map(|(kind, _)| *kind).collect::<BTreeSet<Kind>>() {
        let of = |f: fn(&packets::Cost) -> f64| {
            let costs = used.iter().zip(&costs).filter(|((of, _), _)| *of == kind);
            median(&costs.map(|(_, cost)| f(cost) / 1e3).collect::<Vec<_>>())
        };
        let mut add =
            |name: &str, value, bar| report.add(kind, &format!("{size}, {name}"), value, "µs", Some(bar));
        add(NEW_CONNECTION, of(|cost| cost.new), 2.1);
        add("packets: established connection, over routing", of(|cost| cost.established), 0.5);
    }
    Ok(())
}

/// Ours at many Services beside ours at few, and beside kube-proxy's.
pub fn compare(report: &mut Report, sizes: &[Size]) {
    flat(report, sizes);
    beside_rival(report, sizes);
}

/// Whether a new connection costs the same however many Services there are.
fn flat(report: &mut Report, sizes: &[Size]) {
    let of = |size: &Size| {
        let name = format!("{size}, {NEW_CONNECTION}");
        report.figures().iter().find(|figure| figure.name == name).and_then(|figure| figure.value)
    };
    if let [first, .., last] = sizes
        && let Some((few, many)) = of(first).zip(of(last))
    {
        let name = format!("{last}, packets: new connection, beside {first}");
        report.add(Kind::Portolan, &name, 100.0 * (many / few - 1.0), "% more", Some(5.0));
    }
}

/// What a new connection costs of what it costs with kube-proxy, in the mode whose rules are of the same kind.
fn beside_rival(report: &mut Report, sizes: &[Size]) {
    for size in sizes {
        let name = format!("{size}, {NEW_CONNECTION}");
        let both = report
            .figures()
            .iter()
            .find(|figure| figure.name == name)
            .and_then(|figure| figure.value.zip(figure.rivals.get(Kind::Nftables.name()).copied()));
        if let Some((ours, rival)) = both {
            let name = format!("{size}, packets: new connection, of kube-proxy's");
            report.add(Kind::Portolan, &name, 100.0 * ours / rival, "%", Some(85.0));
        }
    }
}
