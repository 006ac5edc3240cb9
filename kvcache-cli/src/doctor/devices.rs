//! GPUs and network interfaces: informational in a version that copies host memory only.

use std::fs;
use std::path::Path;

use super::Finding;

pub(super) fn gpu() -> Finding {
    judge_gpu(
        &fs::read_to_string("/proc/driver/nvidia/version").unwrap_or_default(),
        Path::new("/dev/nvidiactl").exists(),
    )
}

fn judge_gpu(version: &str, device: bool) -> Finding {
    match driver(version) {
        Some(driver) => Finding::degraded(
            "GPU",
            format!("NVIDIA driver {driver}"),
            "this version copies host memory only: it serves engines on the CPU, and caches of other tools through BlockCache",
        )
        .with("driver", driver),
        None if device => Finding::degraded(
            "GPU",
            "an NVIDIA device without a readable driver version",
            "this version copies host memory only: it serves engines on the CPU",
        ),
        None => Finding::fine("GPU", "no NVIDIA driver; this version copies host memory only").with("driver", serde_json::Value::Null),
    }
}

/// The version in a line such as `NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar ...`.
fn driver(text: &str) -> Option<&str> {
    let line = text.lines().find(|line| line.starts_with("NVRM version:"))?;
    line.split_whitespace()
        .find(|word| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.'))
}

pub(super) fn network() -> Finding {
    judge_network(&names("/sys/class/net"))
}

fn judge_network(interfaces: &[String]) -> Finding {
    let interfaces: Vec<&str> = interfaces.iter().map(String::as_str).filter(|name| *name != "lo").collect();
    let list = if interfaces.is_empty() { "none".to_owned() } else { interfaces.join(", ") };
    Finding::fine("network", format!("interfaces: {list}"))
}

/// The names in a folder, sorted; none if it cannot be read.
pub(super) fn names(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    #[test]
    fn drivers_are_read_from_both_kinds_of_kernel_module() {
        let closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC 2024\nGCC version:  gcc 12.3.0\n";
        let open = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  575.57.08  Release Build\n";
        assert_eq!(driver(closed), Some("550.54.15"));
        assert_eq!(driver(open), Some("575.57.08"));
        assert_eq!(driver(""), None);
    }

    #[test]
    fn a_gpu_is_more_than_this_version_can_use() {
        assert_eq!(judge_gpu("", false).grade, Grade::Fine);
        assert_eq!(judge_gpu("", true).grade, Grade::Degraded);
        assert_eq!(judge_gpu("NVRM version: x 1.2\n", true).found, "NVIDIA driver 1.2");
    }

    #[test]
    fn loopback_is_no_network() {
        let finding = judge_network(&["eth0".to_owned(), "lo".to_owned()]);
        assert_eq!(finding.found, "interfaces: eth0");
        assert_eq!(judge_network(&["lo".to_owned()]).found, "interfaces: none");
    }
}
