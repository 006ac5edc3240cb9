//! Log lines of the server on standard error: level, message.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct StderrLog;

impl Log for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // TLS and HTTP have much to say that is of no use here.
        metadata.target().starts_with("kvcache") && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            // Nobody is left to tell that standard error is gone.
            let _ = writeln!(std::io::stderr().lock(), "kvcache: {level}: {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Logs from now on, at `level` and above.
pub(super) fn start(level: LevelFilter) {
    // An error means that somebody else logs already, which is as good.
    if log::set_logger(&StderrLog).is_ok() {
        log::set_max_level(level);
    }
}
