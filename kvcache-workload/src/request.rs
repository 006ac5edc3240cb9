//! One request of a workload.

use std::num::NonZeroU64;

use serde_json::Value;

/// Longest prompt, in tokens: what a line can make a program allocate has a bound.
pub const INPUT_TOKENS_MAX: u64 = 1 << 26;

/// One request.
#[derive(Clone, PartialEq, Debug)]
pub struct Request {
    /// When it arrives, in milliseconds from the start of the workload; `None` if the workload has no times.
    pub timestamp_ms: Option<f64>,
    /// Its prompt.
    pub content: Content,
    /// Tokens of the answer; `None` if not known.
    pub output_tokens: Option<u64>,
    /// The session that it belongs to.
    pub session_id: Option<String>,
    /// Its place in the session, from 0. A turn is sent only after the earlier one has ended.
    pub turn: Option<u32>,
    /// The part of a mix that it was made by.
    pub class: Option<String>,
    /// Pause in milliseconds between the end of the earlier turn and this one.
    pub think_ms: Option<f64>,
}

impl Request {
    /// A request of this prompt, of which nothing else is known.
    pub fn new(content: Content) -> Self {
        Self {
            timestamp_ms: None,
            content,
            output_tokens: None,
            session_id: None,
            turn: None,
            class: None,
            think_ms: None,
        }
    }
}

/// A prompt, as far as it is known.
#[derive(Clone, PartialEq, Debug)]
pub enum Content {
    /// The pieces one after the other. Two such prompts share a prefix exactly as far as their pieces agree.
    Pieces(Vec<Piece>),
    /// Ids of the blocks, each naming all tokens up to the end of its block. The last block may be partly filled, and
    /// the last tokens may have no id.
    Hashes {
        /// From first to last.
        ids: Vec<u64>,
        /// Tokens of a block.
        block_tokens: NonZeroU64,
        /// Tokens of the prompt.
        input_tokens: u64,
    },
    /// Text of a completion.
    Prompt {
        /// The text.
        text: String,
        /// Its tokens, if somebody counted them.
        input_tokens: Option<u64>,
    },
    /// Messages of a chat.
    Messages {
        /// From first to last.
        messages: Vec<Message>,
        /// Their tokens, if somebody counted them.
        input_tokens: Option<u64>,
    },
}

/// The first `tokens` tokens of a token stream.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Piece {
    /// The stream; its tokens are those of [`token`](crate::token).
    pub stream: u64,
    /// How many of them.
    pub tokens: u64,
}

/// A message as the chat API has it, with `role` and whatever else (`content`, `tool_calls`, ...).
pub type Message = serde_json::Map<String, Value>;

impl Content {
    /// Tokens of the prompt, if they are known without a tokenizer.
    pub fn input_tokens(&self) -> Option<u64> {
        match self {
            Self::Pieces(pieces) => Some(pieces.iter().map(|piece| piece.tokens).sum()),
            Self::Hashes { input_tokens, .. } => Some(*input_tokens),
            Self::Prompt { input_tokens, .. } | Self::Messages { input_tokens, .. } => *input_tokens,
        }
    }

    /// The bytes that are the prompt's identity where it is text: the text itself, and for messages each one's role,
    /// content and what else it has, in a form of ours. A chat that goes on begins with the bytes that it had.
    pub fn text(&self) -> Option<Vec<u8>> {
        match self {
            Self::Pieces(_) | Self::Hashes { .. } => None,
            Self::Prompt { text, .. } => Some(text.clone().into_bytes()),
            Self::Messages { messages, .. } => {
                let mut bytes = Vec::new();
                messages.iter().for_each(|message| render(message, &mut bytes));
                Some(bytes)
            }
        }
    }
}

/// `<|role|>`, the content, what else there is as JSON, a line end.
fn render(message: &Message, bytes: &mut Vec<u8>) {
    let text = |bytes: &mut Vec<u8>, value: &Value| match value {
        Value::String(text) => bytes.extend_from_slice(text.as_bytes()),
        Value::Null => {}
        other => bytes.extend_from_slice(other.to_string().as_bytes()),
    };
    bytes.extend_from_slice(b"<|");
    message.get("role").into_iter().for_each(|role| text(bytes, role));
    bytes.extend_from_slice(b"|>");
    message.get("content").into_iter().for_each(|content| text(bytes, content));
    for (name, value) in message.iter().filter(|(name, _)| !matches!(name.as_str(), "role" | "content")) {
        bytes.extend_from_slice(name.as_bytes());
        text(bytes, value);
    }
    bytes.push(b'\n');
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat(json: &str) -> Content {
        Content::Messages { messages: serde_json::from_str(json).expect("messages"), input_tokens: None }
    }

    #[test]
    fn a_chat_that_goes_on_begins_as_it_did() {
        let first = chat(r#"[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"}]"#);
        let second = chat(
            r#"[{"role": "system", "content": "be brief"}, {"role": "user", "content": "hi"},
                {"role": "assistant", "content": null, "tool_calls": [{"id": 1}]}]"#,
        );
        let (first, second) = (first.text().expect("text"), second.text().expect("text"));
        assert_eq!(first, b"<|system|>be brief\n<|user|>hi\n");
        assert!(second.starts_with(&first));
        assert!(second.ends_with(b"<|assistant|>tool_calls[{\"id\":1}]\n"));
    }
}
