//! Why a request was not answered.

use std::borrow::Cow;
use std::time::Duration;

use crate::sse::{EVENT_BYTES_MAX, TooLong};

/// Why a request was not answered. The message says what the server or the system said.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Failure {
    /// There is no connection.
    #[error("{0}")]
    Connect(String),
    /// There was no connection in time.
    #[error("{0}")]
    ConnectTimeout(String),
    /// The connection ended before the answer began.
    #[error("{0}")]
    Reset(String),
    /// The first token did not come in time.
    #[error("no token after {} s", .0.as_secs_f64())]
    FirstTokenTimeout(Duration),
    /// The next token did not come in time.
    #[error("no further token after {} s", .0.as_secs_f64())]
    TokenTimeout(Duration),
    /// The answer was not whole in time.
    #[error("not answered after {} s", .0.as_secs_f64())]
    RequestTimeout(Duration),
    /// The server refused it.
    #[error("{message}")]
    Status {
        /// Of HTTP.
        code: u16,
        /// What the server said.
        message: String,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// The answer is none of this API.
    #[error("{0}")]
    Garbage(String),
    /// The stream ended before the answer did.
    #[error("{0}")]
    Cut(String),
    /// The server said in the stream that it failed.
    #[error("{0}")]
    Server(String),
}

impl Failure {
    /// What it is counted as.
    pub fn kind(&self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Connect(_) => "connect",
            Self::ConnectTimeout(_) => "connect timeout",
            Self::Reset(_) => "reset",
            Self::FirstTokenTimeout(_) => "first token timeout",
            Self::TokenTimeout(_) => "token timeout",
            Self::RequestTimeout(_) => "request timeout",
            Self::Status { code, .. } => return Cow::Owned(format!("status {code}")),
            Self::Garbage(_) => "garbage",
            Self::Cut(_) => "stream cut",
            Self::Server(_) => "server error in stream",
        })
    }
}

impl From<TooLong> for Failure {
    fn from(_: TooLong) -> Self {
        Self::Garbage(format!("a line or event of more than {EVENT_BYTES_MAX} bytes"))
    }
}

/// The beginning of what was received, for a message: one line without control characters.
pub(crate) fn excerpt(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(&bytes[..bytes.len().min(EXCERPT_BYTES)]);
    let mut text: String = text.chars().map(|char| if char.is_control() { ' ' } else { char }).collect();
    if bytes.len() > EXCERPT_BYTES {
        text += "...";
    }
    text
}

const EXCERPT_BYTES: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excerpts_are_short_lines() {
        assert_eq!(excerpt(b"a\nb\x07\xff"), "a b \u{fffd}");
        assert_eq!(excerpt(&[b'x'; 300]), format!("{}...", "x".repeat(200)));
    }
}
