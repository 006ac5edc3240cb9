//! What a process has used, as Linux counts it.

use std::error::Error;
use std::time::Duration;

/// Memory of this process.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) resident_bytes: u64,
    /// The most that it ever was.
    pub(crate) peak_bytes: u64,
}

impl Memory {
    pub(crate) fn now() -> Result<Self, Box<dyn Error>> {
        let text = std::fs::read_to_string("/proc/self/status")?;
        let field = |name: &str| -> Result<u64, Box<dyn Error>> {
            let line = text.lines().find_map(|line| line.strip_prefix(name)).ok_or("no such field")?;
            Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? * 1024)
        };
        Ok(Self { resident_bytes: field("VmRSS:")?, peak_bytes: field("VmHWM:")? })
    }
}

/// CPU time of all threads of this process.
pub(crate) fn cpu() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// CPU time of another process, in Linux's hundredths of a second.
pub(crate) fn cpu_of(pid: u32) -> Result<Duration, Box<dyn Error>> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // Fields after the name in parentheses; user and system time are the 12th and 13th of these.
    let fields: Vec<&str> = text.rsplit(')').next().ok_or("no fields")?.split_whitespace().collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}
