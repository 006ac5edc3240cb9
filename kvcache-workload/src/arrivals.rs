//! When requests arrive.

use std::fmt;
use std::str::FromStr;

use crate::distribution::{deviation, positive};
use crate::error::InvalidParameter;
use crate::random::Random;

/// How many requests arrive in a second, and how regularly.
///
/// | written as | |
/// |---|---|
/// | `constant:RATE` | at equal distances, the first at 0 |
/// | `poisson:RATE` | a Poisson process |
/// | `burst:LOW:HIGH:PERIOD:SHARE` | in each period of so many seconds `HIGH` for that share of it, then `LOW` |
/// | `step:RATE:SECONDS,...,RATE` | one rate after the other; the last one stays. Its seconds may be left out |
/// | `sine:MEAN:AMPLITUDE:PERIOD` | up and down around the mean, beginning at it upwards |
///
/// Rates are requests a second. The last three are Poisson processes of a rate that changes.
#[derive(Clone, PartialEq, Debug)]
pub struct Rate(Kind);

#[derive(Clone, PartialEq, Debug)]
enum Kind {
    Constant(f64),
    Poisson(f64),
    Burst {
        low: f64,
        high: f64,
        period_s: f64,
        share: f64,
    },
    /// Rates and how long they last.
    Step(Vec<(f64, f64)>),
    Sine {
        mean: f64,
        amplitude: f64,
        period_s: f64,
    },
}

impl Rate {
    /// The times of arrival in milliseconds, one after the other and never earlier than the one before.
    pub fn times(&self, seed: u64) -> impl Iterator<Item = f64> + use<> {
        let mut times =
            Times { kind: self.0.clone(), random: Random::new(seed, "arrivals"), now_s: 0.0, count: 0 };
        std::iter::repeat_with(move || times.next_s() * 1000.0)
    }
}

struct Times {
    kind: Kind,
    random: Random,
    now_s: f64,
    count: u64,
}

impl Times {
    fn next_s(&mut self) -> f64 {
        match &self.kind {
            // Not a sum, so that rounding errors do not add up.
            Kind::Constant(rate) => self.now_s = self.count as f64 / rate,
            Kind::Poisson(rate) => self.now_s += self.random.exponential() / rate,
            Kind::Burst { .. } | Kind::Step(_) => self.next_of_pieces(),
            Kind::Sine { mean, amplitude, period_s } => loop {
                // Thinning (Lewis and Shedler, 1979): arrivals at the highest rate, kept as often as the present rate
                // is of it.
                self.now_s += self.random.exponential() / (mean + amplitude);
                let phase = self.now_s / period_s * std::f64::consts::TAU;
                if self.random.unit() * (mean + amplitude) <= mean + amplitude * libm::sin(phase) {
                    break;
                }
            },
        }
        self.count += 1;
        self.now_s
    }

    /// Walks over stretches of one rate each until they have used up an exponential variable.
    fn next_of_pieces(&mut self) {
        let mut left = self.random.exponential();
        loop {
            let (rate, end_s) = self.kind.stretch(self.now_s);
            let time_s = left / rate;
            if self.now_s + time_s <= end_s {
                self.now_s += time_s;
                return;
            }
            left -= (end_s - self.now_s) * rate;
            self.now_s = end_s;
        }
    }
}

impl Kind {
    /// The rate at a time and until when it lasts, which is later.
    fn stretch(&self, now_s: f64) -> (f64, f64) {
        match self {
            Self::Burst { low, high, period_s, share } => {
                let period = (now_s / period_s).floor();
                let ends = [
                    (period + share) * period_s,
                    (period + 1.0) * period_s,
                    (period + 1.0 + share) * period_s,
                ];
                // The last one is for times that rounding has put before the period that they are the start of.
                let stretches = [(*high, ends[0]), (*low, ends[1]), (*high, ends[2])];
                stretches.into_iter().find(|(_, end_s)| *end_s > now_s).unwrap_or((*high, f64::INFINITY))
            }
            Self::Step(steps) => {
                let mut end_s = 0.0;
                for (rate, seconds) in steps {
                    end_s += seconds;
                    if end_s > now_s {
                        return (*rate, end_s);
                    }
                }
                (steps.last().map_or(1.0, |(rate, _)| *rate), f64::INFINITY)
            }
            Self::Constant(rate) | Self::Poisson(rate) => (*rate, f64::INFINITY),
            Self::Sine { mean, .. } => (*mean, f64::INFINITY),
        }
    }
}

