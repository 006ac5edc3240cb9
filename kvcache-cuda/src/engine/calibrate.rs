//! Tries and measures the paths on memory of our own.

use std::sync::Arc;
use std::time::{Duration, Instant};

use kvcache_core::copy_engine::{Direction, Piece};

use super::choice::Rate;
use super::config::CopyPath;
use super::emit::{Emitter, Kept};
use super::events::EventPool;
use super::pinned::PinnedPiece;
use super::plain;
use crate::driver::{Driver, DriverError, HostAllocation, Stream};

/// Bytes on each side. The largest point fits.
const SCRATCH_BYTES: usize = 16 << 20;

/// Piece sizes and counts that are measured: on both sides of where paths cross on the devices that others have published
/// numbers for. About 1 GiB in all for three paths, of which copy engines move 50 GB/s at best.
const POINTS: [(usize, usize); 7] = [
    (4 << 10, 16),
    (4 << 10, 1024),
    (16 << 10, 16),
    (16 << 10, 1024),
    (64 << 10, 16),
    (64 << 10, 128),
    (512 << 10, 16),
];

/// The fastest of so many runs counts: the first one warms up.
const RUNS: usize = 3;

/// The longest that a run is waited for without sleeping.
const SPIN: Duration = Duration::from_millis(20);

/// Scratch memory on both sides.
struct Scratch<'a> {
    driver: &'a Arc<dyn Driver>,
    host: HostAllocation,
    device: u64,
}

impl<'a> Scratch<'a> {
    fn new(driver: &'a Arc<dyn Driver>) -> Result<Self, DriverError> {
        let host = driver.allocate_host(SCRATCH_BYTES)?;
        match driver.allocate_device(SCRATCH_BYTES) {
            Ok(device) => Ok(Self { driver, host, device }),
            Err(error) => {
                driver.free_host(host.host);
                Err(error)
            }
        }
    }

    /// `count` pieces that no neighbour continues: every second one from the front, then the others.
    fn pieces(&self, direction: Direction, piece_bytes: usize, count: usize) -> Vec<PinnedPiece> {
        let even = count.div_ceil(2);
        (0..count)
            .map(|index| {
                let place = if index < even { index * 2 } else { (index - even) * 2 + 1 };
                let (near, far) = (index * piece_bytes, place * piece_bytes);
                let (host, device) = (self.host.host + near, self.device as usize + far);
                let (src, dst) = match direction {
                    Direction::Load => (host, device),
                    Direction::Offload => (device, host),
                };
                let host_for_device = self.host.device + near as u64;
                PinnedPiece { piece: Piece { src, dst, bytes: piece_bytes }, host_for_device }
            })
            .collect()
    }

    fn write(&self, bytes: &[u8]) {
        assert!(bytes.len() <= SCRATCH_BYTES);
        // SAFETY: within our allocation, with no copy in flight on it: each run is waited for.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.host.host as *mut u8, bytes.len()) };
    }

    fn read(&self, bytes: &mut [u8]) {
        assert!(bytes.len() <= SCRATCH_BYTES);
        // SAFETY: as in `write`; the driver's allocation is initialised by `write` and by copies.
        unsafe {
            std::ptr::copy_nonoverlapping(self.host.host as *const u8, bytes.as_mut_ptr(), bytes.len())
        };
    }
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        self.driver.free_device(self.device);
        self.driver.free_host(self.host.host);
    }
}

/// Measures every path that works at every point. A path that fails, or copies other bytes than it should, is given up.
///
/// # Errors
/// Plain copies fail, or copy other bytes than they should: there is nothing left to copy with.
pub(super) fn measure(
    driver: &Arc<dyn Driver>,
    events: &EventPool,
    emitter: &mut Emitter,
    stream: Stream,
) -> Result<Vec<Rate>, DriverError> {
    let scratch = match Scratch::new(driver) {
        Ok(scratch) => scratch,
        Err(error) => {
            emitter.remark(format!(
                "copy paths are chosen by rules of thumb, there is no memory to measure them with: {error}"
            ));
            return Ok(Vec::new());
        }
    };
    let mut rates = Vec::new();
    for path in CopyPath::ALL {
        if !emitter.paths().contains(&path) {
            continue;
        }
        let broken = match prove(&scratch, events, emitter, path, stream) {
            Ok(true) => None,
            Ok(false) => {
                let name = "it copied other bytes than it should".to_owned();
                Some(DriverError { operation: "a copy", code: 0, name })
            }
            Err(error) => Some(error),
        };
        match broken {
            Some(error) if path == CopyPath::Dma => return Err(error),
            Some(error) => emitter.give_up(path, error.to_string()),
            None => {}
        }
        if !emitter.paths().contains(&path) {
            continue;
        }
        for direction in [Direction::Load, Direction::Offload] {
            for (piece_bytes, count) in POINTS {
                let pieces = scratch.pieces(direction, piece_bytes, count);
                let mut best = f64::INFINITY;
                for _ in 0..RUNS {
                    let began = Instant::now();
                    // Another path that has taken over says nothing about this one.
                    match run(&scratch, events, emitter, path, &pieces, direction, stream) {
                        Ok(done_by) if done_by == path => best = best.min(began.elapsed().as_secs_f64()),
                        Ok(_) => {}
                        Err(error) => return Err(error),
                    }
                }
                let bytes_per_second = (piece_bytes * count) as f64 / best;
                rates.push(Rate { direction, path, piece_bytes, count, bytes_per_second });
            }
        }
    }
    Ok(rates)
}

