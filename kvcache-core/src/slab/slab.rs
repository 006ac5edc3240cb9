//! One opened slab: a mapping, its table and, when it lies in a file, the file and the lane that it belongs to.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;
use xxhash_rust::xxh3::xxh3_64;

use super::SlabError;
use super::config::{Backing, SharedBacking, SlabConfig};
use super::lane::Lane;
use super::mapping::{Mapping, page_bytes};
use super::owner::boot;
use super::place::Place;
use super::reservation::{PIECE_BYTES, Reservation, Storage};
use super::room::{Room, SystemRoom, memory_bytes};
use super::slab_file::{Removed, SlabName, allocated_bytes, open_owned, remove_idle};
use super::slot_table::{Description, SlotTable, WarmSlot};
use crate::eviction::SlotId;

/// Memory for blocks, in equal slots.
///
/// # Aliasing
///
/// The slab hands out addresses, never references: a slot's bytes belong to whoever the Directory gave the slot to, who
/// may have device copies or remote writes in flight on it. The slab itself touches slot bytes only in
/// [`checksum_of`](Self::checksum_of) and [`verify`](Self::verify), which say what their callers owe.
///
/// Everything else is atomics: a slab may be used from any thread.
pub struct Slab {
    // Dropped first: its thread uses the mapping.
    reservation: Reservation,
    table: Arc<SlotTable>,
    mapping: Arc<Mapping>,
    slot_bytes: usize,
    stride_bytes: usize,
    data_offset: usize,
    /// The file and its lane, locked as long as the slab lives. Dropped after all that uses the file.
    shared: Option<Shared>,
    report: OpenReport,
}

struct Shared {
    file: File,
    /// `None` for a file that no later engine may find.
    lane: Option<Lane>,
    /// The file's name, if it has one and is not to last.
    remove: Mutex<Option<PathBuf>>,
    /// Whether other ranks map it.
    has_replicas: bool,
}

/// What happened while a slab was opened, for logs and counters.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct OpenReport {
    /// The file held a table of this namespace and layout: its blocks may be used.
    pub reused: bool,
    /// The file was of another layout, damaged or truncated, and was started afresh.
    pub recreated: bool,
    /// Slab files of others that were removed.
    pub removed: Removed,
    /// What the user should know: one line each.
    pub warnings: Vec<String>,
}

/// What [`Slab::verify`] found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verification {
    /// The bytes are those that the checksum was made of.
    Match,
    /// They are not; the slot's record was cleared.
    Mismatch,
    /// The slot holds nothing, or has no checksum.
    Unknown,
}

impl Slab {
    /// Opens a slab. May wait for the end of the owner before (`orphan_wait`); takes some 20 ms otherwise, whatever the capacity:
    /// memory is taken in the background.
    ///
    /// # Errors
    ///
    /// When the settings are impossible, the directory cannot be used, or there is no room, not even in anonymous memory.
    pub fn open(config: &SlabConfig) -> Result<Slab, SlabError> {
        Slab::open_with(config, &SystemRoom)
    }

    pub(super) fn open_with(config: &SlabConfig, room: &dyn Room) -> Result<Slab, SlabError> {
        config.check()?;
        let shape = Shape::of(config)?;
        let Backing::Shared(backing) = &config.backing else {
            return Slab::open_anonymous(config, &shape, room, OpenReport::default());
        };
        let mut report = OpenReport::default();
        match Slab::open_shared(config, backing, &shape, room, &mut report) {
            Err(error) if backing.fall_back && error.is_cured_by_anonymous_memory() => {
                report.warnings.push(format!("{error}; using anonymous memory, which a restart loses"));
                Slab::open_anonymous(config, &shape, room, report)
            }
            opened => opened,
        }
    }

    /// Bytes of a slot.
    #[inline]
    pub fn slot_bytes(&self) -> usize {
        self.slot_bytes
    }

    /// Number of slots, usable or not.
    #[inline]
    pub fn slot_count(&self) -> usize {
        self.table.slot_count()
    }

    /// Number of slots, from slot 0, whose memory may be touched. Grows to [`slot_count`](Self::slot_count) in the background,
    /// unless shared memory runs out: then [`warnings`](Self::warnings) says so.
    #[inline]
    pub fn usable_slots(&self) -> usize {
        self.slots_in(self.reservation.usable_bytes())
    }

