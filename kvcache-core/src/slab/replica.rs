//! The slab of another rank whose bytes are the same as this one's: stored once, read by both.
//!
//! The rank that fills the slots owns the file. A replica only reads the slots, and writes nothing but the state of
//! a fill that it knows to be worthless ([`SlotTable::void`]).

use std::fs::{self, File};
use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread::sleep;
use std::time::Instant;

use super::SlabError;
use super::config::{Backing, SharedBacking, SlabConfig};
use super::lane::{LOCK_POLL, Lane};
use super::mapping::Mapping;
use super::owner::boot;
use super::place::Place;
use super::slab::{Shape, hash_slot};
use super::slab_file::open_existing;
use super::slot_table::{SlotTable, WarmSlot};
use crate::eviction::SlotId;

/// A second mapping of a slab that another rank of the same engine fills.
pub struct SlabReplica {
    data: Mapping,
    table: SlotTable,
    slot_bytes: usize,
    stride_bytes: usize,
    data_offset: usize,
    /// As long as it is held, no other engine starts the file afresh.
    lane: Option<Lane>,
}

impl SlabReplica {
    /// Maps the slab that the rank named in `config` opens with the same `config`, waiting for it. It has as many slots as
    /// that rank gave it, whatever `config` says: both may have looked at how much memory is left.
    ///
    /// # Errors
    ///
    /// When that rank has opened none within `orphan_wait`, for example because it had no room, or the system refuses.
    ///
    /// # Panics
    ///
    /// If `config` has no file: an error of the caller, not of input.
    pub fn open(config: &SlabConfig) -> Result<SlabReplica, SlabError> {
        config.check()?;
        Shape::of(config)?;
        let Backing::Shared(backing) = &config.backing else { panic!("anonymous memory has no replicas") };
        let place = Place::take(backing, Instant::now() + backing.orphan_wait)?;
        // The lane was there for the owner at the same moment: it has as long again to open its file.
        let started = Instant::now();
        let deadline = started + backing.orphan_wait;
        let (file, shape) = loop {
            if let Some(found) = look(&place, config)? {
                break found;
            }
            if Instant::now() >= deadline {
                let (rank, path) = (backing.rank, place.path);
                return Err(SlabError::NoLeader { rank, path, waited_ms: started.elapsed().as_millis() });
            }
            sleep(LOCK_POLL);
        };
        SlabReplica::map(config, backing, &shape, place, &file)
    }

    fn map(
        config: &SlabConfig,
        backing: &SharedBacking,
        shape: &Shape,
        place: Place,
        file: &File,
    ) -> Result<SlabReplica, SlabError> {
        let failed = |bytes| move |source| SlabError::Map { bytes, source };
        // Voiding a fill writes into the table; nothing here writes into the slots.
        let table =
            Mapping::shared(file, shape.data_offset, config.huge_pages).map_err(failed(shape.data_offset))?;
        // A driver pins only what could be written as well.
        let map = if config.for_device { Mapping::shared } else { Mapping::shared_for_reading };
        let data = map(file, shape.bytes, config.huge_pages).map_err(failed(shape.bytes))?;
        let table = SlotTable::existing(Arc::new(table), &shape.description, boot());
        let Some(table) = table.filter(|table| table.opened_by() == place.owner.mark()) else {
            // Closed between two looks.
            return Err(SlabError::NoLeader { rank: backing.rank, path: place.path, waited_ms: 0 });
        };
        if table.attach() >= u64::from(backing.replicas) && !backing.lasting {
            // Everybody has it: without a name it goes when the last of them does, however that ends.
            let _ = fs::remove_file(&place.path);
        }
        Ok(SlabReplica {
            data,
            table,
            slot_bytes: shape.slot_bytes,
            stride_bytes: shape.stride_bytes,
            data_offset: shape.data_offset,
            lane: place.lane,
        })
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Number of slots, usable or not.
    pub fn slot_count(&self) -> usize {
        self.table.slot_count()
    }

    /// Number of slots, from slot 0, whose memory may be read. Grows as the owner reserves.
    pub fn usable_slots(&self) -> usize {
        let reserved = usize::try_from(self.table.reserved_bytes()).unwrap_or(0).min(self.data.bytes());
        (reserved.saturating_sub(self.data_offset) / self.stride_bytes).min(self.slot_count())
    }

    /// The first byte of a usable slot, for reading only.
    pub fn slot_ptr(&self, slot: SlotId) -> Option<NonNull<u8>> {
        let usable = slot.index() < self.usable_slots();
        // SAFETY: usable slots lie within the mapping, which is as long as the owner's.
        usable.then(|| unsafe { self.data.base().add(self.data_offset + slot.index() * self.stride_bytes) })
    }

    /// What the slots hold, as the owner writes it.
    pub fn table(&self) -> &SlotTable {
        &self.table
    }

    /// Blocks that are complete, in usable slots. Before the first fill these are what an earlier engine left.
    pub fn warm_slots(&self) -> Vec<WarmSlot> {
        let usable = self.usable_slots();
        self.table.warm_slots().into_iter().filter(|warm| warm.slot.index() < usable).collect()
    }

    /// Whether the slot's bytes are those of its checksum; false if it has none.
    ///
    /// # Safety
    ///
    /// Nobody writes the slot during the call.
    pub unsafe fn matches_checksum(&self, slot: SlotId) -> bool {
        let known = self.table.ready(slot).and_then(|_| self.table.checksum(slot));
        // SAFETY: a usable slot is `slot_bytes` of mapped memory, which the caller keeps unchanged.
        let found = self.slot_ptr(slot).map(|start| unsafe { hash_slot(start, self.slot_bytes) });
        known.is_some() && known == found
    }

    /// Whether the owner may still be making slots usable.
    pub fn is_growing(&self) -> bool {
        !self.table.reserving_ended() && self.usable_slots() < self.slot_count()
    }

    /// This rank gives up, and with it goes what all ranks compute: no later engine finds anything of this slab.
    pub fn disown(&self) {
        self.table.disown();
    }

    /// The lane that the slab belongs to, when a later engine may find its file.
    pub fn lane(&self) -> Option<u32> {
        self.lane.as_ref().map(Lane::index)
    }
}

/// The file, if the owner has it open and has made its table.
fn look(place: &Place, config: &SlabConfig) -> Result<Option<(File, Shape)>, SlabError> {
    let failed = |source| SlabError::File { operation: "open", path: place.path.clone(), source };
    let file = match open_existing(&place.path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(failed(source)),
    };
    let Some((found, mark)) = SlotTable::peek(&file) else { return Ok(None) };
    let Ok(slot_count) = usize::try_from(found.slot_count) else { return Ok(None) };
    let shape = Shape::of(&SlabConfig { slot_count, ..config.clone() })?;
    let whole = file.metadata().is_ok_and(|metadata| metadata.len() == shape.bytes as u64);
    let ours = mark == place.owner.mark() && found == shape.description;
    Ok((whole && ours).then_some((file, shape)))
}

#[cfg(test)]
#[path = "replica_tests.rs"]
mod tests;
