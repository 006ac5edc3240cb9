//! What became of a request.

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::answer::Answered;
use crate::failure::Failure;

/// What became of a request. Times are microseconds from the start of the run.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its place in the workload, from 0.
    pub index: u64,
    /// The session that it belongs to.
    pub session_id: Option<String>,
    /// Its place in the session.
    pub turn: Option<u32>,
    /// The part of a mix that it was made by.
    pub class: Option<String>,
    /// It is one of those at the start that are not counted.
    pub is_warmup: bool,
    /// When it should have been sent.
    pub due_us: u64,
    /// When it was.
    pub sent_us: u64,
    /// When its outcome was known.
    pub ended_us: u64,
    /// How often it was sent again.
    pub retries: u32,
    /// Tokens of the prompt, if the workload says it.
    pub input_tokens: Option<u64>,
    /// Tokens of the answer that were asked for.
    pub asked_tokens: u64,
    /// The answer, or why there is none.
    pub outcome: Result<Answered, Failure>,
}

/// Times of an answered request, in microseconds.
#[derive(Clone, Copy, PartialEq, Debug)]
pub(crate) struct Latencies {
    /// From sending it to the first token.
    pub(crate) ttft_us: Option<u64>,
    /// From the first token to the last, for each token but the first.
    pub(crate) tpot_us: Option<f64>,
    /// From sending it to the end of the answer.
    pub(crate) e2e_us: u64,
}

impl Record {
    /// How much later it was sent than it should have been.
    pub(crate) fn lag_us(&self) -> u64 {
        self.sent_us.saturating_sub(self.due_us)
    }

    /// Tokens of the prompt: as the server counts them, or else as the workload does.
    pub(crate) fn prompt_tokens(&self) -> Option<u64> {
        let counted = self.outcome.as_ref().ok().and_then(|answered| answered.prompt_tokens);
        counted.or(self.input_tokens)
    }

    pub(crate) fn latencies(&self, answered: &Answered) -> Latencies {
        let tokens = answered.output_tokens;
        let span_us = answered.first_us.zip(answered.last_us).map(|(first, last)| last.saturating_sub(first));
        Latencies {
            ttft_us: answered.first_us.map(|first_us| first_us.saturating_sub(self.sent_us)),
            tpot_us: span_us.filter(|_| tokens >= 2).map(|span_us| span_us as f64 / (tokens - 1) as f64),
            e2e_us: answered.ended_us.saturating_sub(self.sent_us),
        }
    }
}

/// Microseconds as milliseconds.
pub(crate) fn ms(us: u64) -> f64 {
    us as f64 / 1000.0
}

/// One line of a file of results.
impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("index", &self.index)?;
        optional(&mut map, "session_id", self.session_id.as_ref())?;
        optional(&mut map, "turn", self.turn)?;
        optional(&mut map, "class", self.class.as_ref())?;
        optional(&mut map, "warmup", self.is_warmup.then_some(true))?;
        map.serialize_entry("due_ms", &ms(self.due_us))?;
        map.serialize_entry("sent_ms", &ms(self.sent_us))?;
        map.serialize_entry("ended_ms", &ms(self.ended_us))?;
        optional(&mut map, "retries", (self.retries > 0).then_some(self.retries))?;
        optional(&mut map, "input_tokens", self.prompt_tokens())?;
        map.serialize_entry("asked_tokens", &self.asked_tokens)?;
        match &self.outcome {
            Ok(answered) => {
                let latencies = self.latencies(answered);
                map.serialize_entry("output_tokens", &answered.output_tokens)?;
                optional(&mut map, "counted", answered.is_counted.then_some(true))?;
                optional(&mut map, "cached_tokens", answered.cached_tokens)?;
                optional(&mut map, "ttft_ms", latencies.ttft_us.map(ms))?;
                optional(&mut map, "tpot_ms", latencies.tpot_us.map(|us| us / 1000.0))?;
                optional(&mut map, "itl_max_ms", answered.gaps_us.iter().max().map(|us| ms(u64::from(*us))))?;
                map.serialize_entry("e2e_ms", &ms(latencies.e2e_us))?;
            }
            Err(failure) => {
                map.serialize_entry("error", &failure.kind())?;
                map.serialize_entry("message", &failure.to_string())?;
            }
        }
        map.end()
    }
}

fn optional<M: SerializeMap>(
    map: &mut M,
    name: &'static str,
    value: Option<impl Serialize>,
) -> Result<(), M::Error> {
    value.map_or(Ok(()), |value| map.serialize_entry(name, &value))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A request that was due at 1 ms, sent at `sent_us`, and whose tokens came at these times.
    pub(crate) fn answered(sent_us: u64, tokens_us: &[u64]) -> Record {
        let gaps_us = tokens_us.windows(2).map(|pair| (pair[1] - pair[0]) as u32).collect();
        let ended_us = tokens_us.last().copied().unwrap_or(sent_us);
        let outcome = Ok(Answered {
            first_us: tokens_us.first().copied(),
            last_us: tokens_us.last().copied(),
            ended_us,
            gaps_us,
            output_tokens: tokens_us.len() as u64,
            is_counted: false,
            prompt_tokens: Some(100),
            cached_tokens: Some(64),
        });
        Record {
            index: 3,
            session_id: None,
            turn: None,
            class: None,
            is_warmup: false,
            due_us: 1000,
            sent_us,
            ended_us,
            retries: 0,
            input_tokens: Some(99),
            asked_tokens: 4,
            outcome,
        }
    }

    #[test]
    fn a_line_says_what_became_of_a_request() {
        let record = answered(1500, &[11_500, 13_500, 18_000]);
        let line = serde_json::to_string(&record).expect("JSON");
        assert_eq!(
            line,
            "{\"index\":3,\"due_ms\":1.0,\"sent_ms\":1.5,\"ended_ms\":18.0,\"input_tokens\":100,\"asked_tokens\":4,\
             \"output_tokens\":3,\"cached_tokens\":64,\"ttft_ms\":10.0,\"tpot_ms\":3.25,\
             \"itl_max_ms\":4.5,\"e2e_ms\":16.5}"
        );
        let record = Record {
            session_id: Some("a".to_owned()),
            turn: Some(0),
            class: Some("chat".to_owned()),
            is_warmup: true,
            retries: 1,
            outcome: Err(Failure::Status { code: 429, message: "busy".to_owned(), retry_after: None }),
            ..record
        };
        let line = serde_json::to_string(&record).expect("JSON");
        assert_eq!(
            line,
            "{\"index\":3,\"session_id\":\"a\",\"turn\":0,\"class\":\"chat\",\"warmup\":true,\"due_ms\":1.0,\
             \"sent_ms\":1.5,\"ended_ms\":18.0,\"retries\":1,\"input_tokens\":99,\"asked_tokens\":4,\
             \"error\":\"status 429\",\"message\":\"busy\"}"
        );
    }

    #[test]
    fn one_token_has_no_time_between_tokens() {
        let record = answered(1000, &[5000]);
        let latencies = record.latencies(record.outcome.as_ref().expect("answered"));
        assert_eq!(latencies, Latencies { ttft_us: Some(4000), tpot_us: None, e2e_us: 4000 });
        let record = answered(1000, &[]);
        let latencies = record.latencies(record.outcome.as_ref().expect("answered"));
        assert_eq!(latencies, Latencies { ttft_us: None, tpot_us: None, e2e_us: 0 });
    }
}
