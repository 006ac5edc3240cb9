//! Distributions of lengths, shares and times, as they are written on a command line.

use std::fmt;
use std::str::FromStr;

use crate::error::InvalidParameter;
use crate::random::Random;

/// A distribution of numbers.
///
/// Written as `100` or `constant:100`, `uniform:LOW:HIGH`, `normal:MEAN:SD`, `lognormal:MEAN:SD` or `pareto:MEAN:SD`,
/// all with the mean and the standard deviation of the values themselves. `@LOW..HIGH` behind it draws values outside
/// of these bounds again, one of which may be missing: `normal:1835:742@1..`.
///
/// ```
/// use kvcache_workload::Distribution;
///
/// let lengths: Distribution = "normal:1835:742@1..".parse()?;
/// assert_eq!(lengths.to_string(), "normal:1835:742@1..");
/// assert!("normal:1835:-742".parse::<Distribution>().is_err());
/// # Ok::<(), kvcache_workload::InvalidParameter>(())
/// ```
#[derive(Clone, PartialEq, Debug)]
pub struct Distribution {
    shape: Shape,
    low: f64,
    high: f64,
}

#[derive(Clone, PartialEq, Debug)]
enum Shape {
    Constant(f64),
    Uniform { low: f64, high: f64 },
    Normal { mean: f64, sd: f64 },
    LogNormal { mean: f64, sd: f64 },
    Pareto { mean: f64, sd: f64 },
}

impl Distribution {
    /// Always this value, which is finite.
    pub(crate) fn constant(value: f64) -> Self {
        Self { shape: Shape::Constant(value), low: f64::NEG_INFINITY, high: f64::INFINITY }
    }

    /// The same, with values outside of `low..=high` drawn again.
    ///
    /// # Errors
    ///
    /// If fewer than one value in a thousand are inside.
    pub fn within(self, low: f64, high: f64) -> Result<Self, InvalidParameter> {
        let bounded = Self { low: self.low.max(low), high: self.high.min(high), ..self };
        let inside =
            bounded.shape.share_below(bounded.high, true) - bounded.shape.share_below(bounded.low, false);
        if bounded.low > bounded.high || inside < INSIDE_MIN {
            return Err(InvalidParameter::new(format!(
                "`{}` has next to no values from {low} to {high}",
                Self { low: f64::NEG_INFINITY, high: f64::INFINITY, shape: bounded.shape }
            )));
        }
        Ok(bounded)
    }

    /// A value.
    pub(crate) fn sample(&self, random: &mut Random) -> f64 {
        for _ in 0..DRAWS_MAX {
            let value = self.shape.sample(random);
            if (self.low..=self.high).contains(&value) {
                return value;
            }
        }
        // Not in a lifetime, see DRAWS_MAX.
        self.shape.sample(random).clamp(self.low, self.high)
    }

    /// A whole number of at least `least`. A uniform distribution has all whole numbers from its lowest to its highest
    /// value equally often; values of others are rounded.
    pub(crate) fn sample_count(&self, random: &mut Random, least: u64) -> u64 {
        let value = match self.shape {
            Shape::Uniform { low, high } => {
                let (first, last) = (low.max(self.low).ceil(), high.min(self.high).floor());
                if first <= last {
                    first + random.below((last - first) as u64 + 1) as f64
                } else {
                    low.round()
                }
            }
            _ => self.sample(random).round(),
        };
        // A float beyond the range becomes its end.
        (value as u64).clamp(least, COUNT_MAX)
    }
}

impl Shape {
    fn sample(&self, random: &mut Random) -> f64 {
        match *self {
            Self::Constant(value) => value,
            Self::Uniform { low, high } => low + (high - low) * random.unit(),
            Self::Normal { mean, sd } => mean + sd * random.normal(),
            Self::LogNormal { mean, sd } => {
                let (mu, sigma) = log_parameters(mean, sd);
                libm::exp(mu + sigma * random.normal())
            }
            Self::Pareto { mean, sd } => {
                let (scale, exponent) = pareto_parameters(mean, sd);
                scale * libm::pow(random.positive_unit(), -1.0 / exponent)
            }
        }
    }

