//! Results as JSON Lines: a header, a line for each request as it ends, a summary.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use serde::Serialize;

use crate::record::Record;
use crate::run::End;
use crate::statistics::Summary;

/// A file of results. What was written stays, whatever happens: a file whose last line is no summary, or one that says
/// `"partial": true`, is of a run that did not come to its end.
pub struct Results {
    output: BufWriter<File>,
}

#[derive(Serialize)]
struct HeaderLine<'a> {
    load: u64,
    made_by: &'a str,
    endpoint: &'a str,
    model: &'a str,
}

/// The summary as it is written.
#[derive(Serialize)]
pub struct SummaryLine<'a> {
    /// Requests of the workload are missing.
    pub partial: bool,
    /// Why the run has ended.
    pub end: &'static str,
    /// What went wrong, if something did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The numbers.
    #[serde(flatten)]
    pub summary: &'a Summary,
}

impl<'a> SummaryLine<'a> {
    /// The line of a run that has ended like this.
    pub fn new(summary: &'a Summary, end: &End) -> Self {
        let error = match end {
            End::Failed(error) => Some(error.to_string()),
            _ => None,
        };
        Self { partial: end.is_partial(), end: end.name(), error, summary }
    }
}

impl Results {
    /// Creates the file and writes the header.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn create(path: &Path, made_by: &str, endpoint: &str, model: &str) -> io::Result<Self> {
        let mut results = Self { output: BufWriter::new(File::create(path)?) };
        results.line(&HeaderLine { load: VERSION, made_by, endpoint, model })?;
        results.flush()?;
        Ok(results)
    }

    /// Writes the line of a request.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn record(&mut self, record: &Record) -> io::Result<()> {
        self.line(record)
    }

    /// Writes what is buffered to the file.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn flush(&mut self) -> io::Result<()> {
        self.output.flush()
    }

    /// Writes the summary and ends the file.
    ///
    /// # Errors
    ///
    /// Those of the file system.
    pub fn finish(mut self, summary: &SummaryLine<'_>) -> io::Result<()> {
        #[derive(Serialize)]
        struct Line<'a> {
            summary: &'a SummaryLine<'a>,
        }
        self.line(&Line { summary })?;
        self.flush()
    }

    fn line(&mut self, value: &impl Serialize) -> io::Result<()> {
        serde_json::to_writer(&mut self.output, value)?;
        self.output.write_all(b"\n")
    }
}

/// Of the format.
const VERSION: u64 = 1;
