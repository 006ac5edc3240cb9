//! Memory: how much is left, in which pages, what may be locked, and on how many nodes.

use std::fs;

use super::Finding;
use kvcache_core::byte_size::ByteSize;

/// What the system says of its memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Memory {
    pub(super) total_bytes: Option<u64>,
    pub(super) available_bytes: Option<u64>,
    /// What the control group allows and has taken; `None` without a limit.
    pub(super) group: Option<(u64, u64)>,
}

impl Memory {
    pub(super) fn of_system() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let meminfo = read("/proc/meminfo");
        let group = group(&read("/sys/fs/cgroup/memory.max"), &read("/sys/fs/cgroup/memory.current"))
            .or_else(|| {
                group(
                    &read("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
                    &read("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
                )
            });
        Self {
            total_bytes: field(&meminfo, "MemTotal"),
            available_bytes: field(&meminfo, "MemAvailable"),
            group,
        }
    }

    /// What there is altogether, taken or not.
    pub(super) fn machine_bytes(&self) -> Option<u64> {
        self.total_bytes.into_iter().chain(self.group.map(|(limit, _)| limit)).min()
    }

    /// What a new slab could take.
    pub(super) fn free_bytes(&self) -> Option<u64> {
        let group = self.group.map(|(limit, used)| limit.saturating_sub(used));
        self.available_bytes.into_iter().chain(group).min()
    }
}

pub(super) fn available(memory: &Memory) -> Finding {
    let Some(free) = memory.free_bytes() else {
        return Finding::degraded(
            "memory",
            "/proc/meminfo has no MemAvailable",
            "set the capacity yourself: `auto` cannot know what is left",
        );
    };
    let total = memory.total_bytes.map_or("?".to_owned(), |bytes| ByteSize(bytes).to_string());
    let group = match memory.group {
        None => "no limit by a control group".to_owned(),
        Some((limit, used)) => {
            format!("the control group allows {}, {} used", ByteSize(limit), ByteSize(used))
        }
    };
    let found = format!("{} available of {total}; {group}", ByteSize(free));
    let finding = if free < FREE_MIN {
        Finding::degraded(
            "memory",
            found,
            format!(
                "an L1 below {} holds few prompts: free memory, or raise the limit of the container",
                ByteSize(FREE_MIN)
            ),
        )
    } else {
        Finding::fine("memory", found)
    };
    finding.with("free_bytes", free)
}

pub(super) fn huge_pages() -> Finding {
    let read = |name: &str| {
        fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}")).unwrap_or_default()
    };
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    judge_huge_pages(
        choice(&read("enabled")),
        choice(&read("shmem_enabled")),
        mount_option(&mounts, "/dev/shm", "huge"),
    )
}

/// `shared` is the kernel's default for files in memory, `mounted` the `huge=` of the mount, which wins.
fn judge_huge_pages(private: Option<&str>, shared: Option<&str>, mounted: Option<&str>) -> Finding {
    let private_works = matches!(private, Some("always" | "madvise"));
    // The kernel's `deny` and `force` overrule mounts; its other values are for its own internal mount.
    let shared_works = match shared {
        Some("deny") | None => false,
        Some("force") => true,
        Some(_) => matches!(mounted, Some("always" | "within_size" | "advise")),
    };
    let show = |value: Option<&str>| value.unwrap_or("not available").to_owned();
    let found = format!(
        "private memory: {}; shared memory: {}, /dev/shm mounted with huge={}",
        show(private),
        show(shared),
        mounted.unwrap_or("never")
    );
    let finding = match (private_works, shared_works) {
        (true, true) => Finding::fine("huge pages", found),
        (true, false) => Finding::degraded(
            "huge pages",
            found,
            "a slab in /dev/shm has 4 KiB pages, so copies are some percent slower and start-up takes longer: as root, \
             `mount -o remount,huge=advise /dev/shm`",
        ),
        (false, _) => Finding::degraded(
            "huge pages",
            found,
            "as root, `echo madvise > /sys/kernel/mm/transparent_hugepage/enabled`",
        ),
    };
    finding.with("private", private_works).with("shared", shared_works)
}

pub(super) fn locked() -> Finding {
    let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
    judge_locked(memlock(&limits))
}

fn judge_locked(limit: Option<Limit>) -> Finding {
    // This version pins nothing, so that no limit makes it worse.
    let note = "host copies need none; a GPU or an RDMA device would pin the slab";
    match limit {
        None => Finding::fine("locked memory", format!("limit unknown; {note}")),
        Some(Limit::None) => {
            Finding::fine("locked memory", format!("no limit; {note}")).with("limited", false)
        }
        Some(Limit::Bytes(bytes)) => {
            Finding::fine("locked memory", format!("limit {}; {note}", ByteSize(bytes)))
                .with("limit_bytes", bytes)
        }
    }
}

pub(super) fn nodes() -> Finding {
    let online = fs::read_to_string("/sys/devices/system/node/online").unwrap_or_default();
    judge_nodes(
        count_list(online.trim()).unwrap_or(1),
        std::thread::available_parallelism().map_or(1, usize::from),
    )
}

fn judge_nodes(nodes: usize, cpus: usize) -> Finding {
    let cores = format!("{cpus} CPUs may be used");
    let finding = if nodes > 1 {
        Finding::fine(
            "NUMA",
            format!(
                "{nodes} nodes, {cores}; a slab lies where its pages are first touched: bind each engine to one node (`numactl -N 0 -m 0`)"
            ),
        )
    } else {
        Finding::fine("NUMA", format!("1 node, {cores}"))
    };
    finding.with("nodes", nodes).with("cpus", cpus)
}

/// A limit of this process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Limit {
    None,
    Bytes(u64),
}

