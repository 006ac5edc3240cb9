//! What runs next: any stream's first operation that waits for nothing, or a part of it.

use std::sync::Arc;

use kvcache_core::copy_engine::Piece;

use super::bytes::Promise;
use super::clock::of_stream;
use super::launches;
use super::memory::hex;
use super::operation::{Arrays, Early, Operation, Part, Progress, Touched, Work};
use super::races::Access;
use super::random::{Random, mix};
use super::ranges::Ranges;
use super::state::State;
use super::status::Call;
use crate::driver::Arguments;
use crate::kernels::Kernel;

/// Batches of more copies are not cut into smaller parts: there are enough.
const CUT_PIECES_MAX: usize = 64;

impl State {
    /// Runs up to `steps` steps of any streams; how many there were to run.
    pub(super) fn advance(&mut self, steps: usize) -> usize {
        for step in 0..steps {
            let ready: Vec<usize> =
                (0..self.streams.streams.len()).filter(|stream| self.is_ready(*stream)).collect();
            if ready.is_empty() {
                return step;
            }
            let stream = ready[self.random.below(ready.len())];
            self.step(stream);
        }
        steps
    }

    /// Runs until a stream's operation has ended, and by chance others.
    pub(super) fn run_until(&mut self, stream: usize, position: u64) {
        while self.lost.is_none() && self.streams.streams[stream].completed < position {
            if self.random.below(2) == 0 {
                self.advance(1);
            } else {
                let needed = self.needed_by(stream);
                self.step(needed);
            }
        }
    }

    /// The stream whose first operation must run next for `stream` to get on. Waits lead to what was submitted earlier, so
    /// there is an end.
    fn needed_by(&self, mut stream: usize) -> usize {
        while let Some(Operation { progress: Progress::Submitted(Work::Wait(recording)), .. }) =
            self.streams.streams[stream].queue.front()
            && !self.streams.is_done(recording)
        {
            stream = recording.stream;
        }
        stream
    }

    fn is_ready(&self, stream: usize) -> bool {
        match self.streams.streams[stream].queue.front() {
            None => false,
            Some(Operation { progress: Progress::Submitted(Work::Wait(recording)), .. }) => {
                self.streams.is_done(recording)
            }
            Some(_) => true,
        }
    }

    /// Begins the first operation of a stream, or runs some of it.
    fn step(&mut self, stream: usize) {
        // Off the queue while it runs: the rest of the state is needed for that.
        let Some(mut operation) = self.streams.streams[stream].queue.pop_front() else { return };
        operation.progress = match operation.progress {
            Progress::Submitted(work) => {
                operation.progress = Progress::Ended;
                self.begin(stream, &mut operation, work)
            }
            Progress::Begun { parts, arrays } => {
                operation.progress = Progress::Ended;
                self.run_some(&operation, parts, arrays)
            }
            Progress::Ended => Progress::Ended,
        };
        let left = if let Progress::Begun { parts, .. } = &operation.progress { parts.len() } else { 0 };
        self.schedule = mix(self.schedule ^ (stream as u64) << 48 ^ operation.position << 20 ^ left as u64);
        if self.lost.is_some() {
            self.streams.streams.iter_mut().for_each(|stream| stream.queue.clear());
        } else if let Progress::Ended = operation.progress {
            self.streams.streams[stream].completed = operation.position;
        } else {
            self.streams.streams[stream].queue.push_front(operation);
        }
    }