    /// Number of slots, from slot 0, whose memory is taken already: pinning those takes none. At most the usable ones, and all
    /// of them once it is [not reserving](Self::is_reserving) any more, unless memory is short. Only grows.
    pub fn populated_slots(&self) -> usize {
        self.slots_in(self.reservation.populated_bytes())
    }

    fn slots_in(&self, bytes: usize) -> usize {
        (bytes.saturating_sub(self.data_offset) / self.stride_bytes).min(self.slot_count())
    }

    /// The first byte of a slot: 64-byte aligned, page aligned where `slot_bytes` is a multiple of the page. `None` when the
    /// slot is not usable (yet), or out of range.
    #[inline]
    pub fn slot_ptr(&self, slot: SlotId) -> Option<NonNull<u8>> {
        let usable = slot.index() < self.usable_slots();
        // SAFETY: usable slots lie within the mapping.
        usable.then(|| unsafe { self.base().add(slot.index() * self.stride_bytes) })
    }

    /// The first byte of slot 0, 2 MiB aligned. Slots follow each other at [`stride_bytes`](Self::stride_bytes).
    pub fn base(&self) -> NonNull<u8> {
        // SAFETY: the data begins within the mapping, see `Shape`.
        unsafe { self.mapping.base().add(self.data_offset) }
    }

    /// Distance of two slots: `slot_bytes` rounded up to 64.
    pub fn stride_bytes(&self) -> usize {
        self.stride_bytes
    }

    /// Bytes from [`base`](Self::base) to the end of the last slot: what a device or a NIC registers.
    pub fn data_bytes(&self) -> usize {
        self.stride_bytes * self.slot_count()
    }

    /// What the slots hold, as a restart will find it.
    pub fn table(&self) -> &SlotTable {
        &self.table
    }

    /// Blocks that were here before: only of this namespace, layout and epoch, complete, and in usable slots.
    pub fn warm_slots(&self) -> Vec<WarmSlot> {
        if !self.report.reused {
            return Vec::new();
        }
        let usable = self.usable_slots();
        self.table.warm_slots().into_iter().filter(|warm| warm.slot.index() < usable).collect()
    }

    /// XXH3-64 of a slot's bytes, to be given to [`SlotTable::set_checksum`]. Takes about 50 us for 1 MiB: not for the
    /// engine's threads. `None` when the slot is not usable.
    ///
    /// # Safety
    ///
    /// Nobody writes the slot during the call.
    pub unsafe fn checksum_of(&self, slot: SlotId) -> Option<u64> {
        let start = self.slot_ptr(slot)?;
        // SAFETY: a usable slot is `slot_bytes` of mapped, initialised memory, which the caller keeps unchanged.
        Some(unsafe { hash_slot(start, self.slot_bytes) })
    }

    /// Compares a slot's bytes with its checksum. A match confirms a slot that needed it, unless replicas read the table; a
    /// mismatch clears its record.
    ///
    /// # Safety
    ///
    /// The caller owns the slot: nobody writes it or changes its record during the call.
    pub unsafe fn verify(&self, slot: SlotId) -> Verification {
        let known = self.table.ready(slot).and_then(|_| self.table.checksum(slot));
        // SAFETY: the caller keeps the bytes unchanged.
        let found = unsafe { self.checksum_of(slot) };
        match known.zip(found) {
            None => Verification::Unknown,
            Some((known, found)) if known == found => {
                // A replica that looks meanwhile would take the slot for one that is being filled.
                if !self.shared.as_ref().is_some_and(|shared| shared.has_replicas) {
                    self.table.confirm(slot);
                }
                Verification::Match
            }
            Some(_) => {
                self.table.clear(slot);
                Verification::Mismatch
            }
        }
    }

    /// Whether the slab lies in a file, so that its blocks outlive this process.
    pub fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// The lane that the slab belongs to, when a later engine may find its file.
    pub fn lane(&self) -> Option<u32> {
        self.shared.as_ref().and_then(|shared| shared.lane.as_ref()).map(Lane::index)
    }

