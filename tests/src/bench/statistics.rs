//! Medians and quantiles: on a shared machine a mean says more about the neighbours than about the
//! work.

/// The value below which `fraction` of the samples lie; 0 without samples.
fn quantile(samples: &[f64], fraction: f64) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    let at = (last as f64 * fraction).round() as usize;
    sorted.get(at).copied().unwrap_or(0.0)
}

/// A quantile of samples, and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Quantile {
    pub(super) value: f64,
    /// Between these it is in 19 of 20 runs, whatever the samples are distributed like: of so many
    /// independent ones that many are below it.
    pub(super) low: f64,
    pub(super) high: f64,
    /// How often it was measured.
    pub(super) count: usize,
}

impl Quantile {
    pub(super) fn of(samples: &[f64], fraction: f64) -> Self {
        let count = samples.len();
        // The number of samples below a quantile is binomial, nearly normal.
        let deviation = (fraction * (1.0 - fraction) / count.max(1) as f64).sqrt();
        let at = |deviations: f64| {
            let fraction = fraction + deviations * deviation;
            quantile(samples, fraction.clamp(0.0, 1.0))
        };
        Self {
            value: at(0.0),
            low: at(-1.96),
            high: at(1.96),
            count,
        }
    }

    /// How many times as much as another one; at the least and at the most that both allow.
    pub(super) fn ratio(self, other: Self) -> Self {
        Self {
            value: self.value / other.value,
            low: self.low / other.high,
            high: self.high / other.low,
            count: self.count.min(other.count),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_samples() {
        let samples = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile(&samples, 0.5), 3.0);
        assert_eq!(quantile(&samples, 0.99), 5.0);
        assert_eq!(quantile(&samples, 0.0), 1.0);
        assert_eq!(quantile(&[], 0.5), 0.0);
    }

    #[test]
    fn the_more_samples_the_surer_is_a_quantile() {
        let samples = |count: u32| (1..=count).map(f64::from).collect::<Vec<_>>();
        let few = Quantile::of(&samples(10), 0.5);
        let many = Quantile::of(&samples(1001), 0.5);
        assert_eq!(many.value, 501.0);
        assert_eq!((many.low, many.high, many.count), (470.0, 532.0, 1001));
        assert!((few.high - few.low) / few.value > (many.high - many.low) / many.value);
        let twice = Quantile {
            value: 1002.0,
            low: 940.0,
            high: 1064.0,
            count: 9,
        };
        let ratio = twice.ratio(many);
        assert_eq!((ratio.value, ratio.count), (2.0, 9));
        assert!(ratio.low < 2.0 && ratio.high > 2.0);
    }
}
