//! The figures about packets: each subject's, and how they compare.

use std::collections::BTreeMap;

use crate::objects::{self, Size};
use crate::pace::Quickest;
use crate::packets::{self, Cost};
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
    let kinds = used.iter().map(|(kind, _)| *kind);
    for (kind, cost) in of_each(kinds.zip(costs)) {
        let mut figure = |name: &str, nanos, bar| {
            report.add(kind, &format!("{size}, {name}"), nanos / 1e3, "µs", Some(bar))
        };
        figure(NEW_CONNECTION, cost.new, 2.1);
        figure("packets: established connection, over routing", cost.established, 0.5);
    }
    Ok(())
}

/// The median of a subject's nodes.
fn of_each(nodes: impl Iterator<Item = (Kind, Cost)>) -> BTreeMap<Kind, Cost> {
    let mut costs: BTreeMap<Kind, Vec<Cost>> = BTreeMap::new();
    nodes.for_each(|(kind, cost)| costs.entry(kind).or_default().push(cost));
    let middle = |costs: &[Cost], of: fn(&Cost) -> f64| median(&costs.iter().map(of).collect::<Vec<_>>());
    let cost = |costs: Vec<Cost>| Cost {
        new: middle(&costs, |cost| cost.new),
        established: middle(&costs, |cost| cost.established),
    };
    costs.into_iter().map(|(kind, costs)| (kind, cost(costs))).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_subject_costs_what_its_middle_node_does() {
        let node = |kind, new| (kind, Cost { new, established: new / 10.0 });
        let nodes = [
            node(Kind::Nftables, 5.0),
            node(Kind::Portolan, 1.0),
            node(Kind::Portolan, 9.0),
            node(Kind::Portolan, 2.0),
        ];
        let of_each = of_each(nodes.into_iter());
        assert_eq!(of_each.len(), 2);
        assert_eq!((of_each[&Kind::Portolan].new, of_each[&Kind::Portolan].established), (2.0, 0.2));
        assert_eq!(of_each[&Kind::Nftables].new, 5.0);
    }

    #[test]
    fn ours_is_compared_with_few_services_and_with_kube_proxy() {
        let sizes = [Size::new(1_000, 3), Size::new(30_000, 10)];
        let mut report = Report::default();
        let mut add = |kind, size: usize, value| {
            report.add(kind, &format!("{}, {NEW_CONNECTION}", sizes[size]), value, "µs", None);
        };
        add(Kind::Portolan, 0, 1.6);
        add(Kind::Nftables, 0, 2.0);
        add(Kind::Iptables, 0, 9.0);
        add(Kind::Portolan, 1, 2.0);
        compare(&mut report, &sizes);
        let found: Vec<_> =
            report.figures().iter().skip(2).map(|f| (&*f.name, f.value.map(f64::round), f.ok)).collect();
        assert_eq!(
            found,
            [
                ("30k × 10, packets: new connection, beside 1k × 3", Some(25.0), Some(false)),
                ("1k × 3, packets: new connection, of kube-proxy's", Some(80.0), Some(true)),
            ]
        );
    }
}
