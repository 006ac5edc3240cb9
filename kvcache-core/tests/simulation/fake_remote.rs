//! L2 in a map: values with checksums that arrive late, not at all, damaged, or are gone.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::remote::{
    Presence, PresenceAnswer, RemoteEnd, RemoteFailure, RemoteKey, RemoteOp, RemoteOutcome, RemoteSpace,
    RemoteStore, RemoteTransfer, value_checksum,
};
use parking_lot::Mutex;

use super::random::Random;

/// How it misbehaves, per thousand.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct RemoteBehaviour {
    /// Steps that a transfer or an answer takes at most.
    pub(crate) steps_max: usize,
    /// Transfers that end without having happened.
    pub(crate) fail: u32,
    /// Values that arrive damaged.
    pub(crate) corrupt: u32,
    /// Values that are gone when they are sent for.
    pub(crate) lose: u32,
    /// The servers do not answer.
    pub(crate) dead: bool,
    /// Planted: damaged values are handed out as if they were not.
    pub(crate) trust_bytes: bool,
    /// Planted: names are those of the blocks alone.
    pub(crate) ignore_space: bool,
    /// Planted, per thousand: ends that nobody hears of.
    pub(crate) lose_ends: u32,
}

#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct RemoteCounts {
    pub(crate) gets: u64,
    pub(crate) puts: u64,
    pub(crate) missing: u64,
    pub(crate) corrupt: u64,
    pub(crate) failed: u64,
    pub(crate) cancelled: u64,
}

struct State {
    values: HashMap<[u8; RemoteKey::NAME_BYTES], (Vec<u8>, u64)>,
    step: u64,
    random: Random,
    behaviour: RemoteBehaviour,
    counts: RemoteCounts,
}

/// The servers. They outlive the engines.
pub(crate) struct FakeServers(Mutex<State>);

impl FakeServers {
    pub(crate) fn new(seed: u64, behaviour: RemoteBehaviour) -> Arc<Self> {
        let (values, random, counts) = (HashMap::new(), Random::new(seed), RemoteCounts::default());
        Arc::new(Self(Mutex::new(State { values, step: 0, random, behaviour, counts })))
    }

    pub(crate) fn behave(&self, change: impl FnOnce(&mut RemoteBehaviour)) {
        change(&mut self.0.lock().behaviour);
    }

    pub(crate) fn counts(&self) -> RemoteCounts {
        self.0.lock().counts
    }

    pub(crate) fn next_step(&self) {
        self.0.lock().step += 1;
    }

    /// A server has died, or made room: some values are gone.
    pub(crate) fn lose_values(&self) {
        let state = &mut *self.0.lock();
        let mut names: Vec<_> = state.values.keys().copied().collect();
        names.sort_unstable();
        for name in names {
            if state.random.chance(300) {
                state.values.remove(&name);
            }
        }
    }
}

/// One process's way to them.
pub(crate) struct FakeRemote {
    servers: Arc<FakeServers>,
    on_the_way: Mutex<Vec<(u64, RemoteTransfer, bool)>>,
    ended: Mutex<Vec<RemoteEnd>>,
    lost: Mutex<Vec<RemoteEnd>>,
}

impl FakeRemote {
    pub(crate) fn new(servers: &Arc<FakeServers>) -> Arc<Self> {
        let (on_the_way, ended, lost) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Self { servers: Arc::clone(servers), on_the_way, ended, lost })
    }

    /// Whether a transfer still touches this address.
    pub(crate) fn touches(&self, from: usize, until: usize) -> bool {
        let overlaps = |of: &RemoteTransfer| of.address < until && from < of.address + of.bytes;
        self.on_the_way.lock().iter().any(|(_, transfer, _)| overlaps(transfer))
    }

    /// Does what is due.
    pub(crate) fn work(&self) {
        self.end(|due, step, _| due <= step);
    }

    fn end(&self, which: impl Fn(u64, u64, bool) -> bool) {
        let state = &mut *self.servers.0.lock();
        let step = state.step;
        let is_due = |entry: &mut (u64, RemoteTransfer, bool)| which(entry.0, step, entry.2);
        let due: Vec<_> = self.on_the_way.lock().extract_if(.., is_due).collect();
        for (_, transfer, cancelled) in due {
            let outcome = state.carry_out(&transfer, cancelled);
            let is_lost = state.behaviour.lose_ends > 0 && state.random.chance(state.behaviour.lose_ends);
            let ends = if is_lost { &self.lost } else { &self.ended };
            ends.lock().push(RemoteEnd { ticket: transfer.ticket, outcome });
        }
    }
}

impl State {
    fn name(&self, key: &RemoteKey) -> [u8; RemoteKey::NAME_BYTES] {
        let space = if self.behaviour.ignore_space { RemoteSpace([0; 16]) } else { key.space };
        RemoteKey { space, block: key.block }.name()
    }