    /// The share of values below `bound`, with those at it if `inclusive`.
    fn share_below(&self, bound: f64, inclusive: bool) -> f64 {
        let is_below =
            |value: f64| f64::from(u8::from(if inclusive { value <= bound } else { value < bound }));
        match *self {
            Self::Constant(value) => is_below(value),
            Self::Uniform { low, high } if low == high => is_below(low),
            Self::Uniform { low, high } => ((bound - low) / (high - low)).clamp(0.0, 1.0),
            Self::Normal { mean, sd } | Self::LogNormal { mean, sd } if sd == 0.0 => is_below(mean),
            Self::Normal { mean, sd } => normal_share_below((bound - mean) / sd),
            Self::LogNormal { .. } if bound <= 0.0 => 0.0,
            Self::LogNormal { mean, sd } => {
                let (mu, sigma) = log_parameters(mean, sd);
                normal_share_below((libm::log(bound) - mu) / sigma)
            }
            Self::Pareto { mean, sd } => {
                let (scale, exponent) = pareto_parameters(mean, sd);
                if bound <= scale { 0.0 } else { 1.0 - libm::pow(scale / bound, exponent) }
            }
        }
    }
}

fn normal_share_below(deviations: f64) -> f64 {
    0.5 * libm::erfc(-deviations / std::f64::consts::SQRT_2)
}

/// Mean and standard deviation of the logarithms.
fn log_parameters(mean: f64, sd: f64) -> (f64, f64) {
    let variance = libm::log1p((sd / mean) * (sd / mean));
    (libm::log(mean) - variance / 2.0, variance.sqrt())
}

/// The smallest value and the exponent. The variance is finite for exponents above 2, which every `sd` leads to.
fn pareto_parameters(mean: f64, sd: f64) -> (f64, f64) {
    let exponent = 1.0 + (1.0 + (mean / sd) * (mean / sd)).sqrt();
    (mean * (exponent - 1.0) / exponent, exponent)
}

impl FromStr for Distribution {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (shape, bounds) = match text.split_once('@') {
            Some((shape, bounds)) => (shape, Some(bounds)),
            None => (text, None),
        };
        let mut parts = shape.split(':');
        let name = parts.next().unwrap_or_default();
        let arguments: Vec<&str> = parts.collect();
        let shape = match (name, arguments.as_slice()) {
            ("constant", [value]) => Shape::Constant(number(value)?),
            (value, []) if number(value).is_ok() => Shape::Constant(number(value)?),
            ("uniform", [low, high]) => {
                let (low, high) = (number(low)?, number(high)?);
                if low > high {
                    return Err(InvalidParameter::new(format!("`{text}` begins above its end")));
                }
                Shape::Uniform { low, high }
            }
            ("normal", [mean, sd]) => Shape::Normal { mean: number(mean)?, sd: deviation(sd)? },
            ("lognormal", [mean, sd]) => Shape::LogNormal { mean: positive(mean)?, sd: deviation(sd)? },
            ("pareto", [mean, sd]) => Shape::Pareto { mean: positive(mean)?, sd: positive(sd)? },
            _ => {
                return Err(InvalidParameter::new(format!(
                    "`{text}` is no distribution; write `100`, `uniform:LOW:HIGH`, `normal:MEAN:SD`, \
                     `lognormal:MEAN:SD` or `pareto:MEAN:SD`, and `@LOW..HIGH` behind it for bounds"
                )));
            }
        };
        let distribution = Self { shape, ..Self::constant(0.0) };
        let Some(bounds) = bounds else { return Ok(distribution) };
        let Some((low, high)) = bounds.split_once("..") else {
            return Err(InvalidParameter::new(format!(
                "bounds `{bounds}` must be like `1..500`, `1..` or `..500`"
            )));
        };
        let low = if low.is_empty() { f64::NEG_INFINITY } else { number(low)? };
        let high = if high.is_empty() { f64::INFINITY } else { number(high)? };
        distribution.within(low, high)
    }
}

