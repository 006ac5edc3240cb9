//! Which path a batch takes.
//!
//! Rates are measured at a few piece sizes and counts when the engine starts. Between them they are interpolated, beyond
//! them the nearest holds: rates level off at both ends. All in logarithms, since it is ratios that matter.

use std::time::Duration;

use kvcache_core::copy_engine::Direction;

use super::config::CopyPath;

/// How fast a path was at one point.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Rate {
    /// Which way.
    pub direction: Direction,
    /// The path.
    pub path: CopyPath,
    /// Bytes of each piece.
    pub piece_bytes: usize,
    /// Pieces.
    pub count: usize,
    /// Bytes of all pieces over the time from the first call to the last byte.
    pub bytes_per_second: f64,
}

/// A kernel takes multiprocessors from the engine's compute, a copy engine takes none: so much faster it has to be.
const KERNEL_GAIN: f64 = 1.05;

/// Pieces of a batch beyond which there is no call for each. A stream takes about a thousand.
const CALLS_MAX: usize = 256;

/// Chooses between paths.
#[derive(Clone, Debug, Default)]
pub struct PathChoice {
    rates: Vec<Rate>,
}

impl PathChoice {
    /// From what was measured; rates that are not positive numbers are left out. With none, rules of thumb choose.
    pub fn new(rates: impl IntoIterator<Item = Rate>) -> Self {
        let usable = |rate: &Rate| rate.bytes_per_second.is_finite() && rate.bytes_per_second > 0.0;
        Self { rates: rates.into_iter().filter(usable).collect() }
    }

    /// What was measured.
    pub fn rates(&self) -> &[Rate] {
        &self.rates
    }

    /// The path for `count` pieces of `bytes` bytes together, among `paths` (not empty). O(rates).
    pub fn choose(&self, direction: Direction, bytes: usize, count: usize, paths: &[CopyPath]) -> CopyPath {
        let piece_bytes = bytes / count.max(1);
        let at = (log2(piece_bytes), log2(count));
        let measured = paths.iter().all(|path| self.estimate(direction, *path, at).is_some());
        let rate = |path: CopyPath| match self.estimate(direction, path, at) {
            Some(rate) if measured => rate,
            // What was measured of some paths says nothing about the others.
            _ => rule_of_thumb(direction, path, piece_bytes, count),
        };
        // So many calls would fill the stream, and then hold the caller.
        let too_many_calls = |path: CopyPath| path == CopyPath::Dma && count > CALLS_MAX && paths.len() > 1;
        let mut best = None;
        for path in paths.iter().filter(|path| !too_many_calls(**path)) {
            let gain = if *path == CopyPath::Kernel { KERNEL_GAIN.log2() } else { 0.0 };
            let score = rate(*path) - gain;
            if best.is_none_or(|(_, most)| score > most) {
                best = Some((*path, score));
            }
        }
        best.map_or(CopyPath::Dma, |(path, _)| path)
    }

    /// How long `path` takes for `count` pieces of `bytes` bytes together, if it was measured. O(rates).
    pub fn time(&self, direction: Direction, path: CopyPath, bytes: usize, count: usize) -> Option<Duration> {
        let rate = self.estimate(direction, path, (log2(bytes / count.max(1)), log2(count)))?.exp2();
        Duration::try_from_secs_f64(bytes as f64 / rate).ok()
    }

    /// Logarithm of the rate of a path at a point, from the measured points around it.
    fn estimate(&self, direction: Direction, path: CopyPath, (size, count): (f64, f64)) -> Option<f64> {
        let points = || self.rates.iter().filter(|rate| rate.direction == direction && rate.path == path);
        // Along the counts for each size, then along the sizes.
        let at_size = |piece_bytes: usize| {
            let row = points().filter(|rate| rate.piece_bytes == piece_bytes);
            interpolate(row.map(|rate| (log2(rate.count), rate.bytes_per_second.log2())), count)
        };
        let sizes = points().map(|rate| (log2(rate.piece_bytes), rate.piece_bytes));
        let below = sizes.clone().filter(|(log, _)| *log <= size).max_by(|a, b| a.0.total_cmp(&b.0));
        let above = sizes.filter(|(log, _)| *log >= size).min_by(|a, b| a.0.total_cmp(&b.0));
        let ends = [below, above].into_iter().flatten();
        interpolate(ends.filter_map(|(log, piece_bytes)| Some((log, at_size(piece_bytes)?))), size)
    }
}

