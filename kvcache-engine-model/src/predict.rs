//! What a measured case would have been.

use std::num::NonZeroU64;

use kvcache_workload::{Blocks, Content, Piece, Request};

use crate::error::Error;
use crate::profile::Profile;
use crate::setup::Setup;
use crate::simulation::{Options, Simulation};
use crate::traffic::Traffic;

/// Where the tokens are that a prompt hits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum HitIn {
    /// The engine's own prefix cache.
    Engine,
    /// L1, and the engine has forgotten them.
    L1,
}

/// Seconds to the last first token of `count` prompts of `prompt_tokens` that come together to an idle engine. The
/// first `hit_tokens` of each are in a cache, as far as blocks or slots go; nothing else is shared.
///
/// # Errors
///
/// If the profile is impossible, or a prompt too long for it.
pub fn predict_ttft_s(
    profile: &Profile,
    prompt_tokens: u64,
    hit_tokens: u64,
    hit_in: HitIn,
    count: u64,
) -> Result<f64, Error> {
    profile.check()?;
    let most = profile.request_tokens_max().min(kvcache_workload::INPUT_TOKENS_MAX);
    if prompt_tokens.saturating_add(1) > most {
        return Err(Error::TooMuch { what: "tokens in a prompt", most: most - 1 });
    }
    let mut setup: Setup = match hit_in {
        HitIn::Engine => "prefix".parse()?,
        HitIn::L1 => "layers".parse()?,
    };
    // It never has what was computed before.
    setup.prefix_cache = hit_in == HitIn::Engine;
    let block_tokens = NonZeroU64::new(profile.block_tokens.into()).unwrap_or(NonZeroU64::MIN);
    let mut traffic = Traffic::new(Blocks::new(block_tokens), 1);
    let hit_tokens = hit_tokens.min(prompt_tokens);
    let push = |traffic: &mut Traffic, round: u64, index: u64, time_ms: f64| {
        let head = Piece { stream: index, tokens: hit_tokens };
        let tail = Piece { stream: (round << 32) + index, tokens: prompt_tokens - hit_tokens };
        let mut request = Request::new(Content::Pieces(vec![head, tail]));
        (request.timestamp_ms, request.output_tokens) = (Some(time_ms), Some(1));
        traffic.push(&request)
    };
    // First one after the other, to be remembered, each when all before it has ended for long.
    if hit_tokens > 0 {
        (0..count).try_for_each(|index| push(&mut traffic, 1, index, index as f64 * APART_MS))?;
    }
    let together_ms = count as f64 * APART_MS;
    (0..count).try_for_each(|index| push(&mut traffic, 2, index, together_ms))?;
    let outcome = Simulation::new(profile, setup, &traffic, &Options::default())?.run(&mut |_| {})?;
    let first_ms = if hit_tokens > 0 { 0.0 } else { together_ms };
    Ok(outcome.duration_s - (together_ms - first_ms) / 1e3)
}

/// An hour.
const APART_MS: f64 = 3_600_000.0;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::tiny_profile;

    #[test]
    fn cases_are_those_of_the_engine() {
        let mut profile = tiny_profile();
        let us = |profile: &Profile, prompt, hit, hit_in, count| {
            (predict_ttft_s(profile, prompt, hit, hit_in, count).expect("possible") * 1e9).round() / 1e3
        };
        assert_eq!(us(&profile, 90, 0, HitIn::L1, 1), 1900.0);
        assert_eq!(us(&profile, 90, 0, HitIn::Engine, 2), 1000.0 + 1000.0 + 1000.0 + 800.0);
        assert_eq!(us(&profile, 90, 60, HitIn::Engine, 1), 1300.0);
        assert_eq!(us(&profile, 90, 60, HitIn::L1, 1), 1000.0 + 15.0 + 3.0 * 75.0 + 75.0);
        assert_eq!(us(&profile, 90, 65, HitIn::L1, 1), us(&profile, 90, 60, HitIn::L1, 1), "whole slots");
        assert_eq!(us(&profile, 90, 90, HitIn::Engine, 1), 1100.0, "a token is computed, and its block");
        profile.gpu_blocks = 9;
        let error = predict_ttft_s(&profile, 90, 0, HitIn::L1, 1).expect_err("too long").to_string();
        assert!(error.contains("too many tokens in a prompt, at most 89"), "{error}");
    }
}
