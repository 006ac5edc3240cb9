//! What the server says: an object, or a `Status` that says no.

use serde_json::{Value, json};

/// A status code and a body.
#[derive(Clone, PartialEq, Debug)]
pub struct Answer {
    pub code: u16,
    pub body: Value,
}

impl Answer {
    pub fn ok(body: Value) -> Self {
        Self { code: 200, body }
    }

    pub fn created(body: Value) -> Self {
        Self { code: 201, body }
    }

    /// A refusal with the reason that clients match.
    pub fn refused(code: u16, reason: &str, message: impl Into<String>) -> Self {
        let message: String = message.into();
        let body = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "code": code,
        });
        Self { code, body }
    }

    pub fn not_found(what: impl std::fmt::Display) -> Self {
        Self::refused(404, "NotFound", format!("{what} not found"))
    }

    pub fn conflict(message: impl Into<String>) -> Self {
        Self::refused(409, "Conflict", message)
    }

    pub fn invalid(message: impl Into<String>) -> Self {
        Self::refused(422, "Invalid", message)
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::refused(400, "BadRequest", message)
    }

    /// The history that a watch asks for is gone.
    pub fn gone() -> Self {
        Self::refused(410, "Expired", "too old resource version")
    }
}