    fn carry_out(&mut self, transfer: &RemoteTransfer, cancelled: bool) -> RemoteOutcome {
        let name = self.name(&transfer.key);
        if cancelled {
            self.counts.cancelled += 1;
            // Some of it may have come before.
            if transfer.op == RemoteOp::Get && self.random.chance(500) {
                scribble(transfer);
            }
            return RemoteOutcome::Failed(RemoteFailure::Cancelled);
        }
        if self.behaviour.dead || self.random.chance(self.behaviour.fail) {
            self.counts.failed += 1;
            if transfer.op == RemoteOp::Get && self.random.chance(500) {
                scribble(transfer);
            }
            return RemoteOutcome::Failed(RemoteFailure::TimedOut);
        }
        match transfer.op {
            RemoteOp::Put => {
                // SAFETY: by the contract of `submit` nobody writes this memory before the end is polled.
                let bytes =
                    unsafe { std::slice::from_raw_parts(transfer.address as *const u8, transfer.bytes) };
                self.values.insert(name, (bytes.to_vec(), value_checksum(&name, bytes)));
                self.counts.puts += 1;
                RemoteOutcome::Done
            }
            RemoteOp::Get => {
                if self.random.chance(self.behaviour.lose) {
                    self.values.remove(&name);
                }
                let Some((value, checksum)) = self.values.get(&name) else {
                    self.counts.missing += 1;
                    return RemoteOutcome::Missing;
                };
                // SAFETY: by the contract of `submit` this memory is ours alone until the end is polled.
                let target =
                    unsafe { std::slice::from_raw_parts_mut(transfer.address as *mut u8, transfer.bytes) };
                if value.len() != target.len() {
                    self.counts.corrupt += 1;
                    return RemoteOutcome::Failed(RemoteFailure::Corrupt);
                }
                target.copy_from_slice(value);
                if self.random.chance(self.behaviour.corrupt) {
                    target[self.random.below(transfer.bytes)] ^= 1 << self.random.below(8);
                }
                if value_checksum(&name, target) != *checksum && !self.behaviour.trust_bytes {
                    self.counts.corrupt += 1;
                    return RemoteOutcome::Failed(RemoteFailure::Corrupt);
                }
                self.counts.gets += 1;
                RemoteOutcome::Done
            }
        }
    }
}

fn scribble(transfer: &RemoteTransfer) {
    // SAFETY: as for the target of any get.
    let target = unsafe { std::slice::from_raw_parts_mut(transfer.address as *mut u8, transfer.bytes) };
    target[..transfer.bytes / 2].fill(0x5c);
}

impl RemoteStore for FakeRemote {
    unsafe fn submit(&self, batch: &[RemoteTransfer], _patience: Duration) {
        let state = &mut *self.servers.0.lock();
        for transfer in batch {
            let steps = state.random.below(state.behaviour.steps_max + 1) as u64;
            self.on_the_way.lock().push((state.step + steps, *transfer, false));
        }
    }

    fn poll(&self, ended: &mut Vec<RemoteEnd>) {
        ended.append(&mut self.ended.lock());
    }

    fn wait(&self, _timeout: Duration) -> bool {
        // Time does not go by while somebody waits, but what was cancelled ends.
        self.end(|_, _, cancelled| cancelled);
        self.ended.lock().append(&mut self.lost.lock());
        !self.ended.lock().is_empty()
    }

    fn cancel(&self, tickets: &[u64]) {
        for (_, transfer, cancelled) in self.on_the_way.lock().iter_mut() {
            *cancelled |= tickets.contains(&transfer.ticket);
        }
    }
}

/// The scheduler side's questions.
pub(crate) struct FakePresence {
    servers: Arc<FakeServers>,
    spaces: Vec<RemoteSpace>,
    asked: Vec<(u64, u64, Vec<BlockKey>)>,
}

impl FakePresence {
    pub(crate) fn new(servers: &Arc<FakeServers>) -> Box<Self> {
        Box::new(Self { servers: Arc::clone(servers), spaces: Vec::new(), asked: Vec::new() })
    }
}

impl Presence for FakePresence {
    fn set_spaces(&mut self, spaces: &[RemoteSpace]) {
        self.spaces = spaces.to_vec();
    }

    fn ask(&mut self, question: u64, keys: &[BlockKey], _patience: Duration) {
        let state = &mut *self.servers.0.lock();
        let steps = state.random.below(state.behaviour.steps_max + 1) as u64;
        self.asked.push((state.step + steps, question, keys.to_vec()));
    }

    fn poll(&mut self, answers: &mut Vec<PresenceAnswer>) {
        let state = &mut *self.servers.0.lock();
        let step = state.step;
        for (_, question, keys) in self.asked.extract_if(.., |(due, ..)| *due <= step) {
            let is_there = |block: &BlockKey| {
                self.spaces
                    .iter()
                    .map(|space| state.name(&RemoteKey { space: *space, block: *block }))
                    .all(|name| state.values.contains_key(&name))
            };
            let dead = state.behaviour.dead;
            let present = keys.iter().map(|key| !dead && is_there(key)).collect();
            answers.push(PresenceAnswer { question, present });
        }
    }
}
