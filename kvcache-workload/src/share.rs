//! Prompts that share prefixes, independently of each other.

use std::fmt;
use std::str::FromStr;

use crate::arrivals::Rate;
use crate::distribution::{Distribution, deviation, positive};
use crate::error::InvalidParameter;
use crate::random::Random;
use crate::request::{Content, INPUT_TOKENS_MAX, Piece, Request};
use crate::streams::{self, STREAMS_MAX};

/// Requests of some classes, each drawn independently of the others: its class by weight, its prefix by popularity.
#[derive(Clone, PartialEq, Debug)]
pub struct Share {
    /// The classes, one at least.
    pub classes: Vec<ShareClass>,
    /// How many requests.
    pub requests: u64,
    /// When they arrive.
    pub rate: Rate,
    /// Of everything that is drawn.
    pub seed: u64,
}

/// One part of a mix.
///
/// Written as `name=chat,weight=2,prefixes=10,popularity=zipf:1.2,prompt=normal:1835:742@1..,shared=normal:0.85:0.13,
/// output=100`, with `prefix=` and `suffix=` in place of `prompt=` and `shared=` where prefixes have a length of
/// their own. Weight, prefixes and popularity may be missing: 1, 1 and `uniform`.
#[derive(Clone, PartialEq, Debug)]
pub struct ShareClass {
    /// The `class` of its requests.
    pub name: String,
    /// Its share of the requests, relative to the other weights.
    pub weight: f64,
    /// How many different prefixes it has.
    pub prefixes: u64,
    /// Which of them a request has.
    pub popularity: Popularity,
    /// How long prompts are and how much of them is the prefix.
    pub lengths: ShareLengths,
    /// Tokens of an answer.
    pub output_tokens: Distribution,
}

/// How long prompts are and how much of them is shared.
#[derive(Clone, PartialEq, Debug)]
pub enum ShareLengths {
    /// Each prompt has a length and a fraction, and begins with so much of its prefix: two prompts of one prefix share
    /// the shorter of their parts.
    Fraction {
        /// Tokens of a prompt.
        prompt_tokens: Distribution,
        /// Of these, the fraction that is the beginning of a prefix; values outside of 0 to 1 are drawn again.
        shared: Distribution,
    },
    /// Each prefix has a length, and its prompts have all of it.
    Parts {
        /// Tokens of a prefix.
        prefix_tokens: Distribution,
        /// Tokens of what follows in each prompt.
        suffix_tokens: Distribution,
    },
}

/// Which of its prefixes a class uses how often.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Popularity {
    /// All equally often.
    Uniform,
    /// The prefix of rank `r` proportionally to `r` to the power of minus this exponent.
    Zipf(f64),
}

impl Share {
    /// The requests, in the order of arrival. Memory: 8 bytes a prefix where popularity is not uniform.
    ///
    /// # Errors
    ///
    /// If a parameter is impossible, or prefixes and requests together are more than 2^32.
    pub fn requests(&self) -> Result<impl Iterator<Item = Request> + use<>, InvalidParameter> {
        let mut next_stream = streams::first(self.seed, "share");
        let (mut classes, mut weight_end, mut streams) = (Vec::new(), 0.0, self.requests);
        for class in &self.classes {
            let chooser = Chooser::new(class.popularity, class.prefixes)?;
            if let ShareLengths::Fraction { shared, .. } = &class.lengths {
                shared.clone().within(0.0, 1.0)?;
            }
            weight_end += class.weight;
            classes.push(Class { class: class.clone(), chooser, weight_end, first_stream: next_stream });
            next_stream = next_stream.wrapping_add(class.prefixes);
            streams = streams.saturating_add(class.prefixes);
        }
        if self.requests == 0 || classes.is_empty() {
            return Err(InvalidParameter::new(
                "no requests are asked for, give at least one request and class",
            ));
        }
        if streams > STREAMS_MAX {
            return Err(InvalidParameter::new(format!(
                "prefixes and requests are {streams} together, at most {STREAMS_MAX} can be made"
            )));
        }
        let (seed, mut random) = (self.seed, Random::new(self.seed, "share"));
        Ok(self.rate.times(seed).zip(0..self.requests).map(move |(time_ms, index)| {
            let at = random.unit() * weight_end;
            let class = classes.iter().find(|class| at < class.weight_end).unwrap_or(&classes[0]);
            let mut request = class.request(seed, &mut random, next_stream + index);
            request.timestamp_ms = Some(time_ms);
            request
        }))
    }
}

