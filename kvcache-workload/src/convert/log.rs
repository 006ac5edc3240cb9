//! Logs of requests, and traces of block ids.

use std::cell::RefCell;
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::rc::Rc;

use serde_json::Value;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{ConvertOptions, messages, messages_content, prompt_content, time, values};
use crate::arrivals::Rate;
use crate::error::Error;
use crate::request::{Content, INPUT_TOKENS_MAX, Piece, Request};
use crate::source::{Source, csv_fields};
use crate::streams;

/// Where a log has what. A name with dots goes into objects: `usage.prompt_tokens`.
///
/// The prompt is block ids if `ids` is given, else text if `prompt` is, else as many tokens as `input` says, which no
/// other request has.
#[derive(Clone, Debug)]
pub struct Log {
    /// Field of the time of arrival.
    pub time: String,
    /// Unit of times that are numbers.
    pub time_unit: TimeUnit,
    /// Field of the tokens of the prompt.
    pub input: String,
    /// Field of the tokens of the answer, which may be missing in a record.
    pub output: String,
    /// Field of the prompt's text, or of its messages.
    pub prompt: Option<String>,
    /// Field of the ids of the prompt's blocks: numbers, or texts that are hashed.
    pub ids: Option<String>,
    /// Tokens of such a block.
    pub block_tokens: NonZeroU64,
    /// Whether ids name a block's own tokens only, so that they have to be chained to name all before them as well.
    pub chain: bool,
    /// Field of the session.
    pub session: Option<String>,
    /// Fields of a record's own id and of that of the turn before it, where the log has those instead of sessions. A
    /// parent that is missing, null, negative or empty begins a session.
    pub parents: Option<(String, String)>,
    /// Field of the class.
    pub class: Option<String>,
    /// Times of arrival in the place of those of the log, and their seed.
    pub rate: Option<(Rate, u64)>,
    /// Sorts by time, which needs memory for all requests. Without it, records must be in their order.
    pub sort: bool,
}

/// Unit of a time that is a number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeUnit {
    /// Seconds.
    S,
    /// Milliseconds.
    Ms,
    /// Microseconds.
    Us,
    /// Nanoseconds.
    Ns,
}

impl TimeUnit {
    pub(super) fn milliseconds(self) -> f64 {
        match self {
            Self::S => 1e3,
            Self::Ms => 1.0,
            Self::Us => 1e-3,
            Self::Ns => 1e-6,
        }
    }
}

type Requests = Box<dyn Iterator<Item = Result<Request, Error>>>;

/// The requests of a log, with times that begin at 0.
pub(super) fn requests(
    source: Rc<RefCell<Source>>,
    options: ConvertOptions,
    log: &Log,
) -> Result<Requests, Error> {
    let first = source.borrow_mut().peek()?;
    let records: Box<dyn Iterator<Item = Result<Value, Error>>> = match first {
        Some(b'{' | b'[') => Box::new(values(&source)?),
        _ => Box::new(rows(Rc::clone(&source))),
    };
    let mut records_so_far = Records {
        log: log.clone(),
        options,
        turns: HashMap::new(),
        next_stream: streams::first(0, "log"),
        last_ms: f64::NEG_INFINITY,
    };
    let requests = records.filter_map(move |record| {
        let request = record.and_then(|record| match records_so_far.request(&record) {
            Ok(request) => Ok(Some(request)),
            Err(reason) => source.borrow_mut().refuse(reason).map(|()| None),
        });
        request.transpose()
    });
    let requests: Requests = if log.sort && log.rate.is_none() {
        let mut all = requests.collect::<Result<Vec<Request>, Error>>()?;
        // Stable: requests of one time stay in their order.
        all.sort_by(|a, b| a.timestamp_ms.unwrap_or(0.0).total_cmp(&b.timestamp_ms.unwrap_or(0.0)));
        Box::new(all.into_iter().map(Ok))
    } else {
        Box::new(requests)
    };
    if let Some((rate, seed)) = &log.rate {
        let mut times = rate.times(*seed);
        return Ok(Box::new(
            requests.map(move |request| Ok(Request { timestamp_ms: times.next(), ..request? })),
        ));
    }
    let mut first_ms = None;
    Ok(Box::new(requests.map(move |request| {
        let request = request?;
        let time_ms = request.timestamp_ms.unwrap_or(0.0);
        let first_ms = *first_ms.get_or_insert(time_ms);
        Ok(Request { timestamp_ms: Some((time_ms - first_ms).max(0.0)), ..request })
    })))
}

