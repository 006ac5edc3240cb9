//! Files for OpenAI's batch API.

use serde_json::Value;

use super::{ConvertOptions, messages, messages_content, prompt_content};
use crate::request::Request;

/// The request in a line, or why there is none.
pub(super) fn request(record: &Value, options: ConvertOptions) -> Result<Request, String> {
    let body = record.get("body").filter(|body| body.is_object()).ok_or("a line without an object `body`")?;
    let content = match (body.get("messages"), body.get("prompt")) {
        (Some(list), None) => messages_content(&messages(list)?, options),
        (None, Some(Value::String(prompt))) => prompt_content(prompt.clone(), options),
        (None, Some(_)) => {
            return Err(
                "`body.prompt` is not text; several prompts or token ids cannot be converted".to_owned()
            );
        }
        (None, None) => {
            let url = record.get("url").and_then(Value::as_str).unwrap_or("?");
            return Err(format!("a request of `{url}` without `body.messages` or `body.prompt`"));
        }
        (Some(_), Some(_)) => return Err("both `body.messages` and `body.prompt`".to_owned()),
    };
    let limit = ["max_completion_tokens", "max_tokens"].iter().find_map(|name| body.get(*name));
    let output_tokens = match limit {
        None | Some(Value::Null) => None,
        Some(limit) => {
            Some(limit.as_u64().ok_or_else(|| format!("`max_tokens` is {limit}, expected a count"))?)
        }
    };
    Ok(Request { output_tokens, ..Request::new(content) })
}
