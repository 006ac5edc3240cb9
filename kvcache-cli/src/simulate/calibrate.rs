//! Measured steps become a profile, and a profile is held against measured times.

use std::fmt::Write;
use std::path::Path;

use kvcache_engine_model::{HitIn, MeasuredStep, Profile, fit, predict_ttft_s};
use serde::{Deserialize, Serialize};

use super::SimulateError;
use super::profile_file::json;

/// What `--calibrate` reads. Other fields are of no interest to it.
#[derive(Deserialize)]
struct Measured {
    /// Everything but the costs of computing.
    profile: Profile,
    steps: Vec<MeasuredStep>,
}

/// What `--predict` reads.
#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

/// Prompts that come together to an idle engine.
#[derive(Deserialize)]
struct Case {
    name: String,
    prompt_tokens: u64,
    #[serde(default)]
    hit_tokens: u64,
    #[serde(default)]
    hit_in: HitInName,
    #[serde(default = "one")]
    count: u64,
    /// Times to the last first token, one for each time that it was measured.
    ttft_ms: Vec<f64>,
}

fn one() -> u64 {
    1
}

#[derive(Clone, Copy, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum HitInName {
    Engine,
    #[default]
    L1,
}

/// The profile of a file with the costs that fit its steps, as JSON.
pub(super) fn calibrate(path: &Path) -> Result<String, SimulateError> {
    let Measured { mut profile, steps } = json(path)?;
    let fitted = fit(&steps)?;
    profile.compute = fitted.compute;
    profile.check()?;
    eprintln!(
        "kvcache: {} steps of prompts are met to {:.1} % on average, {} of answers to {:.1} %",
        fitted.prefill_steps,
        fitted.prefill_error * 100.0,
        fitted.decode_steps,
        fitted.decode_error * 100.0,
    );
    Ok(serde_json::to_string_pretty(&profile)? + "\n")
}

/// A prediction beside what was measured.
#[derive(Serialize)]
struct Compared<'a> {
    case: &'a str,
    prompt_tokens: u64,
    hit_tokens: u64,
    count: u64,
    measured_ms: f64,
    measured_min_ms: f64,
    measured_max_ms: f64,
    samples: usize,
    predicted_ms: f64,
    error: f64,
}

/// Predictions of the cases in a file, beside the medians of what was measured.
pub(super) fn predict(
    path: &Path,
    profile: &Profile,
    within: Option<f64>,
    as_json: bool,
) -> Result<String, SimulateError> {
    let Cases { cases } = json(path)?;
    let mut compared = Vec::new();
    for case in &cases {
        let wrong = |reason| SimulateError::Case { path: path.to_owned(), case: case.name.clone(), reason };
        let mut times = case.ttft_ms.clone();
        times.sort_unstable_by(f64::total_cmp);
        let (Some(least), Some(most)) = (times.first(), times.last()) else {
            return Err(wrong("`ttft_ms` is empty, give what was measured"));
        };
        if !(*least > 0.0 && most.is_finite()) {
            return Err(wrong("`ttft_ms` has what is no time, give milliseconds above 0"));
        }
        if case.count == 0 || case.count > COUNT_MAX || case.prompt_tokens == 0 {
            return Err(wrong("give at least one prompt token, and 1 to 10000 prompts"));
        }
        let median = (times[(times.len() - 1) / 2] + times[times.len() / 2]) / 2.0;
        let hit_in = match case.hit_in {
            HitInName::Engine => HitIn::Engine,
            HitInName::L1 => HitIn::L1,
        };
        let predicted_ms =
            predict_ttft_s(profile, case.prompt_tokens, case.hit_tokens, hit_in, case.count)? * 1e3;
        compared.push(Compared {
            case: &case.name,
            prompt_tokens: case.prompt_tokens,
            hit_tokens: case.hit_tokens,
            count: case.count,
            measured_ms: median,
            measured_min_ms: *least,
            measured_max_ms: *most,
            samples: times.len(),
            predicted_ms,
            error: predicted_ms / median - 1.0,
        });
    }
    if compared.is_empty() {
        return Err(SimulateError::NoCase { path: path.to_owned() });
    }
    let text = if as_json { lines(&compared)? } else { table(&compared) };
    let Some(within) = within else { return Ok(text) };
    // Both are numbers: measured times are above 0.
    let off = compared.iter().filter(|of| of.error.abs() * 100.0 > within).count();
    if off > 0 {
        return Err(SimulateError::Off { text, count: off, of: compared.len(), within });
    }
    Ok(text)
}

fn lines(compared: &[Compared<'_>]) -> Result<String, SimulateError> {
    let mut text = String::new();
    for of in compared {
        text += &serde_json::to_string(of)?;
        text.push('\n');
    }
    Ok(text)
}

fn table(compared: &[Compared<'_>]) -> String {
    let width = compared.iter().map(|of| of.case.chars().count()).max().unwrap_or(0).max(4);
    let mut text = format!(
        "{:<width$}  {:>7} {:>7} {:>5}  {:>9} {:>21}  {:>9} {:>7}\n",
        "case", "prompt", "hit", "count", "median ms", "lowest to highest", "predicted", "error"
    );
    for of in compared {
        let range = format!("{:.2} to {:.2}", of.measured_min_ms, of.measured_max_ms);
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<width$}  {:>7} {:>7} {:>5}  {:>9.2} {range:>21}  {:>9.2} {:>+6.1}%",
            of.case,
            of.prompt_tokens,
            of.hit_tokens,
            of.count,
            of.measured_ms,
            of.predicted_ms,
            of.error * 100.0,
        );
    }
    text
}

/// More do not come together to an idle engine.
const COUNT_MAX: u64 = 10_000;
