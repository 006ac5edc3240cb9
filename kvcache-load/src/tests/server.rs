//! A server that answers as the test wants, over any kind of connection. It speaks HTTP by hand, so that it can also
//! speak it badly.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep;

/// What was asked.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Its place among all requests that are no `GET`, from 0.
    pub(crate) number: u64,
    /// As in `POST /v1/completions`.
    pub(crate) line: String,
    /// The headers, in small letters.
    pub(crate) headers: String,
    /// The body, `null` if there is none.
    pub(crate) body: Value,
}

/// What the server does, step by step.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Wait(Duration),
    Send(Vec<u8>),
    /// Nothing more happens on this connection.
    Hang,
    /// Ends the connection.
    Close,
}

/// Answers the requests of one connection with the steps that `reply` gives.
pub(crate) async fn serve<S, F>(mut stream: S, count: Arc<AtomicU64>, reply: F) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Fn(&Asked) -> Vec<Step>,
{
    let mut received = Vec::new();
    loop {
        let Some(asked) = receive(&mut stream, &mut received, &count).await? else { return Ok(()) };
        for step in reply(&asked) {
            match step {
                Step::Wait(time) => sleep(time).await,
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                Step::Hang => std::future::pending().await,
                Step::Close => return Ok(()),
            }
        }
    }
}

async fn receive<S: AsyncRead + Unpin>(
    stream: &mut S,
    received: &mut Vec<u8>,
    count: &AtomicU64,
) -> io::Result<Option<Asked>> {
    loop {
        if let Some(end) = received.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&received[..end]).into_owned();
            let (line, headers) = head.split_once("\r\n").unwrap_or((&head, ""));
            let headers = headers.to_lowercase();
            let length = headers.lines().find_map(|line| line.strip_prefix("content-length: "));
            let length: usize = length.map_or(0, |length| length.parse().expect("a length"));
            if received.len() >= end + 4 + length {
                let body =
                    serde_json::from_slice(&received[end + 4..end + 4 + length]).unwrap_or(Value::Null);
                received.drain(..end + 4 + length);
                let is_get = line.starts_with("GET");
                let number = if is_get { 0 } else { count.fetch_add(1, Ordering::Relaxed) };
                let line = line.trim_end_matches(" HTTP/1.1").to_owned();
                return Ok(Some(Asked { number, line, headers, body }));
            }
        }
        let mut buffer = [0; 16 << 10];
        match stream.read(&mut buffer).await? {
            0 => return Ok(None),
            bytes => received.extend_from_slice(&buffer[..bytes]),
        }
    }
}

/// A whole response.
pub(crate) fn response(status: &str, headers: &str, body: &str) -> Vec<Step> {
    let length = body.len();
    let text = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n{headers}\r\n{body}");
    vec![Step::Send(text.into_bytes())]
}

/// The list of models.
pub(crate) fn models(names: &[&str]) -> Vec<Step> {
    let list: Vec<Value> =
        names.iter().map(|name| serde_json::json!({"id": name, "object": "model"})).collect();
    let body = serde_json::json!({"object": "list", "data": list}).to_string();
    response("200 OK", "content-type: application/json\r\n", &body)
}

/// The head of a stream of events.
pub(crate) fn stream_head() -> Step {
    let headers = "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked";
    let head = format!("HTTP/1.1 200 OK\r\n{headers}\r\n\r\n");
    Step::Send(head.into_bytes())
}

/// A part of a stream.
pub(crate) fn part(text: &str) -> Step {
    Step::Send(format!("{:x}\r\n{text}\r\n", text.len()).into_bytes())
}

/// The end of a stream.
pub(crate) fn stream_end() -> Step {
    Step::Send(b"0\r\n\r\n".to_vec())
}

/// The event of a token, as vLLM writes it.
pub(crate) fn token(is_chat: bool, index: usize) -> String {
    let (object, said) = match is_chat {
        true => ("chat.completion.chunk", format!("\"delta\": {{\"content\": \" word{index}\"}}")),
        false => ("text_completion", format!("\"text\": \" word{index}\"")),
    };
    format!(
        "data: {{\"id\": \"cmpl-0123456789abcdef0123456789abcdef\", \"object\": \"{object}\", \"created\": 1790000000, \
         \"model\": \"model\", \"choices\": [{{\"index\": 0, {said}, \"logprobs\": null, \"finish_reason\": null, \
         \"stop_reason\": null}}], \"usage\": null}}\n\n"
    )
}

/// The answer to `asked` whose first token comes after `first`, and each further one after the next of `gaps`.
pub(crate) fn answer(asked: &Asked, first: Duration, gaps: &[Duration], cached_tokens: u64) -> Vec<Step> {
    let is_chat = asked.line.ends_with("/chat/completions");
    let mut steps = vec![stream_head()];
    if is_chat {
        let delta = "{\"role\": \"assistant\", \"content\": \"\"}";
        let choice = format!("{{\"delta\": {delta}, \"finish_reason\": null}}");
        steps.push(part(&format!("data: {{\"choices\": [{choice}]}}\n\n")));
    }
    steps.push(Step::Wait(first));
    steps.push(part(&token(is_chat, 0)));
    for (gap, index) in gaps.iter().zip(1..) {
        steps.push(Step::Wait(*gap));
        steps.push(part(&token(is_chat, index)));
    }
    let prompt = asked.body["prompt"].as_array().map_or(7, Vec::len);
    let tokens = gaps.len() + 1;
    steps.push(part(&format!(
        "data: {{\"choices\": [{{\"text\": \"\", \"delta\": {{}}, \"finish_reason\": \"length\"}}]}}\n\n\
         data: {{\"choices\": [], \"usage\": {{\"prompt_tokens\": {prompt}, \"completion_tokens\": {tokens}, \
         \"prompt_tokens_details\": {{\"cached_tokens\": {cached_tokens}}}}}}}\n\ndata: [DONE]\n\n"
    )));
    steps.push(stream_end());
    steps
}
