//! A copy engine that copies when it is told to, in a seeded order, a piece at a time; and that can fail.

use std::collections::HashMap;
use std::time::Duration;

use kvcache_core::copy_engine::{
    CopyBatch, CopyEngine, CopyFailure, CopyState, Direction, Fence, InFlight, Piece, Rejected, Ticket,
};

use parking_lot::{Mutex, MutexGuard};

use super::random::Random;

/// How a [`LazyCopies`] behaves; can be changed while it runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CopyBehaviour {
    /// Batches accepted and not yet reported.
    pub(crate) batches_max: usize,
    /// Batches that fail, of a thousand.
    pub(crate) fail: u32,
    /// Submissions refused as if it was full, of a thousand.
    pub(crate) refuse: u32,
    /// Polls that find nothing done, of a thousand; others copy a piece first.
    pub(crate) lazy: u32,
    /// Whether it is a device's, whose memory is used by streams. A stream that has to wait for a batch performs it at once,
    /// unless it is `lazy_streams`.
    pub(crate) streams: bool,
    pub(crate) lazy_streams: bool,
    /// Streams cannot wait.
    pub(crate) refuses_order: bool,
    /// It is better off with batches of that many bytes.
    pub(crate) batch_bytes: usize,
    /// Offloads go to registered memory only.
    pub(crate) pinned_offloads: bool,
    /// Planted: of a batch with several pieces only the first half is copied.
    pub(crate) halves: bool,
    /// Nanoseconds a byte that a device says it will take.
    pub(crate) expected_byte_ns: Option<u64>,
}

impl Default for CopyBehaviour {
    fn default() -> Self {
        Self {
            batches_max: 64,
            fail: 0,
            refuse: 0,
            lazy: 0,
            streams: false,
            lazy_streams: false,
            refuses_order: false,
            batch_bytes: 0,
            pinned_offloads: false,
            halves: false,
            expected_byte_ns: None,
        }
    }
}

/// Nanoseconds that loading a byte takes, as it measures: real durations would make a run depend on the machine.
const LOAD_BYTE_NS: u64 = 10_000;

/// What it has seen.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct CopyCounts {
    pub(crate) submitted: u64,
    pub(crate) failed: u64,
    pub(crate) full: u64,
    pub(crate) overtaken: u64,
    pub(crate) offloads: u64,
}

struct Batch {
    ticket: Ticket,
    direction: Direction,
    left: Vec<Piece>,
    all: Vec<Piece>,
    fails: bool,
    forgotten: bool,
}

struct State {
    random: Random,
    behaviour: CopyBehaviour,
    running: Vec<Batch>,
    /// Ended and not reported.
    ended: Vec<(Ticket, bool)>,
    next: u64,
    dead: bool,
    /// Readers and writers of each word in use.
    busy: HashMap<usize, (u32, u32)>,
    conflict: Option<String>,
    counts: CopyCounts,
    submitted: Vec<CopyBatch>,
    keeps_batches: bool,
    fences: u64,
    /// Which stream waits for which batch, in the order of the calls.
    ordered: Vec<(Ticket, u64)>,
    /// Bytes of loads that have ended since somebody asked.
    loaded_bytes: u64,
    registered: Vec<(usize, usize)>,
    register_bytes_max: usize,
    /// Refusals of registrations to come, and with which code.
    refuse_registrations: (i64, usize),
    refusals: usize,
}

/// See the module's head.
pub(crate) struct LazyCopies(Mutex<State>);

