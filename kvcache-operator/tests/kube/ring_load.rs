//! A client of the ring in a process of its own, which verifies every byte that it gets: `tests/faults/ring_load`.

use std::path::{Path, PathBuf};
use std::process::ChildStdin;
use std::time::Duration;

use serde_json::Value;

use crate::process::{Process, command};
use crate::wait;

/// A running client.
pub(crate) struct RingLoad {
    process: Process,
    /// It runs until this is closed.
    stdin: Option<ChildStdin>,
    log: PathBuf,
}

impl RingLoad {
    /// Starts one on the ring `remote`; `flags` are those of `ring-load --help`.
    ///
    /// # Panics
    ///
    /// Without `RING_LOAD_TOOL`.
    pub(crate) fn start(remote: &str, folder: &Path, flags: &[&str]) -> Self {
        let tool = std::env::var_os("RING_LOAD_TOOL")
            .expect("RING_LOAD_TOOL names the client: use `make test-kube`");
        let mut client = command(Path::new(&tool));
        client.args(["--remote", remote]).args(flags);
        let log = folder.join("ring-load.log");
        let mut process = Process::start(client, &log).expect("the client starts");
        let stdin = process.take_stdin();
        Self { process, stdin, log }
    }

    /// Waits for a report with which `is_so`.
    pub(crate) async fn until(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
        wait::until(what, wait::LONG, || {
            if let Some(status) = self.process.end() {
                panic!(
                    "ring-load ended, {status}: {}",
                    std::fs::read_to_string(&self.log).unwrap_or_default()
                );
            }
            std::future::ready(self.last().filter(&is_so))
        })
        .await
    }

    /// Ends it; its last report counts everything.
    pub(crate) async fn end(mut self) -> Value {
        drop(self.stdin.take());
        let ended = tokio::time::timeout(END_TIMEOUT, self.process.ended()).await.expect("it ends");
        let report = self.last().expect("a report");
        assert!(ended.success() && report["event"] == "end", "ring-load, {ended}: {report}");
        report
    }

    fn last(&self) -> Option<Value> {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        // What follows the last newline is still being written.
        let (whole, _) = text.rsplit_once('\n')?;
        whole.lines().rev().find_map(|line| serde_json::from_str(line).ok())
    }
}

/// How often the client was served what it must never be.
pub(crate) fn violations(report: &Value) -> u64 {
    let counts = report["violations"].as_object().expect("a report");
    counts.values().map(|count| count.as_u64().expect("a count")).sum()
}

/// A number of the report, by its path.
pub(crate) fn number(report: &Value, path: &str) -> u64 {
    report.pointer(path).and_then(Value::as_u64).unwrap_or_else(|| panic!("no {path} in {report}"))
}

const END_TIMEOUT: Duration = Duration::from_secs(30);