    /// Every rank that maps this slab has done so: a file that is not to last loses its name, so that its memory goes
    /// with the last of them, however they end. Cheap when there is nothing to do.
    pub fn all_ranks_are_in(&self) {
        if let Some(shared) = &self.shared {
            shared.remove_name();
        }
    }

    /// Whether memory is still being taken in the background.
    pub fn is_reserving(&self) -> bool {
        self.reservation.is_running()
    }

    /// What happened while the slab was opened.
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// What the user should know, with what came up since the slab was opened.
    pub fn warnings(&self) -> Vec<String> {
        self.report.warnings.iter().cloned().chain(self.reservation.warning()).collect()
    }

    fn open_anonymous(
        config: &SlabConfig,
        shape: &Shape,
        room: &dyn Room,
        mut report: OpenReport,
    ) -> Result<Slab, SlabError> {
        check_memory(shape.bytes as u64, room)?;
        let mapping = Mapping::anonymous(shape.bytes, config.huge_pages)
            .map_err(|source| SlabError::Map { bytes: shape.bytes, source })?;
        prefer_node(config, &mapping, &mut report);
        if config.for_device {
            // The table stays: a child that drops the slab writes there.
            mapping.keep_from_children(shape.data_offset..shape.bytes);
        }
        let mapping = Arc::new(mapping);
        let table = SlotTable::create(Arc::clone(&mapping), &shape.description, boot());
        let reservation = if config.prefault {
            let storage = Storage::Anonymous(Arc::clone(&mapping));
            Reservation::start(storage, 0, memory_bytes).map_err(|source| SlabError::Thread { source })?
        } else {
            Reservation::none(shape.bytes)
        };
        Ok(shape.slab(mapping, Arc::new(table), reservation, None, report))
    }

    fn open_shared(
        config: &SlabConfig,
        backing: &SharedBacking,
        shape: &Shape,
        room: &dyn Room,
        report: &mut OpenReport,
    ) -> Result<Slab, SlabError> {
        let directory = &*backing.directory;
        let deadline = Instant::now() + backing.orphan_wait;
        let Place { owner, name, path, lane } = Place::take(backing, deadline)?;
        if backing.remove_abandoned {
            let others = |name: &SlabName| name.namespace != backing.namespace;
            report.removed = remove_idle(directory, backing.abandoned_after, &others);
        }
        let file = open_owned(&path, deadline)?;
        let may_be_warm = file.metadata().is_ok_and(|metadata| metadata.len() == shape.bytes as u64);
        let opened = Slab::fill_file(config, backing, shape, room, report, &name, &path, &file);
        match opened {
            Ok((mapping, table, reservation)) => {
                // From here on replicas may map it.
                table.set_opened_by(owner.mark());
                let remove = Mutex::new((!backing.lasting).then_some(path));
                let shared = Some(Shared { file, lane, remove, has_replicas: backing.replicas > 0 });
                Ok(shape.slab(mapping, table, reservation, shared, std::mem::take(report)))
            }
            Err(error) => {
                // A file that never held anything would only take room. Still locked, so nobody else has it.
                if !may_be_warm {
                    let _ = fs::remove_file(&path);
                }
                Err(error)
            }
        }
    }

