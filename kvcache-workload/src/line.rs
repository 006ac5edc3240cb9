//! A line of a workload file and the request in it.

use std::num::NonZeroU64;

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny};
use serde::ser::{Serialize, SerializeMap, Serializer};

use crate::request::{Content, INPUT_TOKENS_MAX, Message, Piece, Request};

/// Why a line is no request.
#[derive(Debug)]
pub(crate) enum LineError {
    /// What is wrong with which value.
    Invalid(String),
    /// More ids than fit the tokens.
    BlockTokens { ids: usize, input_length: u64, block_tokens: u64 },
}

/// The request in a line; `block_tokens` is for ids that come without one.
pub(crate) fn parse(text: &[u8], block_tokens: NonZeroU64) -> Result<Request, LineError> {
    let line: Line = serde_json::from_slice(text).map_err(|error| LineError::Invalid(at_column(&error)))?;
    line.into_request(block_tokens)
}

/// Serde's message without its line number, which counts lines of the one line that it was given.
pub(crate) fn at_column(error: &serde_json::Error) -> String {
    let message = error.to_string();
    let what = message.rsplit_once(" at line ").map_or(message.as_str(), |(what, _)| what);
    format!("{what} at column {}", error.column())
}

/// The fields as they are written. Those that are not named here are ignored.
#[derive(serde::Deserialize)]
struct Line {
    workload: Option<IgnoredAny>,
    timestamp: Option<f64>,
    input_length: Option<u64>,
    output_length: Option<u64>,
    pieces: Option<Vec<(u64, u64)>>,
    hash_ids: Option<Vec<u64>>,
    block_tokens: Option<NonZeroU64>,
    prompt: Option<String>,
    messages: Option<Vec<Message>>,
    session_id: Option<SessionId>,
    turn: Option<u32>,
    class: Option<String>,
    think_ms: Option<f64>,
}

impl Line {
    fn into_request(self, block_tokens: NonZeroU64) -> Result<Request, LineError> {
        let invalid = |reason: &str| Err(LineError::Invalid(reason.to_owned()));
        if self.workload.is_some() {
            return invalid("`workload` marks the header of another file, which belongs on the first line");
        }
        for (name, value) in [("timestamp", self.timestamp), ("think_ms", self.think_ms)] {
            if let Some(value) = value.filter(|value| !(*value >= 0.0 && value.is_finite())) {
                return invalid(&format!("`{name}` is {value}, it must be 0 or more"));
            }
        }
        if self.turn.is_some() && self.session_id.is_none() {
            return invalid("`turn` without `session_id`");
        }
        let (timestamp_ms, output_tokens) = (self.timestamp, self.output_length);
        let (session_id, turn, class, think_ms) = (self.session_id, self.turn, self.class, self.think_ms);
        let lengths = Lengths { input_length: self.input_length, block_tokens: self.block_tokens };
        let content = match (self.pieces, self.hash_ids, self.prompt, self.messages) {
            (Some(pieces), None, None, None) => lengths.of_pieces(pieces)?,
            (None, Some(ids), None, None) => lengths.of_hashes(ids, block_tokens)?,
            (None, None, Some(text), None) => Content::Prompt { text, input_tokens: lengths.of_text()? },
            (None, None, None, Some(messages)) => {
                if let Some(index) = messages
                    .iter()
                    .position(|message| !message.get("role").is_some_and(serde_json::Value::is_string))
                {
                    return invalid(&format!("message {index} of `messages` has no `role`"));
                }
                Content::Messages { messages, input_tokens: lengths.of_text()? }
            }
            (None, None, None, None) => {
                return invalid(
                    "none of `pieces`, `hash_ids`, `prompt` and `messages` says what the prompt is",
                );
            }
            _ => {
                return invalid(
                    "only one of `pieces`, `hash_ids`, `prompt` and `messages` can say what the prompt is",
                );
            }
        };
        let session_id = session_id.map(|id| id.0);
        Ok(Request { timestamp_ms, content, output_tokens, session_id, turn, class, think_ms })
    }
}

struct Lengths {
    input_length: Option<u64>,
    block_tokens: Option<NonZeroU64>,
}

