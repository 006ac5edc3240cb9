//! Reads workload files: one JSON object a line, plain or compressed with zstd.

use std::io::Read;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::line::{self, LineError};
use crate::request::Request;
use crate::source::Source;
use crate::writer::{Header, HeaderLine, VERSION};

/// How a file is read.
#[derive(Clone, Copy, Debug)]
pub struct ReadOptions {
    /// Tokens of a block for lines with `hash_ids` that do not say it. 512, as in Mooncake's traces.
    pub hash_block_tokens: NonZeroU64,
    /// What happens at a line that is no request.
    pub bad_lines: BadLinesPolicy,
}

impl Default for ReadOptions {
    fn default() -> Self {
        Self {
            hash_block_tokens: NonZeroU64::new(512).expect("not zero"),
            bad_lines: BadLinesPolicy::default(),
        }
    }
}

/// What happens at a line that is no request.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum BadLinesPolicy {
    /// It is an error, and the last that is read.
    #[default]
    Refuse,
    /// It is left out and counted. Where the file cannot be read on (a compressed file that was cut short), that is the
    /// end.
    Skip,
}

/// The lines that were left out.
#[derive(Clone, Default, Debug)]
pub struct BadLines {
    /// How many.
    pub count: u64,
    /// The first of them, [`BadLines::NAMED_MAX`] at most.
    pub named: Vec<BadLine>,
    /// The line before which the file ended though it should not have.
    pub cut_at: Option<u64>,
}

/// A line that was left out.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadLine {
    /// Its number, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub reason: String,
}

impl BadLines {
    /// How many are named.
    pub const NAMED_MAX: usize = 5;

    /// One sentence for the user; `None` if every line was good.
    pub fn summary(&self) -> Option<String> {
        let (first, more) = self.named.split_first()?;
        let mut text = match self.count {
            1 => format!("1 line is left out: {}: {}", first.line, first.reason),
            count => format!("{count} lines are left out: {}: {}", first.line, first.reason),
        };
        for bad in more {
            text += &format!("; {}: {}", bad.line, bad.reason);
        }
        if self.count > self.named.len() as u64 {
            text += "; ...";
        }
        if let Some(line) = self.cut_at {
            text += &format!("; nothing could be read from line {line} on");
        }
        Some(text)
    }

    pub(crate) fn add(&mut self, line: u64, reason: String) {
        self.count += 1;
        if self.named.len() < Self::NAMED_MAX {
            self.named.push(BadLine { line, reason });
        }
    }
}

/// The requests of a workload file, one after the other, with one line in memory.
pub struct Reader {
    source: Source,
    hash_block_tokens: NonZeroU64,
    /// The source has a line that was not looked at.
    pending: bool,
    header: Option<Header>,
    any: bool,
    ended: bool,
}

impl Reader {
    /// Opens the file at `path`; `-` is the standard input. Compression is told by content, not by name.
    ///
    /// # Errors
    ///
    /// [`Error`], also of the header.
    pub fn open(path: &Path, options: ReadOptions) -> Result<Self, Error> {
        Self::of(Source::open(path, options.bad_lines)?, options)
    }

    /// Reads `source`, which errors call `path`.
    ///
    /// # Errors
    ///
    /// [`Error`], also of the header.
    pub fn new(
        source: impl Read + Send + 'static,
        path: impl Into<PathBuf>,
        options: ReadOptions,
    ) -> Result<Self, Error> {
        Self::of(Source::new(source, path.into(), options.bad_lines)?, options)
    }

    fn of(source: Source, options: ReadOptions) -> Result<Self, Error> {
        let hash_block_tokens = options.hash_block_tokens;
        let mut reader =
            Self { source, hash_block_tokens, pending: false, header: None, any: false, ended: false };
        reader.read_header()?;
        Ok(reader)
    }

    /// The header, if the file has one.
    pub fn header(&self) -> Option<&Header> {
        self.header.as_ref()
    }

    /// The lines that were left out so far.
    pub fn bad_lines(&self) -> &BadLines {
        self.source.bad_lines()
    }

    /// The file's name, for messages.
    pub fn path(&self) -> &Path {
        self.source.path()
    }

    /// The number of the line that was read last.
    pub fn line(&self) -> u64 {
        self.source.line()
    }

