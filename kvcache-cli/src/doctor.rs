//! `kvcache doctor`: what works on this machine, and what to do about the rest.
//!
//! Each check looks at one thing and returns one [`Finding`]. Reading the system is separate from judging what was read, so
//! that the judgements are tested on texts of other machines.

mod copies;
mod devices;
mod engine;
mod gpu;
mod memory;
mod model;
mod rdma;
mod shared_memory;

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use kvcache_core::byte_size::ByteSize;
pub(crate) use model::ModelError;

/// Says what works here, and what to do about the rest.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
    /// A model's folder, with its config.json: prints its bytes per token and a capacity.
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,
    /// Tokens of one of the engine's blocks, for the model's slot size.
    #[arg(long, value_name = "TOKENS", default_value = "16")]
    block_tokens: std::num::NonZeroU32,
    /// L1 memory, for the number of tokens that fit.
    #[arg(long, value_name = "SIZE")]
    capacity: Option<ByteSize>,
    /// Do not ask Python for the installed vLLM.
    #[arg(long)]
    no_python: bool,
}

/// How good one thing is. Ordered: the worst of all is the exit status.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grade {
    /// Nothing to do.
    Fine,
    /// Works, slower or with less than it could; `remedy` says what to do.
    Degraded,
    /// The cache cannot run; `remedy` says what to do.
    Unusable,
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(crate) struct Finding {
    subject: &'static str,
    grade: Grade,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    values: serde_json::Map<String, serde_json::Value>,
}

impl Finding {
    fn fine(subject: &'static str, found: impl Into<String>) -> Self {
        Self {
            subject,
            grade: Grade::Fine,
            found: found.into(),
            remedy: None,
            values: serde_json::Map::new(),
        }
    }

    fn degraded(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { grade: Grade::Degraded, remedy: Some(remedy.into()), ..Self::fine(subject, found) }
    }

    fn unusable(subject: &'static str, found: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self { grade: Grade::Unusable, remedy: Some(remedy.into()), ..Self::fine(subject, found) }
    }

    fn with(mut self, name: &str, value: impl Into<serde_json::Value>) -> Self {
        self.values.insert(name.to_owned(), value.into());
        self
    }
}

/// Everything that was found.
#[derive(Debug, Serialize)]
struct Report {
    version: &'static str,
    grade: Grade,
    findings: Vec<Finding>,
}

/// Memory of this machine, or of the control group if that is less; `None` if the system does not say.
pub(crate) fn machine_memory_bytes() -> Option<u64> {
    memory::Memory::of_system().machine_bytes()
}

/// Looks at everything. The text to print, and the exit status: 0 fine, 1 degraded, 2 unusable.
///
/// # Errors
/// The model's configuration cannot be read or understood.
pub(crate) fn run(args: &Args) -> Result<(String, ExitCode), ModelError> {
    let model =
        args.model.as_deref().map(|folder| model::read(folder, args.block_tokens.get())).transpose()?;
    let memory = memory::Memory::of_system();
    let mut findings = vec![
        copies::check(),
        memory::available(&memory),
        memory::huge_pages(),
        memory::locked(),
        memory::nodes(),
        shared_memory::room(),
        shared_memory::leftovers(),
        gpu::check(),
        devices::network(),
        rdma::check(),
    ];
    if !args.no_python {
        findings.push(engine::check());
    }
    if let Some(model) = model {
        findings.push(model::sizing(&model, args.capacity, &memory));
    }
    let grade = findings.iter().map(|finding| finding.grade).max().unwrap_or(Grade::Fine);
    let report = Report { version: env!("CARGO_PKG_VERSION"), grade, findings };
    let text = if args.json {
        // A report is maps with text keys: it always has a JSON form.
        serde_json::to_string_pretty(&report).unwrap_or_default() + "\n"
    } else {
        text(&report)
    };
    Ok((text, ExitCode::from(grade as u8)))
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for finding in &report.findings {
        let mark = match finding.grade {
            Grade::Fine => "ok",
            Grade::Degraded => "!",
            Grade::Unusable => "X",
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{mark:>2}  {:<14} {}",
            finding.subject,
            finding.found.replace('\n', "\n                   ")
        );
        if let Some(remedy) = &finding.remedy {
            let _ = writeln!(text, "                   -> {remedy}");
        }
    }
    let verdict = match report.grade {
        Grade::Fine => "fine: nothing to do",
        Grade::Degraded => "degraded: it works; the lines marked ! say what to improve",
        Grade::Unusable => "unusable: the lines marked X must be solved first",
    };
    let _ = writeln!(text, "\n{verdict}");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_finding_is_the_verdict() {
        let findings = vec![
            Finding::fine("one", "good"),
            Finding::degraded("two", "slow", "make it faster").with("rate", 3),
            Finding::fine("three", "two\nlines"),
        ];
        let grade = findings.iter().map(|finding| finding.grade).max().unwrap();
        let report = Report { version: "0", grade, findings };
        assert_eq!(
            text(&report),
            "ok  one            good\n\
             \x20!  two            slow\n\
             \x20                  -> make it faster\n\
             ok  three          two\n\
             \x20                  lines\n\
             \n\
             degraded: it works; the lines marked ! say what to improve\n"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["grade"], "degraded");
        assert_eq!(json["findings"][1]["values"]["rate"], 3);
        assert_eq!(json["findings"][0].get("remedy"), None);
    }

    #[test]
    fn grades_are_exit_statuses() {
        assert_eq!([Grade::Fine, Grade::Degraded, Grade::Unusable].map(|grade| grade as u8), [0, 1, 2]);
    }
}