impl Lengths {
    fn of_pieces(self, pieces: Vec<(u64, u64)>) -> Result<Content, LineError> {
        let sum = pieces.iter().fold(0u64, |sum, (_, tokens)| sum.saturating_add(*tokens));
        bounded("the tokens of `pieces`", sum)?;
        match self.input_length {
            Some(length) if length != sum => Err(LineError::Invalid(format!(
                "`input_length` is {length}, but the tokens of `pieces` are {sum}"
            ))),
            _ => Ok(Content::Pieces(
                pieces.into_iter().map(|(stream, tokens)| Piece { stream, tokens }).collect(),
            )),
        }
    }

    fn of_hashes(self, ids: Vec<u64>, default: NonZeroU64) -> Result<Content, LineError> {
        let Some(input_tokens) = self.input_length else {
            return Err(LineError::Invalid("missing field `input_length` beside `hash_ids`".to_owned()));
        };
        bounded("`input_length`", input_tokens)?;
        let block_tokens = self.block_tokens.unwrap_or(default);
        // Ids beyond the tokens mean another block length; fewer ids are fine (only full blocks have one).
        if ids.len() as u64 > input_tokens.div_ceil(block_tokens.get()) {
            return Err(LineError::BlockTokens {
                ids: ids.len(),
                input_length: input_tokens,
                block_tokens: block_tokens.get(),
            });
        }
        Ok(Content::Hashes { ids, block_tokens, input_tokens })
    }

    fn of_text(self) -> Result<Option<u64>, LineError> {
        self.input_length.map_or(Ok(()), |length| bounded("`input_length`", length))?;
        Ok(self.input_length)
    }
}

fn bounded(what: &str, tokens: u64) -> Result<(), LineError> {
    if tokens > INPUT_TOKENS_MAX {
        return Err(LineError::Invalid(format!("{what} are {tokens}, at most {INPUT_TOKENS_MAX} can be")));
    }
    Ok(())
}

/// A string, or a number that is taken for one.
struct SessionId(String);

impl<'de> Deserialize<'de> for SessionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match serde_json::Value::deserialize(deserializer)? {
            serde_json::Value::String(id) => Ok(Self(id)),
            serde_json::Value::Number(id) => Ok(Self(id.to_string())),
            other => {
                Err(D::Error::custom(format_args!("`session_id` is {other}, expected a string or a number")))
            }
        }
    }
}

impl Serialize for Request {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if let Some(timestamp_ms) = self.timestamp_ms {
            map.serialize_entry("timestamp", &Milliseconds(timestamp_ms))?;
        }
        if let Some(input_tokens) = self.content.input_tokens() {
            map.serialize_entry("input_length", &input_tokens)?;
        }
        if let Some(output_tokens) = self.output_tokens {
            map.serialize_entry("output_length", &output_tokens)?;
        }
        if let Some(session_id) = &self.session_id {
            map.serialize_entry("session_id", session_id)?;
        }
        if let Some(turn) = self.turn {
            map.serialize_entry("turn", &turn)?;
        }
        if let Some(class) = &self.class {
            map.serialize_entry("class", class)?;
        }
        if let Some(think_ms) = self.think_ms {
            map.serialize_entry("think_ms", &Milliseconds(think_ms))?;
        }
        match &self.content {
            Content::Pieces(pieces) => {
                let pairs: Vec<(u64, u64)> =
                    pieces.iter().map(|piece| (piece.stream, piece.tokens)).collect();
                map.serialize_entry("pieces", &pairs)?;
            }
            Content::Hashes { ids, block_tokens, .. } => {
                map.serialize_entry("block_tokens", block_tokens)?;
                map.serialize_entry("hash_ids", ids)?;
            }
            Content::Prompt { text, .. } => map.serialize_entry("prompt", text)?,
            Content::Messages { messages, .. } => map.serialize_entry("messages", messages)?,
        }
        map.end()
    }
}

/// Written to the microsecond, so that the last bits of a sum do not fill the file, and whole ones without a point.
struct Milliseconds(f64);

impl Serialize for Milliseconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let rounded = (self.0 * 1000.0).round() / 1000.0;
        if rounded.fract() == 0.0 && (0.0..9e15).contains(&rounded) {
            serializer.serialize_u64(rounded as u64)
        } else {
            serializer.serialize_f64(rounded)
        }
    }
}