impl FromStr for Rate {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (name, arguments) = text.split_once(':').unwrap_or((text, ""));
        if name == "step" {
            return steps(text, arguments);
        }
        let parts: Vec<&str> = arguments.split(':').collect();
        let kind = match (name, parts.as_slice()) {
            ("constant", [value]) => Kind::Constant(rate(value)?),
            ("poisson", [value]) => Kind::Poisson(rate(value)?),
            ("burst", [low, high, period, share]) => {
                let kind = Kind::Burst {
                    low: rate_or_none(low)?,
                    high: rate(high)?,
                    period_s: seconds(period)?,
                    share: positive(share)?,
                };
                if !matches!(kind, Kind::Burst { share, .. } if share <= 1.0) {
                    return Err(InvalidParameter::new(format!(
                        "the share `{share}` of a burst must be at most 1"
                    )));
                }
                kind
            }
            ("sine", [mean, amplitude, period]) => {
                let (mean, amplitude) = (rate(mean)?, rate_or_none(amplitude)?);
                if amplitude > mean {
                    return Err(InvalidParameter::new(format!(
                        "the amplitude {amplitude} is above the mean {mean}, so that rates would be negative"
                    )));
                }
                Kind::Sine { mean, amplitude, period_s: seconds(period)? }
            }
            _ => return Err(unknown(text)),
        };
        Ok(Self(kind))
    }
}

fn steps(text: &str, arguments: &str) -> Result<Rate, InvalidParameter> {
    let mut steps = Vec::new();
    let count = arguments.split(',').count();
    for (index, step) in arguments.split(',').enumerate() {
        let parts: Vec<&str> = step.split(':').collect();
        let (value, lasts_s) = match parts.as_slice() {
            [value, lasts] => (value, seconds(lasts)?),
            [value] if index + 1 == count => (value, f64::INFINITY),
            _ => return Err(unknown(text)),
        };
        // The last rate stays: at 0 nothing would ever come again.
        let value = if index + 1 == count { rate(value)? } else { rate_or_none(value)? };
        steps.push((value, lasts_s));
    }
    Ok(Rate(Kind::Step(steps)))
}

fn unknown(text: &str) -> InvalidParameter {
    InvalidParameter::new(format!(
        "`{text}` is no rate; write `constant:RATE`, `poisson:RATE`, `burst:LOW:HIGH:PERIOD:SHARE`, \
         `step:RATE:SECONDS,...,RATE` or `sine:MEAN:AMPLITUDE:PERIOD`, with requests a second and seconds"
    ))
}

fn in_range(text: &str, number: f64) -> Result<f64, InvalidParameter> {
    if (NUMBER_MIN..=NUMBER_MAX).contains(&number) {
        return Ok(number);
    }
    Err(InvalidParameter::new(format!("`{text}` must be from {NUMBER_MIN} to {NUMBER_MAX}")))
}

fn rate(text: &str) -> Result<f64, InvalidParameter> {
    in_range(text, positive(text)?)
}

fn rate_or_none(text: &str) -> Result<f64, InvalidParameter> {
    if deviation(text)? == 0.0 { Ok(0.0) } else { rate(text) }
}

fn seconds(text: &str) -> Result<f64, InvalidParameter> {
    in_range(text, positive(text)?)
}

impl fmt::Display for Rate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Constant(rate) => write!(formatter, "constant:{rate}"),
            Kind::Poisson(rate) => write!(formatter, "poisson:{rate}"),
            Kind::Burst { low, high, period_s, share } => {
                write!(formatter, "burst:{low}:{high}:{period_s}:{share}")
            }
            Kind::Step(steps) => {
                formatter.write_str("step")?;
                for (index, (rate, seconds)) in steps.iter().enumerate() {
                    write!(formatter, "{}{rate}", if index == 0 { ':' } else { ',' })?;
                    if seconds.is_finite() {
                        write!(formatter, ":{seconds}")?;
                    }
                }
                Ok(())
            }
            Kind::Sine { mean, amplitude, period_s } => {
                write!(formatter, "sine:{mean}:{amplitude}:{period_s}")
            }
        }
    }
}

