//! Sessions in one order of arrival.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::error::{Error, InvalidParameter};
use crate::request::{Content, Piece, Request};

/// A turn of a session.
#[derive(Clone, Debug)]
pub(crate) struct Turn {
    /// How long after the turn before it, or after the session's start, it arrives; 0 or more.
    pub(crate) gap_ms: f64,
    pub(crate) request: Request,
}

/// The requests of all sessions in the order of their times. `starts` are the times at which sessions begin, in order.
///
/// Memory: the turns of the sessions that have begun and not ended.
pub(crate) fn interleaved<S, T>(sessions: S, starts: T) -> impl Iterator<Item = Result<Request, Error>>
where
    S: Iterator<Item = Result<Vec<Turn>, Error>>,
    T: Iterator<Item = f64>,
{
    Interleaved { sessions: sessions.zip(starts).fuse(), waiting: None, running: BinaryHeap::new(), count: 0 }
}

struct Interleaved<I> {
    sessions: I,
    /// The next session to begin, and when.
    waiting: Option<(f64, Running)>,
    running: BinaryHeap<Reverse<Running>>,
    count: u64,
}

/// A session with its next turn.
struct Running {
    time_ms: f64,
    number: u64,
    next: Request,
    rest: std::vec::IntoIter<Turn>,
}

impl Running {
    fn new(time_ms: f64, number: u64, mut rest: std::vec::IntoIter<Turn>) -> Option<Self> {
        let turn = rest.next()?;
        Some(Self { time_ms: time_ms + turn.gap_ms, number, next: turn.request, rest })
    }
}

impl<I: Iterator<Item = (Result<Vec<Turn>, Error>, f64)>> Interleaved<I> {
    /// Fills `waiting` with the next session that has a turn.
    fn refill(&mut self) -> Result<(), Error> {
        while self.waiting.is_none() {
            let Some((turns, start_ms)) = self.sessions.next() else { break };
            self.waiting =
                Running::new(start_ms, self.count, turns?.into_iter()).map(|session| (start_ms, session));
            self.count += 1;
        }
        Ok(())
    }
}

impl<I: Iterator<Item = (Result<Vec<Turn>, Error>, f64)>> Iterator for Interleaved<I> {
    type Item = Result<Request, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Err(error) = self.refill() {
                return Some(Err(error));
            }
            // Sessions begin in order, so that a turn is the next one if no session begins before it.
            let begins = match (&self.waiting, self.running.peek()) {
                (Some((start_ms, _)), Some(Reverse(running))) => *start_ms <= running.time_ms,
                (waiting, _) => waiting.is_some(),
            };
            if begins {
                self.running.extend(self.waiting.take().map(|(_, session)| Reverse(session)));
                continue;
            }
            let Reverse(Running { time_ms, number, next, rest }) = self.running.pop()?;
            self.running.extend(Running::new(time_ms, number, rest).map(Reverse));
            return Some(Ok(Request { timestamp_ms: Some(time_ms), ..next }));
        }
    }
}

impl Ord for Running {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.time_ms.total_cmp(&other.time_ms).then(self.number.cmp(&other.number))
    }
}

impl PartialOrd for Running {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Running {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Running {}

/// What has been said in a session so far.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pieces: Vec<Piece>,
    tokens: u64,
    tokens_max: u64,
}

impl Context {
    /// An empty one, for at most `tokens_max` tokens.
    pub(crate) fn new(tokens_max: u64) -> Self {
        Self { pieces: Vec::new(), tokens: 0, tokens_max }
    }

    /// Adds a piece, cut to what there is room for; false if that is nothing.
    pub(crate) fn add(&mut self, stream: u64, tokens: u64) -> bool {
        let room = self.tokens_max - self.tokens;
        let tokens = tokens.min(room);
        if tokens > 0 {
            self.pieces.push(Piece { stream, tokens });
            self.tokens += tokens;
        }
        room > 0
    }

    pub(crate) fn content(&self) -> Content {
        Content::Pieces(self.pieces.clone())
    }
}

/// Checks what all generators of sessions take.
pub(crate) fn check(sessions: u64, tokens_max: u64, token_ms: f64) -> Result<(), InvalidParameter> {
    if !(1..=SESSIONS_MAX).contains(&sessions) {
        return Err(InvalidParameter::new(format!(
            "{sessions} sessions are asked for, give 1 to {SESSIONS_MAX}"
        )));
    }
    if !(1..=crate::INPUT_TOKENS_MAX).contains(&tokens_max) {
        let most = crate::INPUT_TOKENS_MAX;
        return Err(InvalidParameter::new(format!(
            "prompts of at most {tokens_max} tokens, give 1 to {most}"
        )));
    }
    if !(0.0..=TOKEN_MS_MAX).contains(&token_ms) {
        return Err(InvalidParameter::new(format!(
            "{token_ms} ms for a token of an answer, give 0 to {TOKEN_MS_MAX}"
        )));
    }
    Ok(())
}

/// Turns of a session, at most: the pieces of all of them are in memory together.
pub(crate) const TURNS_MAX: u64 = 1000;

const SESSIONS_MAX: u64 = 1 << 24;
const TOKEN_MS_MAX: f64 = 1e6;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turn(session: usize, turn: usize, gap_ms: f64) -> Turn {
        let mut request = Request::new(Content::Pieces(Vec::new()));
        (request.session_id, request.turn) = (Some(session.to_string()), Some(turn as u32));
        Turn { gap_ms, request }
    }

    proptest! {
        /// The oracle: all turns with their times, sorted.
        #[test]
        fn turns_come_in_the_order_of_their_times(
            sessions in proptest::collection::vec((0u32..50, proptest::collection::vec(0u32..40, 0..5)), 0..12),
        ) {
            let mut start = 0;
            let mut expected = Vec::new();
            let (mut starts, mut turns) = (Vec::new(), Vec::new());
            for (number, (gap, gaps)) in sessions.iter().enumerate() {
                start += gap;
                starts.push(f64::from(start));
                let mut time = start;
                for (index, gap) in gaps.iter().enumerate() {
                    time += gap;
                    expected.push((time, number, index));
                }
                let gaps = gaps.iter().enumerate();
                turns.push(Ok(gaps.map(|(index, gap)| turn(number, index, f64::from(*gap))).collect()));
            }
            expected.sort_unstable();
            let got: Vec<(u32, usize, usize)> = interleaved(turns.into_iter(), starts.into_iter())
                .map(|request| {
                    let request = request.expect("no errors");
                    let number = request.session_id.expect("set").parse().expect("a number");
                    (request.timestamp_ms.expect("set") as u32, number, request.turn.expect("set") as usize)
                })
                .collect();
            prop_assert_eq!(got, expected);
        }
    }

    #[test]
    fn a_context_is_cut_at_its_end() {
        let mut context = Context::new(10);
        assert!(context.add(1, 6) && context.add(2, 0) && context.add(3, 6));
        assert!(!context.add(4, 1));
        let pieces = vec![Piece { stream: 1, tokens: 6 }, Piece { stream: 3, tokens: 4 }];
        assert_eq!(context.content(), Content::Pieces(pieces));
    }
}
