//! Other times of arrival for requests that are there.

use std::collections::HashMap;
use std::num::NonZeroU64;
use std::str::FromStr;

use crate::arrivals::Rate;
use crate::distribution::positive;
use crate::error::{Error, InvalidParameter};
use crate::request::Request;

/// When the requests of a workload shall arrive. Their order stays.
///
/// Written as a [`Rate`], as `recorded` or `recorded*SPEED` for the times that they have, or as `concurrency:COUNT`.
#[derive(Clone, PartialEq, Debug)]
pub enum Shape {
    /// At the times of a rate, one after the other.
    Rate(Rate),
    /// At their own times, so much faster.
    Recorded {
        /// 2 is twice as fast.
        speed: f64,
    },
    /// Without times: so many sessions are served at a time.
    Concurrency(NonZeroU64),
}

impl Shape {
    /// The requests with their new times. Each is passed on as it comes.
    pub fn requests<I>(&self, requests: I, seed: u64) -> impl Iterator<Item = Result<Request, Error>> + use<I>
    where
        I: Iterator<Item = Result<Request, Error>>,
    {
        let mut times = match self {
            Self::Rate(rate) => Some(rate.times(seed)),
            Self::Recorded { .. } | Self::Concurrency(_) => None,
        };
        let shape = self.clone();
        requests.zip(0..).map(move |(request, index)| {
            let mut request = request?;
            request.timestamp_ms = match (&shape, request.timestamp_ms) {
                (Self::Rate(_), _) => times.as_mut().and_then(Iterator::next),
                (Self::Recorded { speed }, Some(time_ms)) => Some(time_ms / speed),
                (Self::Recorded { .. }, None) => return Err(untimed(index).into()),
                (Self::Concurrency(_), _) => None,
            };
            Ok(request)
        })
    }
}

/// The requests with sessions that begin at the times of `rate`, and the times between the requests of each that they
/// had. A request without a session is one of its own.
///
/// # Errors
///
/// If one of them is an error or has no time. Memory: all of them.
pub fn sessions_at(
    rate: &Rate,
    seed: u64,
    requests: impl Iterator<Item = Result<Request, Error>>,
) -> Result<Vec<Request>, Error> {
    let (mut starts, mut times) = (HashMap::new(), rate.times(seed));
    let mut shaped = Vec::new();
    for (request, index) in requests.zip(0u64..) {
        let mut request = request?;
        let old_ms = request.timestamp_ms.ok_or_else(|| untimed(index))?;
        let mut begin = || (old_ms, times.next().unwrap_or(0.0));
        let (old_start_ms, start_ms) = match &request.session_id {
            Some(session_id) => *starts.entry(session_id.clone()).or_insert_with(begin),
            None => begin(),
        };
        request.timestamp_ms = Some(start_ms + (old_ms - old_start_ms).max(0.0));
        shaped.push(request);
    }
    // Stable: the turns of a session stay in their order.
    shaped.sort_by(|a, b| a.timestamp_ms.unwrap_or(0.0).total_cmp(&b.timestamp_ms.unwrap_or(0.0)));
    Ok(shaped)
}

fn untimed(index: u64) -> InvalidParameter {
    InvalidParameter::new(format!(
        "request {index} (from 0) has no timestamp to go by; give a rate, as poisson:2"
    ))
}

impl FromStr for Shape {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "recorded" {
            return Ok(Self::Recorded { speed: 1.0 });
        }
        if let Some(speed) = text.strip_prefix("recorded*") {
            return Ok(Self::Recorded { speed: positive(speed)? });
        }
        if let Some(count) = text.strip_prefix("concurrency:") {
            return count.parse().map(Self::Concurrency).map_err(|_| {
                InvalidParameter::new(format!(
                    "`{text}` must have a whole number of at least 1, as concurrency:16"
                ))
            });
        }
        text.parse().map(Self::Rate).map_err(|error: InvalidParameter| {
            InvalidParameter::new(format!("{error}; or `recorded`, `recorded*SPEED`, `concurrency:COUNT`"))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::Content;

    fn requests(turns: &[(&str, f64)]) -> Vec<Result<Request, Error>> {
        let request = |(session, time_ms): &(&str, f64)| Request {
            session_id: (!session.is_empty()).then(|| (*session).to_owned()),
            timestamp_ms: Some(*time_ms),
            ..Request::new(Content::Pieces(Vec::new()))
        };
        turns.iter().map(|turn| Ok(request(turn))).collect()
    }

    fn shaped(shape: &str, turns: &[(&str, f64)]) -> Vec<(String, Option<f64>)> {
        let shape: Shape = shape.parse().expect(shape);
        let requests = shape.requests(requests(turns).into_iter(), 1).map(|request| request.expect("timed"));
        requests.map(|request| (request.session_id.unwrap_or_default(), request.timestamp_ms)).collect()
    }

    const TURNS: &[(&str, f64)] = &[("a", 10.0), ("b", 30.0), ("a", 50.0)];

    #[test]
    fn requests_keep_their_order_and_get_other_times() {
        let of = |times: [Option<f64>; 3]| -> Vec<(String, Option<f64>)> {
            TURNS.iter().zip(times).map(|((session, _), time)| ((*session).to_owned(), time)).collect()
        };
        assert_eq!(shaped("constant:4", TURNS), of([Some(0.0), Some(250.0), Some(500.0)]));
        assert_eq!(shaped("recorded", TURNS), of([Some(10.0), Some(30.0), Some(50.0)]));
        assert_eq!(shaped("recorded*2", TURNS), of([Some(5.0), Some(15.0), Some(25.0)]));
        assert_eq!(shaped("concurrency:2", TURNS), of([None; 3]));
    }

    #[test]
    fn sessions_keep_the_times_within_them() {
        let turns = [("a", 10.0), ("b", 30.0), ("a", 50.0), ("", 60.0), ("a", 2000.0)];
        let rate = "constant:1".parse().expect("a rate");
        let shaped = sessions_at(&rate, 1, requests(&turns).into_iter()).expect("timed");
        let got: Vec<(Option<&str>, Option<f64>)> =
            shaped.iter().map(|request| (request.session_id.as_deref(), request.timestamp_ms)).collect();
        let (a, b) = (Some("a"), Some("b"));
        let expected = [(a, 0.0), (a, 40.0), (b, 1000.0), (a, 1990.0), (None, 2000.0)];
        assert_eq!(got, expected.map(|(session, time)| (session, Some(time))));
    }

    #[test]
    fn what_has_no_times_cannot_keep_them() {
        let untimed = || std::iter::once(Ok(Request::new(Content::Pieces(Vec::new()))));
        let shape: Shape = "recorded".parse().expect("a shape");
        let error = shape.requests(untimed(), 1).next().expect("one").expect_err("no time").to_string();
        assert!(error.contains("request 0 (from 0) has no timestamp"), "{error}");
        let rate = "constant:1".parse().expect("a rate");
        assert!(sessions_at(&rate, 1, untimed()).is_err());
    }

    #[test]
    fn impossible_shapes_are_refused() {
        for (bad, expected) in [
            ("recorded*0", "`0` must be above 0"),
            ("recorded*-1", "`-1` must be above 0"),
            ("concurrency:0", "whole number of at least 1"),
            ("concurrency:many", "whole number of at least 1"),
            ("fast", "or `recorded`, `recorded*SPEED`, `concurrency:COUNT`"),
        ] {
            let error = bad.parse::<Shape>().expect_err(bad).to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }
}
