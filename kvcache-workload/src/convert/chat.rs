//! Conversations in the format of ShareGPT.

use serde_json::Value;

use super::{ConvertOptions, message, messages, messages_content};
use crate::arrivals::Rate;
use crate::distribution::Distribution;
use crate::error::InvalidParameter;
use crate::random::Random;
use crate::request::{Message, Request};
use crate::sessions::{self, TURNS_MAX, Turn};

/// When the turns of conversations arrive that have no times of their own.
#[derive(Clone, PartialEq, Debug)]
pub struct Chat {
    /// When conversations begin.
    pub rate: Rate,
    /// Pause between an answer and the next message.
    pub think_ms: Distribution,
    /// How long a token of an answer is taken to need.
    pub token_ms: f64,
    /// Of everything that is drawn.
    pub seed: u64,
}

impl Chat {
    pub(super) fn check(&self) -> Result<(), InvalidParameter> {
        sessions::check(1, 1, self.token_ms)
    }

    /// The turns of a conversation, or why there are none.
    pub(super) fn turns(
        &self,
        record: &Value,
        index: u64,
        options: ConvertOptions,
    ) -> Result<Vec<Turn>, String> {
        let said = said(record)?;
        let mut random = Random::nth(self.seed, "chat", index);
        let mut turns: Vec<Turn> = Vec::new();
        let mut answer_ms = None;
        let is = |at: usize, role: &str| {
            said.get(at).and_then(|message| message.get("role")).is_some_and(|r| r == role)
        };
        for at in 0..said.len() {
            // A request is what an answer answers, and what is left without one.
            let is_last = at + 1 == said.len();
            if is(at, "assistant") || !(is(at + 1, "assistant") || is_last) {
                continue;
            }
            if !(0..=at).any(|before| is(before, "user")) || turns.len() as u64 == TURNS_MAX {
                continue;
            }
            let output_tokens = said.get(at + 1).and_then(|answer| answer.get("content")).map(|answer| {
                let bytes = answer.as_str().map_or_else(|| answer.to_string().len(), str::len);
                options.bytes_per_token.tokens(bytes).max(1)
            });
            let think_ms = answer_ms.map(|_| self.think_ms.sample(&mut random).max(0.0));
            let request = Request {
                output_tokens,
                session_id: Some(session_id(record, index)),
                turn: Some(turns.len() as u32),
                think_ms,
                ..Request::new(messages_content(&said[..=at], options))
            };
            turns.push(Turn { gap_ms: answer_ms.unwrap_or(0.0) + think_ms.unwrap_or(0.0), request });
            answer_ms = Some(output_tokens.unwrap_or(0) as f64 * self.token_ms);
        }
        if turns.is_empty() {
            Err("a conversation in which no user says anything".to_owned())
        } else {
            Ok(turns)
        }
    }
}

/// The record's own id with its number, since ids of parts of a long conversation are not always different.
fn session_id(record: &Value, index: u64) -> String {
    match record.get("id").or_else(|| record.get("conversation_id")) {
        Some(Value::String(id)) => format!("{index}-{id}"),
        Some(Value::Number(id)) => format!("{index}-{id}"),
        _ => index.to_string(),
    }
}

fn said(record: &Value) -> Result<Vec<Message>, String> {
    if let Some(list) = record.get("messages") {
        return messages(list);
    }
    let list =
        ["conversations", "conversation", "items"].iter().find_map(|name| record.get(*name)?.as_array());
    let list = list.ok_or("a record without a list `conversations` or `messages`")?;
    list.iter()
        .enumerate()
        .map(|(at, entry)| {
            let text = |names: [&str; 2]| names.iter().find_map(|name| entry.get(*name)?.as_str());
            let from = text(["from", "role"])
                .ok_or_else(|| format!("message {at} does not say who it is `from`"))?;
            let role = match from {
                "human" | "user" => "user",
                "gpt" | "assistant" | "chatgpt" | "bing" | "bard" | "model" => "assistant",
                "system" | "tool" => from,
                _ => return Err(format!("message {at} is from `{from}`, which is no role")),
            };
            let value =
                text(["value", "content"]).ok_or_else(|| format!("message {at} has no text in `value`"))?;
            Ok(message(role, value))
        })
        .collect()
}
