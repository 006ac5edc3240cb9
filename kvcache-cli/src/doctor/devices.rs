//! Network interfaces, which are informational.

use std::fs;

use super::Finding;

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
    use super::*;

    #[test]
    fn loopback_is_no_network() {
        let finding = judge_network(&["eth0".to_owned(), "lo".to_owned()]);
        assert_eq!(finding.found, "interfaces: eth0");
        assert_eq!(judge_network(&["lo".to_owned()]).found, "interfaces: none");
    }
}
