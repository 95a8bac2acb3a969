//! Medians and percentiles.

/// The value below which the share `p` (0 to 1) of the samples lies: the nearest that was measured, nothing in between. NaN
/// without samples.
pub fn percentile(samples: &[f64], p: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (p * sorted.len() as f64).ceil() as usize;
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

pub fn median(samples: &[f64]) -> f64 {
    percentile(samples, 0.5)
}

pub fn largest(samples: &[f64]) -> f64 {
    percentile(samples, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_measured_values() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        let of = |p| percentile(&samples, p);
        assert_eq!((of(0.0), of(0.2), of(0.5), of(0.99), of(1.0)), (1.0, 1.0, 3.0, 5.0, 5.0));
        assert_eq!(median(&[7.0]), 7.0);
        assert_eq!(median(&[1.0, 2.0]), 1.0);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn one_outlier_in_a_hundred_is_not_the_99th_percentile() {
        let mut samples = vec![1.0; 99];
        samples.push(1000.0);
        assert_eq!((percentile(&samples, 0.99), largest(&samples)), (1.0, 1000.0));
    }
}