    fn read_header(&mut self) -> Result<(), Error> {
        self.pending = self.source.next_line()?;
        let text = self.source.record();
        let Ok(object) = serde_json::from_slice::<serde_json::Map<_, _>>(text) else { return Ok(()) };
        if !object.contains_key("workload") {
            return Ok(());
        }
        let bad = |reason: String| Error::Header { path: self.path().to_owned(), reason };
        let HeaderLine { workload, header } =
            serde_json::from_slice(text).map_err(|error| bad(line::at_column(&error)))?;
        if workload != VERSION {
            return Err(bad(format!("`workload` is {workload}, this program reads version {VERSION}")));
        }
        self.header = Some(header);
        self.pending = false;
        Ok(())
    }

    fn next_request(&mut self) -> Result<Option<Request>, Error> {
        loop {
            if !std::mem::take(&mut self.pending) && !self.source.next_line()? {
                return if self.any { Ok(None) } else { Err(empty(&self.source)) };
            }
            match line::parse(self.source.record(), self.hash_block_tokens) {
                Ok(request) => {
                    self.any = true;
                    return Ok(Some(request));
                }
                Err(error) if self.source.policy() == BadLinesPolicy::Refuse => {
                    return Err(self.refused(error));
                }
                Err(LineError::Invalid(reason)) => self.source.leave_out(reason),
                Err(LineError::BlockTokens { ids, input_length, .. }) => {
                    self.source.leave_out(format!("{ids} block ids for {input_length} tokens"));
                }
            }
        }
    }

    fn refused(&self, error: LineError) -> Error {
        let (path, line) = (self.path().to_owned(), self.line());
        match error {
            LineError::Invalid(reason) => Error::Line { path, line, reason },
            LineError::BlockTokens { ids, input_length, block_tokens } => {
                Error::BlockTokens { path, line, ids, input_length, block_tokens }
            }
        }
    }
}

/// The error of a file that has no request.
pub(crate) fn empty(source: &Source) -> Error {
    let path = source.path().to_owned();
    match source.bad_lines().named.first().cloned() {
        None => Error::Empty { path },
        Some(BadLine { line, reason }) => {
            Error::NoGoodLine { path, count: source.bad_lines().count, line, reason }
        }
    }
}

impl Iterator for Reader {
    type Item = Result<Request, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.ended {
            return None;
        }
        let next = self.next_request().transpose();
        self.ended = !matches!(next, Some(Ok(_)));
        next
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use ruzstd::encoding::{CompressionLevel, compress_to_vec};

    use super::*;
    use crate::request::{Content, Piece};

    const GOOD: &str = "{\"input_length\": 600, \"hash_ids\": [7, 9]}\n";

    fn reader(text: impl Into<Vec<u8>>, bad_lines: BadLinesPolicy) -> Result<Reader, Error> {
        let options = ReadOptions { bad_lines, ..ReadOptions::default() };
        Reader::new(io::Cursor::new(text.into()), "trace.jsonl", options)
    }

    fn requests(text: impl Into<Vec<u8>>) -> Result<Vec<Request>, String> {
        let reader = reader(text, BadLinesPolicy::Refuse).map_err(|error| error.to_string())?;
        reader.collect::<Result<_, _>>().map_err(|error| error.to_string())
    }

    /// The request in one line, or what is wrong with it.
    fn line(text: &str) -> Result<Request, String> {
        requests(text).map(|mut requests| requests.remove(0))
    }

    #[test]
    fn reads_requests_and_skips_blank_lines() {
        let requests = requests(concat!(
            "{\"timestamp\": 0, \"input_length\": 600, \"output_length\": 5, \"hash_ids\": [7, 9]}\n",
            "\n",
            "{\"input_length\": 100, \"hash_ids\": []}\r\n",
            "{\"input_length\": 1030, \"hash_ids\": [7, 9]}",
        ))
        .expect("well formed");
        assert_eq!(requests.len(), 3);
        assert_eq!((requests[0].timestamp_ms, requests[0].output_tokens), (Some(0.0), Some(5)));
        assert_eq!(requests[1].timestamp_ms, None);
        let block_tokens = NonZeroU64::new(512).expect("not zero");
        assert_eq!(
            requests[2].content,
            Content::Hashes { ids: vec![7, 9], block_tokens, input_tokens: 1030 }
        );
    }

