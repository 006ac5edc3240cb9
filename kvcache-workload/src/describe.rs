//! What is in a workload.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;

use crate::blocks::Blocks;
use crate::request::Request;

/// Takes the requests of a workload in their order and says what they have in common.
///
/// Memory: 16 bytes a request, and about 10 for each distinct block.
pub struct Describer {
    blocks: Blocks,
    seen: HashSet<u64>,
    sharing: Sharing,
    input: Vec<u64>,
    output: Vec<u64>,
    turns: HashMap<String, u64>,
    classes: BTreeMap<String, u64>,
    /// Times of the first request, of the last one so far, and how often one was earlier than the one before it.
    first_ms: Option<f64>,
    last_ms: f64,
    timed: u64,
    earlier: u64,
    /// Sum of the squares of the times between requests.
    gap_squares: f64,
}

impl Describer {
    /// A workload without requests. What they share is counted in `blocks`.
    pub fn new(blocks: Blocks) -> Self {
        let sharing = Sharing { block_tokens: blocks.block_tokens(), ..Sharing::default() };
        Self {
            blocks,
            seen: HashSet::new(),
            sharing,
            input: Vec::new(),
            output: Vec::new(),
            turns: HashMap::new(),
            classes: BTreeMap::new(),
            first_ms: None,
            last_ms: 0.0,
            timed: 0,
            earlier: 0,
            gap_squares: 0.0,
        }
    }

    /// The next request.
    pub fn add(&mut self, request: &Request) {
        let (ids, input_tokens) = (self.blocks.ids(request), self.blocks.input_tokens(request));
        let hit_blocks = ids.iter().take_while(|id| self.seen.contains(id)).count() as u64;
        self.sharing.accesses += ids.len() as u64;
        self.sharing.hit_blocks += hit_blocks;
        self.sharing.hit_tokens += hit_blocks.saturating_mul(self.sharing.block_tokens).min(input_tokens);
        self.seen.extend(ids);
        self.input.push(input_tokens);
        self.output.extend(request.output_tokens);
        if let Some(session_id) = &request.session_id {
            *self.turns.entry(session_id.clone()).or_default() += 1;
        }
        if let Some(class) = &request.class {
            *self.classes.entry(class.clone()).or_default() += 1;
        }
        if let Some(time_ms) = request.timestamp_ms {
            let gap_ms = self.first_ms.map_or(0.0, |_| time_ms - self.last_ms);
            self.earlier += u64::from(gap_ms < 0.0);
            self.gap_squares += gap_ms * gap_ms;
            self.first_ms.get_or_insert(time_ms);
            self.last_ms = time_ms;
            self.timed += 1;
        }
    }

    /// What there was.
    pub fn finish(self) -> Description {
        let Self { mut sharing, seen, mut turns, .. } = self;
        let input_tokens: u64 = self.input.iter().sum();
        sharing.distinct_blocks = seen.len() as u64;
        sharing.footprint_tokens = sharing.distinct_blocks.saturating_mul(sharing.block_tokens);
        sharing.block_hit_ratio = sharing.hit_blocks as f64 / sharing.accesses.max(1) as f64;
        sharing.token_hit_ratio = sharing.hit_tokens as f64 / input_tokens.max(1) as f64;
        let arrivals = self.first_ms.filter(|_| self.timed > 1).map(|first_ms| {
            let gaps = (self.timed - 1) as f64;
            let (duration_s, mean_ms) =
                ((self.last_ms - first_ms) / 1000.0, (self.last_ms - first_ms) / gaps);
            let variance = (self.gap_squares / gaps - mean_ms * mean_ms).max(0.0);
            Arrivals {
                duration_s,
                per_second: (duration_s > 0.0).then_some(gaps / duration_s),
                gap_variation: (mean_ms > 0.0).then_some(variance.sqrt() / mean_ms),
                earlier_than_the_one_before: self.earlier,
            }
        });
        Description {
            requests: self.input.len() as u64,
            input_tokens,
            output_tokens: self.output.iter().sum(),
            sessions: turns.len() as u64,
            sharing,
            arrivals,
            input_length: Lengths::of(self.input),
            output_length: Lengths::of(self.output),
            turns_per_session: Lengths::of(turns.drain().map(|(_, count)| count).collect()),
            classes: self.classes,
        }
    }
}

/// What is in a workload.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Description {
    /// Requests.
    pub requests: u64,
    /// Tokens of all prompts.
    pub input_tokens: u64,
    /// Tokens of all answers whose length is known.
    pub output_tokens: u64,
    /// Different sessions.
    pub sessions: u64,
    /// What prompts have in common.
    pub sharing: Sharing,
    /// When requests arrive; `None` if fewer than two have a time.
    pub arrivals: Option<Arrivals>,
    /// Tokens of a prompt.
    pub input_length: Option<Lengths>,
    /// Tokens of an answer.
    pub output_length: Option<Lengths>,
    /// Requests of a session.
    pub turns_per_session: Option<Lengths>,
    /// Requests of each class.
    pub classes: BTreeMap<String, u64>,
}

/// What a cache that forgets nothing would answer.
#[derive(Clone, PartialEq, Default, Debug, Serialize)]
pub struct Sharing {
    /// Tokens of a block.
    pub block_tokens: u64,
    /// Blocks of all requests.
    pub accesses: u64,
    /// Of these, different ones.
    pub distinct_blocks: u64,
    /// Tokens that they have room for.
    pub footprint_tokens: u64,
    /// Blocks in the leading run of blocks of each request that earlier ones had.
    pub hit_blocks: u64,
    /// Tokens in them.
    pub hit_tokens: u64,
    /// Hit blocks of all accesses.
    pub block_hit_ratio: f64,
    /// Hit tokens of all tokens of prompts.
    pub token_hit_ratio: f64,
}