    /// Makes the file, which is ours, hold a table of this shape: the one it has, or a new one.
    #[expect(clippy::too_many_arguments, reason = "the steps of one function, which would be too long")]
    fn fill_file(
        config: &SlabConfig,
        backing: &SharedBacking,
        shape: &Shape,
        room: &dyn Room,
        report: &mut OpenReport,
        name: &SlabName,
        path: &Path,
        file: &File,
    ) -> Result<(Arc<Mapping>, Arc<SlotTable>, Reservation), SlabError> {
        let failed = |operation| move |source| SlabError::File { operation, path: path.to_owned(), source };
        let mut metadata = file.metadata().map_err(failed("look at"))?;
        let fresh = metadata.len() == 0;
        if !fresh && metadata.len() != shape.bytes as u64 {
            report.recreated = true;
            file.set_len(0).map_err(failed("truncate"))?;
        }
        file.set_len(shape.bytes as u64).map_err(failed("extend"))?;
        // Its time says when it was last opened or closed: nobody takes it for abandoned now.
        let _ = file.set_modified(SystemTime::now());
        metadata = file.metadata().map_err(failed("look at"))?;
        match check_room(shape.bytes as u64, &metadata, backing, room, name, report) {
            // A former life took some of the room, and its blocks with it: the rest may fit in part.
            Err(SlabError::Room { .. }) if allocated_bytes(&metadata) > shape.first_bytes() as u64 => {}
            checked => checked?,
        }

        let mapping = Mapping::shared(file, shape.bytes, config.huge_pages)
            .map_err(|source| SlabError::Map { bytes: shape.bytes, source })?;
        prefer_node(config, &mapping, report);
        let mapping = Arc::new(mapping);
        // Header and table are touched below: without storage that would be the end of the process. A small slab is
        // usable as a whole when it is opened, a large one as far as 20 ms get.
        mapping.reserve(file, 0..shape.first_bytes()).map_err(|source| shape.no_storage(path, source))?;
        let found = SlotTable::existing(Arc::clone(&mapping), &shape.description, boot());
        let found = found.filter(|table| {
            // Bytes that claim to be reserved must have storage. A copy made by a tool may have holes.
            let reserved = table.reserved_bytes();
            reserved >= shape.first_bytes() as u64
                && reserved <= shape.bytes as u64
                && allocated_bytes(&metadata) >= reserved
        });
        let table = match found {
            Some(table) => {
                report.reused = true;
                table
            }
            None => {
                report.recreated |= !fresh;
                let table = SlotTable::create(Arc::clone(&mapping), &shape.description, boot());
                table.set_reserved_bytes(shape.first_bytes() as u64);
                table
            }
        };
        let table = Arc::new(table);
        let from = table.reserved_bytes() as usize;
        // What the last owner left there. Replicas look at it only when the slab is open.
        table.set_reserving_ended(false);
        let file = file.try_clone().map_err(failed("duplicate the descriptor of"))?;
        let storage = Storage::File(Arc::clone(&mapping), file, Arc::clone(&table));
        let reservation =
            Reservation::start(storage, from, memory_bytes).map_err(|source| SlabError::Thread { source })?;
        Ok((mapping, table, reservation))
    }
}

fn prefer_node(config: &SlabConfig, mapping: &Mapping, report: &mut OpenReport) {
    let asked = config.numa_node.map(|node| mapping.prefer_node(node));
    if let Some(Err(error)) = asked {
        let warning = "the slab may lie on another NUMA node than the device";
        let warning = format!("{warning}: {error}; loads and offloads may be slower");
        // Anonymous memory is asked for after a file that did not fit.
        if !report.warnings.contains(&warning) {
            report.warnings.push(warning);
        }
    }
}

impl Shared {
    fn remove_name(&self) {
        if let Some(path) = self.remove.lock().take() {
            // A replica may have been faster.
            let _ = fs::remove_file(path);
        }
    }
}

impl Drop for Slab {
    /// Runs before anything else of the slab goes.
    fn drop(&mut self) {
        self.table.set_opened_by(0);
    }
}

impl Drop for Shared {
    /// Runs after the slab's thread and mapping have gone.
    fn drop(&mut self) {
        self.remove_name();
        // From now on the file counts as unused.
        let _ = self.file.set_modified(SystemTime::now());
        // Closing is not enough: a process that was forked meanwhile has the lock open as well.
        let _ = self.file.unlock();
    }
}

/// XXH3-64 of a slot's bytes.
///
/// # Safety
///
/// The bytes are mapped, and nobody writes them during the call.
pub(super) unsafe fn hash_slot(start: NonNull<u8>, bytes: usize) -> u64 {
    // SAFETY: mapped memory is initialised; the caller keeps it unchanged.
    xxh3_64(unsafe { std::slice::from_raw_parts(start.as_ptr(), bytes) })
}

/// Sizes that follow from the settings.
pub(super) struct Shape {
    pub(super) description: Description,
    pub(super) slot_bytes: usize,
    pub(super) stride_bytes: usize,
    pub(super) data_offset: usize,
    /// Of the whole mapping, in whole pages.
    pub(super) bytes: usize,
}