    #[test]
    fn every_field_is_read() {
        let request = line(concat!(
            "{\"timestamp\": 1.5, \"pieces\": [[3, 10], [18446744073709551615, 5]], \"output_length\": 7, ",
            "\"session_id\": 12, \"turn\": 3, \"class\": \"chat\", \"think_ms\": 20, \"unknown\": {\"a\": [1]}}",
        ));
        let pieces = vec![Piece { stream: 3, tokens: 10 }, Piece { stream: u64::MAX, tokens: 5 }];
        let expected = Request {
            timestamp_ms: Some(1.5),
            content: Content::Pieces(pieces),
            output_tokens: Some(7),
            session_id: Some("12".to_owned()),
            turn: Some(3),
            class: Some("chat".to_owned()),
            think_ms: Some(20.0),
        };
        assert_eq!(request, Ok(expected));
    }

    #[test]
    fn a_header_is_no_request() {
        let text = format!("{{\"workload\": 1, \"seed\": 7, \"made_by\": \"kvcache\", \"new\": 0}}\n{GOOD}");
        let mut reader = reader(text.clone(), BadLinesPolicy::Refuse).expect("well formed");
        let header = reader.header().expect("a header").clone();
        assert_eq!((header.seed, header.made_by.as_deref()), (Some(7), Some("kvcache")));
        assert!(reader.next().is_some_and(|request| request.is_ok()));
        assert!(reader.next().is_none());
        assert_eq!(reader.line(), 3);

        let error = requests(text.repeat(2)).expect_err("two files in one");
        assert!(error.starts_with("trace.jsonl:3: ") && error.contains("header of another file"), "{error}");
        let error = requests("{\"workload\": 2}\n").expect_err("another version");
        assert!(error.contains("`workload` is 2, this program reads version 1"), "{error}");
        let error = requests("{\"workload\": 1, \"seed\": -1}\n").expect_err("seed");
        assert!(error.starts_with("trace.jsonl:1: a header that cannot be read: "), "{error}");
    }

    #[test]
    fn a_bad_line_is_named_with_a_remedy() {
        for bad in ["[1, 2]\n", "{\"input_length\": 5}\n", "{\"hash_ids\": [1]}\n", "{\"input_le", "\u{1}\n"]
        {
            let error = requests(format!("{GOOD}{bad}")).expect_err("bad");
            assert!(error.starts_with("trace.jsonl:2: not a request: "), "{error}");
            assert!(error.contains("remove or correct the line"), "{error}");
        }
    }

    #[test]
    fn a_bad_value_is_named() {
        for (bad, expected) in [
            (
                "{\"input_length\": 600, \"hash_ids\": [7, -9]}",
                "invalid value: integer `-9`, expected u64 at column 40",
            ),
            ("{\"timestamp\": -1, \"pieces\": []}", "`timestamp` is -1, it must be 0 or more"),
            ("{\"think_ms\": -0.5, \"pieces\": []}", "`think_ms` is -0.5"),
            ("{\"timestamp\": 1e999, \"pieces\": []}", "number out of range"),
            (
                "{\"pieces\": [[1, 5]], \"input_length\": 6}",
                "`input_length` is 6, but the tokens of `pieces` are 5",
            ),
            ("{\"pieces\": [[1, 5]], \"prompt\": \"a\"}", "only one of `pieces`, `hash_ids`, `prompt`"),
            ("{\"pieces\": [[1, 5, 6]]}", "trailing characters at column 20"),
            ("{\"pieces\": [[1, 99999999999], [1, 18446744073709551615]]}", "at most 67108864 can be"),
            ("{\"input_length\": 99999999999, \"hash_ids\": []}", "`input_length` are 99999999999"),
            ("{\"input_length\": 5, \"block_tokens\": 0, \"hash_ids\": []}", "expected a nonzero u64"),
            ("{\"messages\": [{\"content\": \"a\"}]}", "message 0 of `messages` has no `role`"),
            ("{\"messages\": [\"a\"]}", "expected a map"),
            ("{\"prompt\": \"a\", \"turn\": 1}", "`turn` without `session_id`"),
            (
                "{\"prompt\": \"a\", \"session_id\": [1]}",
                "`session_id` is [1], expected a string or a number",
            ),
            ("{\"timestamp\": 5}", "none of `pieces`, `hash_ids`, `prompt` and `messages`"),
        ] {
            let error = line(bad).expect_err(bad);
            assert!(error.contains(expected), "{bad}: {error}");
        }
    }