struct Class {
    class: ShareClass,
    chooser: Chooser,
    /// The sum of the weights up to this class.
    weight_end: f64,
    first_stream: u64,
}

impl Class {
    fn request(&self, seed: u64, random: &mut Random, suffix_stream: u64) -> Request {
        let prefix = self.chooser.choose(random);
        let (prefix_tokens, suffix_tokens) = match &self.class.lengths {
            ShareLengths::Fraction { prompt_tokens, shared } => {
                let prompt_tokens = prompt_tokens.sample_count(random, 1);
                let shared = shared.clone().within(0.0, 1.0).map_or(0.0, |shared| shared.sample(random));
                let prefix_tokens = (prompt_tokens as f64 * shared).round() as u64;
                (prefix_tokens, prompt_tokens.saturating_sub(prefix_tokens))
            }
            ShareLengths::Parts { prefix_tokens, suffix_tokens } => {
                // The same for every request that has the prefix, without a table.
                let mut of_prefix =
                    Random::nth(seed, "prefix lengths", self.first_stream.wrapping_add(prefix));
                let prefix_tokens = prefix_tokens.sample_count(&mut of_prefix, 0);
                (prefix_tokens, suffix_tokens.sample_count(random, 1).min(INPUT_TOKENS_MAX - prefix_tokens))
            }
        };
        let parts = [(self.first_stream + prefix, prefix_tokens), (suffix_stream, suffix_tokens)];
        let pieces = parts.into_iter().filter(|(_, tokens)| *tokens > 0);
        Request {
            output_tokens: Some(self.class.output_tokens.sample_count(random, 1)),
            class: Some(self.class.name.clone()),
            ..Request::new(Content::Pieces(pieces.map(|(stream, tokens)| Piece { stream, tokens }).collect()))
        }
    }
}

/// Chooses one of some prefixes.
pub(crate) enum Chooser {
    Uniform(u64),
    /// The sums of the weights up to each prefix.
    Weighted(Vec<f64>),
}

impl Chooser {
    pub(crate) fn new(popularity: Popularity, count: u64) -> Result<Self, InvalidParameter> {
        if count == 0 {
            return Err(InvalidParameter::new("there must be at least one prefix"));
        }
        match popularity {
            Popularity::Uniform => Ok(Self::Uniform(count)),
            Popularity::Zipf(_) if count > WEIGHTED_MAX => Err(InvalidParameter::new(format!(
                "{count} prefixes are too many for a Zipf distribution, at most {WEIGHTED_MAX} can be made"
            ))),
            Popularity::Zipf(exponent) => {
                let mut sum = 0.0;
                let weights = (1..=count).map(|rank| libm::pow(rank as f64, -exponent));
                Ok(Self::Weighted(
                    weights
                        .map(|weight| {
                            sum += weight;
                            sum
                        })
                        .collect(),
                ))
            }
        }
    }

    pub(crate) fn choose(&self, random: &mut Random) -> u64 {
        match self {
            Self::Uniform(count) => random.below(*count),
            Self::Weighted(sums) => {
                let at = random.unit() * sums.last().copied().unwrap_or(0.0);
                (sums.partition_point(|sum| *sum <= at) as u64).min(sums.len() as u64 - 1)
            }
        }
    }
}

impl FromStr for Popularity {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':') {
            None if text == "uniform" => Ok(Self::Uniform),
            Some(("zipf", exponent)) => Ok(Self::Zipf(deviation(exponent)?)),
            _ => Err(InvalidParameter::new(format!(
                "`{text}` is no popularity; write `uniform` or `zipf:EXPONENT`"
            ))),
        }
    }
}

