//! Which memory an address belongs to.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;

use super::random::Random;

/// Added to a host address to make the device's address of it. Nothing that a program maps lies there, so who takes one
/// for the other is found out.
pub(super) const DEVICE_OFFSET: u64 = 1 << 56;

/// Alignment of what the fake allocates, and the bytes on either side of it that belong to nobody.
const GUARD_BYTES: usize = 256;

/// Freed memory is kept, so that late accesses to it are told from those to other memory, up to so much.
const KEPT_BYTES_MAX: usize = 64 << 20;
const KEPT_COUNT_MAX: usize = 64;

/// What an operation may do with a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Place {
    /// Memory of the device.
    Device,
    /// Host memory that is pinned and mapped.
    Pinned,
    /// Any other memory of the process.
    Pageable,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    /// The engine's memory, declared.
    Declared,
    /// Allocated here.
    Device,
    Host,
    Registered,
    /// Beside an allocation.
    Guard,
    Freed,
}

struct Region {
    end: usize,
    kind: Kind,
    /// What keeps it alive, if it was allocated here.
    backing: Option<Vec<u8>>,
}

/// All ranges that are known, by their first address; they do not overlap. Whatever is in none of them is pageable.
#[derive(Default)]
pub(super) struct Memory {
    regions: BTreeMap<usize, Region>,
    /// First addresses of freed backings, the oldest first, and their sum.
    kept: VecDeque<(usize, usize)>,
    kept_bytes: usize,
}

impl Memory {
    /// Takes a range that others own.
    pub(super) fn declare(&mut self, base: usize, bytes: usize) -> Result<(), String> {
        self.add(base, bytes, Kind::Declared)
    }

    pub(super) fn register(&mut self, base: usize, bytes: usize) -> Result<(), String> {
        self.add(base, bytes, Kind::Registered)
    }

    fn add(&mut self, base: usize, bytes: usize, kind: Kind) -> Result<(), String> {
        let end = base.checked_add(bytes).filter(|_| base > 0 && bytes > 0).ok_or("an empty range")?;
        // An allocator may hand the memory of a kept backing to nobody else, so an overlap is always a mistake.
        if let Some((other, region)) = self.overlapping(base..end).next() {
            return Err(format!("{} overlaps {}", hex(&(base..end)), hex(&(other..region.end))));
        }
        self.regions.insert(base, Region { end, kind, backing: None });
        Ok(())
    }

    /// Forgets what was declared or registered; its range.
    pub(super) fn remove_declared(&mut self, base: usize) -> Option<Range<usize>> {
        self.remove(base, Kind::Declared)
    }

    pub(super) fn unregister(&mut self, base: usize) -> Option<Range<usize>> {
        self.remove(base, Kind::Registered)
    }

    fn remove(&mut self, base: usize, kind: Kind) -> Option<Range<usize>> {
        self.regions.get(&base).filter(|region| region.kind == kind)?;
        self.regions.remove(&base).map(|region| base..region.end)
    }

    /// New memory, filled with noise; its address.
    pub(super) fn allocate(&mut self, bytes: usize, on_host: bool, random: &mut Random) -> usize {
        let mut backing = vec![0u8; bytes + 3 * GUARD_BYTES];
        // A third guard's worth leaves room for the alignment.
        let start = backing.as_mut_ptr() as usize;
        for word in backing.chunks_mut(8) {
            word.copy_from_slice(&random.next().to_le_bytes()[..word.len()]);
        }
        let whole = start..start + backing.len();
        let base = (start + GUARD_BYTES).next_multiple_of(GUARD_BYTES);
        let kind = if on_host { Kind::Host } else { Kind::Device };
        self.regions.insert(whole.start, Region { end: base, kind: Kind::Guard, backing: None });
        self.regions.insert(base, Region { end: base + bytes, kind, backing: Some(backing) });
        self.regions.insert(base + bytes, Region { end: whole.end, kind: Kind::Guard, backing: None });
        base
    }

