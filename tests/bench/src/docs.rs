//! What a run leaves in the documentation: the table and the picture.

use std::path::Path;

use anyhow::Context;

use crate::chart;
use crate::facts::Facts;
use crate::report::{Figure, Report};

const BEGIN: &str = "<!-- results: written by portolan-bench -->\n";
const END: &str = "<!-- end of results -->\n";

/// The size that the picture is about, and which figures it shows.
const PICTURE: &str = "10k × 3, ";
const SHOWN: [&str; 5] = [
    "start: CPU",
    "one endpoint more: CPU",
    "one endpoint replaced: CPU",
    "1000 changes: CPU",
    "restart, nothing changed: CPU",
];

/// Writes the results into `performance.md`, between its marks, and `bench.svg`.
pub fn write(docs: &Path, facts: &Facts, report: &Report) -> anyhow::Result<()> {
    let page = docs.join("performance.md");
    let text = std::fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let text = with_results(&text, &format!("{facts}\n\n{}", report.markdown()));
    std::fs::write(&page, text.with_context(|| format!("{} has lost its marks", page.display()))?)?;
    Ok(std::fs::write(docs.join("bench.svg"), picture(report))?)
}

pub fn picture(report: &Report) -> String {
    let find = |name: &&str| report.figures().iter().find(|figure| figure.name == format!("{PICTURE}{name}"));
    let shown: Vec<&Figure> = SHOWN.iter().filter_map(find).collect();
    chart::svg("CPU at 10,000 Services of 3 endpoints (logarithmic)", PICTURE, &shown)
}

fn with_results(text: &str, results: &str) -> Option<String> {
    let (before, rest) = text.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n{results}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_go_between_the_marks() {
        let text = format!("a\n{BEGIN}old\n{END}b\n");
        let new = with_results(&text, "new").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\nnew\n{END}b\n"));
        assert_eq!(with_results(&new, "new").unwrap(), new);
        assert!(with_results("a\nb\n", "new").is_none());
    }
}