/// Copies by one path and waits, without sleeping: waking up takes longer than many a copy.
fn run(
    scratch: &Scratch<'_>,
    events: &EventPool,
    emitter: &mut Emitter,
    path: CopyPath,
    pieces: &[PinnedPiece],
    direction: Direction,
    stream: Stream,
) -> Result<CopyPath, DriverError> {
    let end = events.take()?;
    let mut kept = Kept::default();
    // SAFETY: the pieces lie within the scratch memory, which nobody else uses, and do not overlap; what is accepted is waited
    // for below, and if that fails the context is lost.
    let emitted = unsafe { emitter.emit(path, pieces, direction, stream, &mut kept) };
    let waited = scratch.driver.record_event(end, stream).and_then(|()| {
        let began = Instant::now();
        while began.elapsed() < SPIN {
            match scratch.driver.query_event(end) {
                Ok(true) => return Ok(()),
                Ok(false) => std::hint::spin_loop(),
                Err(_) => break,
            }
        }
        scratch.driver.synchronize_event(end)
    });
    events.give_back(end);
    match waited {
        Ok(()) => emitter.give_back(kept),
        Err(error) => {
            std::mem::forget(kept);
            return Err(error);
        }
    }
    emitted
}

/// Whether a path moves bytes to where they belong: there and back, with pieces of odd sizes at odd places.
fn prove(
    scratch: &Scratch<'_>,
    events: &EventPool,
    emitter: &mut Emitter,
    path: CopyPath,
    stream: Stream,
) -> Result<bool, DriverError> {
    const BYTES: usize = 256 << 10;
    let mut sizes = [512, 4096, 20_000, 1, 517, 16, 70_001].iter().cycle();
    let mut pieces = Vec::new();
    let mut at = 0;
    while let Some(bytes) = sizes.next().copied().filter(|bytes| at + bytes <= BYTES) {
        pieces.push((at, bytes));
        at += bytes;
    }
    let end = at;
    // On the device the pieces lie in reverse.
    let cut = |direction| -> Vec<PinnedPiece> {
        pieces
            .iter()
            .map(|(at, bytes)| {
                let (host, device) = (scratch.host.host + at, scratch.device as usize + (end - at - bytes));
                let (src, dst) = if direction == Direction::Load { (host, device) } else { (device, host) };
                let host_for_device = scratch.host.device + *at as u64;
                PinnedPiece { piece: Piece { src, dst, bytes: *bytes }, host_for_device }
            })
            .collect()
    };
    let pattern: Vec<u8> =
        (0..end as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    let mirrored: Vec<u8> =
        pieces.iter().rev().flat_map(|(at, bytes)| pattern[*at..at + bytes].iter().copied()).collect();
    let mut found = vec![0; end];
    let whole = [plain(Piece { src: scratch.device as usize, dst: scratch.host.host, bytes: end })];

    // There by this path, back by a plain copy; then back by this path.
    scratch.write(&pattern);
    run(scratch, events, emitter, path, &cut(Direction::Load), Direction::Load, stream)?;
    scratch.write(&vec![0xa5; end]);
    run(scratch, events, emitter, CopyPath::Dma, &whole, Direction::Offload, stream)?;
    scratch.read(&mut found);
    if found != mirrored {
        return Ok(false);
    }
    scratch.write(&vec![0xa5; end]);
    run(scratch, events, emitter, path, &cut(Direction::Offload), Direction::Offload, stream)?;
    scratch.read(&mut found);
    Ok(found == pattern)
}
