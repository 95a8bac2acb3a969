//! `portolan crds`: the custom resource definitions as YAML, for people who install without the chart.

use anyhow::Context;

/// A YAML stream, the same for every run of one version.
pub fn yaml() -> anyhow::Result<String> {
    let mut stream = String::from("# Generated from crates/api by `portolan crds`.\n");
    for crd in portolan_api::crds() {
        // Through a JSON value, whose maps are sorted, so that the text has one order.
        let value = serde_json::to_value(&crd).context("a custom resource definition as JSON")?;
        stream.push_str("---\n");
        stream.push_str(&serde_saphyr::to_string(&value).context("a custom resource definition as YAML")?);
    }
    Ok(stream)
}

pub fn run() -> anyhow::Result<()> {
    print!("{}", yaml()?);
    Ok(())
}

#[cfg(test)]
mod tests {
    use expect_test::expect_file;

    use super::*;

    /// The chart's CRDs are these; `UPDATE_EXPECT=1` writes them anew.
    #[test]
    fn the_charts_definitions_are_generated() {
        expect_file!["../charts/portolan/files/crds.yaml"].assert_eq(&yaml().expect("definitions print"));
    }
}
