//! Runs checks one after the other and counts.

use std::process::ExitCode;
use std::time::Instant;

/// How many checks passed and failed so far.
#[derive(Default)]
pub(crate) struct Checks {
    passed: u32,
    failed: u32,
}

impl Checks {
    /// Runs a check and prints how it went.
    pub(crate) fn run(&mut self, name: &str, check: impl FnOnce() -> Result<(), String>) {
        let started = Instant::now();
        let result = check();
        let seconds = started.elapsed().as_secs_f64();
        match result {
            Ok(()) => {
                self.passed += 1;
                println!("ok     {seconds:7.3} s  {name}");
            }
            Err(found) => {
                self.failed += 1;
                // Outcomes of many values are long, and their beginning says enough.
                let found: String = found.chars().take(400).collect();
                println!("FAILED {seconds:7.3} s  {name}: {found}");
            }
        }
    }

    /// Prints the closing line.
    pub(crate) fn finish(self) -> ExitCode {
        println!("{} passed, {} failed", self.passed, self.failed);
        ExitCode::from(u8::from(self.failed > 0 || self.passed == 0))
    }
}

/// An error with what was found instead.
pub(crate) fn expect<T: PartialEq + std::fmt::Debug>(what: &str, found: T, wanted: T) -> Result<(), String> {
    if found == wanted { Ok(()) } else { Err(format!("{what}: found {found:?}, wanted {wanted:?}")) }
}

/// Memory of a process that devices have pinned; `self` for this one.
pub(crate) fn pinned_bytes(process: &str) -> Result<u64, String> {
    let status =
        std::fs::read_to_string(format!("/proc/{process}/status")).map_err(|error| error.to_string())?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).ok_or("no VmPin in the status")?;
    let kib: u64 =
        line.trim().trim_end_matches("kB").trim().parse().map_err(|_| format!("VmPin is {line}"))?;
    Ok(kib << 10)
}