/// A number of a size that all formulas here can take.
pub(crate) fn number(text: &str) -> Result<f64, InvalidParameter> {
    let number: f64 = text.parse().map_err(|_| InvalidParameter::new(format!("`{text}` is no number")))?;
    if number.abs() <= NUMBER_MAX {
        return Ok(number);
    }
    Err(InvalidParameter::new(format!("`{text}` is not a number from -{NUMBER_MAX} to {NUMBER_MAX}")))
}

/// A number above 0.
pub(crate) fn positive(text: &str) -> Result<f64, InvalidParameter> {
    let number = number(text)?;
    if number >= 1.0 / NUMBER_MAX {
        return Ok(number);
    }
    Err(InvalidParameter::new(format!("`{text}` must be above 0")))
}

/// A number that is 0 or above.
pub(crate) fn deviation(text: &str) -> Result<f64, InvalidParameter> {
    let number = number(text)?;
    if number >= 0.0 {
        return Ok(number);
    }
    Err(InvalidParameter::new(format!("`{text}` must not be negative")))
}

impl fmt::Display for Distribution {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.shape {
            Shape::Constant(value) => write!(formatter, "{value}")?,
            Shape::Uniform { low, high } => write!(formatter, "uniform:{low}:{high}")?,
            Shape::Normal { mean, sd } => write!(formatter, "normal:{mean}:{sd}")?,
            Shape::LogNormal { mean, sd } => write!(formatter, "lognormal:{mean}:{sd}")?,
            Shape::Pareto { mean, sd } => write!(formatter, "pareto:{mean}:{sd}")?,
        }
        let bound = |value: f64| if value.is_finite() { value.to_string() } else { String::new() };
        if self.low.is_finite() || self.high.is_finite() {
            write!(formatter, "@{}..{}", bound(self.low), bound(self.high))?;
        }
        Ok(())
    }
}

/// Bounds that leave less are a mistake, and would cost that many draws a value.
const INSIDE_MIN: f64 = 0.001;

/// At one value in a thousand inside, so many draws fail once in e^100 times.
const DRAWS_MAX: u32 = 100_000;

/// No prompt is longer.
const COUNT_MAX: u64 = crate::INPUT_TOKENS_MAX;

