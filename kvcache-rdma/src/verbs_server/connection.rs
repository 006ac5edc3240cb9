//! The requests of one connection: they run side by side and are answered in their order.

use std::collections::VecDeque;
use std::sync::Arc;

use kvcache_wire::Status;
use kvcache_wire::stock::Caps;

use super::admission::Permit;
use super::counters::Counters;
use super::job::{Job, Pool};
use super::storage::Storage;
use crate::verbs::{Buffer, Completion, Error, Queue, QueuePair, Request, Work};

/// A connected queue pair with the requests that it works on.
pub(super) struct Link<S: Storage> {
    // Dropped first: after it no device touches what the jobs hold.
    pub(super) pair: QueuePair,
    permit: Arc<Permit>,
    counters: Arc<Counters>,
    jobs: VecDeque<Job<S>>,
    /// Number of the first of `jobs`.
    first: u64,
    /// Of `jobs`, how many were answered: they wait for the answer's completion.
    answered: usize,
    caps: Caps,
    /// Receives that wait until there are fewer jobs: the client is held back by them.
    parked: Vec<Buffer>,
    completions: Vec<Completion>,
}

impl<S: Storage> Link<S> {
    /// Takes over a connected queue pair whose receives are posted.
    pub(super) fn new(pair: QueuePair, caps: Caps, permit: Arc<Permit>, counters: Arc<Counters>) -> Self {
        Self {
            pair,
            permit,
            counters,
            jobs: VecDeque::new(),
            first: 0,
            answered: 0,
            caps,
            parked: Vec::new(),
            completions: Vec::new(),
        }
    }

    /// Does what can be done now. `true` if there may be more: others have their turn first. Otherwise the queue pair's
    /// event tells when there is.
    ///
    /// # Errors
    /// The connection is over: drop it.
    pub(super) fn serve(&mut self, storage: &S, pool: &Pool) -> Result<bool, Error> {
        for _ in 0..ROUNDS_MAX {
            self.pair.poll(&mut self.completions)?;
            if self.completions.is_empty() {
                self.pair.arm()?;
                self.pair.poll(&mut self.completions)?;
                if self.completions.is_empty() {
                    return Ok(false);
                }
            }
            for completion in std::mem::take(&mut self.completions) {
                self.completed(completion, storage, pool)?;
            }
            self.post()?;
        }
        Ok(true)
    }

    fn completed(&mut self, completion: Completion, storage: &S, pool: &Pool) -> Result<(), Error> {
        if completion.result.is_err() {
            return Err(Error::Broken);
        }
        if completion.queue == Queue::Receive {
            let Some(buffer) = completion.buffer else { return Ok(()) };
            let job = Job::of_message(buffer.message(), self.caps, storage, pool);
            if job.status != Status::BAD_REQUEST {
                self.permit.prove();
            }
            self.counters.requests_refused.add(u64::from(!job.status.is_ok()));
            self.jobs.push_back(job);
            self.parked.push(buffer);
            return Ok(());
        }
        let number = completion.id >> 1;
        if completion.id & 1 == ANSWERED {
            // Answers complete in order, and with them everything that was posted before.
            while self.first <= number && self.answered > 0 {
                self.jobs.pop_front();
                self.first += 1;
                self.answered -= 1;
            }
        } else if let Some(job) = self.jobs.get_mut(number.wrapping_sub(self.first) as usize) {
            job.moved = true;
            let (values, bytes) = job.size();
            let (value_counter, byte_counter) = match job.is_store() {
                true => (&self.counters.stored_values, &self.counters.received_bytes),
                false => (&self.counters.loaded_values, &self.counters.sent_bytes),
            };
            value_counter.add(values);
            byte_counter.add(bytes);
            job.commit(storage);
        }
        Ok(())
    }

    /// Posts transfers and answers as far as the queue has room, and receives as far as there are few jobs.
    fn post(&mut self) -> Result<(), Error> {
        while self.jobs.len() < JOBS_MAX {
            let Some(buffer) = self.parked.pop() else { break };
            self.pair.post_receive(0, Some(buffer))?;
        }
        let mut batch = Vec::new();
        let mut room = self.pair.send_room();
        let mut index = self.answered;
        while index < self.jobs.len() && room > 0 {
            let Some(job) = self.jobs.get_mut(index) else { break };
            let number = self.first + index as u64;
            while room > 0 {
                let Some(work) = job.next_transfer() else { break };
                room -= 1;
                let last = job.left() == 0;
                let id = if last { number << 1 | MOVED } else { NOTHING };
                // Reported where the queue ends, too: what is not reported is not given back.
                batch.push(Request { id, work, signaled: last || room == 0 });
            }
            if index == self.answered && job.is_answerable() && room > 0 {
                room -= 1;
                let immediate = Some(job.status.0 as u32);
                let work = Work::Send { message: None, immediate };
                batch.push(Request { id: number << 1 | ANSWERED, work, signaled: true });
                self.answered += 1;
            }
            index += 1;
        }
        if batch.is_empty() { Ok(()) } else { self.pair.post(batch) }
    }
}

/// In the lowest bit of a request's id; the rest is the job's number.
const ANSWERED: u64 = 1;
const MOVED: u64 = 0;
/// The id of transfers that end nothing: of a job that never is.
const NOTHING: u64 = u64::MAX << 1;

/// Polls in a row for one connection while others may wait.
const ROUNDS_MAX: usize = 16;

/// Jobs of one connection that are not finished: a stock client has 128 requests in flight.
const JOBS_MAX: usize = 256;
