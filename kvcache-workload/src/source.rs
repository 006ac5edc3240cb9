//! The records of an input file: lines, objects of a JSON array, or rows of a CSV file.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::reader::{BadLines, BadLinesPolicy};
use crate::zstd_frames::{self, ZstdFrames};

/// A file with one record in memory.
pub(crate) struct Source {
    input: Box<dyn BufRead + Send>,
    path: PathBuf,
    policy: BadLinesPolicy,
    bad_lines: BadLines,
    /// The line that the record begins on, from 1.
    line: u64,
    /// Line ends that were read.
    line_ends: u64,
    record: Vec<u8>,
}

impl Source {
    /// Opens the file at `path`; `-` is the standard input. Compression is told by content, not by name.
    pub(crate) fn open(path: &Path, policy: BadLinesPolicy) -> Result<Self, Error> {
        if path == Path::new("-") {
            return Self::new(io::stdin(), PathBuf::from("standard input"), policy);
        }
        let file = File::open(path).map_err(|source| Error::Open { path: path.to_owned(), source })?;
        Self::new(file, path.to_owned(), policy)
    }

    pub(crate) fn new(
        input: impl Read + Send + 'static,
        path: PathBuf,
        policy: BadLinesPolicy,
    ) -> Result<Self, Error> {
        let mut input = BufReader::with_capacity(BUFFER_BYTES, input);
        let start = input.fill_buf().map_err(|source| Error::Open { path: path.clone(), source })?;
        let input: Box<dyn BufRead + Send> = if start.starts_with(&zstd_frames::MAGIC) {
            Box::new(BufReader::with_capacity(BUFFER_BYTES, ZstdFrames::new(input)))
        } else {
            Box::new(input)
        };
        let bad_lines = BadLines::default();
        Ok(Self { input, path, policy, bad_lines, line: 0, line_ends: 0, record: Vec::new() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn policy(&self) -> BadLinesPolicy {
        self.policy
    }

    pub(crate) fn bad_lines(&self) -> &BadLines {
        &self.bad_lines
    }

    /// The line that the record begins on.
    pub(crate) fn line(&self) -> u64 {
        self.line
    }

    pub(crate) fn record(&self) -> &[u8] {
        &self.record
    }

    /// Counts the record as one that is left out.
    pub(crate) fn leave_out(&mut self, reason: String) {
        self.bad_lines.add(self.line, reason);
    }

    /// An error about the record, or nothing if such are left out.
    pub(crate) fn refuse(&mut self, reason: String) -> Result<(), Error> {
        if self.policy == BadLinesPolicy::Refuse {
            return Err(Error::Record { path: self.path.clone(), line: self.line, reason });
        }
        self.leave_out(reason);
        Ok(())
    }

    /// The first byte that is not a space, without taking it.
    pub(crate) fn peek(&mut self) -> Result<Option<u8>, Error> {
        let peeked = self.skip_spaces();
        self.read_on(peeked).map(Option::flatten)
    }

    /// Takes the next line that is not blank; false at the end.
    pub(crate) fn next_line(&mut self) -> Result<bool, Error> {
        loop {
            self.record.clear();
            self.line = self.line_ends + 1;
            let read = (&mut self.input).take(RECORD_BYTES_MAX + 1).read_until(b'\n', &mut self.record);
            let read = read
                .and_then(|bytes| if bytes as u64 > RECORD_BYTES_MAX { Err(too_long()) } else { Ok(bytes) });
            match self.read_on(read)? {
                None | Some(0) => return Ok(false),
                Some(_) => self.line_ends += 1,
            }
            if !self.record.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    /// Takes the next object of an array of objects; false at the end.
    pub(crate) fn next_object(&mut self) -> Result<bool, Error> {
        let taken = self.take_object();
        Ok(self.read_on(taken)?.unwrap_or(false))
    }

    /// Takes the next row of a CSV file, of which a quoted field may have line ends; false at the end.
    pub(crate) fn next_row(&mut self) -> Result<bool, Error> {
        if !self.next_line()? {
            return Ok(false);
        }
        // A quote that is part of a field is written twice, so that a whole row has an even number of them.
        while self.record.iter().filter(|byte| **byte == b'"').count() % 2 == 1 {
            let room = (RECORD_BYTES_MAX + 1).saturating_sub(self.record.len() as u64);
            let read = (&mut self.input).take(room).read_until(b'\n', &mut self.record);
            let read =
                read.and_then(|bytes| if bytes == 0 { Err(cut_short("a quoted field")) } else { Ok(bytes) });
            if self.read_on(read)?.is_none() {
                return Ok(false);
            }
            self.line_ends += 1;
        }
        Ok(true)
    }

    /// Where a file that cannot be read on ends, if that is not an error.
    fn read_on<T>(&mut self, read: io::Result<T>) -> Result<Option<T>, Error> {
        match (read, self.policy) {
            (Ok(read), _) => Ok(Some(read)),
            (Err(source), BadLinesPolicy::Refuse) => {
                Err(Error::Read { path: self.path.clone(), line: self.line, source })
            }
            (Err(source), BadLinesPolicy::Skip) => {
                if self.bad_lines.cut_at.is_none() {
                    self.bad_lines.add(self.line, format!("cannot read on: {source}"));
                    self.bad_lines.cut_at = Some(self.line);
                }
                self.record.clear();
                Ok(None)
            }
        }
    }

    fn skip_spaces(&mut self) -> io::Result<Option<u8>> {
        loop {
            let bytes = self.input.fill_buf()?;
            let Some(byte) = bytes.first().copied() else { return Ok(None) };
            if !byte.is_ascii_whitespace() {
                return Ok(Some(byte));
            }
            self.line_ends += u64::from(byte == b'\n');
            self.input.consume(1);
        }
    }

    fn take_object(&mut self) -> io::Result<bool> {
        self.record.clear();
        loop {
            let byte = self.skip_spaces()?;
            self.line = self.line_ends + 1;
            match byte {
                Some(b'[' | b',') => self.input.consume(1),
                Some(b'{') => break,
                Some(b']') => return Ok(false),
                Some(other) => {
                    let found = char::from(other).escape_default();
                    return Err(io::Error::new(
                        io::ErrorKind::InvalidData,
                        format!("`{found}` is not the beginning of an object"),
                    ));
                }
                None => return Err(cut_short("the array")),
            }
        }
        let (mut depth, mut in_string, mut escaped) = (0u64, false, false);
        loop {
            let bytes = self.input.fill_buf()?;
            if bytes.is_empty() {
                return Err(cut_short("an object"));
            }
            let mut end = None;
            for (index, byte) in bytes.iter().enumerate() {
                self.line_ends += u64::from(*byte == b'\n');
                match byte {
                    _ if escaped => escaped = false,
                    b'\\' => escaped = in_string,
                    b'"' => in_string = !in_string,
                    b'{' if !in_string => depth += 1,
                    b'}' if !in_string => depth -= 1,
                    _ => {}
                }
                if depth == 0 {
                    end = Some(index + 1);
                    break;
                }
            }
            let taken = end.unwrap_or(bytes.len());
            self.record.extend_from_slice(&bytes[..taken]);
            self.input.consume(taken);
            if end.is_some() {
                return Ok(true);
            }
            if self.record.len() as u64 > RECORD_BYTES_MAX {
                return Err(too_long());
            }
        }
    }
}

fn too_long() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("a line of more than {RECORD_BYTES_MAX} bytes"))
}

fn cut_short(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, format!("the file ends within {what}"))
}

/// The fields of a row of a CSV file (RFC 4180).
pub(crate) fn csv_fields(row: &[u8]) -> Result<Vec<String>, String> {
    let row = String::from_utf8(row.to_vec()).map_err(|_| "a row that is not UTF-8".to_owned())?;
    let mut rest = row.trim_end_matches(['\n', '\r']);
    let mut fields = Vec::new();
    loop {
        let end;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut field = String::new();
            let mut parts = quoted.split('"');
            let mut taken = 1;
            loop {
                let part = parts.next().ok_or("a quoted field without an end")?;
                field += part;
                taken += part.len() + 1;
                if taken > rest.len() {
                    return Err("a quoted field without an end".to_owned());
                }
                // Two quotes are one of the field.
                if !rest[taken..].starts_with('"') {
                    break;
                }
                field.push('"');
                taken += 1;
                parts.next();
            }
            fields.push(field);
            end = taken;
        } else {
            end = rest.find(',').unwrap_or(rest.len());
            fields.push(rest[..end].to_owned());
        }
        match rest[end..].strip_prefix(',') {
            Some(more) => rest = more,
            None if end == rest.len() => return Ok(fields),
            None => return Err(format!("`{}` behind a quoted field", &rest[end..])),
        }
    }
}

/// Few calls for large files.
const BUFFER_BYTES: usize = 1 << 16;

/// A prompt of a million tokens is four megabytes of text.
const RECORD_BYTES_MAX: u64 = 1 << 28;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn source(text: &str, policy: BadLinesPolicy) -> Source {
        let input = io::Cursor::new(text.as_bytes().to_vec());
        Source::new(input, PathBuf::from("file"), policy).expect("memory")
    }