/// Squares and ratios of such numbers stay far from the ends of what floats can be.
const NUMBER_MAX: f64 = 1e12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Distribution {
        text.parse().expect(text)
    }

    /// Mean and standard deviation of many values.
    fn moments(text: &str, seed: u64) -> (f64, f64) {
        let (distribution, mut random) = (parse(text), Random::new(seed, "test"));
        let values: Vec<f64> = (0..40_000).map(|_| distribution.sample(&mut random)).collect();
        let mean = values.iter().sum::<f64>() / values.len() as f64;
        let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / values.len() as f64;
        (mean, variance.sqrt())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        /// The mean of 40,000 values is off by more than 5 of its standard errors once in two million times.
        #[test]
        fn values_have_the_mean_and_the_deviation_asked_for(mean in 10.0f64..5000.0, ratio in 0.05f64..1.0, seed: u64) {
            let sd = mean * ratio;
            for shape in ["normal", "lognormal"] {
                let (got_mean, got_sd) = moments(&format!("{shape}:{mean}:{sd}"), seed);
                prop_assert!((got_mean - mean).abs() < 5.0 * sd / 200.0, "{shape} {got_mean}");
                prop_assert!((got_sd / sd - 1.0).abs() < 0.25, "{shape} {got_sd}");
            }
            let (low, high) = (mean - sd, mean + sd);
            let (got_mean, got_sd) = moments(&format!("uniform:{low}:{high}"), seed);
            prop_assert!((got_mean - mean).abs() < 5.0 * sd / 200.0, "uniform {got_mean}");
            prop_assert!((got_sd * 3f64.sqrt() / sd - 1.0).abs() < 0.03, "uniform {got_sd}");
            let (got_mean, _) = moments(&format!("pareto:{mean}:{sd}"), seed);
            prop_assert!((got_mean - mean).abs() < 6.0 * sd / 200.0, "pareto {got_mean}");
        }

        #[test]
        fn bounds_hold_and_what_is_written_is_read(
            mean in -50.0f64..50.0, sd in 0.1f64..50.0, width in 0.5f64..50.0, seed: u64,
        ) {
            let (low, high) = (mean - width, mean + width / 2.0);
            let distribution = parse(&format!("normal:{mean}:{sd}")).within(low, high).expect("around the mean");
            let mut random = Random::new(seed, "test");
            prop_assert!((0..200).all(|_| (low..=high).contains(&distribution.sample(&mut random))));
            prop_assert_eq!(parse(&distribution.to_string()), distribution);
        }
    }

    /// The tail of a Pareto distribution: half of the values are above `scale * 2^(1 / exponent)`.
    #[test]
    fn the_median_of_a_pareto_distribution_is_right() {
        let distribution = parse("pareto:80:472");
        let (scale, exponent) = pareto_parameters(80.0, 472.0);
        let median = scale * 2f64.powf(1.0 / exponent);
        let mut random = Random::new(1, "test");
        let above = (0..40_000).filter(|_| distribution.sample(&mut random) > median).count();
        assert!((19_500..20_500).contains(&above), "{above}");
    }

    #[test]
    fn whole_numbers_of_a_uniform_distribution_are_equally_frequent() {
        let (distribution, mut random) = (parse("uniform:2:5"), Random::new(1, "test"));
        let mut counts = [0; 8];
        (0..40_000).for_each(|_| counts[distribution.sample_count(&mut random, 1) as usize] += 1);
        assert_eq!(counts[..2], [0, 0]);
        assert!(counts[2..6].iter().all(|count| (9_500..10_500).contains(count)), "{counts:?}");
        assert_eq!(counts[6..], [0, 0]);
    }

    #[test]
    fn counts_have_a_least_and_round() {
        let mut random = Random::new(1, "test");
        assert_eq!(parse("-5").sample_count(&mut random, 1), 1);
        assert_eq!(parse("2.5").sample_count(&mut random, 0), 3);
        assert_eq!(parse("1e12").sample_count(&mut random, 0), COUNT_MAX);
        assert_eq!(parse("uniform:0.2:0.4").sample_count(&mut random, 0), 0);
    }

    #[test]
    fn impossible_distributions_are_refused() {
        for (bad, expected) in [
            ("", "is no distribution"),
            ("gauss:1:2", "is no distribution"),
            ("normal:1", "is no distribution"),
            ("NaN", "is no distribution"),
            ("constant:inf", "`inf` is not a number from"),
            ("normal:NaN:1", "`NaN` is not a number from"),
            ("normal:100:-5", "`-5` must not be negative"),
            ("lognormal:0:5", "`0` must be above 0"),
            ("pareto:80:0", "`0` must be above 0"),
            ("pareto:x:1", "`x` is no number"),
            ("uniform:5:1", "begins above its end"),
            ("normal:1:1@5", "bounds `5` must be like"),
            ("normal:0:1@50..60", "next to no values from 50 to 60"),
            ("normal:0:1@2..1", "next to no values from 2 to 1"),
            ("5@6..", "next to no values from 6 to inf"),
            ("lognormal:5:1@..0", "next to no values"),
            ("pareto:80:472@..30", "next to no values"),
            ("uniform:1:2@3..", "next to no values"),
        ] {
            let error = bad.parse::<Distribution>().expect_err(bad).to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
        for good in ["0", "5@5..5", "uniform:3:3@3..", "normal:5:0@5..", "lognormal:5:0@..5"] {
            parse(good);
        }
    }
}