impl LazyCopies {
    pub(crate) fn new(seed: u64, behaviour: CopyBehaviour) -> Self {
        Self(Mutex::new(State {
            random: Random::new(seed),
            behaviour,
            running: Vec::new(),
            ended: Vec::new(),
            next: 0,
            dead: false,
            busy: HashMap::new(),
            conflict: None,
            counts: CopyCounts::default(),
            submitted: Vec::new(),
            keeps_batches: false,
            fences: 0,
            ordered: Vec::new(),
            loaded_bytes: 0,
            registered: Vec::new(),
            register_bytes_max: usize::MAX,
            refuse_registrations: (0, 0),
            refusals: 0,
        }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock()
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut CopyBehaviour)) {
        change(&mut self.state().behaviour);
    }

    /// Remembers every accepted batch from now on.
    pub(crate) fn keep_batches(&self) {
        self.state().keeps_batches = true;
    }

    /// The stream that a batch's fence was made of, and how many fences were made before it.
    pub(crate) fn fenced_by(batch: &CopyBatch) -> Option<(u64, u64)> {
        batch.fence.as_ref()?.inner().copied()
    }

    /// What is registered, as `(base, bytes)`.
    pub(crate) fn registered(&self) -> Vec<(usize, usize)> {
        self.state().registered.clone()
    }

    /// Refuses to register more than so many bytes in all.
    pub(crate) fn refuse_to_register_after(&self, bytes: usize) {
        self.state().register_bytes_max = bytes;
    }

    /// Refuses the next `times` registrations with the driver's `code`.
    pub(crate) fn refuse_to_register(&self, code: i64, times: usize) {
        self.state().refuse_registrations = (code, times);
    }

    /// Registrations that were refused that way.
    pub(crate) fn refusals(&self) -> usize {
        self.state().refusals
    }

    /// The streams that wait for batches since the last call.
    pub(crate) fn ordered(&self) -> Vec<(Ticket, u64)> {
        std::mem::take(&mut self.state().ordered)
    }

    pub(crate) fn batches(&self) -> Vec<CopyBatch> {
        std::mem::take(&mut self.state().submitted)
    }

    /// Copies up to `pieces` pieces of any batches.
    pub(crate) fn work(&self, pieces: usize) {
        let mut state = self.state();
        for _ in 0..pieces {
            if state.running.is_empty() {
                return;
            }
            let count = state.running.len();
            let index = state.random.below(count);
            state.copy_one(index);
        }
    }

    /// The process is dead: what was not copied never will be.
    pub(crate) fn kill(&self) {
        let mut state = self.state();
        state.dead = true;
        state.running.clear();
        state.ended.clear();
        state.busy.clear();
    }

    pub(crate) fn counts(&self) -> CopyCounts {
        self.state().counts
    }

    /// The first two copies in flight together that must not be, in words.
    pub(crate) fn conflict(&self) -> Option<String> {
        self.state().conflict.clone()
    }

    /// Whether any batch in flight touches the word at this address.
    pub(crate) fn touches(&self, address: usize) -> bool {
        self.state().busy.contains_key(&address)
    }
}

impl State {
    fn copy_one(&mut self, index: usize) {
        let left = self.running[index].left.len();
        if left > 0 {
            let pick = self.random.below(left);
            let piece = self.running[index].left.swap_remove(pick);
            // SAFETY: the submitter keeps both ranges valid and unshared until the batch's end is reported.
            unsafe {
                std::ptr::copy_nonoverlapping(piece.src as *const u8, piece.dst as *mut u8, piece.bytes)
            };
        }
        let batch = &self.running[index];
        if batch.left.is_empty() || (batch.fails && batch.left.len() * 2 <= batch.all.len()) {
            self.end(index);
        }
    }

    fn end(&mut self, index: usize) {
        if index > 0 {
            self.counts.overtaken += 1;
        }
        let batch = self.running.remove(index);
        for piece in batch.left.iter().take(if batch.fails { usize::MAX } else { 0 }) {
            // SAFETY: as for the copy; what a failed batch leaves is undefined, so it is made so.
            unsafe { std::ptr::write_bytes(piece.dst as *mut u8, 0xee, piece.bytes) };
        }
        for (address, write) in words(&batch.all) {
            if let Some(users) = self.busy.get_mut(&address) {
                if write {
                    users.1 -= 1;
                } else {
                    users.0 -= 1;
                }
                if *users == (0, 0) {
                    self.busy.remove(&address);
                }
            }
        }
        self.counts.failed += u64::from(batch.fails);
        if batch.direction == Direction::Load && !batch.fails && !self.behaviour.streams {
            self.loaded_bytes += batch.all.iter().map(|piece| piece.bytes as u64).sum::<u64>();
        }
        if !batch.forgotten {
            self.ended.push((batch.ticket, !batch.fails));
        }
    }

    fn report(&mut self, ticket: Ticket) -> CopyState {
        if let Some(index) = self.ended.iter().position(|(ended, _)| *ended == ticket) {
            let (_, ok) = self.ended.swap_remove(index);
            return if ok {
                CopyState::Done
            } else {
                CopyState::Failed(CopyFailure::Other("planted".into()))
            };
        }
        if self.running.iter().any(|batch| batch.ticket == ticket) {
            return CopyState::Pending;
        }
        CopyState::Failed(CopyFailure::UnknownTicket(ticket))
    }
}

/// Every word that the pieces touch, and whether they write it.
fn words(pieces: &[Piece]) -> impl Iterator<Item = (usize, bool)> {
    pieces.iter().flat_map(|piece| {
        (0..piece.bytes.div_ceil(8))
            .flat_map(|word| [(piece.src + word * 8, false), (piece.dst + word * 8, true)])
    })
}

impl CopyEngine for LazyCopies {
    fn name(&self) -> &'static str {
        "lazy"
    }