    fn objects(text: &str) -> Result<Vec<(u64, String)>, String> {
        let mut source = source(text, BadLinesPolicy::Refuse);
        let mut objects = Vec::new();
        while source.next_object().map_err(|error| error.to_string())? {
            objects.push((source.line(), String::from_utf8_lossy(source.record()).into_owned()));
        }
        Ok(objects)
    }

    #[test]
    fn objects_of_an_array_come_one_by_one() {
        let text = " [\n{\"a\": \"}\\\"{\"},\n {\"b\":\n {\"c\": [1, {}]}} , {}\n]\n";
        let expected = [(2, "{\"a\": \"}\\\"{\"}"), (3, "{\"b\":\n {\"c\": [1, {}]}}"), (4, "{}")];
        assert_eq!(objects(text), Ok(expected.map(|(line, text)| (line, text.to_owned())).to_vec()));
        assert_eq!(objects("[]"), Ok(Vec::new()));
    }

    #[test]
    fn an_array_that_was_cut_short_is_read_as_far_as_it_goes() {
        for (text, expected) in [
            ("[{}, {\"a\": 1", "file:1: cannot read on: the file ends within an object"),
            ("[{},\n", "file:2: cannot read on: the file ends within the array"),
            ("[{}, 5]", "`5` is not the beginning of an object"),
        ] {
            let error = objects(text).expect_err(text);
            assert!(error.contains(expected), "{error}");
            let mut skipping = source(text, BadLinesPolicy::Skip);
            assert!(skipping.next_object().expect("the first"));
            assert!(!skipping.next_object().expect("no more"));
            assert!(skipping.bad_lines().cut_at.is_some());
        }
    }