/// The value at `x` on the line through the nearest points on both sides, or that of the nearest.
fn interpolate(points: impl Iterator<Item = (f64, f64)>, x: f64) -> Option<f64> {
    let (mut below, mut above) = (None::<(f64, f64)>, None::<(f64, f64)>);
    for point in points {
        if point.0 <= x && below.is_none_or(|(at, _)| point.0 >= at) {
            below = Some(point);
        }
        if point.0 >= x && above.is_none_or(|(at, _)| point.0 <= at) {
            above = Some(point);
        }
    }
    match (below, above) {
        (Some((x0, y0)), Some((x1, y1))) if x1 > x0 => Some(y0 + (y1 - y0) * (x - x0) / (x1 - x0)),
        (Some((_, y)), _) | (_, Some((_, y))) => Some(y),
        (None, None) => None,
    }
}

/// Where nothing was measured: an order of paths, as others have published it for H100 and A30. Copy engines handle about 5 to
/// 10 GB/s of pieces below 28 KiB, a kernel most of the link.
fn rule_of_thumb(direction: Direction, path: CopyPath, piece_bytes: usize, count: usize) -> f64 {
    let small = piece_bytes < 28 << 10 && count >= 32;
    match path {
        CopyPath::Kernel if small && direction == Direction::Load => 4.0,
        CopyPath::Kernel => 1.0,
        CopyPath::DmaBatch if count > 1 => 3.0,
        CopyPath::DmaBatch => 1.5,
        CopyPath::Dma => 2.0,
    }
}

