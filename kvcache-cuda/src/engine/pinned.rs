//! Which host memory is pinned, and its addresses for the device.

use std::collections::BTreeMap;

use kvcache_core::copy_engine::{Direction, Piece};

/// Pinned ranges by their first address. They do not overlap.
#[derive(Default)]
pub(super) struct PinnedRanges {
    ranges: BTreeMap<usize, Range>,
}

#[derive(Clone, Copy)]
struct Range {
    start: usize,
    end: usize,
    device: u64,
}

/// A piece whose host side lies within one pinned range.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PinnedPiece {
    /// As the driver's copies take it.
    pub(super) piece: Piece,
    /// The host side's address for kernels.
    pub(super) host_for_device: u64,
}

impl PinnedRanges {
    /// `start..start + bytes` is pinned from now on; kernels find it at `device`.
    pub(super) fn insert(&mut self, start: usize, bytes: usize, device: u64) {
        self.ranges.insert(start, Range { start, end: start.saturating_add(bytes), device });
    }

    /// The range that starts at `start` is not pinned any more; whether it was.
    pub(super) fn remove(&mut self, start: usize) -> bool {
        self.ranges.remove(&start).is_some()
    }

    /// First addresses of all ranges.
    pub(super) fn starts(&self) -> Vec<usize> {
        self.ranges.keys().copied().collect()
    }

    /// The pieces, cut where the host's side goes from one range to the next: the driver takes no copy across two. `None` if
    /// any byte of the host's side is not pinned. O(pieces), and a look-up whenever the range changes.
    pub(super) fn cut(&self, pieces: &[Piece], direction: Direction) -> Option<Vec<PinnedPiece>> {
        let mut cut = Vec::with_capacity(pieces.len());
        let mut range = Range { start: 1, end: 0, device: 0 };
        for piece in pieces {
            let mut rest = *piece;
            while rest.bytes > 0 {
                let host = match direction {
                    Direction::Load => rest.src,
                    Direction::Offload => rest.dst,
                };
                if !(range.start <= host && host < range.end) {
                    range = *self.ranges.range(..=host).next_back()?.1;
                    if host >= range.end {
                        return None;
                    }
                }
                let bytes = rest.bytes.min(range.end - host);
                let host_for_device = range.device + (host - range.start) as u64;
                cut.push(PinnedPiece { piece: Piece { bytes, ..rest }, host_for_device });
                rest = Piece { src: rest.src + bytes, dst: rest.dst + bytes, bytes: rest.bytes - bytes };
            }
        }
        Some(cut)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each byte is at the same place as before, in one range, and known to the device by that range's address.
        #[test]
        fn cutting_keeps_every_byte(
            sizes in prop::collection::vec((1usize..50, any::<bool>()), 1..8),
            wishes in prop::collection::vec((0usize..300, 0usize..60), 0..10),
            load in any::<bool>(),
        ) {
            let mut ranges = PinnedRanges::default();
            let mut pinned = vec![None; 400];
            let mut start = 10;
            for (index, (bytes, gap)) in sizes.iter().enumerate() {
                let device = 10_000 * (index as u64 + 1);
                ranges.insert(start, *bytes, device);
                for byte in 0..*bytes {
                    pinned[start + byte] = Some((index, device + byte as u64));
                }
                start += bytes + usize::from(*gap);
            }
            let direction = if load { Direction::Load } else { Direction::Offload };
            let pieces: Vec<Piece> = wishes
                .iter()
                .enumerate()
                .map(|(index, (host, bytes))| {
                    let other = 1_000_000 + index * 100;
                    let (src, dst) = if load { (*host, other) } else { (other, *host) };
                    Piece { src, dst, bytes: *bytes }
                })
                .collect();
            let all_pinned = wishes.iter().all(|(host, bytes)| (*host..host + bytes).all(|at| pinned[at].is_some()));
            let Some(cut) = ranges.cut(&pieces, direction) else {
                prop_assert!(!all_pinned);
                return Ok(());
            };
            prop_assert!(all_pinned);
            let bytes = |pieces: &[Piece]| {
                pieces.iter().flat_map(|p| (0..p.bytes).map(|i| (p.src + i, p.dst + i))).collect::<Vec<_>>()
            };
            prop_assert_eq!(bytes(&cut.iter().map(|c| c.piece).collect::<Vec<_>>()), bytes(&pieces));
            for PinnedPiece { piece, host_for_device } in cut {
                let host = if load { piece.src } else { piece.dst };
                let (range, device) = pinned[host].unwrap();
                prop_assert_eq!(device, host_for_device);
                prop_assert_eq!(pinned[host + piece.bytes - 1].unwrap().0, range);
            }
        }
    }

    #[test]
    fn what_is_removed_is_not_pinned() {
        let mut ranges = PinnedRanges::default();
        ranges.insert(100, 50, 7);
        let piece = [Piece { src: 100, dst: 1, bytes: 50 }];
        assert!(ranges.cut(&piece, Direction::Load).is_some());
        assert!(ranges.cut(&piece, Direction::Offload).is_none());
        assert!(ranges.remove(100) && !ranges.remove(100));
        assert!(ranges.cut(&piece, Direction::Load).is_none() && ranges.starts().is_empty());
    }
}
