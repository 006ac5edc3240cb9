//! A workload in the blocks of an engine.

use std::collections::HashMap;

use kvcache_workload::{Blocks, Request};

use crate::block_pool::ContentId;
use crate::error::Error;
use crate::time::whole_ns;

/// Requests in the order in which they were pushed, with the contents of their blocks, answers included.
///
/// A block's content is a number that two blocks share if they and all before them hold the same tokens. What an answer
/// holds is known from the next turn of its session, whose prompt begins with it; of other answers it is taken that
/// nobody asks for them again.
#[derive(Clone, Debug)]
pub struct Traffic {
    blocks: Blocks,
    answer_tokens: u64,
    requests: Vec<TrafficRequest>,
    numbers: HashMap<u64, ContentId>,
    content_count: ContentId,
    /// The last request of each session so far.
    sessions: HashMap<String, usize>,
    concurrency: Option<u64>,
}

#[derive(Clone, Debug)]
pub(crate) struct TrafficRequest {
    pub(crate) timestamp_ns: Option<u64>,
    pub(crate) think_ns: Option<u64>,
    pub(crate) input_tokens: u64,
    pub(crate) output_tokens: u64,
    /// The turn before it in its session.
    pub(crate) earlier: Option<usize>,
    /// The turn after it in its session.
    pub(crate) later: Option<usize>,
    /// Contents of its full blocks, those of the prompt and then those of the answer as far as it is known.
    contents: Vec<ContentId>,
}

impl Traffic {
    /// No requests yet, in these blocks. Where a workload does not say how long an answer is, it is `answer_tokens`.
    pub fn new(blocks: Blocks, answer_tokens: u64) -> Self {
        Self {
            blocks,
            answer_tokens: answer_tokens.max(1),
            requests: Vec::new(),
            numbers: HashMap::new(),
            content_count: 0,
            sessions: HashMap::new(),
            concurrency: None,
        }
    }

    /// Adds a request. Turns of a session are pushed in their order. Memory: 4 bytes a block, and some 50 for each
    /// content.
    ///
    /// # Errors
    ///
    /// If its timestamp is no time, if its answer is too long, or if there are too many contents.
    pub fn push(&mut self, request: &Request) -> Result<(), Error> {
        let index = self.requests.len();
        let time_ns = |time_ms: f64| {
            if !(0.0..=Error::TIMESTAMP_MS_MAX).contains(&time_ms) {
                return Err(Error::Timestamp { request: index, timestamp_ms: time_ms });
            }
            Ok(whole_ns(time_ms * 1e6))
        };
        let timestamp_ns = request.timestamp_ms.map(time_ns).transpose()?;
        let think_ns = request.think_ms.map(time_ns).transpose()?;
        let input_tokens = self.blocks.input_tokens(request).max(1);
        let output_tokens = request.output_tokens.unwrap_or(self.answer_tokens).max(1);
        if output_tokens > OUTPUT_TOKENS_MAX {
            return Err(Error::TooMuch { what: "tokens in an answer", most: OUTPUT_TOKENS_MAX });
        }
        let mut ids = self.blocks.ids(request);
        // A trace may have an id for a last block that is partly filled: no engine finds that one.
        ids.truncate((input_tokens / self.blocks.block_tokens()) as usize);
        let mut contents = Vec::with_capacity(ids.len());
        for id in ids {
            contents.push(match self.numbers.get(&id) {
                Some(number) => *number,
                None => {
                    let number = self.new_content()?;
                    self.numbers.insert(id, number);
                    number
                }
            });
        }
        let earlier = request.session_id.as_ref().and_then(|session| self.sessions.get(session).copied());
        if let Some(earlier) = earlier {
            let before = &mut self.requests[earlier];
            before.later = Some(index);
            if contents.starts_with(&before.contents) {
                let full = (before.input_tokens + before.output_tokens - 1) / self.blocks.block_tokens();
                let known = contents.len().min(full as usize);
                let answer = before.contents.len()..known.max(before.contents.len());
                before.contents.extend_from_slice(&contents[answer]);
            }
        }
        if let Some(session) = &request.session_id {
            self.sessions.insert(session.clone(), index);
        }
        self.requests.push(TrafficRequest {
            timestamp_ns,
            think_ns,
            input_tokens,
            output_tokens,
            earlier,
            later: None,
            contents,
        });
        Ok(())
    }

    /// So many sessions are served at a time, the next one as soon as one has ended. Timestamps do not count then, and
    /// a turn comes after its pause.
    pub fn serve_at_a_time(&mut self, sessions: Option<u64>) {
        self.concurrency = sessions;
    }

    /// Gives the requests other times of arrival, one after the other, in milliseconds.
    ///
    /// # Errors
    ///
    /// If one of them is no time.
    pub fn set_times_ms(&mut self, times_ms: impl Iterator<Item = f64>) -> Result<(), Error> {
        for ((index, request), timestamp_ms) in self.requests.iter_mut().enumerate().zip(times_ms) {
            if !(0.0..=Error::TIMESTAMP_MS_MAX).contains(&timestamp_ms) {
                return Err(Error::Timestamp { request: index, timestamp_ms });
            }
            request.timestamp_ns = Some(whole_ns(timestamp_ms * 1e6));
        }
        Ok(())
    }

    /// Times of arrival in milliseconds; `None` where a request has none.
    pub fn times_ms(&self) -> impl Iterator<Item = Option<f64>> {
        self.requests.iter().map(|request| request.timestamp_ns.map(|ns| ns as f64 / 1e6))
    }

    /// Number of requests.
    pub fn request_count(&self) -> usize {
        self.requests.len()
    }

