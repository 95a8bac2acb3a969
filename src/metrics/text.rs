//! The text format 0.0.4, as Go's Prometheus client writes it: kube-proxy's pages are in it whatever a scraper asks for, and
//! `le="1"` and `le="1.0"` are two series to a Prometheus before 3.0.

use std::collections::BTreeMap;
use std::fmt::Write;

pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8; escaping=underscores";

/// Of a page in OpenMetrics as `prometheus_client` writes it.
pub fn classic(page: &str) -> String {
    let mut text = String::with_capacity(page.len());
    // HELP stands before the TYPE that it needs to know.
    let kinds: BTreeMap<&str, &str> =
        page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    for line in page.lines() {
        let described = |rest: &str| {
            let (name, rest) = rest.split_once(' ').unwrap_or((rest, ""));
            let total = if kinds.get(name) == Some(&"counter") { "_total" } else { "" };
            format!("{name}{total} {rest}")
        };
        let _ = match line.split_once(' ') {
            Some(("#", rest)) => match rest.split_once(' ') {
                Some(("HELP", rest)) => writeln!(text, "# HELP {}", described(rest)),
                Some(("TYPE", rest)) => writeln!(text, "# TYPE {}", described(rest)),
                // EOF and UNIT are none of this format.
                _ => Ok(()),
            },
            Some(_) => sample(&mut text, line),
            None => Ok(()),
        };
    }
    text
}

fn sample(text: &mut String, line: &str) -> std::fmt::Result {
    let (series, value) = line.rsplit_once(' ').unwrap_or((line, "NaN"));
    let value = number(value);
    let Some((name, labels)) = series.split_once('{') else { return writeln!(text, "{series} {value}") };
    let labels = labels.trim_end_matches('}');
    // The limit of a bucket comes first there, and last here.
    match labels.strip_prefix("le=\"").and_then(|rest| rest.split_once('"')) {
        Some((limit, "")) => writeln!(text, "{name}{{le=\"{}\"}} {value}", number(limit)),
        Some((limit, others)) => {
            let others = others.trim_start_matches(',');
            writeln!(text, "{name}{{{others},le=\"{}\"}} {value}", number(limit))
        }
        None => writeln!(text, "{name}{{{labels}}} {value}"),
    }
}

/// The shortest text that means the number, in Go's `%g`: with a power of ten where that is below -4 or above 5.
fn number(text: &str) -> String {
    let Ok(number) = text.parse::<f64>() else { return text.to_owned() };
    if !number.is_finite() {
        return if number.is_nan() {
            "NaN"
        } else if number > 0.0 {
            "+Inf"
        } else {
            "-Inf"
        }
        .to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, power) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match power.parse::<i32>().unwrap_or_default() {
        -4..=5 => number.to_string(),
        power => format!("{digits}e{}{:02}", if power < 0 { '-' } else { '+' }, power.abs()),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    /// As strconv.FormatFloat(f, 'g', -1, 64) gives them.
    #[test]
    fn s62_numbers_as_go_writes_them() {
        let cases = [
            ("0", "0"),
            ("1.0", "1"),
            ("0.001", "0.001"),
            ("16.384", "16.384"),
            ("999999.0", "999999"),
            ("1000000", "1e+06"),
            ("1234567", "1.234567e+06"),
            ("1763712345.123", "1.763712345123e+09"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("-2.5", "-2.5"),
            ("18446744073709551615", "1.8446744073709552e+19"),
            ("+Inf", "+Inf"),
            ("NaN", "NaN"),
        ];
        for (given, written) in cases {
            assert_eq!(number(given), written);
        }
    }

    #[test]
    fn s62_a_page() {
        let page = "# HELP a_b What it is.\n# TYPE a_b counter\n# UNIT a_b b\na_b_total{code=\"200\"} 3\n\
                    # HELP h Times.\n# TYPE h histogram\nh_sum{ip_family=\"IPv4\"} 0.5\nh_count{ip_family=\"IPv4\"} 1\n\
                    h_bucket{le=\"1.0\",ip_family=\"IPv4\"} 1\nh_bucket{le=\"+Inf\",ip_family=\"IPv4\"} 1\n\
                    # HELP g Now.\n# TYPE g gauge\ng 12.0\n# EOF\n";
        expect![[r#"
            # HELP a_b_total What it is.
            # TYPE a_b_total counter
            a_b_total{code="200"} 3
            # HELP h Times.
            # TYPE h histogram
            h_sum{ip_family="IPv4"} 0.5
            h_count{ip_family="IPv4"} 1
            h_bucket{ip_family="IPv4",le="1"} 1
            h_bucket{ip_family="IPv4",le="+Inf"} 1
            # HELP g Now.
            # TYPE g gauge
            g 12
        "#]]
        .assert_eq(&classic(page));
    }
}
