//! What the Store's side of one rank tells the Directory's side: who it is, once, and which jobs ended, as they end.

use crate::BlockKey;
use crate::directory::{FillId, Resident};
use crate::eviction::SlotId;
use crate::fingerprint::ShardFingerprint;
use crate::plan::JobId;
use crate::wire::{Malformed, Reader, Writer};

/// A rank's first words: its slab and what an earlier process left in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hello {
    /// Slots of this rank's slab. The engine uses the smallest count of all ranks.
    pub slot_count: u32,
    /// Bytes of one slot on this rank.
    pub slot_bytes: u64,
    /// Threads that copy beside the engine's: without any, an asynchronous load makes no progress between steps. A device that
    /// copies by itself counts as one.
    pub copy_threads: u32,
    /// Complete blocks of this namespace and epoch found in the slab, by slot.
    pub warm: Vec<Resident>,
    /// The highest fill id that the slab has seen.
    pub highest_fill: FillId,
    /// The epoch that the slab was last used in.
    pub epoch: u64,
    /// What this rank's values are in L2, if it has one.
    pub remote: Option<RemoteShard>,
}

/// What separates one rank's values in L2 from those of others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteShard {
    /// What its bytes depend on. Ranks that hold the same have the same.
    pub shard: ShardFingerprint,
    /// Bytes of a value.
    pub value_bytes: u64,
}

/// How a job ended on this rank.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JobEnd {
    /// The job.
    pub id: JobId,
    /// Whether every byte was copied.
    pub ok: bool,
    /// Of a job between L1 and L2: positions of the transfers that did not happen, in order. The others did.
    pub failed: Vec<u32>,
}

impl JobEnd {
    /// The end of a job that did all or nothing.
    pub fn whole(id: JobId, ok: bool) -> Self {
        Self { id, ok, failed: Vec::new() }
    }
}

/// One rank's report of one step.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// Who reports: the rank in the engine's world.
    pub rank: u32,
    /// Slots with memory behind them; grows while the slab is being reserved.
    pub usable_slots: u32,
    /// Present in the first report only.
    pub hello: Option<Hello>,
    /// Jobs that ended since the last report.
    pub ended: Vec<JobEnd>,
    /// Bytes that loads copied since the last report, as far as it is known how long that took.
    pub loaded_bytes: u64,
    /// Nanoseconds for which those bytes were being copied: not what they waited for, nor what was computed meanwhile.
    pub load_ns: u64,
    /// Bytes that came from L2 since the last report, and the time during which any were on their way.
    pub fetched_bytes: u64,
    /// Nanoseconds of that time.
    pub fetch_ns: u64,
}

const VERSION: u8 = 2;

impl Report {
    /// The report as bytes.
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION);
        w.u32(self.rank);
        w.u32(self.usable_slots);
        w.u64(self.loaded_bytes);
        w.u64(self.load_ns);
        w.u64(self.fetched_bytes);
        w.u64(self.fetch_ns);
        w.list(&self.ended, |w, end| {
            w.u32(end.id.epoch);
            w.u64(end.id.number);
            w.u8(u8::from(end.ok));
            w.list(&end.failed, |w, position| w.u32(*position));
        });
        w.list(self.hello.as_slice(), |w, hello| {
            w.u32(hello.slot_count);
            w.u64(hello.slot_bytes);
            w.u32(hello.copy_threads);
            w.u64(hello.highest_fill.0);
            w.u64(hello.epoch);
            w.u8(u8::from(hello.remote.is_some()));
            if let Some(remote) = &hello.remote {
                w.array(&remote.shard.0);
                w.u64(remote.value_bytes);
            }
            w.list(&hello.warm, |w, block| {
                w.u32(block.slot.0);
                w.u64(block.fill.0);
                w.array(&block.key.0);
                w.array(&block.parent.0);
            });
        });
        w.bytes
    }

    /// Reads what [`encode`](Self::encode) wrote.
    ///
    /// # Errors
    /// [`Malformed`] if the bytes are anything else.
    pub fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut r = Reader::new("worker report", bytes);
        if r.u8()? != VERSION {
            return Err(r.malformed());
        }
        let rank = r.u32()?;
        let usable_slots = r.u32()?;
        let loaded_bytes = r.u64()?;
        let load_ns = r.u64()?;
        let fetched_bytes = r.u64()?;
        let fetch_ns = r.u64()?;
        let ended = r.list(17, |r| {
            let id = JobId { epoch: r.u32()?, number: r.u64()? };
            Ok(JobEnd { id, ok: r.bool()?, failed: r.list(4, Reader::u32)? })
        })?;
        let mut hello = r.list(37, |r| {
            Ok(Hello {
                slot_count: r.u32()?,
                slot_bytes: r.u64()?,
                copy_threads: r.u32()?,
                highest_fill: FillId(r.u64()?),
                epoch: r.u64()?,
                remote: if r.bool()? {
                    Some(RemoteShard { shard: ShardFingerprint(r.array()?), value_bytes: r.u64()? })
                } else {
                    None
                },
                warm: r.list(44, |r| {
                    Ok(Resident {
                        slot: SlotId(r.u32()?),
                        fill: FillId(r.u64()?),
                        key: BlockKey(r.array()?),
                        parent: BlockKey(r.array()?),
                    })
                })?,
            })
        })?;
        if hello.len() > 1 {
            return Err(r.malformed());
        }
        r.end()?;
        let hello = hello.pop();
        Ok(Self { rank, usable_slots, hello, ended, loaded_bytes, load_ns, fetched_bytes, fetch_ns })
    }
}