    /// Number of different blocks in prompts and in the answers that come back in prompts: what a cache must hold to
    /// forget nothing.
    pub fn block_count(&self) -> u32 {
        self.content_count
    }

    /// Tokens of all prompts.
    pub fn input_tokens(&self) -> u64 {
        self.requests.iter().map(|request| request.input_tokens).sum()
    }

    /// Tokens of all answers.
    pub fn output_tokens(&self) -> u64 {
        self.requests.iter().map(|request| request.output_tokens).sum()
    }

    /// The mean rate at which requests arrive, a second; `None` without times or if all come at once.
    pub fn offered_per_s(&self) -> Option<f64> {
        if self.concurrency.is_some() {
            return None;
        }
        let times = self.requests.iter().map(|request| request.timestamp_ns);
        let (first, last) = (times.clone().min()??, times.max()??);
        let count = self.requests.len() as f64;
        (last > first).then(|| (count - 1.0) / ((last - first) as f64 / 1e9))
    }

    pub(crate) fn block_tokens(&self) -> u64 {
        self.blocks.block_tokens()
    }

    pub(crate) fn concurrency(&self) -> Option<u64> {
        self.concurrency
    }

    pub(crate) fn requests(&self) -> &[TrafficRequest] {
        &self.requests
    }

    fn new_content(&mut self) -> Result<ContentId, Error> {
        if u64::from(self.content_count) >= CONTENTS_MAX {
            return Err(Error::TooMuch { what: "different blocks", most: CONTENTS_MAX });
        }
        self.content_count += 1;
        Ok(self.content_count - 1)
    }
}

impl TrafficRequest {
    /// Contents of its full blocks that may be found by others.
    pub(crate) fn contents(&self) -> &[ContentId] {
        &self.contents
    }
}

/// An answer of a year, at ten tokens a second.
const OUTPUT_TOKENS_MAX: u64 = 1 << 28;

/// Numbers of 32 bits, of which the last one means none.
const CONTENTS_MAX: u64 = u32::MAX as u64 - 1;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use kvcache_workload::{Content, Piece};

    use super::*;

    fn traffic() -> Traffic {
        Traffic::new(Blocks::new(NonZeroU64::new(10).expect("not zero")), 5)
    }

    fn turn(session: Option<&str>, pieces: &[(u64, u64)], output_tokens: Option<u64>) -> Request {
        let pieces =
            pieces.iter().map(|(stream, tokens)| Piece { stream: *stream, tokens: *tokens }).collect();
        let mut request = Request::new(Content::Pieces(pieces));
        (request.session_id, request.output_tokens) = (session.map(str::to_owned), output_tokens);
        request
    }

    #[test]
    fn the_next_turn_says_what_the_answer_was() {
        let mut traffic = traffic();
        traffic.push(&turn(Some("a"), &[(1, 25)], Some(20))).expect("fits");
        traffic.push(&turn(None, &[(1, 25)], None)).expect("fits");
        traffic.push(&turn(Some("a"), &[(1, 25), (2, 20), (3, 15)], Some(1))).expect("fits");
        let [first, other, second] = traffic.requests() else { panic!("three requests") };
        // 45 tokens, of which the last is sampled and never computed: four full blocks.
        assert_eq!(first.contents(), [0, 1, 2, 3]);
        assert_eq!((other.contents(), other.output_tokens), (&[0, 1][..], 5));
        assert_eq!(second.contents(), [0, 1, 2, 3, 4, 5]);
        assert_eq!((first.later, second.earlier, second.later), (Some(2), Some(0), None));
        assert_eq!(traffic.block_count(), 6);
    }

    #[test]
    fn an_answer_of_full_blocks_lacks_its_last_token() {
        let mut traffic = traffic();
        traffic.push(&turn(Some("a"), &[(1, 20)], Some(20))).expect("fits");
        traffic.push(&turn(Some("a"), &[(1, 20), (2, 20)], None)).expect("fits");
        assert_eq!(traffic.requests()[0].contents(), [0, 1, 2]);
    }

    #[test]
    fn a_turn_that_begins_otherwise_says_nothing() {
        let mut traffic = traffic();
        traffic.push(&turn(Some("a"), &[(1, 25)], Some(20))).expect("fits");
        traffic.push(&turn(Some("a"), &[(9, 60)], None)).expect("fits");
        assert_eq!(traffic.requests()[0].contents(), [0, 1]);
    }

    #[test]
    fn a_last_block_that_is_not_full_is_no_content() {
        let mut traffic = traffic();
        let content = Content::Hashes {
            ids: vec![5, 6, 7],
            block_tokens: NonZeroU64::new(10).expect("not zero"),
            input_tokens: 25,
        };
        traffic.push(&Request::new(content)).expect("fits");
        assert_eq!(traffic.requests()[0].contents().len(), 2);
    }

    #[test]
    fn times_that_cannot_be_are_refused() {
        let mut traffic = traffic();
        let mut request = turn(None, &[(1, 5)], None);
        request.timestamp_ms = Some(-1.0);
        assert_eq!(traffic.push(&request), Err(Error::Timestamp { request: 0, timestamp_ms: -1.0 }));
        request.timestamp_ms = Some(2.5);
        (0..3).for_each(|_| traffic.push(&request).expect("fits"));
        assert_eq!(traffic.offered_per_s(), None);
        assert!(traffic.set_times_ms([0.0, 1.0, f64::NAN].into_iter()).is_err());
        traffic.set_times_ms([0.0, 1000.0, 4000.0].into_iter()).expect("times");
        assert_eq!(traffic.offered_per_s(), Some(0.5));
        assert_eq!(traffic.times_ms().nth(2), Some(Some(4000.0)));
    }
}