fn log2(value: usize) -> f64 {
    (value.max(1) as f64).log2()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn rate(path: CopyPath, piece_bytes: usize, count: usize, bytes_per_second: f64) -> Rate {
        Rate { direction: Direction::Load, path, piece_bytes, count, bytes_per_second }
    }

    fn path_of(choice: &PathChoice, piece_bytes: usize, count: usize) -> CopyPath {
        choice.choose(Direction::Load, piece_bytes * count, count, &CopyPath::ALL)
    }

    #[test]
    fn without_measures_published_experience_chooses() {
        let choice = PathChoice::default();
        assert_eq!(path_of(&choice, 16 << 10, 1000), CopyPath::Kernel);
        assert_eq!(path_of(&choice, 16 << 10, 8), CopyPath::DmaBatch);
        assert_eq!(path_of(&choice, 2 << 20, 1000), CopyPath::DmaBatch);
        assert_eq!(path_of(&choice, 2 << 20, 1), CopyPath::Dma);
        let offload = choice.choose(Direction::Offload, 16 << 20, 1024, &CopyPath::ALL);
        assert_eq!(offload, CopyPath::DmaBatch);
        assert_eq!(choice.choose(Direction::Load, 16 << 20, 1024, &[CopyPath::Dma]), CopyPath::Dma);
    }

    #[test]
    fn a_stream_is_not_filled_with_calls_where_there_is_another_way() {
        let rates =
            CopyPath::ALL.map(|path| rate(path, 4096, 16, if path == CopyPath::Dma { 9e9 } else { 1e9 }));
        let choice = PathChoice::new(rates);
        assert_eq!(path_of(&choice, 4096, 256), CopyPath::Dma);
        assert_eq!(path_of(&choice, 4096, 257), CopyPath::DmaBatch);
        assert_eq!(choice.choose(Direction::Load, 4096 * 257, 257, &[CopyPath::Dma]), CopyPath::Dma);
    }

    #[test]
    fn measures_of_some_paths_only_are_not_compared_with_rules() {
        let choice = PathChoice::new([rate(CopyPath::Dma, 2 << 20, 16, 1e9)]);
        assert_eq!(path_of(&choice, 2 << 20, 16), CopyPath::DmaBatch);
    }

    #[test]
    fn a_kernel_has_to_be_worth_its_multiprocessors() {
        for (kernel, best) in [(1.04, CopyPath::Dma), (1.06, CopyPath::Kernel)] {
            let choice = PathChoice::new([
                rate(CopyPath::Dma, 4096, 16, 1e9),
                rate(CopyPath::DmaBatch, 4096, 16, 0.9e9),
                rate(CopyPath::Kernel, 4096, 16, kernel * 1e9),
            ]);
            assert_eq!(path_of(&choice, 4096, 16), best);
        }
    }

    #[test]
    fn between_points_the_crossing_is_found() {
        let mut rates = Vec::new();
        for count in [16, 256] {
            rates.push(rate(CopyPath::Dma, 4 << 10, count, 1e9));
            rates.push(rate(CopyPath::Kernel, 4 << 10, count, 20e9));
            rates.push(rate(CopyPath::Kernel, 64 << 10, count, 20e9));
            rates.push(rate(CopyPath::DmaBatch, 4 << 10, count, 5e9));
            rates.push(rate(CopyPath::DmaBatch, 64 << 10, count, 40e9));
        }
        let choice = PathChoice::new(rates);
        // On the line through (4 KiB, 5) and (64 KiB, 40) of the logarithms 20 is at 25.4 KiB, and 19.05 at 24.2 KiB.
        assert_eq!(path_of(&choice, 23 << 10, 64), CopyPath::Kernel);
        assert_eq!(path_of(&choice, 26 << 10, 64), CopyPath::DmaBatch);
        assert_eq!(path_of(&choice, 1, 1), CopyPath::Kernel, "beyond the points the nearest one holds");
        assert_eq!(path_of(&choice, 1 << 30, 1 << 20), CopyPath::DmaBatch);
    }

    #[test]
    fn times_follow_from_measured_rates() {
        let choice = PathChoice::new([
            rate(CopyPath::Kernel, 16 << 10, 16, 1e9),
            rate(CopyPath::Kernel, 16 << 10, 1024, 16e9),
        ]);
        let time = |path, count| choice.time(Direction::Load, path, count * (16 << 10), count);
        assert_eq!(time(CopyPath::Kernel, 1024), Some(Duration::from_nanos(1_048_576)));
        assert_eq!(time(CopyPath::Kernel, 128), Some(Duration::from_nanos(524_288)), "half way, at 4 GB/s");
        assert_eq!(time(CopyPath::Dma, 1024), None);
        assert_eq!(choice.time(Direction::Load, CopyPath::Kernel, 0, 0), Some(Duration::ZERO));
    }

    #[test]
    fn rates_that_are_no_numbers_are_left_out() {
        let choice = PathChoice::new(
            [0.0, -1.0, f64::NAN, f64::INFINITY].map(|value| rate(CopyPath::Kernel, 1, 1, value)),
        );
        assert!(choice.rates().is_empty());
    }

    proptest! {
        /// At every measured point the choice is within the kernel's handicap of the best path.
        #[test]
        fn measured_points_are_honoured(values in prop::collection::vec(1e8f64..1e11, 18)) {
            let mut values = values.into_iter();
            let mut rates = Vec::new();
            for path in CopyPath::ALL {
                for piece_bytes in [4096, 16384, 65536] {
                    for count in [16, 256] {
                        rates.push(rate(path, piece_bytes, count, values.next().unwrap()));
                    }
                }
            }
            let choice = PathChoice::new(rates.clone());
            for point in &rates {
                let path = path_of(&choice, point.piece_bytes, point.count);
                let at = |rate: &&Rate| rate.piece_bytes == point.piece_bytes && rate.count == point.count;
                let best = rates.iter().filter(at).map(|rate| rate.bytes_per_second).fold(0.0, f64::max);
                let chosen = rates.iter().filter(at).find(|rate| rate.path == path).unwrap().bytes_per_second;
                prop_assert!(chosen * KERNEL_GAIN * 1.000_001 >= best, "{path:?} {chosen} {best}");
            }
        }
    }
}
