//! Numbers in Prometheus' text format, version 0.0.4:
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::fmt::Write;

use super::{Kind, Number};

/// Begins the name of every metric.
pub const PREFIX: &str = "kvcache_";

/// The text of `numbers`: each metric once, with its help, its type and all its lines together, in the order in which the
/// metrics come first. `labels` are added to every line, to tell caches of one process apart; counters end in `_total`.
///
/// Their names must be label names as Prometheus knows them, and none may be `reason`; their values may be any text.
pub fn prometheus(numbers: impl IntoIterator<Item = Number>, labels: &[(&str, &str)]) -> String {
    let numbers: Vec<Number> = numbers.into_iter().collect();
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
    let mut text = String::with_capacity(160 * numbers.len());
    for (index, number) in numbers.iter().enumerate() {
        let Number { name, kind, help, .. } = *number;
        if numbers[..index].iter().any(|earlier| earlier.name == name) {
            continue;
        }
        let (kind, suffix) = match kind {
            Kind::Counter => ("counter", "_total"),
            Kind::Gauge => ("gauge", ""),
        };
        let name_of = |number: &&Number| number.name == name;
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {PREFIX}{name}{suffix} {help}");
        let _ = writeln!(text, "# TYPE {PREFIX}{name}{suffix} {kind}");
        for number in numbers[index..].iter().filter(name_of) {
            let reason = number.reason.map(|reason| format!("reason=\"{reason}\""));
            let all: Vec<&str> = labels.iter().chain(&reason).map(String::as_str).collect();
            let braces = if all.is_empty() { String::new() } else { format!("{{{}}}", all.join(",")) };
            let _ = writeln!(text, "{PREFIX}{name}{suffix}{braces} {}", number.value);
        }
    }
    text
}

fn escaped(value: &str) -> String {
    value.replace('\\', r"\\").replace('"', "\\\"").replace('\n', r"\n")
}
