//! Blocks read and written where they lie, without a copy.

use std::ffi::c_void;
use std::sync::LazyLock;

use kvcache_core::block_cache::{InPlaceFill, Lease, Place};
use parking_lot::Mutex;

use crate::arguments::{self, Out};
use crate::boundary::{self, Object, Opened, call, with};
use crate::cache::{OpenCache, kvc_cache};
use crate::handles::Handles;
use crate::status::kvc_status;

/// Leading blocks of a prefix that stay where they are until the lease is released: see kvc_lease_blocks. It may outlive its cache, and
/// be used from any thread.
#[expect(non_camel_case_types, reason = "the name of the header")]
pub struct kvc_lease {
    _opaque: [u8; 0],
}

/// Slots that are reserved for absent blocks of a prefix: see kvc_reserve. It may outlive its cache, and be used from any thread.
#[expect(non_camel_case_types, reason = "the name of the header")]
pub struct kvc_fill {
    _opaque: [u8; 0],
}

impl Object for Lease {
    const NAME: &'static str = "lease";
    const OPENED_BY: &'static str = "kvc_lease_blocks";

    fn table() -> &'static Handles<Opened<Self>> {
        static TABLE: LazyLock<Handles<Opened<Lease>>> = LazyLock::new(|| Handles::new(4));
        &TABLE
    }
}

/// What is behind a [`kvc_fill`].
struct OpenFill(Mutex<InPlaceFill>);

impl Object for OpenFill {
    const NAME: &'static str = "fill";
    const OPENED_BY: &'static str = "kvc_reserve";

    fn table() -> &'static Handles<Opened<Self>> {
        static TABLE: LazyLock<Handles<Opened<OpenFill>>> = LazyLock::new(|| Handles::new(5));
        &TABLE
    }
}

/// Takes a lease of the leading blocks that are in L1, and writes where they begin: block `i` of the keys is block_bytes bytes from
/// addresses[i] on, for `i` below `*leading`. They may be read until kvc_lease_release, and must not be written.
///
/// A leased block is not evicted, and its bytes stay though it is deleted. While everything is leased, puts store nothing: hold a
/// lease for as long as a copy takes. Blocks of L2 can be brought here before with kvc_prefetch_async. A lease of no block has to be
/// released as well. Does not wait. Any thread.
///
/// # Safety
/// `keys` is NULL or 16 * blocks bytes; `addresses` is NULL or writable for `blocks` pointers; `out` and `leading` are NULL or
/// writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_lease_blocks(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    addresses: *mut *const c_void,
    leading: *mut usize,
    out: *mut *mut kvc_lease,
) -> kvc_status {
    call("kvc_lease_blocks", || {
        // SAFETY: the caller's promise.
        let (out, leading) = unsafe { (Out::of("out", out)?, Out::of("leading", leading)?) };
        // SAFETY: the caller's promise.
        let (keys, addresses) = unsafe {
            (arguments::keys(keys, blocks)?, arguments::slice_mut("addresses", addresses, blocks)?)
        };
        let lease = with::<OpenCache, _, _>(cache, |open| Ok(open.cache.core().lease(keys)))?;
        let blocks: Vec<usize> =
            (0..lease.len()).map(|index| lease.address(index).unwrap_or_default()).collect();
        let lease = boundary::open(lease)?;
        for (place, address) in addresses.iter_mut().zip(&blocks) {
            *place = std::ptr::with_exposed_provenance(*address);
        }
        leading.write(blocks.len());
        out.write(lease);
        Ok(())
    })
}

/// Releases a lease: its addresses must not be read any more. NULL is allowed, and so is one that was released before. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_lease_release(lease: *mut kvc_lease) {
    if !lease.is_null() {
        let _ = call("kvc_lease_release", || boundary::close::<Lease, _, _>(lease, drop));
    }
}

/// Reserves slots for the absent blocks of `keys`, a prefix from its first block on, and writes where their bytes go: block_bytes bytes
/// from addresses[i] on for block `i`, or NULL where there is nothing to write. The first `*reach` blocks are present, or have an
/// address; there is no room for block `*reach`, if there is one.
///
/// Fill all of them, then kvc_commit; or kvc_abandon. Until then other puts of these blocks count them as held and write nothing, and
/// gets miss them. The slots are out of the cache's hands that long. Does not wait. Any thread.
///
/// # Safety
/// `keys` is NULL or 16 * blocks bytes; `addresses` is NULL or writable for `blocks` pointers; `out` and `reach` are NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_reserve(
    cache: *mut kvc_cache,
    keys: *const u8,
    blocks: usize,
    addresses: *mut *mut c_void,
    reach: *mut usize,
    out: *mut *mut kvc_fill,
) -> kvc_status {
    call("kvc_reserve", || {
        // SAFETY: the caller's promise.
        let (out, reach) = unsafe { (Out::of("out", out)?, Out::of("reach", reach)?) };
        // SAFETY: the caller's promise.
        let (keys, addresses) = unsafe {
            (arguments::keys(keys, blocks)?, arguments::slice_mut("addresses", addresses, blocks)?)
        };
        let fill = with::<OpenCache, _, _>(cache, |open| Ok(open.cache.core().reserve(keys)))?;
        let places = fill.places().to_vec();
        let fill = boundary::open(OpenFill(Mutex::new(fill)))?;
        let reached = places.iter().position(|place| *place == Place::NoRoom).unwrap_or(places.len());
        for (address, place) in addresses.iter_mut().zip(places) {
            *address = match place {
                Place::Write(address) => std::ptr::with_exposed_provenance_mut(address),
                Place::Present | Place::NoRoom => std::ptr::null_mut(),
            };
        }
        reach.write(reached);
        out.write(fill);
        Ok(())
    })
}

/// The first `written` of the blocks with an address are written, in the order of the keys: they are hits from now on, and go to L2 as
/// those of kvc_put do; the others are given back. SIZE_MAX for all. `*held` is the number of leading blocks that the cache holds then.
/// The fill is closed by this. Any thread.
///
/// # Safety
/// Nobody writes to the addresses of the fill any more; `held` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_commit(fill: *mut kvc_fill, written: usize, held: *mut usize) -> kvc_status {
    call("kvc_commit", || {
        // SAFETY: the caller's promise.
        let held = unsafe { Out::of("held", held) }?;
        held.write(boundary::close::<OpenFill, _, _>(fill, |fill| {
            fill.0.into_inner().commit_first(written)
        })?);
        Ok(())
    })
}

/// Gives the slots of a fill back: none of its blocks is a hit. NULL is allowed, and so is a fill that was committed or abandoned
/// before. Any thread.
///
/// # Safety
/// Nobody writes to the addresses of the fill any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_abandon(fill: *mut kvc_fill) {
    if !fill.is_null() {
        let _ = call("kvc_abandon", || boundary::close::<OpenFill, _, _>(fill, drop));
    }
}
