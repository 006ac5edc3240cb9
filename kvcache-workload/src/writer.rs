//! Writes workload files.

use std::io::{self, Write};
use std::num::NonZeroU64;

use serde::{Deserialize, Serialize};

use crate::request::Request;

/// The format's version: the value of `workload` in the header.
pub(crate) const VERSION: u64 = 1;

/// The first line of a file that says how it was made.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize, Deserialize)]
pub struct Header {
    /// The seed of what was drawn at random.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// The command that made it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made_by: Option<String>,
    /// So many sessions are served at a time, each next request as soon as an earlier one has ended. The requests have
    /// no timestamps then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<NonZeroU64>,
}

/// The header as it is written.
#[derive(Serialize, Deserialize)]
pub(crate) struct HeaderLine {
    /// The format's version.
    pub(crate) workload: u64,
    #[serde(flatten)]
    pub(crate) header: Header,
}

/// Writes a header and one request a line.
pub struct Writer<W> {
    output: W,
    requests: u64,
}

impl<W: Write> Writer<W> {
    /// Writes the header. Give it a buffered `output`: each line is a write.
    ///
    /// # Errors
    ///
    /// Those of `output`.
    pub fn new(mut output: W, header: &Header) -> io::Result<Self> {
        line(&mut output, &HeaderLine { workload: VERSION, header: header.clone() })?;
        Ok(Self { output, requests: 0 })
    }

    /// Writes a request.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn write(&mut self, request: &Request) -> io::Result<()> {
        line(&mut self.output, request)?;
        self.requests += 1;
        Ok(())
    }

    /// How many requests have been written.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// Gives the output back, flushed.
    ///
    /// # Errors
    ///
    /// Those of the output.
    pub fn into_inner(mut self) -> io::Result<W> {
        self.output.flush()?;
        Ok(self.output)
    }
}

fn line(output: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *output, value)?;
    output.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use super::*;
    use crate::reader::{ReadOptions, Reader};

    fn written(header: &Header, requests: &[Request]) -> String {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(&mut bytes, header).expect("memory");
        requests.iter().for_each(|request| writer.write(request).expect("memory"));
        assert_eq!(writer.requests(), requests.len() as u64);
        writer.into_inner().expect("memory");
        String::from_utf8(bytes).expect("JSON")
    }

    /// What is read and written again is the same, to the byte.
    #[test]
    fn a_file_survives_the_round() {
        let text = concat!(
            "{\"workload\":1,\"seed\":7,\"made_by\":\"kvcache workload\",\"concurrency\":4}\n",
            "{\"timestamp\":12.125,\"input_length\":15,\"output_length\":3,\"session_id\":\"a\",\"turn\":0,",
            "\"class\":\"chat\",\"think_ms\":40,\"pieces\":[[9,10],[18446744073709551615,5]]}\n",
            "{\"timestamp\":13,\"input_length\":600,\"block_tokens\":512,\"hash_ids\":[1,2]}\n",
            "{\"prompt\":\"a \\\"word\\\"\"}\n",
            "{\"input_length\":9,\"messages\":[{\"role\":\"user\"}]}\n",
        );
        let reader = Reader::new(Cursor::new(text), "text", ReadOptions::default()).expect("well formed");
        let header = reader.header().expect("a header").clone();
        let requests: Vec<Request> = reader.map(|request| request.expect("well formed")).collect();
        assert_eq!(written(&header, &requests), text);
    }

    #[test]
    fn times_are_written_to_the_microsecond() {
        let mut request = Request::new(crate::Content::Pieces(Vec::new()));
        request.timestamp_ms = Some(1.000_49);
        let text = written(&Header::default(), &[request]);
        assert_eq!(text, "{\"workload\":1}\n{\"timestamp\":1,\"input_length\":0,\"pieces\":[]}\n");
    }
}