impl Shape {
    pub(super) fn of(config: &SlabConfig) -> Result<Shape, SlabError> {
        let (namespace, layout) = match &config.backing {
            Backing::Anonymous => ([0; 16], [0; 16]),
            Backing::Shared(backing) => (backing.namespace, backing.shard),
        };
        let (slot_bytes, slot_count) = (config.slot_bytes as u64, config.slot_count as u64);
        let description = Description { layout, namespace, slot_bytes, slot_count };
        let sizes = || {
            let stride_bytes = config.stride_bytes()?;
            let data_offset = description.data_offset()?;
            let bytes = stride_bytes.checked_mul(config.slot_count)?.checked_add(data_offset)?;
            let bytes = bytes.checked_next_multiple_of(page_bytes())?;
            // Offsets of files are signed.
            i64::try_from(bytes).ok()?;
            Some((stride_bytes, data_offset, bytes))
        };
        let Some((stride_bytes, data_offset, bytes)) = sizes() else {
            let value = format!("{slot_count} slots of {slot_bytes} bytes");
            return Err(SlabError::Config {
                setting: "capacity",
                value,
                remedy: "lower it: no machine can address it",
            });
        };
        Ok(Shape { description, slot_bytes: config.slot_bytes, stride_bytes, data_offset, bytes })
    }

    fn slab(
        &self,
        mapping: Arc<Mapping>,
        table: Arc<SlotTable>,
        reservation: Reservation,
        shared: Option<Shared>,
        report: OpenReport,
    ) -> Slab {
        let Shape { slot_bytes, stride_bytes, data_offset, .. } = *self;
        Slab { reservation, table, mapping, slot_bytes, stride_bytes, data_offset, shared, report }
    }

    /// Bytes that are reserved before the slab is opened: the table, and the first slots.
    fn first_bytes(&self) -> usize {
        self.data_offset.saturating_add(PIECE_BYTES).min(self.bytes)
    }

    fn no_storage(&self, path: &Path, source: io::Error) -> SlabError {
        if source.kind() != io::ErrorKind::StorageFull {
            return SlabError::File { operation: "reserve storage for", path: path.to_owned(), source };
        }
        SlabError::Room {
            wanted_bytes: self.first_bytes() as u64,
            available_bytes: 0,
            place: format!("the file system of {}", path.display()),
            remedy: FILE_ROOM_REMEDY,
        }
    }
}

const FILE_ROOM_REMEDY: &str = "lower the capacity, enlarge the file system (docker run --shm-size, mount -o remount,size=) or unset slab_path";

/// Files younger than this may be about to be opened by an engine that starts now.
const YOUNG: Duration = Duration::from_secs(60);

fn check_memory(wanted_bytes: u64, room: &dyn Room) -> Result<(), SlabError> {
    match room.memory_bytes() {
        Some(available_bytes) if available_bytes < wanted_bytes => Err(SlabError::Room {
            wanted_bytes,
            available_bytes,
            place: "this machine's memory".to_owned(),
            remedy: "lower the capacity",
        }),
        _ => Ok(()),
    }
}

/// Whether the rest of the file fits, after removing what others left behind if need be.
fn check_room(
    bytes: u64,
    metadata: &fs::Metadata,
    backing: &SharedBacking,
    room: &dyn Room,
    own: &SlabName,
    report: &mut OpenReport,
) -> Result<(), SlabError> {
    let wanted_bytes = bytes.saturating_sub(allocated_bytes(metadata));
    let look = || {
        room.file_system(&backing.directory)
            .map_err(|source| SlabError::Directory { path: backing.directory.clone(), source })
    };
    let mut found = look()?;
    if found.available_bytes < wanted_bytes && backing.remove_abandoned {
        let removed = remove_idle(&backing.directory, YOUNG, &|name| name != own);
        report.removed.files += removed.files;
        report.removed.bytes += removed.bytes;
        found = look()?;
    }
    if found.available_bytes < wanted_bytes {
        return Err(SlabError::Room {
            wanted_bytes,
            available_bytes: found.available_bytes,
            place: format!("the file system of {}", backing.directory.display()),
            remedy: FILE_ROOM_REMEDY,
        });
    }
    if found.in_memory { check_memory(wanted_bytes, room) } else { Ok(()) }
}

#[cfg(test)]
#[path = "slab_tests.rs"]
mod tests;