/// Times stay exact to the microsecond, and a walk over stretches ends.
const NUMBER_MIN: f64 = 1e-4;
const NUMBER_MAX: f64 = 1e7;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Rate {
        text.parse().expect(text)
    }

    /// How many arrive in each second of the first `seconds`.
    fn per_second(text: &str, seconds: usize, seed: u64) -> Vec<f64> {
        let mut counts = vec![0.0; seconds];
        for time_ms in parse(text).times(seed) {
            match counts.get_mut((time_ms / 1000.0) as usize) {
                Some(count) => *count += 1.0,
                None => return counts,
            }
        }
        counts
    }

    fn mean(counts: &[f64]) -> f64 {
        counts.iter().sum::<f64>() / counts.len() as f64
    }

    #[test]
    fn a_constant_rate_is_regular() {
        let times: Vec<f64> = parse("constant:4").times(1).take(5).collect();
        assert_eq!(times, [0.0, 250.0, 500.0, 750.0, 1000.0]);
    }

    /// Counts of a Poisson process have a variance equal to their mean.
    #[test]
    fn a_poisson_process_has_rate_and_variance() {
        let counts = per_second("poisson:20", 4000, 3);
        let mean = mean(&counts);
        let variance = counts.iter().map(|count| (count - mean).powi(2)).sum::<f64>() / counts.len() as f64;
        assert!((mean - 20.0).abs() < 0.35, "{mean}");
        assert!((variance / mean - 1.0).abs() < 0.15, "{variance}");
    }

    #[test]
    fn bursts_come_first_in_each_period() {
        let counts = per_second("burst:2:50:10:0.3", 2000, 3);
        let at = |phases: std::ops::Range<usize>| -> Vec<f64> {
            counts.chunks(10).flat_map(|period| period[phases.clone()].to_vec()).collect()
        };
        assert!((mean(&at(0..3)) - 50.0).abs() < 1.5);
        assert!((mean(&at(3..10)) - 2.0).abs() < 0.25);
        let quiet = per_second("burst:0:50:10:0.3", 100, 3);
        assert!(quiet.chunks(10).all(|period| mean(&period[3..]) == 0.0), "{quiet:?}");
    }

    #[test]
    fn steps_follow_each_other_and_the_last_stays() {
        let counts = per_second("step:10:100,0:50,40:100,5", 1000, 3);
        for (from, to, rate) in [(0, 100, 10.0), (100, 150, 0.0), (150, 250, 40.0), (250, 1000, 5.0f64)] {
            let got = mean(&counts[from..to]);
            assert!((got - rate).abs() <= 5.0 * (rate / (to - from) as f64).sqrt(), "{from}: {got}");
        }
    }

    #[test]
    fn a_sine_goes_up_first() {
        let counts = per_second("sine:20:15:100", 4000, 3);
        let at = |phase: usize| mean(&counts.iter().skip(phase).step_by(100).copied().collect::<Vec<_>>());
        for (phase, rate) in [(25, 35.0), (75, 5.0f64)] {
            assert!((at(phase) - rate).abs() < 5.0 * (rate / 40.0).sqrt(), "{}", at(phase));
        }
        assert!((mean(&counts) - 20.0).abs() < 0.4);
    }

    proptest! {
        #[test]
        fn times_never_go_back_and_what_is_written_is_read(
            low in 0.0001f64..50.0, more in 0.0f64..50.0, period in 0.001f64..100.0, share in 0.01f64..1.0, seed: u64,
        ) {
            let high = low + more;
            for text in [
                format!("burst:{low}:{high}:{period}:{share}"),
                format!("step:{high}:{period},{low}"),
                format!("sine:{high}:{low}:{period}"),
                format!("poisson:{low}"),
            ] {
                let rate = parse(&text);
                let times: Vec<f64> = rate.times(seed).take(300).collect();
                prop_assert!(times[0] >= 0.0 && times.is_sorted(), "{text}");
                prop_assert!(times[299].is_finite());
                prop_assert_eq!(rate.to_string(), text);
            }
        }
    }

    #[test]
    fn impossible_rates_are_refused() {
        for (bad, expected) in [
            ("", "is no rate"),
            ("poisson", "`` is no number"),
            ("poisson:", "`` is no number"),
            ("poisson:0", "`0` must be above 0"),
            ("poisson:-2", "`-2` must be above 0"),
            ("poisson:NaN", "`NaN` is not a number from"),
            ("poisson:1e-9", "`1e-9` must be from 0.0001 to 10000000"),
            ("constant:1:2", "is no rate"),
            ("burst:1:2:3:1.5", "at most 1"),
            ("burst:1:0:3:0.5", "`0` must be above 0"),
            ("burst:-1:1:3:0.5", "`-1` must not be negative"),
            ("sine:5:6:10", "rates would be negative"),
            ("step:5", ""),
            ("step:5:10,0", "`0` must be above 0"),
            ("step:5,6", "is no rate"),
            ("step:", "`` is no number"),
        ] {
            match bad.parse::<Rate>() {
                Ok(rate) => assert_eq!((bad, rate.to_string().as_str()), ("step:5", "step:5")),
                Err(error) => assert!(error.to_string().contains(expected), "{bad}: {error}"),
            }
        }
    }
}
