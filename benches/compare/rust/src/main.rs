//! Our cache beside `foyer` and `moka`, which know keys and values and nothing of prompts.
//!
//! Answers each line on the standard input with one on the standard output, both JSON objects: what is asked is a
//! [`Question`], and an answer that has `error` says why there is no other. `python -m benches.compare` asks.

mod contender;
mod key;
mod plain_cache;
mod quality;
mod speed;

use std::error::Error;
use std::io::{BufRead, Write};
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Value, json};

fn main() -> Result<(), Box<dyn Error>> {
    let mut answers = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let answer = answer(&line?).unwrap_or_else(|error| json!({"error": error.to_string()}));
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    Ok(())
}

fn answer(line: &str) -> Result<Value, Box<dyn Error>> {
    match serde_json::from_str(line)? {
        Question::Quality { trace, block_tokens, capacities } => {
            let trace = quality::read(&trace, block_tokens)?;
            Ok(serde_json::to_value(quality::Quality::of(&trace, &capacities)?)?)
        }
        Question::Speed(case) => Ok(json!({"us": speed::samples(&case)?})),
    }
}

/// What can be asked.
#[derive(Deserialize)]
#[serde(tag = "do", rename_all = "lowercase")]
enum Question {
    /// The hit ratios of all caches on a trace.
    Quality {
        /// A workload file.
        trace: PathBuf,
        /// Tokens of its blocks.
        block_tokens: std::num::NonZeroU64,
        /// Blocks that a cache has room for.
        capacities: Vec<u32>,
    },
    /// Times of an operation with all caches, in turn.
    Speed(speed::Case),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_answered_is_named() {
        for (line, expected) in [
            ("nonsense", "expected ident"),
            (r#"{"do": "dance"}"#, "unknown variant `dance`"),
            (
                r#"{"do": "quality", "trace": "nowhere.jsonl", "block_tokens": 512, "capacities": [1]}"#,
                "nowhere.jsonl",
            ),
        ] {
            let error = answer(line).expect_err("is refused").to_string();
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
