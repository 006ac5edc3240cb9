//! Who owns a lane: an engine, named by its id and by its core process. Process ids are reused, so a process is a pid
//! with its start time, in one pid namespace, during one boot.

use std::fs;

use xxhash_rust::xxh3::xxh3_64;

/// An engine, as written into its lane file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Owner {
    engine_id: String,
    pid: u32,
    /// Clock ticks from boot to the start of the process.
    start_time: u64,
    pid_namespace: u64,
    boot: u64,
}

/// What this process can say about an owner.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Liveness {
    Alive,
    /// Its core process has ended: what still holds its lane are workers about to end.
    Dead,
}

impl Owner {
    /// The engine whose core process is `pid`.
    pub(super) fn of(engine_id: &str, pid: u32) -> Self {
        Owner {
            engine_id: engine_id.to_owned(),
            pid,
            start_time: start_time(pid).unwrap_or(0),
            pid_namespace: pid_namespace(),
            boot: boot(),
        }
    }

    /// An owner of another pid namespace counts as alive: its processes cannot be seen from here.
    pub(super) fn liveness(&self) -> Liveness {
        let seen = self.pid_namespace == pid_namespace();
        let ended = self.boot != boot() || (seen && start_time(self.pid) != Some(self.start_time));
        if ended { Liveness::Dead } else { Liveness::Alive }
    }

    /// Whether `other` bears the same id, as an engine does after its restart.
    pub(super) fn is_same_engine(&self, other: &Owner) -> bool {
        self.engine_id == other.engine_id
    }

    pub(super) fn to_text(&self) -> String {
        let Owner { pid, start_time, pid_namespace, boot, .. } = self;
        let id = hex(self.engine_id.as_bytes());
        format!("owner {pid} {start_time} {pid_namespace} {boot} id:{id} end\n")
    }

    /// A number for this owner alone; never 0.
    pub(super) fn mark(&self) -> u64 {
        xxh3_64(self.to_text().as_bytes()).max(1)
    }

    /// `None` for a text that was cut short or is none of ours.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut words = text.strip_suffix(" end\n")?.strip_prefix("owner ")?.split(' ');
        let mut number = || words.next()?.parse::<u64>().ok();
        let (pid, start_time, pid_namespace, boot) = (number()?, number()?, number()?, number()?);
        let engine_id = String::from_utf8(unhex(words.next()?.strip_prefix("id:")?)?).ok()?;
        let pid = u32::try_from(pid).ok()?;
        words.next().is_none().then_some(Owner { engine_id, pid, start_time, pid_namespace, boot })
    }
}

/// Names this boot of the machine. Where the system does not tell, every process is its own boot.
pub(super) fn boot() -> u64 {
    match fs::read("/proc/sys/kernel/random/boot_id") {
        Ok(text) => xxh3_64(&text),
        Err(_) => xxh3_64(format!("{} {:?}", std::process::id(), std::time::SystemTime::now()).as_bytes()),
    }
}

/// When the process started, if it runs. A zombie does not.
fn start_time(pid: u32) -> Option<u64> {
    start_time_of(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn start_time_of(stat: &str) -> Option<u64> {
    // The command's name stands in parentheses and may contain anything, parentheses included.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    // The start time is field 22 of the line, and field 3 was the state.
    fields.nth(22 - 4)?.parse().ok().filter(|_| !matches!(state, "Z" | "X"))
}

fn pid_namespace() -> u64 {
    fs::read_link("/proc/self/ns/pid").map_or(0, |link| xxh3_64(link.as_os_str().as_encoded_bytes()))
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub(super) fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> =
        text.chars().map(|digit| digit.to_digit(16).map(|digit| digit as u8)).collect();
    let digits = digits.filter(|digits| digits.len().is_multiple_of(2))?;
    Some(digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_survive_their_text() {
        for id in ["", "engine 0", "a\nb)ü"] {
            let owner = Owner::of(id, std::process::id());
            let text = owner.to_text();
            assert_eq!(Owner::parse(&text), Some(owner));
            for cut in 0..text.len() {
                assert_eq!(Owner::parse(&text[..cut]), None, "{cut}");
            }
        }
    }

    #[test]
    fn a_process_is_alive_until_it_ends_and_its_pid_alone_is_not_enough() {
        let owner = Owner::of("e", std::process::id());
        assert_eq!(owner.liveness(), Liveness::Alive);
        let reused = Owner { start_time: owner.start_time + 1, ..owner.clone() };
        assert_eq!(reused.liveness(), Liveness::Dead);
        assert_eq!(Owner { boot: 1, ..owner.clone() }.liveness(), Liveness::Dead);
        assert_eq!(Owner { pid_namespace: 1, ..reused }.liveness(), Liveness::Alive);

        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let owner = Owner::of("e", child.id());
        assert_eq!(owner.liveness(), Liveness::Alive);
        child.kill().unwrap();
        while start_time(child.id()).is_some() {
            std::thread::yield_now();
        }
        // Killed, but not waited for: a zombie holds nothing.
        assert_eq!(owner.liveness(), Liveness::Dead);
        child.wait().unwrap();
    }

    #[test]
    fn the_start_time_is_found_behind_any_command_name() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(start_time_of(&format!("12 (a) b) {rest}")), Some(4711));
        assert_eq!(start_time_of(&format!("12 (x) {}", rest.replace('S', "Z"))), None);
        assert_eq!(start_time_of("12 (x) S 1"), None);
    }
}