    #[test]
    fn another_block_length_is_noticed() {
        let error =
            line("{\"input_length\": 60, \"hash_ids\": [1, 2, 3, 4]}").expect_err("16 tokens a block");
        assert!(error.contains("--block-tokens"), "{error}");
        let request = line("{\"input_length\": 60, \"block_tokens\": 16, \"hash_ids\": [1, 2, 3, 4]}");
        let block_tokens = NonZeroU64::new(16).expect("not zero");
        let content = Content::Hashes { ids: vec![1, 2, 3, 4], block_tokens, input_tokens: 60 };
        assert_eq!(request, Ok(Request::new(content)));
    }

    #[test]
    fn an_empty_file_is_an_error() {
        assert!(requests("\n\n").expect_err("empty").contains("holds no request"));
        assert!(requests("").expect_err("empty").contains("holds no request"));
        assert!(requests("{\"workload\": 1}\n").expect_err("header only").contains("holds no request"));
        let mut skipping = reader("bad\nworse\n", BadLinesPolicy::Skip).expect("opens");
        let error = skipping.next().expect("an error").expect_err("none is good").to_string();
        assert!(
            error.contains("holds no request, 2 lines are none; the first is 1: expected value"),
            "{error}"
        );
        assert!(skipping.next().is_none());
    }

    #[test]
    fn a_missing_file_is_named() {
        let error =
            Reader::open(Path::new("/nowhere/trace.jsonl"), ReadOptions::default()).err().expect("missing");
        assert!(error.to_string().starts_with("cannot open /nowhere/trace.jsonl: "), "{error}");
    }

    #[test]
    fn bad_lines_are_counted_and_the_first_named() {
        let text = format!("bad\n{GOOD}{}{GOOD}{{\"input_le", "[]\n".repeat(9));
        let mut reader = reader(text, BadLinesPolicy::Skip).expect("opens");
        assert_eq!((&mut reader).filter(|request| request.is_ok()).count(), 2);
        let bad = reader.bad_lines();
        assert_eq!((bad.count, bad.cut_at), (11, None));
        assert_eq!(bad.named.iter().map(|bad| bad.line).collect::<Vec<_>>(), [1, 3, 4, 5, 6]);
        let summary = bad.summary().expect("there are some");
        assert!(
            summary.starts_with("11 lines are left out: 1: expected value at column 1; 3: "),
            "{summary}"
        );
        assert!(summary.ends_with("; ..."), "{summary}");
        assert_eq!(BadLines::default().summary(), None);
    }

    #[test]
    fn a_compressed_file_that_was_cut_short_is_read_as_far_as_it_goes() {
        let lines: Vec<String> =
            (0..30_000u64).map(|n| format!("{{\"pieces\": [[{n}, {}]]}}\n", n * n % 97)).collect();
        let mut compressed = compress_to_vec(lines.concat().as_bytes(), CompressionLevel::Fastest);
        let whole = reader(compressed.clone(), BadLinesPolicy::Refuse).expect("opens");
        assert_eq!(whole.filter(|request| request.is_ok()).count(), 30_000);

        compressed.truncate(compressed.len() * 2 / 3);
        let error = requests(compressed.clone()).expect_err("cut short");
        assert!(error.contains(": cannot read on: "), "{error}");
        assert!(error.contains("damaged or cut short"), "{error}");
        let mut skipping = reader(compressed, BadLinesPolicy::Skip).expect("opens");
        let good = (&mut skipping).filter(|request| request.is_ok()).count() as u64;
        assert!((1..30_000).contains(&good), "{good}");
        let bad = skipping.bad_lines();
        assert_eq!((bad.count, bad.cut_at), (1, Some(good + 1)));
        assert!(bad.summary().expect("one").contains("nothing could be read from line"));
    }
}
