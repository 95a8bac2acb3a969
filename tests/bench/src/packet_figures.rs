//! The figures about packets: each subject's, and how they compare.

use crate::objects::{self, Size};
use crate::pace::Quickest;
use crate::packets::{self, Cost, Measured};
use crate::report::Report;
use crate::stats::median;
use crate::subject::Kind;
use crate::world::Wires;

/// Services whose packets are measured.
const ASKED: usize = 64;

/// A node with the rules that a subject wrote.
pub struct Used {
    pub kind: Kind,
    pub size: Size,
    pub wires: Wires,
}

/// By the last Services, for which a proxy that walks through its rules walks longest. Nodes of another size are there to be compared with.
pub async fn add(
    report: &mut Report,
    size: Size,
    (plain, quickest): (&Wires, &mut Quickest),
    used: &[Used],
    quick: bool,
) -> anyhow::Result<()> {
    let last = |size: Size| (0..size.services).rev().take(ASKED).map(objects::frontend).collect::<Vec<_>>();
    let nodes: Vec<_> = used.iter().map(|of| (&of.wires, last(of.size))).collect();
    let measured = packets::measure(plain, quickest, &nodes, quick).await?;
    let subjects = used.iter().map(|of| (of.kind, of.size));
    figures(report, size, &subjects.zip(measured).collect::<Vec<_>>());
    Ok(())
}

fn figures(report: &mut Report, size: Size, measured: &[((Kind, Size), Measured)]) {
    let of = |kind: Kind, size: Size| -> Vec<&Measured> {
        measured.iter().filter(|(of, _)| *of == (kind, size)).map(|(_, measured)| measured).collect()
    };
    for kind in [Kind::Portolan, Kind::Nftables, Kind::Iptables] {
        let nodes = of(kind, size);
        if nodes.is_empty() {
            continue;
        }
        let micros =
            |f: fn(&Cost) -> f64| median(&nodes.iter().map(|node| f(&node.cost) / 1e3).collect::<Vec<_>>());
        let mut add = |name: &str, value, bar| {
            report.add(kind, &format!("{size}, packets: {name}"), value, "µs", Some(bar))
        };
        add("new connection, over routing", micros(|cost| cost.new), 2.1);
        add("established connection, over routing", micros(|cost| cost.established), 0.5);
    }
    let ours = of(Kind::Portolan, size);
    let mut add = |name: &str, value, unit, bar| {
        report.add(
            Kind::Portolan,
            &format!("{size}, packets: new connection, {name}"),
            value,
            unit,
            Some(bar),
        );
    };
    if let Some(ratio) = ratio(&ours, &of(Kind::Nftables, size)) {
        add("of kube-proxy's", 100.0 * ratio, "%", 85.0);
    }
    if let Some(((_, few), _)) =
        measured.iter().find(|((kind, other), _)| *kind == Kind::Portolan && *other != size)
        && let Some(ratio) = ratio(&ours, &of(Kind::Portolan, *few))
    {
        add(&format!("beside {few}"), 100.0 * (ratio - 1.0), "% more", 5.0);
    }
}

/// What a new connection costs on these nodes of what it costs on those: by the medians of rounds that had the core alone, or by the
/// median of all turns, whichever is more.
fn ratio(these: &[&Measured], those: &[&Measured]) -> Option<f64> {
    if these.is_empty() || those.is_empty() {
        return None;
    }
    let alone = |nodes: &[&Measured]| median(&nodes.iter().map(|node| node.cost.new).collect::<Vec<_>>());
    let mean = |nodes: &[&Measured], turn: usize| {
        nodes.iter().map(|node| node.turns[turn]).sum::<f64>() / nodes.len() as f64
    };
    let turns = these.iter().chain(those).map(|node| node.turns.len()).min()?;
    let of_turns: Vec<f64> = (0..turns).map(|turn| mean(these, turn) / mean(those, turn)).collect();
    let (alone, of_turns) = (alone(these) / alone(those), median(&of_turns));
    eprintln!("  in rounds alone {alone:.3}, in all {turns} turns {of_turns:.3}");
    Some(alone.max(of_turns))
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: Size = Size::new(1_000, 3);
    const MANY: Size = Size::new(30_000, 10);

    fn node(kind: Kind, size: Size, new: f64, turns: &[f64]) -> ((Kind, Size), Measured) {
        ((kind, size), Measured { cost: Cost { new, established: new / 10.0 }, turns: turns.to_vec() })
    }

    #[test]
    fn a_subject_costs_what_its_middle_node_does() {
        let mut report = Report::default();
        let measured = [
            node(Kind::Nftables, FEW, 5_000.0, &[9.0]),
            node(Kind::Portolan, FEW, 1_000.0, &[9.0]),
            node(Kind::Portolan, FEW, 9_000.0, &[9.0]),
            node(Kind::Portolan, FEW, 2_000.0, &[9.0]),
        ];
        figures(&mut report, FEW, &measured);
        let [new, established, ..] = report.figures() else { panic!() };
        assert_eq!((new.value, established.value), (Some(2.0), Some(0.2)));
        assert_eq!((new.rival, new.ok), (Some(5.0), Some(true)));
    }

    #[test]
    fn what_is_compared_is_of_the_same_turn() {
        let mut report = Report::default();
        // The machine is at half its speed in the second turn.
        let measured = [
            node(Kind::Portolan, FEW, 1.0, &[100.0, 200.0, 100.0]),
            node(Kind::Portolan, MANY, 1.0, &[120.0, 240.0, 120.0]),
            node(Kind::Portolan, MANY, 1.0, &[130.0, 260.0, 130.0]),
            node(Kind::Nftables, MANY, 9.0, &[250.0, 500.0, 2.0]),
            node(Kind::Iptables, MANY, 1.0, &[1.0, 1.0, 1.0]),
        ];
        figures(&mut report, MANY, &measured);
        let compared: Vec<_> =
            report.figures()[2..].iter().map(|f| (&*f.name, f.value.map(f64::round), f.ok)).collect();
        assert_eq!(
            compared,
            [
                ("30k × 10, packets: new connection, of kube-proxy's", Some(50.0), Some(true)),
                ("30k × 10, packets: new connection, beside 1k × 3", Some(25.0), Some(false)),
            ]
        );
    }

    #[test]
    fn the_less_favourable_comparison_counts() {
        let of = |ours: f64, turns: &[f64]| {
            let measured =
                [node(Kind::Portolan, FEW, ours, turns), node(Kind::Nftables, FEW, 100.0, &[100.0; 3])];
            let mut report = Report::default();
            figures(&mut report, FEW, &measured);
            let last = report.figures().last().unwrap().clone();
            (last.value.map(f64::round), last.ok)
        };
        assert_eq!(of(86.0, &[80.0, 81.0, 82.0]), (Some(86.0), Some(false)));
        assert_eq!(of(80.0, &[80.0, 87.0, 88.0]), (Some(87.0), Some(false)));
        assert_eq!(of(84.0, &[80.0, 83.0, 88.0]), (Some(84.0), Some(true)));
    }

    #[test]
    fn alone_nothing_is_compared() {
        let mut report = Report::default();
        figures(&mut report, FEW, &[node(Kind::Portolan, FEW, 1.0, &[1.0])]);
        assert_eq!(report.figures().len(), 2);
    }
}