/// The rows of a CSV file as objects, with the names of its first row.
fn rows(source: Rc<RefCell<Source>>) -> impl Iterator<Item = Result<Value, Error>> {
    let (mut names, mut ended) = (None::<Vec<String>>, false);
    std::iter::from_fn(move || {
        let mut source = source.borrow_mut();
        while !ended {
            let next = source.next_row();
            ended = !matches!(next, Ok(true));
            let fields = match next {
                Ok(false) => return None,
                Err(error) => return Some(Err(error)),
                Ok(true) => csv_fields(source.record()),
            };
            let reason = match (fields, &names) {
                (Ok(fields), None) => {
                    names = Some(fields.into_iter().map(|name| name.trim().to_owned()).collect());
                    continue;
                }
                (Ok(fields), Some(names)) if fields.len() == names.len() => {
                    let fields = fields.into_iter().map(Value::from);
                    return Some(Ok(names
                        .iter()
                        .cloned()
                        .zip(fields)
                        .collect::<serde_json::Map<_, _>>()
                        .into()));
                }
                (Ok(fields), Some(names)) => {
                    format!("{} fields, where the first row has {} names", fields.len(), names.len())
                }
                (Err(reason), _) => reason,
            };
            if let Err(error) = source.refuse(reason) {
                ended = true;
                return Some(Err(error));
            }
        }
        None
    })
}

/// What has to be known of earlier records.
struct Records {
    log: Log,
    options: ConvertOptions,
    /// Session and place in it of each record's id.
    turns: HashMap<String, (String, u32)>,
    next_stream: u64,
    last_ms: f64,
}

impl Records {
    fn request(&mut self, record: &Value) -> Result<Request, String> {
        let timestamp_ms = match self.log.rate {
            Some(_) => None,
            None => Some(self.time_ms(record)?),
        };
        let content = self.content(record)?;
        let output_tokens = match field(record, &self.log.output) {
            None => None,
            Some(value) => {
                Some(count(value).ok_or_else(|| wrong(&self.log.output, value, "a count of tokens"))?)
            }
        };
        let (session_id, turn) = self.session(record)?;
        let class = self.log.class.as_ref().and_then(|name| field(record, name)).map(plain);
        if let Some(time_ms) = timestamp_ms {
            self.last_ms = time_ms;
        }
        Ok(Request { timestamp_ms, output_tokens, session_id, turn, class, ..Request::new(content) })
    }

    fn time_ms(&self, record: &Value) -> Result<f64, String> {
        let value = needed(record, &self.log.time, "--time-field, or --rate for other times")?;
        let time_ms = time::milliseconds(value, self.log.time_unit)
            .map_err(|reason| format!("`{}`: {reason}", self.log.time))?;
        if time_ms < self.last_ms && !self.log.sort {
            return Err(format!("`{}` is {value}, before the record above; sort with --sort", self.log.time));
        }
        Ok(time_ms)
    }

    fn content(&mut self, record: &Value) -> Result<Content, String> {
        if let Some(name) = &self.log.ids {
            return self.hashes(record, needed(record, name, "--ids-field")?);
        }
        if let Some(name) = &self.log.prompt {
            return match needed(record, name, "--prompt-field")? {
                Value::String(text) => Ok(prompt_content(text.clone(), self.options)),
                list => Ok(messages_content(&messages(list)?, self.options)),
            };
        }
        let tokens = self.input_tokens(record)?;
        self.next_stream += 1;
        Ok(Content::Pieces(vec![Piece { stream: self.next_stream - 1, tokens }]))
    }

