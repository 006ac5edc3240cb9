//! One request, from its message to its answer.

use std::sync::Arc;

use kvcache_wire::Status;
use kvcache_wire::stock::{Caps, RemoteMetaRequest, RemoteOp};

use super::storage::{PutRefused, Storage, ValueMemory};
use crate::verbs::{Region, Slice, Work};

/// The server's registered memory.
pub(super) struct Pool {
    regions: Vec<Arc<Region>>,
}

impl Pool {
    pub(super) fn new(regions: Vec<Arc<Region>>) -> Self {
        Self { regions }
    }

    fn slice(&self, memory: &impl ValueMemory) -> Option<Slice> {
        self.regions.iter().find_map(|region| region.slice_at(memory.address(), memory.bytes()).ok())
    }
}

/// A request and what it holds. It has no transfers if it is refused.
pub(super) struct Job<S: Storage> {
    /// Answer, as far as it is known: OK until something fails.
    pub(super) status: Status,
    kind: Kind<S>,
    transfers: Vec<Transfer>,
    remote_key: u32,
    /// Transfers that were posted.
    posted: usize,
    /// Whether all of them have completed.
    pub(super) moved: bool,
}

enum Kind<S: Storage> {
    Store(Vec<S::Put>),
    /// The values are held until the device has sent them.
    Load {
        _values: Vec<S::Value>,
    },
    Refused,
}

struct Transfer {
    local: Slice,
    remote_address: u64,
}

impl<S: Storage> Job<S> {
    /// Reads a message, and takes from the storage what it needs. Nothing is taken for a request that is refused.
    pub(super) fn of_message(message: &[u8], caps: Caps, storage: &S, pool: &Pool) -> Self {
        let Ok(request) = RemoteMetaRequest::decode(message, caps) else {
            return Self::refused(Status::BAD_REQUEST);
        };
        let prepared = match request.op {
            _ if request.keys.is_empty() || request.block_bytes == 0 => Err(Status::BAD_REQUEST),
            RemoteOp::Store => Self::store(&request, storage, pool),
            RemoteOp::Load => Self::load(&request, storage, pool),
        };
        prepared.unwrap_or_else(Self::refused)
    }

    fn refused(status: Status) -> Self {
        Self { status, kind: Kind::Refused, transfers: Vec::new(), remote_key: 0, posted: 0, moved: true }
    }

    fn store(request: &RemoteMetaRequest<'_>, storage: &S, pool: &Pool) -> Result<Self, Status> {
        let mut puts = Vec::with_capacity(request.keys.len());
        let mut transfers = Vec::with_capacity(request.keys.len());
        for (key, remote_address) in request.keys.iter().zip(request.addresses.iter()) {
            let put =
                storage.begin_put(key, request.block_bytes as usize).map_err(|refused| match refused {
                    // A stock client knows the first only by its number; both mean that the value has no place.
                    PutRefused::TooLarge | PutRefused::NoRoom => Status::OUT_OF_MEMORY,
                })?;
            let local = pool.slice(&put).ok_or(Status::INTERNAL)?;
            transfers.push(Transfer { local, remote_address });
            puts.push(put);
        }
        Ok(Self::running(request, Kind::Store(puts), transfers))
    }

    fn load(request: &RemoteMetaRequest<'_>, storage: &S, pool: &Pool) -> Result<Self, Status> {
        let mut values = Vec::with_capacity(request.keys.len());
        let mut transfers = Vec::with_capacity(request.keys.len());
        for (key, remote_address) in request.keys.iter().zip(request.addresses.iter()) {
            let value = storage.get(key).ok_or(Status::NOT_FOUND)?;
            if value.bytes() > request.block_bytes as usize {
                return Err(Status::BAD_REQUEST);
            }
            let local = pool.slice(&value).ok_or(Status::INTERNAL)?;
            transfers.push(Transfer { local, remote_address });
            values.push(value);
        }
        Ok(Self::running(request, Kind::Load { _values: values }, transfers))
    }

    fn running(request: &RemoteMetaRequest<'_>, kind: Kind<S>, transfers: Vec<Transfer>) -> Self {
        let remote_key = request.remote_key;
        Self { status: Status::OK, kind, transfers, remote_key, posted: 0, moved: false }
    }

    /// Values and bytes that it moves.
    pub(super) fn size(&self) -> (u64, u64) {
        let bytes = self.transfers.iter().map(|transfer| u64::from(transfer.local.bytes())).sum();
        (self.transfers.len() as u64, bytes)
    }

    /// Whether it stores values.
    pub(super) fn is_store(&self) -> bool {
        matches!(self.kind, Kind::Store(_))
    }

    /// Transfers that were not posted yet.
    pub(super) fn left(&self) -> usize {
        self.transfers.len() - self.posted
    }

    /// The next transfer, to be posted now.
    pub(super) fn next_transfer(&mut self) -> Option<Work> {
        let Transfer { local, remote_address } = self.transfers.get(self.posted)?;
        self.posted += 1;
        let (slices, remote_address, remote_key) = (vec![local.clone()], *remote_address, self.remote_key);
        Some(match self.kind {
            Kind::Store(_) => Work::Read { into: slices, remote_address, remote_key },
            _ => Work::Write { from: slices, remote_address, remote_key },
        })
    }

    /// Whether the answer may be posted: the queue's order puts it after the writes of a load, but what a store
    /// announces must have arrived and be visible.
    pub(super) fn is_answerable(&self) -> bool {
        match self.kind {
            Kind::Store(_) => self.moved,
            Kind::Load { .. } => self.left() == 0,
            Kind::Refused => true,
        }
    }

    /// Makes stored values visible. Once, when all transfers have completed.
    pub(super) fn commit(&mut self, storage: &S) {
        if let Kind::Store(puts) = &mut self.kind {
            storage.commit(std::mem::take(puts));
        }
    }
}
