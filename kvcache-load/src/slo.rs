//! What a request must hold to count as served well.

use std::fmt;
use std::str::FromStr;

use kvcache_workload::InvalidParameter;

use crate::record::Latencies;

/// Limits of an answer's times, in milliseconds. Written as `ttft=500,tpot=50,e2e=10000`, each at most once.
#[derive(Clone, Copy, PartialEq, Default, Debug)]
pub struct Slo {
    ttft_ms: Option<f64>,
    tpot_ms: Option<f64>,
    e2e_ms: Option<f64>,
}

impl Slo {
    /// Whether an answer holds the limits. `lag_us` is how late the request was sent: whoever waits counts from when it
    /// was due. A time that an answer does not have (of one token, or none) is not above a limit.
    pub(crate) fn holds(&self, latencies: &Latencies, lag_us: u64) -> bool {
        let within = |limit_ms: Option<f64>, us: Option<f64>| match (limit_ms, us) {
            (Some(limit_ms), Some(us)) => us <= limit_ms * 1000.0,
            _ => true,
        };
        within(self.ttft_ms, latencies.ttft_us.map(|us| (us + lag_us) as f64))
            && within(self.tpot_ms, latencies.tpot_us)
            && within(self.e2e_ms, Some((latencies.e2e_us + lag_us) as f64))
    }
}

impl FromStr for Slo {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut slo = Self::default();
        for part in text.split(',') {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            let limit = match name {
                "ttft" => &mut slo.ttft_ms,
                "tpot" => &mut slo.tpot_ms,
                "e2e" => &mut slo.e2e_ms,
                _ => return Err(bad(part)),
            };
            let value: f64 = value.parse().map_err(|_| bad(part))?;
            if limit.is_some() || !value.is_finite() || value <= 0.0 {
                return Err(bad(part));
            }
            *limit = Some(value);
        }
        Ok(slo)
    }
}

impl fmt::Display for Slo {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut comma = "";
        for (name, limit) in [("ttft", self.ttft_ms), ("tpot", self.tpot_ms), ("e2e", self.e2e_ms)] {
            if let Some(limit) = limit {
                write!(formatter, "{comma}{name}={limit}")?;
                comma = ",";
            }
        }
        Ok(())
    }
}

fn bad(part: &str) -> InvalidParameter {
    InvalidParameter::new(format!(
        "`{part}` is no limit; write ttft, tpot or e2e, each once, with milliseconds above 0, as ttft=500,tpot=50"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_counts() {
        let slo: Slo = "ttft=10,tpot=2,e2e=30".parse().expect("limits");
        assert_eq!(slo.to_string(), "ttft=10,tpot=2,e2e=30");
        let good = Latencies { ttft_us: Some(10_000), tpot_us: Some(2000.0), e2e_us: 30_000 };
        assert!(slo.holds(&good, 0));
        assert!(!slo.holds(&good, 1), "it was due before");
        assert!(!slo.holds(&Latencies { ttft_us: Some(10_001), ..good }, 0));
        assert!(!slo.holds(&Latencies { tpot_us: Some(2000.1), ..good }, 0));
        assert!(!slo.holds(&Latencies { e2e_us: 30_001, ..good }, 0));
        assert!(slo.holds(&Latencies { tpot_us: None, ..good }, 0));
        assert!("tpot=2".parse::<Slo>().expect("a limit").holds(&good, 1_000_000));
    }

    #[test]
    fn impossible_limits_are_refused() {
        for bad in [
            "",
            "ttft",
            "ttft=",
            "ttft=0",
            "ttft=-1",
            "ttft=NaN",
            "ttft=inf",
            "itl=5",
            "ttft=1,ttft=2",
            "ttft=1,",
        ] {
            let error = bad.parse::<Slo>().expect_err(bad).to_string();
            assert!(error.contains("is no limit; write ttft, tpot or e2e"), "{error}");
        }
    }
}
