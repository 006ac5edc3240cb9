//! Where a block cache hands memory to a remote store. A leaf.

use std::mem::MaybeUninit;
use std::time::Duration;

use crate::remote::{RemoteKey, RemoteOp, RemoteStore, RemoteTransfer};

/// Begins fetching into `places`, under tickets from `first` on.
///
/// # Safety
/// The caller does not use the places, and keeps them borrowed, until the ends of all tickets were polled.
pub(super) unsafe fn fetch(
    store: &dyn RemoteStore,
    first: u64,
    names: &[RemoteKey],
    places: &mut [&mut [MaybeUninit<u8>]],
    patience: Duration,
) {
    let batch: Vec<RemoteTransfer> = (first..)
        .zip(names.iter().zip(places))
        .map(|(ticket, (key, place))| RemoteTransfer {
            ticket,
            op: RemoteOp::Get,
            key: *key,
            address: place.as_mut_ptr() as usize,
            bytes: place.len(),
        })
        .collect();
    // SAFETY: each place is exclusively borrowed memory of its length, until all have ended, as the caller promises.
    unsafe { store.submit(&batch, patience) }
}

/// Begins storing the first `bytes` bytes at each address, under tickets from `first` on.
///
/// # Safety
/// That many bytes are readable at each address and written by nobody until the end of the ticket was polled.
pub(super) unsafe fn put(
    store: &dyn RemoteStore,
    first: u64,
    values: impl Iterator<Item = (RemoteKey, usize)>,
    bytes: usize,
    patience: Duration,
) {
    let batch: Vec<RemoteTransfer> = (first..)
        .zip(values)
        .map(|(ticket, (key, address))| RemoteTransfer { ticket, op: RemoteOp::Put, key, address, bytes })
        .collect();
    // SAFETY: the caller's duty.
    unsafe { store.submit(&batch, patience) }
}

/// Begins deleting, under tickets from `first` on.
pub(super) fn delete(store: &dyn RemoteStore, first: u64, names: &[RemoteKey], patience: Duration) {
    let batch: Vec<RemoteTransfer> = (first..)
        .zip(names)
        .map(|(ticket, key)| RemoteTransfer { ticket, op: RemoteOp::Delete, key: *key, address: 0, bytes: 0 })
        .collect();
    // SAFETY: deletes use no memory.
    unsafe { store.submit(&batch, patience) }
}
