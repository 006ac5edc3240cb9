//! Hands the copies of a moment's jobs to the copy engine, several jobs and layers to a batch where large batches pay.
//!
//! A call costs a device's driver some 10 µs, as long as half a megabyte takes to arrive, and a step of a busy engine ends with
//! a few small copies of each of its requests. So what becomes ready at one moment goes together, up to the size from which the
//! copy engine gains nothing more ([`CopyEngine::batch_bytes`]). The jobs of a batch share its end: all of them fail if it does. What
//! the copy engine does not take at all is offered again job by job, so that only those fail that it does not want.

use std::ops::Range;
use std::time::Duration;

use super::fences::StreamFence;
use super::flight::Flight;
use super::layout::EngineLayout;
use super::running::Running;
use crate::copy_engine::{CopyBatch, CopyEngine, CopyFailure, Direction, Rejected};

/// Submits the layers of offloads up to `last`, which have just been computed, as far as the copy engine has room. Keeps a
/// batch back that is too small, if more layers follow.
pub(super) fn submit_computed(
    offloads: &mut [Running],
    last: usize,
    layout: &EngineLayout,
    copies: &dyn CopyEngine,
    fence: &mut StreamFence<'_>,
) -> Submitted {
    let enough = copies.batch_bytes();
    let is_ready = |offload: &&mut Running| offload.has_to_submit(last, layout);
    if last < layout.last_layer() {
        let mut bytes = 0;
        for offload in offloads.iter_mut().filter(is_ready) {
            bytes += offload.bytes_through(last, layout);
            if bytes >= enough {
                break;
            }
        }
        if bytes < enough {
            return Submitted::default();
        }
    }
    for offload in offloads.iter_mut().filter(is_ready) {
        offload.fence_with(fence);
    }
    submit_through(offloads, last, layout, copies)
}

/// Submits the layers of `jobs` up to `last`, job by job, as far as the copy engine has room.
pub(super) fn submit_through(
    jobs: &mut [Running],
    last: usize,
    layout: &EngineLayout,
    copies: &dyn CopyEngine,
) -> Submitted {
    let mut submission = Submission::new(jobs, layout, copies);
    submission.take_through(last);
    submission.submitted
}

/// Submits the layers of `loads` up to `last`, layer by layer, as far as the copy engine has room: all jobs' part of a layer
/// comes before any job's part of a later one. Goes beyond `last` where a batch would be too small.
pub(super) fn submit_layerwise(
    loads: &mut [Running],
    last: usize,
    layout: &EngineLayout,
    copies: &dyn CopyEngine,
) -> Submitted {
    let last = last.min(layout.last_layer());
    let mut submission = Submission::new(loads, layout, copies);
    while let Some(first) = submission.next_layer().filter(|layer| *layer <= last) {
        let end = submission.widen(first);
        if !submission.take_through(end) {
            break;
        }
    }
    submission.submitted
}

/// What was submitted, for metrics.
#[derive(Clone, Copy, Default)]
pub(super) struct Submitted {
    /// Batches.
    pub(super) batches: u64,
    /// Those of them that copy for several jobs.
    pub(super) shared: u64,
}

/// A job's part of a batch.
struct Share {
    job: usize,
    layers: Range<usize>,
}

struct Submission<'a> {
    jobs: &'a mut [Running],
    layout: &'a EngineLayout,
    copies: &'a dyn CopyEngine,
    /// Bytes from which on a batch is large enough.
    enough: usize,
    /// The batch that is being put together.
    shares: Vec<Share>,
    bytes: usize,
    submitted: Submitted,
}

impl<'a> Submission<'a> {
    fn new(jobs: &'a mut [Running], layout: &'a EngineLayout, copies: &'a dyn CopyEngine) -> Self {
        let enough = copies.batch_bytes();
        Self { jobs, layout, copies, enough, shares: Vec::new(), bytes: 0, submitted: Submitted::default() }
    }

    /// The first layer that some job has not submitted.
    fn next_layer(&self) -> Option<usize> {
        let last = self.layout.last_layer();
        let waiting = self.jobs.iter().filter(|job| job.has_to_submit(last, self.layout));
        waiting.map(Running::next_layer).min()
    }

