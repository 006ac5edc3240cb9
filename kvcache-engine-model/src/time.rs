//! Times are whole nanoseconds from the start of the run.

/// Nanoseconds of a time in microseconds, as profiles have them.
pub(crate) fn from_us(us: f64) -> f64 {
    us * 1000.0
}

/// A duration rounded to whole nanoseconds. What is negative or no number is 0: profiles are checked before.
pub(crate) fn whole_ns(ns: f64) -> u64 {
    ns.round() as u64
}

/// Seconds, for reports.
pub(crate) fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}