/// When requests arrive.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Arrivals {
    /// From the first to the last, in seconds.
    pub duration_s: f64,
    /// Requests a second; `None` if all come at once.
    pub per_second: Option<f64>,
    /// Standard deviation of the time between two requests by its mean: 0 if regular, 1 for a Poisson process, more for
    /// bursts.
    pub gap_variation: Option<f64>,
    /// Requests whose time is before that of the one before them: 0 in a good file.
    pub earlier_than_the_one_before: u64,
}

/// Lengths in their order.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Lengths {
    /// The mean.
    pub mean: f64,
    /// The shortest.
    pub min: u64,
    /// Half are at most so long.
    pub p50: u64,
    /// Nine of ten are.
    pub p90: u64,
    /// 99 of 100 are.
    pub p99: u64,
    /// The longest.
    pub max: u64,
}

impl Lengths {
    /// `None` of nothing.
    fn of(mut lengths: Vec<u64>) -> Option<Self> {
        lengths.sort_unstable();
        let last = lengths.len().checked_sub(1)?;
        // The smallest value that so many percent do not exceed.
        let percentile = |percent: usize| lengths[(lengths.len() * percent).div_ceil(100).saturating_sub(1)];
        Some(Self {
            mean: lengths.iter().sum::<u64>() as f64 / lengths.len() as f64,
            min: lengths[0],
            p50: percentile(50),
            p90: percentile(90),
            p99: percentile(99),
            max: lengths[last],
        })
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::request::{Content, Piece};

    fn described(requests: &[Request]) -> Description {
        let mut describer = Describer::new(Blocks::new(NonZeroU64::new(10).expect("not zero")));
        requests.iter().for_each(|request| describer.add(request));
        describer.finish()
    }

    fn request(time_ms: f64, pieces: &[(u64, u64)]) -> Request {
        let pieces =
            pieces.iter().map(|(stream, tokens)| Piece { stream: *stream, tokens: *tokens }).collect();
        Request { timestamp_ms: Some(time_ms), ..Request::new(Content::Pieces(pieces)) }
    }

    /// The second shares 20 tokens and has a block in common behind them that no prefix reaches: there is none, since
    /// an id covers all that is before it.
    #[test]
    fn sharing_is_what_an_endless_cache_would_answer() {
        let requests =
            [request(0.0, &[(1, 35)]), request(0.0, &[(1, 20), (2, 15)]), request(0.0, &[(1, 35)])];
        let sharing = described(&requests).sharing;
        assert_eq!((sharing.accesses, sharing.distinct_blocks, sharing.hit_blocks), (9, 4, 2 + 3));
        assert_eq!((sharing.footprint_tokens, sharing.hit_tokens), (40, 50));
        assert_eq!((sharing.block_hit_ratio, sharing.token_hit_ratio), (5.0 / 9.0, 50.0 / 105.0));
    }

    #[test]
    fn arrivals_have_rate_and_variation() {
        let at = |times: &[f64]| {
            let requests: Vec<Request> = times.iter().map(|time| request(*time, &[(1, 5)])).collect();
            described(&requests).arrivals
        };
        let regular = at(&[1000.0, 1500.0, 2000.0]).expect("timed");
        assert_eq!(
            (regular.duration_s, regular.per_second, regular.gap_variation),
            (1.0, Some(2.0), Some(0.0))
        );
        // Gaps of 0 and 1000: their deviation is their mean.
        assert_eq!(at(&[0.0, 0.0, 1000.0]).expect("timed").gap_variation, Some(1.0));
        assert_eq!(at(&[5.0, 5.0]).expect("timed").per_second, None);
        assert_eq!(at(&[0.0, 9.0, 3.0]).expect("timed").earlier_than_the_one_before, 1);
        assert_eq!(at(&[5.0]), None);
        assert_eq!(described(&[Request::new(Content::Pieces(Vec::new()))]).arrivals, None);
    }

    #[test]
    fn lengths_are_percentiles() {
        let lengths = Lengths::of((1..=200).rev().collect()).expect("some");
        assert_eq!(
            (lengths.min, lengths.p50, lengths.p90, lengths.p99, lengths.max),
            (1, 100, 180, 198, 200)
        );
        assert_eq!(lengths.mean, 100.5);
        assert_eq!(Lengths::of(vec![7]).expect("one").p50, 7);
        assert_eq!(Lengths::of(Vec::new()), None);
    }

    #[test]
    fn sessions_and_classes_are_counted() {
        let mut requests = vec![request(0.0, &[(1, 5)]); 5];
        for (index, request) in requests.iter_mut().enumerate() {
            request.session_id = Some((index % 2).to_string());
            request.class = Some(["a", "b"][usize::from(index == 4)].to_owned());
            request.output_tokens = (index > 0).then_some(index as u64);
        }
        let description = described(&requests);
        assert_eq!((description.requests, description.sessions, description.input_tokens), (5, 2, 25));
        assert_eq!((description.output_tokens, description.output_length.expect("known").mean), (10, 2.5));
        assert_eq!(description.turns_per_session.expect("sessions").max, 3);
        assert_eq!(description.classes, [("a".to_owned(), 4), ("b".to_owned(), 1)].into());
    }
}