pub(super) fn memlock(limits: &str) -> Option<Limit> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
    match line.split_whitespace().next()? {
        "unlimited" => Some(Limit::None),
        bytes => bytes.parse().ok().map(Limit::Bytes),
    }
}

/// A field of /proc/meminfo, in bytes.
fn field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn group(limit: &str, used: &str) -> Option<(u64, u64)> {
    // Version 1 writes a number near 2^63 for "no limit", version 2 writes `max`.
    let limit: u64 = limit.trim().parse().ok().filter(|limit| *limit < 1 << 60)?;
    Some((limit, used.trim().parse().ok()?))
}

/// The chosen word of a line such as `always [madvise] never`.
fn choice(line: &str) -> Option<&str> {
    line.split_whitespace().find_map(|word| word.strip_prefix('[')?.strip_suffix(']'))
}

/// The value of `name=` among the options of the last mount at `place`, as /proc/mounts has them.
fn mount_option<'a>(mounts: &'a str, place: &str, name: &str) -> Option<&'a str> {
    let options = mounts.lines().rev().find_map(|line| {
        let mut words = line.split(' ');
        (words.nth(1)? == place).then(|| words.nth(1))?
    })?;
    options.split(',').find_map(|option| option.strip_prefix(name)?.strip_prefix('='))
}

/// How many numbers a list such as `0-3,8` names.
fn count_list(list: &str) -> Option<usize> {
    list.split(',').try_fold(0_usize, |count, range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        count.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// Less than this is no cache to speak of: a 7B model with 128 KiB a token keeps 8,192 tokens in it.
const FREE_MIN: u64 = 1 << 30;

#[cfg(test)]
mod tests {
    use super::super::Grade;
    use super::*;

    const MEMINFO: &str =
        "MemTotal:       24683816 kB\nMemFree:         100 kB\nMemAvailable:   20000000 kB\n";

    #[test]
    fn memory_is_the_lesser_of_machine_and_group() {
        let memory = Memory {
            total_bytes: field(MEMINFO, "MemTotal"),
            available_bytes: field(MEMINFO, "MemAvailable"),
            group: group("8589934592\n", "1073741824\n"),
        };
        assert_eq!(memory.free_bytes(), Some(7 << 30));
        let finding = available(&memory);
        assert_eq!(finding.grade, Grade::Fine);
        assert_eq!(finding.found, "7 GiB available of 23.5 GiB; the control group allows 8 GiB, 1 GiB used");
        assert_eq!(Memory { group: None, ..memory }.free_bytes(), Some(20_000_000 << 10));
    }

    #[test]
    fn little_or_unknown_memory_is_degraded() {
        let memory = Memory { available_bytes: Some(1 << 20), ..Memory::default() };
        assert_eq!(available(&memory).grade, Grade::Degraded);
        let unknown = available(&Memory::default());
        assert!(unknown.remedy.unwrap().contains("set the capacity"));
    }

    #[test]
    fn groups_without_a_limit_are_no_limit() {
        assert_eq!(group("max\n", "5\n"), None);
        assert_eq!(group("9223372036854771712\n", "5\n"), None);
        assert_eq!(group("", ""), None);
        assert_eq!(group("100", "garbage"), None);
    }

    #[test]
    fn huge_pages_depend_on_kernel_and_mount() {
        let cases = [
            (Some("madvise"), Some("advise"), Some("advise"), Grade::Fine),
            (Some("always"), Some("never"), Some("always"), Grade::Fine),
            (Some("always"), Some("force"), None, Grade::Fine),
            (Some("always"), Some("never"), None, Grade::Degraded),
            (Some("always"), Some("deny"), Some("always"), Grade::Degraded),
            (Some("never"), Some("force"), None, Grade::Degraded),
            (None, None, None, Grade::Degraded),
        ];
        for (private, shared, mounted, grade) in cases {
            let finding = judge_huge_pages(private, shared, mounted);
            assert_eq!(finding.grade, grade, "{finding:?}");
        }
    }

    #[test]
    fn kernel_texts_are_read() {
        assert_eq!(choice("always [madvise] never\n"), Some("madvise"));
        assert_eq!(choice("always madvise never\n"), None);
        let mounts = "tmpfs /dev/shm tmpfs rw,nosuid 0 0\ntmpfs /dev/shm tmpfs rw,size=64m,huge=advise 0 0\nx /y z a 0 0\n";
        assert_eq!(mount_option(mounts, "/dev/shm", "huge"), Some("advise"));
        assert_eq!(mount_option(mounts, "/dev/shm", "mode"), None);
        assert_eq!(mount_option("garbage", "/dev/shm", "huge"), None);
        assert_eq!(count_list("0"), Some(1));
        assert_eq!(count_list("0-3,8"), Some(5));
        assert_eq!(count_list(""), None);
        assert_eq!(count_list("3-1"), None);
    }

    #[test]
    fn the_lock_limit_is_read() {
        let limits = |value: &str| {
            format!("Limit  Soft  Hard  Units\nMax locked memory         {value}   67108864  bytes\n")
        };
        assert_eq!(memlock(&limits("8388608")), Some(Limit::Bytes(8 << 20)));
        assert_eq!(memlock(&limits("unlimited")), Some(Limit::None));
        assert_eq!(memlock("nothing"), None);
        assert!(judge_locked(Some(Limit::Bytes(8 << 20))).found.starts_with("limit 8 MiB"));
    }

    #[test]
    fn several_nodes_bring_advice() {
        assert!(judge_nodes(2, 64).found.contains("numactl"));
        assert_eq!(judge_nodes(1, 2).found, "1 node, 2 CPUs may be used");
    }
}
