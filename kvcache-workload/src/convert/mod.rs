//! Requests from files of other formats.

mod batch;
mod chat;
mod log;
mod time;

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

pub use chat::Chat;
pub use log::{Log, TimeUnit};

use crate::arrivals::Rate;
use crate::blocks::BytesPerToken;
use crate::error::Error;
use crate::reader::{BadLines, BadLinesPolicy, empty};
use crate::request::{Content, INPUT_TOKENS_MAX, Message, Piece, Request};
use crate::sessions;
use crate::source::Source;

/// What the text of prompts becomes.
#[derive(Clone, Copy, Debug)]
pub enum TextAs {
    /// It stays.
    Text,
    /// A token stream for each message, the same for the same message: what prompts share stays, and nobody can read
    /// them.
    Pieces,
}

/// How a file of another format is read.
#[derive(Clone, Copy, Debug)]
pub struct ConvertOptions {
    /// What happens at a record that is no request.
    pub bad_lines: BadLinesPolicy,
    /// For the tokens of text.
    pub bytes_per_token: BytesPerToken,
    /// What text becomes.
    pub text: TextAs,
}

/// The requests of a file of another format, with one record in memory where nothing else is said.
pub struct Converter {
    requests: Box<dyn Iterator<Item = Result<Request, Error>>>,
    source: Rc<RefCell<Source>>,
    any: bool,
}

impl Converter {
    /// Conversations in the format of ShareGPT: a JSON array or lines of objects with `conversations`, a list of
    /// `from` and `value` (or `messages` of `role` and `content`). Each answer is a turn whose prompt is all that was
    /// said before.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened, or a parameter is impossible.
    pub fn share_gpt(path: &Path, options: ConvertOptions, chat: &Chat) -> Result<Self, Error> {
        let source = open(path, options.bad_lines)?;
        chat.check()?;
        let (records, starts) = (values(&source)?, chat.rate.times(chat.seed));
        let (chat, shared) = (chat.clone(), Rc::clone(&source));
        let conversations = records.zip(0..).filter_map(move |(record, index)| {
            let turns = record.and_then(|record| match chat.turns(&record, index, options) {
                Ok(turns) => Ok(Some(turns)),
                Err(reason) => shared.borrow_mut().refuse(reason).map(|()| None),
            });
            turns.transpose()
        });
        Ok(Self { requests: Box::new(sessions::interleaved(conversations, starts)), source, any: false })
    }

    /// A file for OpenAI's batch API: lines with `custom_id`, `method`, `url` and `body`. Requests have the times of
    /// `rate`, if there is one.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened.
    pub fn openai_batch(
        path: &Path,
        options: ConvertOptions,
        rate: Option<(&Rate, u64)>,
    ) -> Result<Self, Error> {
        let source = open(path, options.bad_lines)?;
        let mut times = rate.map(|(rate, seed)| rate.times(seed));
        let records = values(&source)?;
        let shared = Rc::clone(&source);
        let requests = records.filter_map(move |record| {
            let request = record.and_then(|record| match batch::request(&record, options) {
                Ok(request) => Ok(Some(request)),
                Err(reason) => shared.borrow_mut().refuse(reason).map(|()| None),
            });
            let mut request = request.transpose()?;
            if let Ok(request) = &mut request {
                request.timestamp_ms = times.as_mut().and_then(Iterator::next);
            }
            Some(request)
        });
        Ok(Self { requests: Box::new(requests), source, any: false })
    }

    /// A log of requests, lines of JSON or CSV with a row of names: times, lengths, text or block ids in fields of any
    /// name. Also traces of block ids in other formats than ours.
    ///
    /// # Errors
    ///
    /// If the file cannot be opened, or has to be sorted and cannot be read.
    pub fn log(path: &Path, options: ConvertOptions, log: &Log) -> Result<Self, Error> {
        let source = open(path, options.bad_lines)?;
        let requests = log::requests(Rc::clone(&source), options, log)?;
        Ok(Self { requests, source, any: false })
    }

    /// The records that were left out so far.
    pub fn bad_lines(&self) -> BadLines {
        self.source.borrow().bad_lines().clone()
    }
}

impl Iterator for Converter {
    type Item = Result<Request, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.requests.next();
        match &next {
            None if !self.any => {
                // Once, like every error of the file.
                self.any = true;
                Some(Err(empty(&self.source.borrow())))
            }
            _ => {
                self.any = true;
                next
            }
        }
    }
}

fn open(path: &Path, policy: BadLinesPolicy) -> Result<Rc<RefCell<Source>>, Error> {
    Ok(Rc::new(RefCell::new(Source::open(path, policy)?)))
}

/// The JSON objects of a file, an array of them or lines.
fn values(source: &Rc<RefCell<Source>>) -> Result<impl Iterator<Item = Result<Value, Error>> + use<>, Error> {
    let (source, mut ended) = (Rc::clone(source), false);
    let is_array = source.borrow_mut().peek()? == Some(b'[');
    Ok(std::iter::from_fn(move || {
        let mut source = source.borrow_mut();
        while !ended {
            let next = if is_array { source.next_object() } else { source.next_line() };
            ended = !matches!(next, Ok(true));
            let value = match next {
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
                Ok(true) => serde_json::from_slice::<Value>(source.record()),
            };
            let reason = match value {
                Ok(value) if value.is_object() => return Some(Ok(value)),
                Ok(_) => "not a JSON object".to_owned(),
                Err(error) => format!("not JSON: {error}"),
            };
            if let Err(error) = source.refuse(reason) {
                ended = true;
                return Some(Err(error));
            }
        }
        None
    }))
}

/// Messages as a prompt, with their pieces if text shall not stay.
fn messages_content(messages: &[Message], options: ConvertOptions) -> Content {
    match options.text {
        TextAs::Text => Content::Messages { messages: messages.to_vec(), input_tokens: None },
        TextAs::Pieces => {
            let bytes = messages.iter().map(|message| {
                Content::Messages { messages: vec![message.clone()], input_tokens: None }
                    .text()
                    .unwrap_or_default()
            });
            pieces(bytes, options.bytes_per_token)
        }
    }
}

fn prompt_content(text: String, options: ConvertOptions) -> Content {
    match options.text {
        TextAs::Text => Content::Prompt { text, input_tokens: None },
        TextAs::Pieces => pieces(std::iter::once(text.into_bytes()), options.bytes_per_token),
    }
}

/// A piece for each text, whose stream follows from it.
fn pieces(texts: impl Iterator<Item = Vec<u8>>, bytes_per_token: BytesPerToken) -> Content {
    let mut room = INPUT_TOKENS_MAX;
    let pieces = texts.map(|text| {
        let tokens = bytes_per_token.tokens(text.len()).min(room);
        room -= tokens;
        // Below 2^53, which every reader of JSON has exactly.
        Piece { stream: xxh3_64(&text) >> 11, tokens }
    });
    Content::Pieces(pieces.collect())
}

/// A message of the chat API.
fn message(role: &str, content: &str) -> Message {
    let fields = [("role", role), ("content", content)];
    fields.into_iter().map(|(name, value)| (name.to_owned(), Value::from(value))).collect()
}

/// The list of messages in a value.
fn messages(value: &Value) -> Result<Vec<Message>, String> {
    let list = value.as_array().ok_or("`messages` is no list")?;
    list.iter()
        .enumerate()
        .map(|(index, message)| match message {
            Value::Object(message) if message.get("role").is_some_and(Value::is_string) => {
                Ok(message.clone())
            }
            _ => Err(format!("message {index} of `messages` has no `role`")),
        })
        .collect()
}
