//! What is to be sent to one server.

use std::collections::VecDeque;

use kvcache_core::remote::{RemoteFailure, RemoteKey};
use kvcache_core::ring_client::{Item, ItemEnd, ItemResult, RequestId, RequestOp};

use super::memory::Memory;

/// One item on its way.
#[derive(Debug)]
pub(crate) struct Work {
    /// Whose it is; `None` when nobody waits any more: what arrives for it goes nowhere.
    pub(crate) owner: Option<(RequestId, u32)>,
    pub(crate) key: RemoteKey,
    /// None where the operation has none, or when it is out of use.
    pub(crate) memory: Option<Memory>,
    /// Length of the value.
    pub(crate) bytes: usize,
}

impl Work {
    /// The end of it, if somebody waits. Its memory is out of use from now on.
    pub(crate) fn end(&mut self, result: ItemResult) -> Option<ItemEnd> {
        self.memory = None;
        let (request, item) = self.owner.take()?;
        Some(ItemEnd { request, item, result })
    }
}

/// Items of one operation that travel together.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) op: RequestOp,
    pub(crate) items: VecDeque<Work>,
}

impl Batch {
    /// # Safety
    /// The items' memory is as [`Memory::new`] asks until their ends are reported.
    pub(crate) unsafe fn new(request: RequestId, op: RequestOp, items: &[Item]) -> Self {
        let works = (0..).zip(items).map(|(position, item)| {
            let moves = matches!(op, RequestOp::Get | RequestOp::Put);
            // SAFETY: the caller's duty.
            let memory = moves.then(|| unsafe { Memory::new(item.address, item.bytes) });
            Work { owner: Some((request, position)), key: item.key, memory, bytes: item.bytes }
        });
        Self { op, items: works.collect() }
    }

    /// Whether its answers have no values, and neither has it.
    pub(crate) fn is_small(&self) -> bool {
        matches!(self.op, RequestOp::Delete | RequestOp::Exists | RequestOp::Probe)
    }

    /// Takes the items of `request`, or the one at `item`, out of it. They have not been sent: their memory is out of use.
    pub(crate) fn forget(&mut self, request: RequestId, item: Option<u32>) {
        self.items.retain(|work| !matches_owner(work.owner, request, item));
    }

    /// Ends all items.
    pub(crate) fn fail(mut self, failure: RemoteFailure, ends: &mut Vec<ItemEnd>) {
        ends.extend(self.items.iter_mut().filter_map(|work| work.end(ItemResult::Failed(failure))));
    }
}

pub(crate) fn matches_owner(owner: Option<(RequestId, u32)>, request: RequestId, item: Option<u32>) -> bool {
    owner.is_some_and(|(of, position)| of == request && item.is_none_or(|item| item == position))
}