    fn begin(&mut self, stream: usize, operation: &mut Operation, work: Work) -> Progress {
        let (mut parts, arrays) = match work {
            Work::Record | Work::Wait(_) => return Progress::Ended,
            Work::Engine(work) => (vec![Part::Engine(work)], None),
            Work::Copies { promise, pieces, arrays } => {
                self.check_watch(promise, operation);
                (self.cut(promise, pieces), arrays)
            }
            Work::Launch { promise, kernel, arguments } => {
                self.check_watch(promise, operation);
                let pieces = self.launched(operation, promise, kernel, &arguments);
                (self.cut(promise, pieces.into_iter().map(|piece| (piece, None)).collect()), None)
            }
        };
        self.remember(Access {
            component: of_stream(stream),
            position: operation.position,
            touched: operation.touched.clone(),
            read_clock: Arc::clone(&operation.read_clock),
            write_clock: Arc::clone(&operation.clock),
            label: Arc::clone(&operation.label),
        });
        for later in self.streams.pending_mut() {
            // What a stream writes is no secret change.
            later.watch.take_if(|watch| watch.ranges.overlap(&operation.touched.writes).is_some());
        }
        if operation.doomed {
            parts.clear();
        }
        let ours = !matches!(parts[..], [Part::Engine(_)]);
        if let Some(status) = ours.then(|| self.faults.hit(Call::Execute, 0)).flatten() {
            parts.into_iter().for_each(|part| part.spoil(&mut self.random));
            self.lost = Some(status);
            return Progress::Ended;
        }
        self.random.shuffle(&mut parts);
        Progress::Begun { parts, arrays }
    }

    fn run_some(&mut self, operation: &Operation, mut parts: Vec<Part>, arrays: Option<Arrays>) -> Progress {
        if operation.doomed {
            return Progress::Ended;
        }
        // One, to be seen between others; or many, so that large batches end.
        let left = if self.random.below(3) == 0 {
            parts.len().saturating_sub(1)
        } else {
            self.random.below(parts.len())
        };
        for part in parts.drain(left..) {
            part.run();
        }
        if left > 0 {
            return Progress::Begun { parts, arrays };
        }
        if let Some(defect) = arrays.as_ref().and_then(Arrays::defect) {
            self.violation(format!("{}: {defect}", operation.label));
        }
        Progress::Ended
    }

    fn check_watch(&mut self, promise: Promise, operation: &mut Operation) {
        // Memory that went away may not be looked at; that it did was reported.
        let watch = operation.watch.take().filter(|_| !operation.doomed);
        if let Some(watch) = watch.filter(|watch| promise.digest(&watch.ranges) != watch.digest) {
            let first = watch.ranges.iter().next().map(hex).unwrap_or_default();
            let label = &operation.label;
            self.violation(format!(
                "{label}: the bytes that it reads (from {first}) changed before it began"
            ));
        }
    }

    /// What a launch copies now that its tables are read.
    fn launched(
        &mut self,
        operation: &mut Operation,
        promise: Promise,
        kernel: Kernel,
        arguments: &Arguments,
    ) -> Vec<Piece> {
        if operation.doomed {
            return Vec::new();
        }
        let (pieces, wrong) = launches::pieces(promise, kernel, arguments, &self.memory);
        for why in wrong {
            self.violation(format!("{}: {why}", operation.label));
        }
        let Touched { reads, writes } = Touched::by(&pieces);
        let reads = reads.iter().chain(operation.touched.reads.iter()).cloned();
        operation.touched = Touched { reads: Ranges::new(reads), writes };
        pieces
    }

    /// Copies as parts, some of them in several.
    fn cut(&mut self, promise: Promise, pieces: Vec<(Piece, Early)>) -> Vec<Part> {
        let cut = pieces.len() <= CUT_PIECES_MAX;
        let mut parts = Vec::with_capacity(pieces.len());
        for (mut piece, early) in pieces {
            while cut && early.is_none() && piece.bytes > 1 && self.random.below(3) == 0 {
                let bytes = self.random.between(1, piece.bytes - 1);
                parts.push(Part::Copy { promise, piece: Piece { bytes, ..piece }, early: None });
                piece = Piece { src: piece.src + bytes, dst: piece.dst + bytes, bytes: piece.bytes - bytes };
            }
            parts.push(Part::Copy { promise, piece, early });
        }
        parts
    }
}

impl Part {
    fn run(self) {
        match self {
            Self::Copy { promise, piece, early: None } => promise.copy(piece.src, piece.dst, piece.bytes),
            Self::Copy { promise, piece, early: Some(bytes) } => promise.write(&bytes, piece.dst),
            Self::Engine(work) => work(),
        }
    }

    /// Ends it with an error: its destination is undefined.
    fn spoil(self, random: &mut Random) {
        if let Self::Copy { promise, piece, .. } = self {
            promise.scribble(piece.dst, piece.bytes, random);
        }
    }
}
