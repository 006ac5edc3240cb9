//! What streams hold.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Weak};

use kvcache_core::copy_engine::Piece;

use super::bytes::Promise;
use super::clock::Clock;
use super::ranges::Ranges;
use crate::driver::{Arguments, Descriptors};
use crate::kernels::Kernel;

/// What an event stood for when it was recorded: everything up to operation `position` of a stream.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) stream: usize,
    pub(super) position: u64,
    pub(super) clock: Arc<Clock>,
}

/// Bytes that an operation touches.
#[derive(Clone, Debug, Default)]
pub(super) struct Touched {
    pub(super) reads: Ranges,
    pub(super) writes: Ranges,
}

impl Touched {
    pub(super) fn by(pieces: &[Piece]) -> Self {
        Self {
            reads: Ranges::new(pieces.iter().map(source)),
            writes: Ranges::new(pieces.iter().map(destination)),
        }
    }

    pub(super) fn overlap(&self, ranges: &Ranges) -> Option<Range<usize>> {
        self.reads.overlap(ranges).or_else(|| self.writes.overlap(ranges))
    }
}

/// Bytes that nobody may change between submission and execution, and what they were.
pub(super) struct Watch {
    pub(super) ranges: Ranges,
    pub(super) digest: u64,
}

/// The work of an operation.
pub(super) enum Work {
    /// A copy, or a batch with the arrays that it was submitted with.
    Copies { promise: Promise, pieces: Vec<(Piece, Early)>, arrays: Option<Arrays> },
    /// A kernel; its tables are read when it begins.
    Launch { promise: Promise, kernel: Kernel, arguments: Arguments },
    /// The engine's own.
    Engine(Box<dyn FnOnce() + Send>),
    /// Its end is the event.
    Record,
    /// Begins when that has ended.
    Wait(Arc<Recording>),
}

/// The arrays of a batch, which its caller keeps, and what they were when it was submitted.
pub(super) struct Arrays {
    kept: Weak<Descriptors>,
    digest: u64,
}

impl Arrays {
    pub(super) fn new(descriptors: &Arc<Descriptors>) -> Self {
        Self { kept: Arc::downgrade(descriptors), digest: digest(descriptors) }
    }

    /// What the caller has done to them.
    pub(super) fn defect(&self) -> Option<&'static str> {
        match self.kept.upgrade() {
            None => Some("its arrays were freed before its end"),
            Some(kept) => (digest(&kept) != self.digest).then_some("its arrays changed before its end"),
        }
    }
}

fn digest(descriptors: &Descriptors) -> u64 {
    let mut hasher = DefaultHasher::new();
    (&descriptors.destinations, &descriptors.sources, &descriptors.sizes).hash(&mut hasher);
    hasher.finish()
}

/// Source bytes of a piece that were read ahead of the stream's order.
pub(super) type Early = Option<Box<[u8]>>;

/// A part of an operation that has begun.
pub(super) enum Part {
    Copy { promise: Promise, piece: Piece, early: Early },
    Engine(Box<dyn FnOnce() + Send>),
}

/// One entry of a stream.
pub(super) struct Operation {
    /// Counts what was submitted to the device.
    pub(super) number: u64,
    /// Counts what was submitted to the stream, from 1.
    pub(super) position: u64,
    pub(super) label: Arc<str>,
    /// What is before it, itself included.
    pub(super) clock: Arc<Clock>,
    /// What is before its reads.
    pub(super) read_clock: Arc<Clock>,
    /// What is known of its bytes. A launch knows only its tables before it begins.
    pub(super) touched: Touched,
    pub(super) watch: Option<Watch>,
    /// Its memory went away: reported, and not to be touched.
    pub(super) doomed: bool,
    pub(super) progress: Progress,
}

pub(super) enum Progress {
    Submitted(Work),
    /// What is left of it, and the arrays to look after.
    Begun {
        parts: Vec<Part>,
        arrays: Option<Arrays>,
    },
    Ended,
}

impl Operation {
    pub(super) fn has_begun(&self) -> bool {
        !matches!(self.progress, Progress::Submitted(_))
    }
}

pub(super) fn source(piece: &Piece) -> Range<usize> {
    piece.src..piece.src.saturating_add(piece.bytes)
}

pub(super) fn destination(piece: &Piece) -> Range<usize> {
    piece.dst..piece.dst.saturating_add(piece.bytes)
}
