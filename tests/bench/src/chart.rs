//! The picture in the documents: bars on a logarithmic scale, as SVG.

use std::fmt::Write as _;

use crate::report::{Figure, short};
use crate::subject::Kind;

const LEFT: f64 = 250.0;
const WIDTH: f64 = 520.0;
/// For the number behind the longest bar.
const RIGHT: f64 = 110.0;
const TOP: f64 = 64.0;
const BAR: f64 = 16.0;
const GAP: f64 = 16.0;

const STYLE: &str = "text { font: 13px system-ui, sans-serif; fill: #1f2937 } .title { font-size: 16px; font-weight: 600 } \
    .value { font-size: 12px } .grid { stroke: #e5e7eb } .b0 { fill: #2563eb } .b1 { fill: #f59e0b } .b2 { fill: #9ca3af }";

const SUBJECTS: [Kind; 3] = [Kind::Portolan, Kind::Nftables, Kind::Iptables];

/// One group of bars for each of `figures` that has a rival; `prefix` is left out of their names. Figures must be of one unit.
pub fn svg(title: &str, prefix: &str, figures: &[&Figure]) -> String {
    let groups: Vec<&&Figure> = figures.iter().filter(|figure| !figure.rivals.is_empty()).collect();
    let values = groups.iter().flat_map(|figure| SUBJECTS.iter().filter_map(|kind| of(figure, *kind)));
    let values: Vec<f64> = values.filter(|value| *value > 0.0).collect();
    let (low, high) = bounds(&values);
    let rows: usize =
        groups.iter().map(|figure| SUBJECTS.iter().filter(|kind| of(figure, **kind).is_some()).count()).sum();
    let height = TOP + rows as f64 * BAR + groups.len() as f64 * GAP + 30.0;
    let width = LEFT + WIDTH + RIGHT;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" role=\"img\">\n<title>{}</title>\n\
         <style>{STYLE}</style>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#ffffff\"/>\n\
         <text class=\"title\" x=\"16\" y=\"26\">{}</text>\n",
        escaped(title),
        escaped(title)
    );
    legend(&mut svg);
    let unit = groups.first().map_or("", |figure| figure.unit);
    axis(&mut svg, (low, high), height, unit);
    let mut y = TOP;
    for figure in groups {
        y = group(&mut svg, figure, prefix, y, (low, high)) + GAP;
    }
    svg + "</svg>\n"
}

fn of(figure: &Figure, kind: Kind) -> Option<f64> {
    match kind {
        Kind::Portolan => figure.value,
        rival => figure.rivals.get(rival.name()).copied(),
    }
}

/// Powers of ten around the values.
fn bounds(values: &[f64]) -> (i32, i32) {
    let power = |value: f64| value.log10();
    let low = values.iter().copied().map(power).fold(f64::INFINITY, f64::min).floor();
    let high = values.iter().copied().map(power).fold(f64::NEG_INFINITY, f64::max).ceil();
    if values.is_empty() { (0, 1) } else { (low as i32, (high as i32).max(low as i32 + 1)) }
}

fn place(value: f64, (low, high): (i32, i32)) -> f64 {
    let share = (value.max(10f64.powi(low)).log10() - f64::from(low)) / f64::from(high - low);
    share * WIDTH
}

fn legend(svg: &mut String) {
    let mut x = 16.0;
    for (index, kind) in SUBJECTS.iter().enumerate() {
        let name = kind.name();
        let _ = writeln!(svg, "<rect class=\"b{index}\" x=\"{x}\" y=\"38\" width=\"12\" height=\"12\"/>");
        let _ = writeln!(svg, "<text x=\"{}\" y=\"49\">{name}</text>", x + 18.0);
        x += 50.0 + 7.5 * name.len() as f64;
    }
}

fn axis(svg: &mut String, bounds: (i32, i32), height: f64, unit: &str) {
    for power in bounds.0..=bounds.1 {
        let value = 10f64.powi(power);
        let x = LEFT + place(value, bounds);
        let end = height - 24.0;
        let _ = writeln!(svg, "<line class=\"grid\" x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{end}\"/>");
        let label = if value < 1.0 { format!("{value}") } else { short(value) };
        let y = height - 8.0;
        let _ = writeln!(
            svg,
            "<text class=\"value\" x=\"{x:.1}\" y=\"{y}\" text-anchor=\"middle\">{label} {unit}</text>"
        );
    }
}

fn group(svg: &mut String, figure: &Figure, prefix: &str, top: f64, bounds: (i32, i32)) -> f64 {
    let present: Vec<(usize, f64)> =
        SUBJECTS.iter().enumerate().filter_map(|(index, kind)| Some((index, of(figure, *kind)?))).collect();
    let middle = top + present.len() as f64 * BAR / 2.0 + 4.0;
    let name = figure.name.strip_prefix(prefix).unwrap_or(&figure.name);
    let _ = writeln!(
        svg,
        "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
        LEFT - 12.0,
        escaped(name)
    );
    let mut y = top;
    for (index, value) in present {
        let length = place(value, bounds).max(1.0);
        let (bar, text) = (BAR - 3.0, y + BAR - 5.0);
        let _ = writeln!(
            svg,
            "<rect class=\"b{index}\" x=\"{LEFT}\" y=\"{y}\" width=\"{length:.1}\" height=\"{bar}\"/>\n\
             <text class=\"value\" x=\"{:.1}\" y=\"{text}\">{} {}</text>",
            LEFT + length + 5.0,
            short(value),
            figure.unit
        );
        y += BAR;
    }
    y
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Report;

    #[test]
    fn longer_bars_for_more_and_nothing_without_a_rival() {
        let mut report = Report::default();
        report.add(Kind::Portolan, "10k, start", 10.0, "ms", None);
        report.add(Kind::Nftables, "10k, start", 1000.0, "ms", None);
        report.add(Kind::Portolan, "10k, alone", 1.0, "ms", None);
        let figures: Vec<&Figure> = report.figures().iter().collect();
        let svg = svg("A & B", "10k, ", &figures);
        assert!(svg.contains("width=\"1.0\"") && svg.contains("width=\"520.0\""), "{svg}");
        assert!(svg.contains(">start<") && !svg.contains("alone"), "{svg}");
    }

    #[test]
    fn bounds_are_powers_around_all_values() {
        assert_eq!(bounds(&[0.5, 3.0, 4400.0]), (-1, 4));
        assert_eq!(bounds(&[10.0]), (1, 2));
        assert_eq!(bounds(&[]), (0, 1));
    }
}
