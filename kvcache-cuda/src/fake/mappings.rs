//! What the process has mapped: the kernel pins pages for a device that may write to them, and refuses others.

use std::fs;

/// Whether all of `base..base + bytes` is mapped readable and writable. Where the system does not say what is mapped, yes.
pub(super) fn is_writable(base: usize, bytes: usize) -> bool {
    // Names of mapped files need not be text.
    fs::read("/proc/self/maps").map_or(true, |maps| covers(&String::from_utf8_lossy(&maps), base, bytes))
}

/// The same by the text of that file: a line for each mapping, sorted, that begins as in `7f00-8f00 rw-p`.
fn covers(maps: &str, base: usize, bytes: usize) -> bool {
    let Some(end) = base.checked_add(bytes) else { return false };
    let mut covered = base;
    for (from, to) in maps.lines().filter_map(writable) {
        if from <= covered && covered < to {
            covered = to;
        }
    }
    covered >= end
}

fn writable(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    let (from, to) = range.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(from)?, address(to)?)).filter(|_| rest.starts_with("rw"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_covered_by_neighbours_without_a_gap() {
        let maps = "1000-2000 rw-p 00000000 00:00 0\n2000-3000 rw-s 00000000 00:01 7 /memfd:slab\n3000-4000 r--p 0 0 0\n\
                    5000-6000 rw-p 0 0 0\nffffffffff600000-ffffffffff601000 --xp 0 0 0 [vsyscall]\n";
        let cases = [
            (0x1000, 0x2000, true),
            (0x1fff, 2, true),
            (0x5800, 0x800, true),
            (0xfff, 2, false),
            (0x2fff, 2, false),
            (0x3000, 16, false),
            (0x4ff0, 32, false),
            (0x5fff, 2, false),
            (usize::MAX, 2, false),
        ];
        for (base, bytes, covered) in cases {
            assert_eq!(covers(maps, base, bytes), covered, "{base:#x} {bytes:#x}");
        }
    }
}