    /// Frees what [`allocate`](Self::allocate) returned; its range.
    pub(super) fn free(&mut self, base: usize, on_host: bool) -> Option<Range<usize>> {
        let wanted = if on_host { Kind::Host } else { Kind::Device };
        let region = self.regions.get_mut(&base).filter(|region| region.kind == wanted)?;
        region.kind = Kind::Freed;
        let range = base..region.end;
        let bytes = region.backing.as_ref().map_or(0, Vec::len);
        self.kept.push_back((base, bytes));
        self.kept_bytes += bytes;
        while self.kept.len() > KEPT_COUNT_MAX || self.kept_bytes > KEPT_BYTES_MAX {
            let Some((oldest, bytes)) = self.kept.pop_front() else { break };
            self.kept_bytes -= bytes;
            let end = self.regions.remove(&oldest).map(|region| region.end);
            let guard = self.regions.range(..oldest).next_back().map(|(base, _)| *base);
            for guard in [guard, end].into_iter().flatten() {
                self.regions.remove(&guard);
            }
        }
        Some(range)
    }

    /// Bytes that are allocated on the device now.
    pub(super) fn device_bytes(&self) -> usize {
        let ours = self.regions.iter().filter(|(_, region)| region.kind == Kind::Device);
        ours.map(|(base, region)| region.end - base).sum()
    }

    /// Where a range of the host's addresses lies. Ranges that are partly in one place and partly in another lie nowhere;
    /// neighbours that were declared as device memory are one place, neighbours that are pinned each on their own are not.
    pub(super) fn place(&self, range: &Range<usize>) -> Result<Place, String> {
        if range.start == 0 || range.start > range.end {
            return Err(format!("{} is no memory", hex(range)));
        }
        if range.end as u64 > DEVICE_OFFSET {
            return Err(format!(
                "{} is an address of the device for host memory, which only kernels take",
                hex(range)
            ));
        }
        let mut first = usize::MAX;
        let mut wanted = range.end;
        let mut kind = None;
        for (base, region) in self.overlapping(range.clone()) {
            match region.kind {
                Kind::Freed => return Err(format!("{} was freed", hex(range))),
                Kind::Guard => return Err(format!("{} is beyond the end of an allocation", hex(range))),
                _ => {}
            }
            let here = if matches!(region.kind, Kind::Declared | Kind::Device) {
                Place::Device
            } else {
                Place::Pinned
            };
            let joins = kind.is_none() || (kind == Some(here) && here == Place::Device);
            if !joins || region.end < wanted {
                return Err(format!("{} crosses the border at {:#x}", hex(range), region.end));
            }
            (first, wanted, kind) = (base, base, Some(here));
        }
        match kind {
            None => Ok(Place::Pageable),
            Some(_) if first > range.start => Err(format!("{} crosses the border at {first:#x}", hex(range))),
            Some(place) => Ok(place),
        }
    }

    /// The host's address of what a kernel reaches at `address`.
    pub(super) fn reached_by_kernels(&self, address: u64, bytes: usize) -> Result<usize, String> {
        let mapped = address >= DEVICE_OFFSET;
        let host = (if mapped { address - DEVICE_OFFSET } else { address }) as usize;
        let range = host..host.saturating_add(bytes);
        match (self.place(&range)?, mapped) {
            (Place::Device, false) | (Place::Pinned, true) => Ok(host),
            (Place::Pinned, false) => Err(format!("{} is the CPU's address of pinned memory", hex(&range))),
            (_, true) => Err(format!("{} + {DEVICE_OFFSET:#x} is not mapped", hex(&range))),
            (Place::Pageable, false) => Err(format!("{} is neither the device's nor mapped", hex(&range))),
        }
    }

    /// Regions that share bytes with a range, from the last to the first.
    fn overlapping(&self, range: Range<usize>) -> impl Iterator<Item = (usize, &Region)> {
        let below = self.regions.range(..range.end).rev();
        below.take_while(move |(_, region)| region.end > range.start).map(|(base, region)| (*base, region))
    }
}

/// A range for people.
pub(super) fn hex(range: &Range<usize>) -> String {
    format!("{:#x}+{}", range.start, range.end.wrapping_sub(range.start))
}
