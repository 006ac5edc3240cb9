//! The requests of a client with shared memory, as frames.

use kvcache_core::remote::RemoteKey;
use kvcache_wire::EncodeError;
use kvcache_wire::extension::{
    Batch as Keys, CommitItem, FrameHead, FrameHeader, FrameOp, GetItem, Named, Numbers, write_frame,
};

use crate::tcp::{Work, common_prefix};

/// A request that was sent: what its answer is about.
#[derive(Debug)]
pub(super) enum Asked {
    /// Where values lie.
    Lease(Vec<Work>),
    /// Where values may be written.
    Reserve(Vec<Work>),
    /// The same for values to come: how many of which length.
    Spare(usize, usize),
    /// Values were written: the lease and checksum of each.
    Commit(Vec<Work>, Vec<CommitItem>),
    /// Whether values are there.
    Exists(Vec<Work>),
    /// To forget values.
    Delete(Vec<Work>),
}

impl Asked {
    pub(super) fn op(&self) -> FrameOp {
        match self {
            Self::Lease(_) => FrameOp::Lease,
            Self::Reserve(_) | Self::Spare(..) => FrameOp::Reserve,
            Self::Commit(..) => FrameOp::Commit,
            Self::Exists(_) => FrameOp::Exists,
            Self::Delete(_) => FrameOp::Delete,
        }
    }

    /// Whose requests these are: nobody's where room is asked for in advance.
    pub(super) fn works(&self) -> &[Work] {
        match self {
            Self::Lease(works)
            | Self::Reserve(works)
            | Self::Commit(works, _)
            | Self::Exists(works)
            | Self::Delete(works) => works,
            Self::Spare(..) => &[],
        }
    }

    pub(super) fn works_mut(&mut self) -> &mut [Work] {
        match self {
            Self::Lease(works)
            | Self::Reserve(works)
            | Self::Commit(works, _)
            | Self::Exists(works)
            | Self::Delete(works) => works,
            Self::Spare(..) => &mut [],
        }
    }

    /// How many things the answer is about.
    pub(super) fn count(&self) -> usize {
        match self {
            Self::Spare(count, _) => *count,
            _ => self.works().len(),
        }
    }

    /// The frame.
    ///
    /// # Errors
    ///
    /// More than a frame holds; callers keep to the server's limits, which are lower.
    pub(super) fn encode(&self, id: u64) -> Result<Vec<u8>, EncodeError> {
        let head = FrameHead::request(self.op(), 0, id);
        let works = self.works();
        let mut out = Vec::with_capacity(FrameHeader::BYTES + 48 + self.count() * ITEM_BYTES_MAX);
        let names: Vec<[u8; RemoteKey::NAME_BYTES]> = works.iter().map(|work| work.key.name()).collect();
        let common = common_prefix(works);
        let prefix = names.first().map_or(&[][..], |name| &name[..common]);
        let suffixes = names.iter().map(|name| &name[common..]);
        write_frame(&mut out, head, 0, |body| match self {
            Self::Lease(works) => {
                let wanted = works.iter().map(|work| GetItem { value_bytes_max: work.bytes as u64 });
                Keys::encode(body, prefix, wanted.zip(suffixes))
            }
            Self::Reserve(works) => {
                let lengths: Vec<u64> = works.iter().map(|work| work.bytes as u64).collect();
                Numbers::encode(body, &lengths)
            }
            Self::Spare(count, bytes) => Numbers::encode(body, &vec![*bytes as u64; *count]),
            Self::Commit(_, items) => Keys::encode(body, prefix, items.iter().copied().zip(suffixes)),
            Self::Exists(_) | Self::Delete(_) => {
                Keys::encode(body, prefix, suffixes.map(|suffix| (Named, suffix)))
            }
        })?;
        Ok(out)
    }
}

/// Bytes of a key in a request, at most.
pub(super) const ITEM_BYTES_MAX: usize = 20 + RemoteKey::NAME_BYTES;

/// A frame that gives leases back.
pub(super) fn release(id: u64, leases: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    // A list of far less than 2^32 leases always fits.
    let _ = write_frame(&mut out, FrameHead::request(FrameOp::Release, 0, id), 0, |body| {
        Numbers::encode(body, leases)
    });
    out
}