impl fmt::Display for Popularity {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => formatter.write_str("uniform"),
            Self::Zipf(exponent) => write!(formatter, "zipf:{exponent}"),
        }
    }
}

impl FromStr for ShareClass {
    type Err = InvalidParameter;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut class = Fields::default();
        for field in text.split(',') {
            let (name, value) = field.split_once('=').ok_or_else(|| {
                InvalidParameter::new(format!(
                    "`{field}` must be NAME=VALUE, as in `prompt=normal:1835:742@1..`"
                ))
            })?;
            class.set(name, value)?;
        }
        class.finish()
    }
}

/// What a class has been told so far.
#[derive(Default)]
struct Fields {
    name: Option<String>,
    weight: Option<f64>,
    prefixes: Option<u64>,
    popularity: Option<Popularity>,
    prompt: Option<Distribution>,
    shared: Option<Distribution>,
    prefix: Option<Distribution>,
    suffix: Option<Distribution>,
    output: Option<Distribution>,
}

impl Fields {
    fn set(&mut self, name: &str, value: &str) -> Result<(), InvalidParameter> {
        let is_new = match name {
            "name" => self.name.replace(value.to_owned()).is_none(),
            "weight" => self.weight.replace(positive(value)?).is_none(),
            "prefixes" => {
                let count = value.parse().map_err(|_| {
                    InvalidParameter::new(format!("`prefixes={value}` must be a whole number of at least 1"))
                })?;
                self.prefixes.replace(count).is_none()
            }
            "popularity" => self.popularity.replace(value.parse()?).is_none(),
            "prompt" => self.prompt.replace(value.parse()?).is_none(),
            "shared" => self.shared.replace(value.parse::<Distribution>()?.within(0.0, 1.0)?).is_none(),
            "prefix" => self.prefix.replace(value.parse()?).is_none(),
            "suffix" => self.suffix.replace(value.parse()?).is_none(),
            "output" => self.output.replace(value.parse()?).is_none(),
            _ => {
                return Err(InvalidParameter::new(format!(
                    "`{name}` is no part of a class; these are name, weight, prefixes, popularity, prompt, \
                     shared, prefix, suffix and output"
                )));
            }
        };
        if is_new { Ok(()) } else { Err(InvalidParameter::new(format!("`{name}` is given twice"))) }
    }

    fn finish(self) -> Result<ShareClass, InvalidParameter> {
        let lengths = match (self.prompt, self.shared, self.prefix, self.suffix) {
            (Some(prompt_tokens), Some(shared), None, None) => {
                ShareLengths::Fraction { prompt_tokens, shared }
            }
            (None, None, Some(prefix_tokens), Some(suffix_tokens)) => {
                ShareLengths::Parts { prefix_tokens, suffix_tokens }
            }
            _ => {
                return Err(InvalidParameter::new(
                    "a class needs `prompt` and `shared`, or `prefix` and `suffix`",
                ));
            }
        };
        Ok(ShareClass {
            name: self.name.ok_or_else(|| InvalidParameter::new("a class needs `name`"))?,
            weight: self.weight.unwrap_or(1.0),
            prefixes: self.prefixes.unwrap_or(1),
            popularity: self.popularity.unwrap_or(Popularity::Uniform),
            lengths,
            output_tokens: self.output.ok_or_else(|| InvalidParameter::new("a class needs `output`"))?,
        })
    }
}

impl fmt::Display for ShareClass {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "name={},weight={},prefixes={}", self.name, self.weight, self.prefixes)?;
        write!(formatter, ",popularity={}", self.popularity)?;
        match &self.lengths {
            ShareLengths::Fraction { prompt_tokens, shared } => {
                write!(formatter, ",prompt={prompt_tokens},shared={shared}")?;
            }
            ShareLengths::Parts { prefix_tokens, suffix_tokens } => {
                write!(formatter, ",prefix={prefix_tokens},suffix={suffix_tokens}")?;
            }
        }
        write!(formatter, ",output={}", self.output_tokens)
    }
}