    unsafe fn submit(&self, batch: CopyBatch) -> Result<Ticket, Rejected> {
        let mut state = self.state();
        if state.dead {
            return Err(Rejected::Unsupported(batch, "the process is dead"));
        }
        let is_pinned = |piece: &Piece| {
            let mut ranges = state.registered.iter();
            ranges.any(|(base, bytes)| (*base..base + bytes).contains(&piece.dst))
        };
        if state.behaviour.pinned_offloads
            && batch.direction == Direction::Offload
            && !batch.pieces.iter().all(is_pinned)
        {
            return Err(Rejected::Unsupported(batch, "offloads go to pinned memory only"));
        }
        let refuse = state.behaviour.refuse;
        if state.running.len() + state.ended.len() >= state.behaviour.batches_max
            || state.random.chance(refuse)
        {
            state.counts.full += 1;
            return Err(Rejected::Full(batch));
        }
        for (address, write) in words(&batch.pieces) {
            let users = state.busy.entry(address).or_default();
            let conflict = users.1 > 0 || (write && users.0 > 0);
            if write {
                users.1 += 1;
            } else {
                users.0 += 1;
            }
            if conflict && state.conflict.is_none() {
                let what = if write { "written" } else { "read" };
                state.conflict =
                    Some(format!("a word is {what} by {:?} while another copy uses it", batch.direction));
            }
        }
        let fail = state.behaviour.fail;
        let fails = state.random.chance(fail);
        let ticket = Ticket(state.next);
        state.next += 1;
        state.counts.submitted += 1;
        state.counts.offloads += u64::from(batch.direction == Direction::Offload);
        if state.keeps_batches {
            state.submitted.push(batch.clone());
        }
        let (all, direction) = (batch.pieces, batch.direction);
        let mut left = all.clone();
        if state.behaviour.halves {
            left.truncate(all.len().div_ceil(2));
        }
        state.running.push(Batch { ticket, direction, left, all, fails, forgotten: false });
        Ok(ticket)
    }

    fn poll(&self, ticket: Ticket) -> CopyState {
        let mut state = self.state();
        let lazy = state.behaviour.lazy;
        if !state.random.chance(lazy)
            && let Some(index) = state.running.iter().position(|batch| batch.ticket == ticket)
        {
            state.copy_one(index);
        }
        state.report(ticket)
    }

    fn wait(&self, ticket: Ticket, _timeout: Duration) -> CopyState {
        let mut state = self.state();
        while let Some(index) = state.running.iter().position(|batch| batch.ticket == ticket) {
            state.copy_one(index);
        }
        state.report(ticket)
    }

    fn help(&self, _budget_bytes: usize) -> usize {
        let mut state = self.state();
        match state.running.first().map(|batch| batch.left.first().map_or(1, |piece| piece.bytes)) {
            Some(bytes) => {
                state.copy_one(0);
                bytes.max(1)
            }
            None => 0,
        }
    }

    fn forget(&self, ticket: Ticket) {
        let mut state = self.state();
        state.ended.retain(|(ended, _)| *ended != ticket);
        state
            .running
            .iter_mut()
            .filter(|batch| batch.ticket == ticket)
            .for_each(|batch| batch.forgotten = true);
    }

    fn has_streams(&self) -> bool {
        self.state().behaviour.streams
    }

    fn fence(&self, stream: u64) -> Result<Fence, CopyFailure> {
        let mut state = self.state();
        if !state.behaviour.streams {
            return Err(CopyFailure::Other("no streams".to_owned()));
        }
        state.fences += 1;
        Ok(Fence::new((stream, state.fences - 1)))
    }

    fn order_after(&self, ticket: Ticket, stream: u64) -> Result<(), CopyFailure> {
        let mut state = self.state();
        if state.behaviour.refuses_order {
            return Err(CopyFailure::Other("the stream records a graph".to_owned()));
        }
        state.ordered.push((ticket, stream));
        if !state.behaviour.lazy_streams {
            while let Some(index) = state.running.iter().position(|batch| batch.ticket == ticket) {
                state.copy_one(index);
            }
        }
        let failed = state.ended.contains(&(ticket, false));
        if failed { Err(CopyFailure::Other("the copy has failed".to_owned())) } else { Ok(()) }
    }

    unsafe fn register(&self, base: usize, bytes: usize) -> Result<(), CopyFailure> {
        let mut state = self.state();
        let (code, times) = state.refuse_registrations;
        if times > 0 {
            state.refuse_registrations.1 -= 1;
            state.refusals += 1;
            let name = format!("CUDA_ERROR {code}");
            return Err(CopyFailure::Driver { operation: "cuMemHostRegister", code, name });
        }
        let all: usize = state.registered.iter().map(|(_, bytes)| bytes).sum();
        if all + bytes > state.register_bytes_max {
            let name = "CUDA_ERROR_OUT_OF_MEMORY".to_owned();
            return Err(CopyFailure::Driver { operation: "cuMemHostRegister", code: 2, name });
        }
        state.registered.push((base, bytes));
        Ok(())
    }

    fn unregister(&self, base: usize) {
        self.state().registered.retain(|(start, _)| *start != base);
    }

    fn take_load_time(&self) -> (u64, Duration) {
        let bytes = std::mem::take(&mut self.state().loaded_bytes);
        (bytes, Duration::from_nanos(bytes * LOAD_BYTE_NS))
    }

    fn expected_time(&self, batch: &CopyBatch) -> Option<Duration> {
        let byte_ns = self.state().behaviour.expected_byte_ns;
        byte_ns.map(|ns| Duration::from_nanos(ns * batch.bytes() as u64))
    }

    fn batch_bytes(&self) -> usize {
        self.state().behaviour.batch_bytes
    }

    fn in_flight(&self) -> InFlight {
        let state = self.state();
        let bytes = state.running.iter().flat_map(|batch| &batch.all).map(|piece| piece.bytes).sum();
        InFlight { batches: state.running.len(), bytes }
    }
}