    fn input_tokens(&self, record: &Value) -> Result<u64, String> {
        let name = &self.log.input;
        let value = needed(record, name, "--input-field")?;
        let tokens = count(value).ok_or_else(|| wrong(name, value, "a count of tokens"))?;
        if tokens > INPUT_TOKENS_MAX {
            return Err(format!("`{name}` is {tokens}, at most {INPUT_TOKENS_MAX} can be"));
        }
        Ok(tokens)
    }

    fn hashes(&self, record: &Value, list: &Value) -> Result<Content, String> {
        let list = list.as_array().ok_or_else(|| format!("{list} is no list of block ids"))?;
        let mut ids = Vec::with_capacity(list.len());
        let mut chain = 0;
        for value in list {
            let id = match value {
                Value::String(text) => xxh3_64(text.as_bytes()),
                other => other.as_u64().ok_or_else(|| format!("{other} is no block id"))?,
            };
            chain = xxh3_64_with_seed(&id.to_le_bytes(), chain);
            ids.push(if self.log.chain { chain } else { id });
        }
        let (input_tokens, block_tokens) = (self.input_tokens(record)?, self.log.block_tokens);
        if ids.len() as u64 > input_tokens.div_ceil(block_tokens.get()) {
            return Err(format!(
                "{} block ids for {input_tokens} tokens do not fit blocks of {block_tokens} tokens; give their length \
                 with --block-tokens",
                ids.len()
            ));
        }
        Ok(Content::Hashes { ids, block_tokens, input_tokens })
    }

    fn session(&mut self, record: &Value) -> Result<(Option<String>, Option<u32>), String> {
        if let Some((id_name, parent_name)) = &self.log.parents {
            let id = plain(needed(record, id_name, "--id-field")?);
            let parent = field(record, parent_name).map(plain).and_then(|parent| self.turns.get(&parent));
            let (session, turn) = match parent {
                Some((session, turn)) => (session.clone(), turn.saturating_add(1)),
                None => (id.clone(), 0),
            };
            self.turns.insert(id, (session.clone(), turn));
            return Ok((Some(session), Some(turn)));
        }
        let Some(session) = self.log.session.as_ref().and_then(|name| field(record, name)).map(plain) else {
            return Ok((None, None));
        };
        // Its number, in the order of the records.
        let (_, next) = self.turns.entry(session.clone()).or_insert_with(|| (String::new(), 0));
        *next += 1;
        Ok((Some(session), Some(*next - 1)))
    }
}

/// The value of a field, of which null and empty text are none.
fn field<'a>(record: &'a Value, name: &str) -> Option<&'a Value> {
    let value = match record.get(name) {
        Some(value) => Some(value),
        None => name.split('.').try_fold(record, |object, part| object.get(part)),
    };
    value.filter(|value| !value.is_null() && value.as_str() != Some(""))
}

fn needed<'a>(record: &'a Value, name: &str, option: &str) -> Result<&'a Value, String> {
    field(record, name).ok_or_else(|| {
        let names: Vec<&str> =
            record.as_object().into_iter().flat_map(|fields| fields.keys().map(String::as_str)).collect();
        format!("no field `{name}`; there are {}; name it with {option}", names.join(", "))
    })
}

fn wrong(name: &str, value: &Value, expected: &str) -> String {
    format!("`{name}` is {value}, expected {expected}")
}

/// A count, which CSV has as text and some logs as a float.
fn count(value: &Value) -> Option<u64> {
    let number = match value {
        Value::String(text) => text.trim().parse::<f64>().ok()?,
        other => other.as_f64()?,
    };
    (number.fract() == 0.0 && (0.0..9e15).contains(&number)).then_some(number as u64)
}

/// An id or a name as text.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
