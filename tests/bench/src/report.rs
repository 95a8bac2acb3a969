//! The figures: one table, one JSON file.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;

use crate::subject::Kind;

/// One line of results.json.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    pub name: String,
    /// Ours.
    pub value: Option<f64>,
    pub unit: &'static str,
    /// What ours must not exceed.
    pub bar: Option<f64>,
    /// The better of the rivals.
    pub rival: Option<f64>,
    /// How many times ours the rival's is.
    pub ratio: Option<f64>,
    /// Whether ours is within the bar.
    pub ok: Option<bool>,
    /// Each rival's.
    pub rivals: BTreeMap<&'static str, f64>,
}

#[derive(Clone, Debug, Default)]
pub struct Report {
    figures: Vec<Figure>,
}

impl Report {
    pub fn figures(&self) -> &[Figure] {
        &self.figures
    }

    /// Takes a figure down, of us or a rival; `bar` is for ours.
    pub fn add(&mut self, kind: Kind, name: &str, value: f64, unit: &'static str, bar: Option<f64>) {
        eprintln!("  {}: {name}: {} {unit}", kind.name(), short(value));
        let index = self.figures.iter().position(|figure| figure.name == name).unwrap_or_else(|| {
            let (name, rivals) = (name.into(), BTreeMap::new());
            let figure =
                Figure { name, value: None, unit, bar: None, rival: None, ratio: None, ok: None, rivals };
            self.figures.push(figure);
            self.figures.len() - 1
        });
        let figure = &mut self.figures[index];
        match kind {
            Kind::Portolan => (figure.value, figure.bar) = (Some(value), bar),
            rival => drop(figure.rivals.insert(rival.name(), value)),
        }
        figure.ok = figure.value.zip(figure.bar).map(|(value, bar)| value <= bar);
        figure.rival = figure.rivals.values().copied().min_by(f64::total_cmp);
        let both = figure.value.zip(figure.rival).filter(|(value, _)| *value > 0.0);
        figure.ratio = both.map(|(value, rival)| rival / value);
    }

    /// For a terminal.
    pub fn table(&self) -> String {
        align(&[vec![head()], self.figures.iter().map(cells).collect()].concat())
    }

    /// For the documentation.
    pub fn markdown(&self) -> String {
        let line = |cells: [String; 7]| format!("| {} |\n", cells.join(" | "));
        let rows: String = self.figures.iter().map(|figure| line(cells(figure))).collect();
        format!("{}|---|---:|---:|---|---:|---:|---:|\n{rows}", line(head()))
    }

    pub fn write_json(&self, path: &Path) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(&self.figures)?;
        std::fs::write(path, text + "\n").with_context(|| path.display().to_string())
    }
}

fn head() -> [String; 7] {
    ["", "portolan", "bar", "", Kind::Nftables.name(), Kind::Iptables.name(), "ratio"].map(String::from)
}

fn cells(figure: &Figure) -> [String; 7] {
    let of = |value: Option<f64>| {
        value.map_or("-".into(), |value| format!("{} {}", short(value), figure.unit).trim().to_string())
    };
    let ok = match figure.ok {
        Some(true) => "ok",
        Some(false) => "OVER",
        None => "",
    };
    let ratio = figure.ratio.map_or("-".into(), |ratio| format!("{} ×", short(ratio)));
    let rival = |kind: Kind| of(figure.rivals.get(kind.name()).copied());
    let (nftables, iptables) = (rival(Kind::Nftables), rival(Kind::Iptables));
    [figure.name.clone(), of(figure.value), of(figure.bar), ok.into(), nftables, iptables, ratio]
}

fn align(rows: &[[String; 7]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let _ = match column {
                0 => write!(text, "{cell:<width$}", width = widths[column]),
                _ => write!(text, "  {cell:>width$}", width = widths[column]),
            };
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// Three digits, or all before the point.
pub fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".into(),
        x if x >= 1e15 || x.is_nan() => format!("{value:e}"),
        x if x >= 100.0 => group(value),
        x => {
            let digits = 2 - x.log10().floor() as i32;
            let text = format!("{value:.*}", digits.clamp(0, 6) as usize);
            if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').into() } else { text }
        }
    }
}

/// 12345 is `12,345`.
fn group(value: f64) -> String {
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let cases =
            [(0.0, "0"), (0.012345, "0.0123"), (1.5, "1.5"), (2.0, "2"), (99.96, "100"), (12345.6, "12,346")];
        for (value, text) in cases {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn a_figure_knows_bar_rivals_and_ratio() {
        let mut report = Report::default();
        report.add(Kind::Portolan, "start", 0.5, "s", Some(0.6));
        report.add(Kind::Iptables, "start", 100.0, "s", None);
        report.add(Kind::Nftables, "start", 10.0, "s", None);
        report.add(Kind::Portolan, "restart", 2.0, "s", Some(1.0));
        report.add(Kind::Portolan, "writes", 0.0, "", Some(0.0));
        report.add(Kind::Nftables, "writes", 5.0, "", None);
        let json = serde_json::to_value(report.figures()).unwrap();
        assert_eq!(
            json[0],
            serde_json::json!({
                "name": "start", "value": 0.5, "unit": "s", "bar": 0.6, "rival": 10.0, "ratio": 20.0, "ok": true,
                "rivals": { "kube-proxy (nftables)": 10.0, "kube-proxy (iptables)": 100.0 },
            })
        );
        assert_eq!((json[1]["ok"].as_bool(), json[1]["rival"].as_f64()), (Some(false), None));
        // Nothing is so many times nothing.
        assert_eq!((json[2]["ok"].as_bool(), json[2]["ratio"].as_f64()), (Some(true), None));
        let table = report.table();
        assert_eq!(table.lines().count(), 4, "{table}");
        assert!(table.contains("20 ×") && table.contains("OVER"), "{table}");
    }
}