    #[test]
    fn rows_have_quoted_fields_with_line_ends() {
        let mut source = source("a,b\n\"x\ny\",2\r\n\n3,4\n\"open", BadLinesPolicy::Refuse);
        let mut rows = Vec::new();
        while source.next_row().is_ok_and(|more| more) {
            rows.push((source.line(), csv_fields(source.record()).expect("well formed")));
        }
        let row = |line, a: &str, b: &str| (line, vec![a.to_owned(), b.to_owned()]);
        assert_eq!(rows, [row(1, "a", "b"), row(2, "x\ny", "2"), row(5, "3", "4")]);
    }

    #[test]
    fn rows_that_are_no_csv_are_refused() {
        assert_eq!(csv_fields(b"\"a\"b,c"), Err("`b,c` behind a quoted field".to_owned()));
        assert_eq!(csv_fields(b"\"a,b"), Err("a quoted field without an end".to_owned()));
        assert_eq!(csv_fields(b"\xff,c"), Err("a row that is not UTF-8".to_owned()));
        assert_eq!(csv_fields(b"a,,\n").expect("empty fields"), ["a", "", ""]);
        assert_eq!(csv_fields(b"\"\",\"\"\"\"\n").expect("quotes"), ["", "\""]);
    }

    proptest! {
        #[test]
        fn fields_that_are_written_are_read(fields in proptest::collection::vec("[a,\"\n]{0,6}", 1..5)) {
            let quoted: Vec<String> = fields.iter().map(|field| format!("\"{}\"", field.replace('"', "\"\""))).collect();
            prop_assert_eq!(csv_fields(quoted.join(",").as_bytes()), Ok(fields));
        }

        #[test]
        fn no_row_makes_a_panic(row in proptest::collection::vec(any::<u8>(), 0..40), text in "[a,\"\n]{0,12}") {
            let _ = csv_fields(&row);
            let _ = csv_fields(text.as_bytes());
        }
    }
}
