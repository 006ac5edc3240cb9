//! What the Directory's side tells the Store's side to do in one engine step, as values.
//!
//! A [`StepPlan`] is decided on the scheduler side, travels in the step's metadata to every rank and is executed there
//! without any decision. Slots and block ids are the same on all ranks; pointers exist only in the Store.

use crate::BlockKey;
use crate::directory::FillId;
use crate::eviction::SlotId;
use crate::wire::{Malformed, Reader, Writer};

/// Names a job. Jobs of an earlier epoch (before a reset) still complete, but what they stored is not kept.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct JobId {
    /// The epoch of the Directory when the job began.
    pub epoch: u32,
    /// Counts up within the life of the scheduler side.
    pub number: u64,
}

/// Which way a job copies, and how the engine waits for it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum JobKind {
    /// L1 to device within the step, layer by layer: each layer is complete before its attention runs.
    LoadLayerwise,
    /// L1 to device between steps: the request waits until the whole job is reported.
    LoadAsync,
    /// Device to L1, behind the forward pass.
    Offload,
    /// L2 to L1, behind whatever the engine does. Touches no block of the engine.
    Fetch,
    /// L1 to L2, likewise.
    Demote,
}

impl JobKind {
    /// Whether it copies into the engine's memory.
    pub fn is_load(self) -> bool {
        matches!(self, Self::LoadLayerwise | Self::LoadAsync)
    }

    /// Whether it moves values between L1 and L2.
    pub fn is_remote(self) -> bool {
        matches!(self, Self::Fetch | Self::Demote)
    }
}

/// The engine's own hash of the last block in a slot, up to 32 bytes; kept for events and restarts.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct EngineHash {
    bytes: [u8; 32],
    len: u8,
}

impl EngineHash {
    /// The hash as the engine knows it. Longer ones are cut to 32 bytes.
    pub fn new(hash: &[u8]) -> Self {
        let len = hash.len().min(32);
        let mut bytes = [0; 32];
        bytes[..len].copy_from_slice(&hash[..len]);
        Self { bytes, len: len as u8 }
    }

    /// The bytes that the engine gave.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

/// One slot's part of a job.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transfer {
    /// Where the block lives in every rank's slab.
    pub slot: SlotId,
    /// The fill that writes it (offload, fetch); zero where it is only read.
    pub fill: FillId,
    /// The KV cache group.
    pub group: u16,
    /// Its key, for the slot table.
    pub key: BlockKey,
    /// The key of the block before it; all zero for the first.
    pub parent: BlockKey,
    /// The engine's hash of its last engine block.
    pub engine_hash: EngineHash,
    /// The engine's block ids, one for each engine block in the slot; [`Transfer::SKIP`] where nothing is to be copied.
    /// Empty in jobs between L1 and L2.
    pub blocks: Vec<u32>,
}

impl Transfer {
    /// Stands in [`Transfer::blocks`] for an engine block that is not copied.
    pub const SKIP: u32 = u32::MAX;
}

/// One job: reported once by every rank, as done or failed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Job {
    /// Its name.
    pub id: JobId,
    /// Direction and mode.
    pub kind: JobKind,
    /// The request it serves.
    pub request: String,
    /// The slots.
    pub transfers: Vec<Transfer>,
    /// Engine blocks that were promised but cannot be loaded: the worker reports them as load errors.
    pub lost_blocks: Vec<u32>,
}

/// Everything one engine step has to move.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StepPlan {
    /// The epoch that new slot records are written with.
    pub epoch: u64,
    /// Every job with a smaller number, but for those between L1 and L2, has been reported by every rank, and the
    /// scheduler side has acted on it.
    pub settled: u64,
    /// The work, in order.
    pub jobs: Vec<Job>,
    /// Slots whose block was dropped without being replaced: a restart must not find it.
    pub forgotten: Vec<SlotId>,
    /// Jobs between L1 and L2 that nobody has an interest in any more. They end nevertheless, sooner.
    pub cancelled: Vec<JobId>,
    /// The generation of values in L2 that this plan's jobs fetch and demote: see [`RemoteSpace`](crate::remote::RemoteSpace).
    pub generation: u64,
}

const VERSION: u8 = 2;

impl StepPlan {
    /// Whether there is nothing to do.
    pub fn is_empty(&self) -> bool {
        self.jobs.is_empty() && self.forgotten.is_empty() && self.cancelled.is_empty()
    }

    /// The plan as bytes. Cost: linear, about 100 bytes a slot.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION);
        w.u64(self.epoch);
        w.u64(self.settled);
        w.u64(self.generation);
        w.list(&self.forgotten, |w, slot| w.u32(slot.0));
        w.list(&self.cancelled, |w, id| {
            w.u32(id.epoch);
            w.u64(id.number);
        });
        w.list(&self.jobs, |w, job| {
            w.u32(job.id.epoch);
            w.u64(job.id.number);
            w.u8(job.kind as u8);
            w.slice(job.request.as_bytes());
            w.list(&job.lost_blocks, |w, block| w.u32(*block));
            w.list(&job.transfers, |w, t| {
                w.u32(t.slot.0);
                w.u64(t.fill.0);
                w.u32(u32::from(t.group));
                w.array(&t.key.0);
                w.array(&t.parent.0);
                w.slice(t.engine_hash.as_bytes());
                w.list(&t.blocks, |w, block| w.u32(*block));
            });
        });
        w.bytes
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new("step plan", bytes);
        if r.u8()? != VERSION {
            return Err(r.malformed());
        }
        let epoch = r.u64()?;
        let settled = r.u64()?;
        let generation = r.u64()?;
        let forgotten = r.list(4, |r| Ok(SlotId(r.u32()?)))?;
        let cancelled = r.list(12, |r| Ok(JobId { epoch: r.u32()?, number: r.u64()? }))?;
        let jobs = r.list(25, |r| {
            let id = JobId { epoch: r.u32()?, number: r.u64()? };
            let kind = match r.u8()? {
                0 => JobKind::LoadLayerwise,
                1 => JobKind::LoadAsync,
                2 => JobKind::Offload,
                3 => JobKind::Fetch,
                4 => JobKind::Demote,
                _ => return Err(r.malformed()),
            };
            let request = std::str::from_utf8(r.slice()?).map_err(|_| r.malformed())?.to_owned();
            let lost_blocks = r.list(4, Reader::u32)?;
            let transfers = r.list(56, |r| {
                Ok(Transfer {
                    slot: SlotId(r.u32()?),
                    fill: FillId(r.u64()?),
                    group: u16::try_from(r.u32()?).map_err(|_| r.malformed())?,
                    key: BlockKey(r.array()?),
                    parent: BlockKey(r.array()?),
                    engine_hash: EngineHash::new(r.slice_up_to(32)?),
                    blocks: r.list(4, Reader::u32)?,
                })
            })?;
            Ok(Job { id, kind, request, transfers, lost_blocks })
        })?;
        r.end()?;
        Ok(Self { epoch, settled, jobs, forgotten, cancelled, generation })
    }
}