/// A table of 128 MiB.
const WEIGHTED_MAX: u64 = 1 << 24;

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;
    use crate::Preset;

    fn share(class: &str, requests: u64, seed: u64) -> Share {
        let rate = "poisson:10".parse().expect("a rate");
        Share { classes: vec![class.parse().expect(class)], requests, rate, seed }
    }

    fn made(share: &Share) -> Vec<Request> {
        share.requests().expect("possible").collect()
    }

    fn pieces(request: &Request) -> &[Piece] {
        match &request.content {
            Content::Pieces(pieces) => pieces,
            other => panic!("{other:?}"),
        }
    }

    /// Tokens of the prompt and of its prefix.
    fn lengths(request: &Request, suffix_from: u64) -> (f64, f64) {
        let prefix =
            pieces(request).iter().filter(|piece| piece.stream < suffix_from).map(|piece| piece.tokens);
        (request.content.input_tokens().expect("pieces") as f64, prefix.sum::<u64>() as f64)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn lengths_and_shares_are_those_asked_for(
            mean in 200.0f64..3000.0, spread in 0.01f64..0.2, shared in 0.2f64..0.8, prefixes in 1u64..20, seed: u64,
        ) {
            let sd = mean * spread;
            let (prompt, shared_with) = (format!("normal:{mean}:{sd}"), format!("normal:{shared}:0.05"));
            let class = format!("name=a,prefixes={prefixes},prompt={prompt},shared={shared_with},output=9");
            let requests = made(&share(&class, 4000, seed));
            let suffix_from = streams::first(seed, "share") + prefixes;
            let lengths: Vec<(f64, f64)> = requests.iter().map(|request| lengths(request, suffix_from)).collect();
            let got_mean = lengths.iter().map(|(all, _)| all).sum::<f64>() / 4000.0;
            prop_assert!((got_mean - mean).abs() < 0.5 + 6.0 * sd / 63.0, "{got_mean}");
            let got_shared = lengths.iter().map(|(all, prefix)| prefix / all).sum::<f64>() / 4000.0;
            prop_assert!((got_shared - shared).abs() < 0.01, "{got_shared}");
            let used: HashSet<u64> = requests.iter().map(|request| pieces(request)[0].stream).collect();
            prop_assert_eq!(used.len() as u64, prefixes, "every prefix is used in 4000 requests");
            prop_assert!(requests.iter().all(|request| request.output_tokens == Some(9)));
        }
    }

    #[test]
    fn suffixes_are_nobody_elses() {
        let requests = made(&share("name=a,prefix=50,suffix=uniform:1:9,output=1", 500, 1));
        let suffixes: HashSet<u64> = requests.iter().map(|request| pieces(request)[1].stream).collect();
        assert_eq!(suffixes.len(), 500);
        let prefix = pieces(&requests[0])[0];
        assert!(requests.iter().all(|request| pieces(request)[0] == prefix), "one prefix of one length");
        assert!(!suffixes.contains(&prefix.stream));
    }

    #[test]
    fn a_prefix_has_one_length() {
        let requests = made(&share("name=a,prefixes=20,prefix=uniform:100:900,suffix=1,output=1", 2000, 1));
        let mut lengths: HashMap<u64, HashSet<u64>> = HashMap::new();
        for piece in requests.iter().map(|request| pieces(request)[0]) {
            lengths.entry(piece.stream).or_default().insert(piece.tokens);
        }
        assert_eq!(lengths.len(), 20);
        assert!(lengths.values().all(|lengths| lengths.len() == 1));
        assert!(lengths.values().flatten().collect::<HashSet<_>>().len() > 15, "but not all the same");
    }

    /// Ranks 1, 2 and 4 have weights 1, 1/2 and 1/4 of `1 + 1/2 + ... + 1/8`.
    #[test]
    fn zipf_prefers_low_ranks() {
        let requests =
            made(&share("name=a,prefixes=8,popularity=zipf:1,prefix=9,suffix=1,output=1", 20_000, 1));
        let first = streams::first(1, "share");
        let sum: f64 = (1..=8).map(|rank| 1.0 / f64::from(rank)).sum();
        for rank in [1, 2, 4] {
            let count =
                requests.iter().filter(|request| pieces(request)[0].stream == first + rank - 1).count();
            let expected = 20_000.0 / (rank as f64 * sum);
            assert!((count as f64 / expected - 1.0).abs() < 0.06, "{rank}: {count} of {expected}");
        }
    }

    #[test]
    fn classes_come_by_weight() {
        let preset = Preset::named("aibrix-shared").expect("it is there");
        let rate: Rate = "poisson:10".parse().expect("a rate");
        let share = Share { classes: preset.classes().expect("read"), requests: 20_000, rate, seed: 5 };
        let requests = made(&share);
        for (name, weight) in [("short", 12.0), ("long", 8.0), ("fresh", 79.0)] {
            let count = requests.iter().filter(|request| request.class.as_deref() == Some(name)).count();
            let expected = 20_000.0 * weight / 99.0;
            assert!((count as f64 - expected).abs() < 5.0 * f64::sqrt(expected), "{name}: {count}");
        }
        let last_ms = requests[19_999].timestamp_ms.expect("timed");
        assert!((last_ms / 2_000_000.0 - 1.0).abs() < 0.05, "10 requests a second: {last_ms}");
    }

    #[test]
    fn every_preset_is_read_and_what_is_written_is_read() {
        for preset in Preset::ALL {
            for class in preset.classes().expect(preset.name) {
                assert_eq!(class.to_string().parse(), Ok(class));
            }
        }
        assert!(Preset::named("tool").expect_err("unknown").to_string().contains("toolbench, embodied, "));
    }

    #[test]
    fn another_seed_has_other_streams() {
        let streams = |seed| -> HashSet<u64> {
            let requests = made(&share("name=a,prefixes=5,prefix=9,suffix=9,output=1", 50, seed));
            requests.iter().flat_map(|request| pieces(request).iter().map(|piece| piece.stream)).collect()
        };
        assert!(streams(1).is_disjoint(&streams(2)));
        assert!(streams(1).iter().all(|stream| *stream < 1 << 53));
    }

    #[test]
    fn impossible_classes_are_refused() {
        for (bad, expected) in [
            ("", "must be NAME=VALUE"),
            ("name=a", "a class needs `prompt` and `shared`, or `prefix` and `suffix`"),
            ("name=a,prompt=5,suffix=5,output=1", "a class needs `prompt` and `shared`"),
            ("prefix=5,suffix=5,output=1", "a class needs `name`"),
            ("name=a,prefix=5,suffix=5", "a class needs `output`"),
            ("name=a,name=b", "`name` is given twice"),
            ("name=a,size=5", "`size` is no part of a class"),
            ("weight=0", "`0` must be above 0"),
            ("weight=-1", "`-1` must be above 0"),
            ("prefixes=-1", "`prefixes=-1` must be a whole number"),
            ("popularity=zipf", "is no popularity"),
            ("popularity=zipf:-1", "`-1` must not be negative"),
            ("shared=1.5", "next to no values from 0 to 1"),
            ("shared=normal:9:0.1", "next to no values from 0 to 1"),
            ("prompt=normal:1", "is no distribution"),
        ] {
            let error = bad.parse::<ShareClass>().expect_err(bad).to_string();
            assert!(error.contains(expected), "{bad}: {error}");
        }
        let refused =
            |class: &str, requests| share(class, requests, 1).requests().err().expect(class).to_string();
        assert!(refused("name=a,prefix=5,suffix=5,output=1", 0).contains("no requests are asked for"));
        assert!(refused("name=a,prefixes=0,prefix=5,suffix=5,output=1", 1).contains("at least one prefix"));
        let many = refused("name=a,prefixes=4294967296,prefix=5,suffix=5,output=1", 1);
        assert!(many.contains("at most 4294967296 can be made"), "{many}");
        let zipf = refused("name=a,prefixes=99999999,popularity=zipf:1,prefix=5,suffix=5,output=1", 1);
        assert!(zipf.contains("too many for a Zipf distribution"), "{zipf}");
    }
}
