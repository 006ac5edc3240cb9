//! One event of a streamed answer: what of its JSON says when tokens came and how many.
//!
//! It is read without a tree and without copying texts: a load client sees thousands of them a second, and of most
//! fields only whether they are empty.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// An event.
#[derive(Deserialize, Debug)]
pub(crate) struct Chunk {
    pub(crate) choices: Option<Vec<Choice>>,
    pub(crate) usage: Option<Usage>,
    /// What went wrong after the answer had begun.
    pub(crate) error: Option<Value>,
}

/// A part of one of the answers.
#[derive(Deserialize, Debug)]
pub(crate) struct Choice {
    #[serde(default)]
    text: Filled,
    delta: Option<Delta>,
    #[serde(default)]
    finish_reason: Filled,
}

#[derive(Deserialize, Debug)]
struct Delta {
    #[serde(default)]
    role: Filled,
    #[serde(default)]
    content: Filled,
    #[serde(default, alias = "reasoning_content")]
    reasoning: Filled,
    #[serde(default)]
    refusal: Filled,
    #[serde(default, alias = "function_call")]
    tool_calls: Filled,
}

/// Tokens as the server counts them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize, Debug)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: Option<u64>,
    pub(crate) completion_tokens: Option<u64>,
    pub(crate) prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize, Debug)]
pub(crate) struct PromptDetails {
    pub(crate) cached_tokens: Option<u64>,
}

impl Choice {
    /// Whether it brings a token. Tokens may have no text (a part of a letter), so an event without text counts, unless
    /// it only says who speaks or that the answer has ended.
    pub(crate) fn brings_token(&self) -> bool {
        let says = |delta: &Delta| {
            [&delta.content, &delta.reasoning, &delta.refusal, &delta.tool_calls].iter().any(|part| part.0)
        };
        let announces = self.delta.as_ref().is_some_and(|delta| delta.role.0);
        self.text.0 || self.delta.as_ref().is_some_and(says) || !(self.is_finished() || announces)
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.finish_reason.0
    }
}

/// Whether a field of any type has something in it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
struct Filled(bool);

impl<'de> Deserialize<'de> for Filled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(FilledVisitor)
    }
}

struct FilledVisitor;

impl<'de> Visitor<'de> for FilledVisitor {
    type Value = Filled;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Filled, E> {
        Ok(Filled(false))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Filled, E> {
        Ok(Filled(value))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Filled, E> {
        Ok(Filled(true))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Filled, E> {
        Ok(Filled(true))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Filled, E> {
        Ok(Filled(true))
    }

    fn visit_str<E>(self, text: &str) -> Result<Filled, E> {
        Ok(Filled(!text.is_empty()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<Filled, A::Error> {
        let mut filled = Filled(false);
        while sequence.next_element::<IgnoredAny>()?.is_some() {
            filled.0 = true;
        }
        Ok(filled)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Filled, A::Error> {
        let mut filled = Filled(false);
        while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {
            filled.0 = true;
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(json: &str) -> Chunk {
        serde_json::from_str(json).expect(json)
    }

    /// Whether it brings a token, and whether it says that the answer has ended.
    fn choice(json: &str) -> (bool, bool) {
        let chunk = chunk(&format!("{{\"id\": \"x\", \"choices\": [{json}]}}"));
        let choice = &chunk.choices.as_ref().expect("choices")[0];
        (choice.brings_token(), choice.is_finished())
    }

    #[test]
    fn tokens_of_completions_are_told_from_the_rest() {
        assert_eq!(choice(r#"{"index": 0, "text": " a\"b", "finish_reason": null}"#), (true, false));
        assert_eq!(choice(r#"{"text": "", "finish_reason": null, "logprobs": null}"#), (true, false));
        assert_eq!(choice(r#"{"text": "a", "finish_reason": "length"}"#), (true, true));
        assert_eq!(choice(r#"{"text": "", "finish_reason": "stop"}"#), (false, true));
    }

    #[test]
    fn tokens_of_chats_are_told_from_the_rest() {
        let delta = |delta: &str, reason: &str| {
            choice(&format!("{{\"delta\": {delta}, \"finish_reason\": {reason}}}"))
        };
        assert_eq!(delta(r#"{"role": "assistant", "content": ""}"#, "null"), (false, false));
        assert_eq!(delta(r#"{"role": "assistant", "content": "a"}"#, "null"), (true, false));
        assert_eq!(delta(r#"{"content": ""}"#, "null"), (true, false));
        assert_eq!(delta(r#"{"reasoning_content": "hm"}"#, "null"), (true, false));
        assert_eq!(delta(r#"{"tool_calls": [{"index": 0}]}"#, "\"tool_calls\""), (true, true));
        assert_eq!(delta(r#"{"tool_calls": []}"#, "\"stop\""), (false, true));
        assert_eq!(delta("{}", "\"stop\""), (false, true));
    }

    #[test]
    fn usage_is_read_with_what_was_cached() {
        let usage = chunk(
            r#"{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13,
                "prompt_tokens_details": {"cached_tokens": 8}}}"#,
        )
        .usage
        .expect("usage");
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (Some(9), Some(4)));
        assert_eq!(usage.prompt_tokens_details.expect("details").cached_tokens, Some(8));
        let usage =
            chunk(r#"{"choices": [], "usage": {"prompt_tokens_details": null}}"#).usage.expect("usage");
        assert_eq!(usage, Usage::default());
        assert_eq!(chunk(r#"{"choices": [], "usage": null}"#).usage, None);
    }
}
