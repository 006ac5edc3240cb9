//! Log lines on standard error: time, level, message.

use std::io::Write;

use log::{LevelFilter, Log, Metadata, Record};

struct StderrLog;

impl Log for StderrLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // The client says of every request what its error says better.
        metadata.target().starts_with("kvcache_operator") && metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let level = record.level().as_str().to_ascii_lowercase();
            let now = jiff::Timestamp::now();
            // Nobody is left to tell that standard error is gone.
            let _ = writeln!(std::io::stderr().lock(), "{now:.3} {level} {}", record.args());
        }
    }

    fn flush(&self) {}
}

/// Logs from now on, at `level` and above.
pub(crate) fn start(level: LevelFilter) {
    // An error means that somebody else logs already, which is as good.
    if log::set_logger(&StderrLog).is_ok() {
        log::set_max_level(level);
    }
}