    /// The layer with which the layers from `first` on are enough for a batch, or the last one.
    fn widen(&self, first: usize) -> usize {
        let mut bytes = 0;
        for layer in first..self.layout.last_layer() {
            let waiting = self.jobs.iter().filter(|job| !job.failed && job.next_layer() <= layer);
            bytes += waiting.map(|job| job.layer_bytes(layer, self.layout)).sum::<usize>();
            if bytes >= self.enough {
                return layer;
            }
        }
        self.layout.last_layer()
    }

    /// Takes the layers of all jobs up to `last`, and submits all that it has taken. Whether the copy engine had room.
    fn take_through(&mut self, last: usize) -> bool {
        for job in 0..self.jobs.len() {
            if !self.jobs[job].has_to_submit(last, self.layout) {
                continue;
            }
            if let Some(share) = self.shares.first()
                && !self.jobs[job].may_share_with(&self.jobs[share.job])
                && !self.submit()
            {
                return false;
            }
            let mut next = self.jobs[job].next_layer();
            while next <= last.min(self.layout.last_layer()) && !self.jobs[job].failed {
                let mut end = next;
                loop {
                    self.bytes += self.jobs[job].layer_bytes(end, self.layout);
                    end += 1;
                    if self.bytes >= self.enough || end > last.min(self.layout.last_layer()) {
                        break;
                    }
                }
                self.shares.push(Share { job, layers: next..end });
                next = end;
                if self.bytes >= self.enough && !self.submit() {
                    return false;
                }
            }
        }
        self.submit()
    }

    /// Submits what was taken; whether the copy engine had room.
    fn submit(&mut self) -> bool {
        self.bytes = 0;
        let shares = std::mem::take(&mut self.shares);
        self.submit_shares(&shares)
    }

    fn submit_shares(&mut self, shares: &[Share]) -> bool {
        let mut pieces = Vec::new();
        let mut taken = Vec::with_capacity(shares.len());
        for share in shares {
            let job = &mut self.jobs[share.job];
            match job.add_pieces(share.layers.clone(), self.layout, &mut pieces) {
                Some(bytes) => taken.push((share, bytes)),
                None => job.failed = true,
            }
        }
        let Some((first, _)) = taken.first() else { return true };
        let (mut flight, mut expected) = (None, None);
        if !pieces.is_empty() {
            let first = &self.jobs[first.job];
            let batch = CopyBatch {
                pieces,
                direction: first.direction(),
                fence: first.fence().cloned(),
                // What is offloaded is not read soon; what is loaded is read by the very next attention.
                streaming: first.direction() == Direction::Offload,
                urgent: first.is_urgent(),
            };
            // Nobody asks how long an offload takes.
            expected = match batch.direction {
                Direction::Load => self.copies.expected_time(&batch),
                Direction::Offload => None,
            };
            // SAFETY: the pieces lie inside registered engine tensors (block ids were checked against their sizes) and
            // inside slots that the Directory gave to one of these jobs alone (offload) or pinned for it (load). Both stay
            // until that job is reported, which happens after the end of every batch that it shares was seen; the engine's
            // blocks are held by the scheduler side (offload) or belong to the loading request, which computes nothing on
            // them before. No two jobs write to the same slot or block.
            match unsafe { self.copies.submit(batch) } {
                Ok(ticket) => flight = Some(Flight::new(ticket)),
                Err(Rejected::Full(_)) => return false,
                Err(_) if taken.len() > 1 => {
                    return taken.iter().all(|(share, _)| self.submit_shares(std::slice::from_ref(*share)));
                }
                Err(rejected) => {
                    let failure = CopyFailure::Other(rejected.reason().to_owned());
                    taken.iter().for_each(|(share, _)| self.jobs[share.job].fail(failure.clone()));
                    return true;
                }
            }
            let jobs_of_it = taken.iter().filter(|(_, bytes)| *bytes > 0).count();
            self.submitted.batches += 1;
            self.submitted.shared += u64::from(jobs_of_it > 1);
        }
        let all: u64 = taken.iter().map(|(_, bytes)| bytes).sum();
        for (share, bytes) in taken {
            let flight = flight.as_ref().filter(|_| bytes > 0);
            let expected = match bytes {
                0 => Some(Duration::ZERO),
                _ => expected.map(|whole| whole.mul_f64(bytes as f64 / all as f64)),
            };
            self.jobs[share.job].has_taken(share.layers.clone(), bytes, flight, expected);
        }
        true
    }
}
