//! Calls in any order, decoded from bytes, with a hash map as the model of every cache.
//!
//! Each byte is a choice, so that a fuzzer and a property test can both drive it, and a shorter input is a simpler story.
//! What is open, closed, pending and stored is known at every moment; every status, count and byte is compared.

use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{null, null_mut};

use kvcache::kvc_status::*;
use kvcache::*;

const BLOCK_BYTES: usize = 64;
/// Room for every key that there is: nothing is ever evicted.
const ROOMY: &CStr =
    c"{\"block_bytes\": 64, \"capacity_bytes\": 4096, \"async_threads\": 1, \"async_tickets\": 3}";
/// Room for two blocks: what was stored may be gone, but it is never something else.
const TIGHT: &CStr =
    c"{\"block_bytes\": 64, \"capacity_bytes\": 128, \"async_threads\": 1, \"async_tickets\": 3}";
const TICKETS_MAX: usize = 3;
const LEASES_MAX: usize = 3;
const KEYS: u8 = 12;
const PLACES: usize = 3;

type Key = [u8; 16];

/// Runs the calls that `choices` stand for. Panics where the library does what it should not.
pub(crate) fn run(choices: &[u8]) {
    let mut driver = Driver { choices: Choices(choices), ..Driver::default() };
    while !driver.choices.0.is_empty() {
        driver.step();
    }
    for place in 0..PLACES {
        driver.close(place);
    }
}

/// Bytes that decide; zeroes when they are used up.
#[derive(Default)]
struct Choices<'a>(&'a [u8]);

impl Choices<'_> {
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        *first
    }

    fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count
    }

    fn keys(&mut self) -> Vec<Key> {
        let count = self.below(5);
        (0..count).map(|_| [self.byte() % KEYS; 16]).collect()
    }
}

#[derive(Default)]
struct Driver<'a> {
    choices: Choices<'a>,
    open: [Option<Cache>; PLACES],
    /// Handles that were closed.
    stale: Vec<*mut kvc_cache>,
    /// Grows with every put, so that each one's bytes are its own.
    puts: u8,
}

struct Cache {
    handle: *mut kvc_cache,
    is_roomy: bool,
    /// The first byte of every stored block: what was put first, until it is deleted.
    model: HashMap<Key, u8>,
    pending: Vec<Pending>,
    last_ticket: u64,
    leases: Vec<Lease>,
}

struct Lease {
    handle: *mut kvc_lease,
    /// Where each block is, and what it has held since.
    blocks: Vec<(*const c_void, Vec<u8>)>,
}

struct Pending {
    ticket: u64,
    expected: usize,
    /// What the blocks of a get are to hold, by the model at the time of the call: one thread does all work in order.
    bytes: Vec<u8>,
    /// Read or written until the ticket has ended.
    buffer: Box<[u8]>,
}

/// Bytes of blocks that begin with these.
fn blocks_of(firsts: &[u8]) -> Vec<u8> {
    firsts.iter().flat_map(|first| (0..BLOCK_BYTES).map(move |byte| first.wrapping_add(byte as u8))).collect()
}

fn last_error() -> String {
    // SAFETY: never NULL.
    unsafe { CStr::from_ptr(kvc_last_error()) }.to_string_lossy().into_owned()
}

impl Driver<'_> {
    fn step(&mut self) {
        let action = self.choices.below(24);
        let place = self.choices.below(PLACES);
        match action {
            0 | 1 => self.open(place, action == 0),
            2 => self.open_wrongly(),
            3 => self.close(place),
            4 => self.close_what_is_not_open(),
            5 => self.use_what_is_not_open(),
            _ => {
                let Some(cache) = &mut self.open[place] else {
                    return self.open(place, true);
                };
                let choices = &mut self.choices;
                match action {
                    6 => cache.hash(choices),
                    7 => cache.matched(choices),
                    8 | 9 => {
                        self.puts = self.puts.wrapping_add(1);
                        cache.put(choices, self.puts);
                    }
                    10 | 11 => cache.get(choices),
                    12 => cache.delete(choices),
                    13 => cache.clear(),
                    14 => {
                        self.puts = self.puts.wrapping_add(1);
                        cache.put_async(choices, self.puts);
                    }
                    15 => cache.get_async(choices),
                    16 => cache.prefetch_async(choices),
                    17 => cache.look(choices),
                    18 => cache.wrong_arguments(choices),
                    19 => cache.lease(choices),
                    20 => cache.release(choices),
                    21 => cache.fill_in_place(choices),
                    22 => {
                        self.puts = self.puts.wrapping_add(1);
                        cache.put_and_get_in_pieces(choices, self.puts);
                    }
                    _ => cache.statistics(choices),
                }
            }
        }
    }

    fn open(&mut self, place: usize, is_roomy: bool) {
        self.close(place);
        let mut handle = null_mut();
        // SAFETY: a text and a place.
        let status = unsafe { kvc_open(if is_roomy { ROOMY } else { TIGHT }.as_ptr(), &mut handle) };
        assert_eq!(status, KVC_OK, "{}", last_error());
        assert!(!self.stale.contains(&handle), "a handle is never given out twice");
        let (model, pending, leases) = Default::default();
        self.open[place] = Some(Cache { handle, is_roomy, model, pending, last_ticket: 0, leases });
    }

    fn open_wrongly(&mut self) {
        let texts: [*const c_char; 5] = [
            null(),
            c"".as_ptr(),
            c"{\"block_bytes\": 64, \"capacity_bytes\": 4096, \"x\": 1}".as_ptr(),
            c"{\"block_bytes\": -1, \"capacity_bytes\": 4096}".as_ptr(),
            c"\xff\xfe".as_ptr(),
        ];
        let text = texts[self.choices.below(texts.len())];
        let mut handle = null_mut();
        // SAFETY: a text or NULL, and a place or none.
        unsafe {
            assert_ne!(kvc_open(text, &mut handle), KVC_OK);
            assert_eq!(kvc_open(ROOMY.as_ptr(), null_mut()), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_open_config(null(), &mut handle), KVC_NULL_ARGUMENT);
        }
        assert!(handle.is_null(), "an output is written on success alone");
        assert!(!last_error().is_empty());
    }

    fn close(&mut self, place: usize) {
        if let Some(mut cache) = self.open[place].take() {
            self.stale.push(cache.handle);
            let leases = std::mem::take(&mut cache.leases);
            drop(cache);
            // A lease may outlive its cache.
            for lease in &leases {
                lease.check_and_release();
            }
        }
    }

    fn not_open(&mut self) -> *mut kvc_cache {
        match self.choices.below(4) {
            0 => null_mut(),
            1 => std::ptr::without_provenance_mut(self.choices.below(256)),
            _ if self.stale.is_empty() => std::ptr::without_provenance_mut(usize::MAX),
            _ => self.stale[self.choices.below(self.stale.len())],
        }
    }

    fn close_what_is_not_open(&mut self) {
        kvc_close(self.not_open());
    }

    fn use_what_is_not_open(&mut self) {
        let handle = self.not_open();
        let refused = |status: kvc_status| {
            let expected = if handle.is_null() { KVC_NULL_ARGUMENT } else { KVC_BAD_HANDLE };
            assert_eq!(status, expected, "{}", last_error());
        };
        let keys = [0u8; 16];
        let mut bytes = [7u8; BLOCK_BYTES];
        let (mut count, mut ticket, mut fd) = (77usize, 77u64, 77i32);
        let data = bytes.as_mut_ptr().cast::<c_void>();
        // SAFETY: what is not NULL is as long as it is said to be; no handle is followed.
        unsafe {
            refused(kvc_match(handle, keys.as_ptr(), 1, &mut count));
            refused(kvc_put(handle, keys.as_ptr(), 1, data, BLOCK_BYTES, &mut count));
            refused(kvc_get(handle, keys.as_ptr(), 1, data, BLOCK_BYTES, &mut count));
            refused(kvc_delete(handle, keys.as_ptr(), 1, &mut count));
            refused(kvc_clear(handle));
            refused(kvc_flush(handle, 0));
            refused(kvc_get_async(handle, keys.as_ptr(), 1, data, BLOCK_BYTES, &mut ticket));
            refused(kvc_put_async(handle, keys.as_ptr(), 1, data, BLOCK_BYTES, &mut ticket));
            refused(kvc_prefetch_async(handle, keys.as_ptr(), 1, &mut ticket));
            let (mut read, mut write) = ([null(); 1], [null_mut(); 1]);
            let (mut lease, mut fill) = (null_mut(), null_mut());
            refused(kvc_lease_blocks(handle, keys.as_ptr(), 1, read.as_mut_ptr(), &mut count, &mut lease));
            refused(kvc_reserve(handle, keys.as_ptr(), 1, write.as_mut_ptr(), &mut count, &mut fill));
            assert!(read[0].is_null() && write[0].is_null() && lease.is_null() && fill.is_null());
            // Of another kind, or none.
            kvc_lease_release(handle.cast());
            kvc_abandon(handle.cast());
            assert_ne!(kvc_commit(handle.cast(), usize::MAX, &mut count), KVC_OK);
            let segment = kvc_segment { data, bytes: BLOCK_BYTES };
            refused(kvc_put_segments(handle, keys.as_ptr(), 1, &segment, 1, &mut count));
            refused(kvc_get_segments(handle, keys.as_ptr(), 1, &segment, 1, &mut count));
            refused(kvc_poll(handle, 1, &mut count));
            refused(kvc_wait(handle, 1, 1000, &mut count));
            refused(kvc_ended(handle, &mut ticket, 1, &mut count));
            refused(kvc_event_fd(handle, &mut fd));
            refused(kvc_stats_json(handle, null_mut(), &mut count));
            refused(kvc_stats_prometheus(handle, null(), null_mut(), &mut count));
            refused(kvc_problems(handle, null_mut(), &mut count));
            refused(kvc_hash_tokens(handle, [1].as_ptr(), 1, 1, null(), 0, bytes.as_mut_ptr(), &mut count));
        }
        assert_eq!((count, ticket, fd, bytes), (77, 77, 77, [7; BLOCK_BYTES]));
    }
}

impl Drop for Cache {
    /// Before the buffers of its tickets go, also where a check has failed: nobody uses them from now on.
    fn drop(&mut self) {
        kvc_close(self.handle);
    }
}

impl Cache {
    /// Leading blocks by the model, and their first bytes.
    fn leading(&self, keys: &[Key]) -> Vec<u8> {
        keys.iter().map_while(|key| self.model.get(key).copied()).collect()
    }

    /// Where a cache has room for all, counts are exact; otherwise at most what the model says.
    fn check_count(&self, count: usize, expected: usize, what: &str) {
        if self.is_roomy {
            assert_eq!(count, expected, "{what}");
        } else {
            assert!(count <= expected, "{what}: {count} where {expected} can be");
        }
    }

    /// Until what was asked for in the background is done: calls of now would overtake it.
    fn settle(&mut self) {
        while let Some(first) = self.pending.first() {
            let mut blocks = usize::MAX;
            // SAFETY: a place.
            let status = unsafe { kvc_wait(self.handle, first.ticket, 60_000, &mut blocks) };
            self.end(0, status, blocks);
        }
    }

    /// A ticket has ended. Its buffer goes with it, and not before.
    fn end(&mut self, index: usize, status: kvc_status, blocks: usize) {
        assert_eq!(status, KVC_OK, "{}", last_error());
        let pending = self.pending.remove(index);
        self.check_count(blocks, pending.expected, "outcome of a ticket");
        if !pending.bytes.is_empty() {
            let bytes = (blocks * BLOCK_BYTES).min(pending.bytes.len());
            assert_eq!(pending.buffer[..bytes], pending.bytes[..bytes]);
        }
    }

    fn hash(&mut self, choices: &mut Choices<'_>) {
        let tokens: Vec<i32> = (0..choices.below(20)).map(|_| i32::from(choices.byte()) - 1).collect();
        let (block_tokens, is_sized) = (choices.below(5), choices.below(4) > 0);
        let extra = [choices.byte()];
        let mut keys = vec![0u8; tokens.len().checked_div(block_tokens).unwrap_or(0) * 16];
        let mut blocks = 77;
        // SAFETY: buffers of the lengths that are said.
        let status = unsafe {
            kvc_hash_tokens(
                self.handle,
                tokens.as_ptr(),
                tokens.len(),
                block_tokens,
                extra.as_ptr().cast(),
                usize::from(extra[0] % 2),
                if is_sized { keys.as_mut_ptr() } else { null_mut() },
                &mut blocks,
            )
        };
        let has_keys = is_sized && !keys.is_empty();
        if block_tokens == 0 || (has_keys && tokens.contains(&-1)) {
            assert_eq!((status, blocks), (KVC_INVALID_ARGUMENT, 77));
        } else if status == KVC_OK {
            assert_eq!(blocks * 16, keys.len());
            assert!(!has_keys || keys[..16] != [0; 16]);
        } else {
            // Tokens behind the last whole block may be looked at, or not.
            assert!(status == KVC_INVALID_ARGUMENT && tokens.contains(&-1), "{}", last_error());
        }
    }

    fn matched(&mut self, choices: &mut Choices<'_>) {
        self.settle();
        let keys = choices.keys();
        let mut leading = usize::MAX;
        // SAFETY: buffers of the lengths that are said; so below.
        let status = unsafe { kvc_match(self.handle, keys.as_ptr().cast(), keys.len(), &mut leading) };
        assert_eq!(status, KVC_OK, "{}", last_error());
        self.check_count(leading, self.leading(&keys).len(), "match");
    }

    fn put(&mut self, choices: &mut Choices<'_>, put: u8) {
        self.settle();
        let (keys, data) = self.to_put(choices, put);
        let mut stored = usize::MAX;
        // SAFETY: as above.
        let status = unsafe {
            kvc_put(
                self.handle,
                keys.as_ptr().cast(),
                keys.len(),
                data.as_ptr().cast(),
                data.len(),
                &mut stored,
            )
        };
        assert_eq!(status, KVC_OK, "{}", last_error());
        self.check_count(stored, keys.len(), "put");
        self.remember(&keys, &data);
    }

    fn to_put(&self, choices: &mut Choices<'_>, put: u8) -> (Vec<Key>, Vec<u8>) {
        let keys = choices.keys();
        // In a tight cache a block comes back after its eviction, so its bytes follow from its key alone.
        let first = |key: &Key| if self.is_roomy { put ^ key[0] << 4 } else { key[0] };
        let firsts: Vec<u8> = keys.iter().map(first).collect();
        (keys, blocks_of(&firsts))
    }

    /// What is there already stays as it is.
    fn remember(&mut self, keys: &[Key], data: &[u8]) {
        for (key, block) in keys.iter().zip(data.chunks(BLOCK_BYTES)) {
            self.model.entry(*key).or_insert(block[0]);
        }
    }

    fn get(&mut self, choices: &mut Choices<'_>) {
        self.settle();
        let keys = choices.keys();
        let mut out = vec![0; keys.len() * BLOCK_BYTES];
        let mut loaded = usize::MAX;
        // SAFETY: as above.
        let status = unsafe {
            kvc_get(
                self.handle,
                keys.as_ptr().cast(),
                keys.len(),
                out.as_mut_ptr().cast(),
                out.len(),
                &mut loaded,
            )
        };
        assert_eq!(status, KVC_OK, "{}", last_error());
        let firsts = self.leading(&keys);
        self.check_count(loaded, firsts.len(), "get");
        assert_eq!(out[..loaded * BLOCK_BYTES], blocks_of(&firsts)[..loaded * BLOCK_BYTES]);
    }

    fn delete(&mut self, choices: &mut Choices<'_>) {
        self.settle();
        let keys = choices.keys();
        let mut deleted = usize::MAX;
        // SAFETY: as above.
        let status = unsafe { kvc_delete(self.handle, keys.as_ptr().cast(), keys.len(), &mut deleted) };
        assert_eq!(status, KVC_OK, "{}", last_error());
        let expected = keys.iter().filter(|key| self.model.remove(*key).is_some()).count();
        self.check_count(deleted, expected, "delete");
    }

    fn clear(&mut self) {
        self.settle();
        // SAFETY: no pointers besides the handle.
        assert_eq!(kvc_clear(self.handle), KVC_OK, "{}", last_error());
        self.model.clear();
    }

    fn put_async(&mut self, choices: &mut Choices<'_>, put: u8) {
        let (keys, data) = self.to_put(choices, put);
        let mut buffer = data.clone().into_boxed_slice();
        let mut ticket = 0;
        // SAFETY: as above; the buffer stays until the ticket has ended or the cache is closed.
        let status = unsafe {
            kvc_put_async(
                self.handle,
                keys.as_ptr().cast(),
                keys.len(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &mut ticket,
            )
        };
        let expected = keys.len();
        if self.is_accepted(status, Pending { ticket, expected, bytes: Vec::new(), buffer }) {
            self.remember(&keys, &data);
        }
    }

    fn get_async(&mut self, choices: &mut Choices<'_>) {
        let keys = choices.keys();
        let mut buffer = vec![0; keys.len() * BLOCK_BYTES].into_boxed_slice();
        let mut ticket = 0;
        // SAFETY: as above.
        let status = unsafe {
            kvc_get_async(
                self.handle,
                keys.as_ptr().cast(),
                keys.len(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                &mut ticket,
            )
        };
        let firsts = self.leading(&keys);
        let (expected, bytes) = (firsts.len(), blocks_of(&firsts));
        self.is_accepted(status, Pending { ticket, expected, bytes, buffer });
    }

    fn prefetch_async(&mut self, choices: &mut Choices<'_>) {
        let keys = choices.keys();
        let mut ticket = 0;
        // SAFETY: as above.
        let status =
            unsafe { kvc_prefetch_async(self.handle, keys.as_ptr().cast(), keys.len(), &mut ticket) };
        let expected = self.leading(&keys).len();
        let buffer = Box::default();
        self.is_accepted(status, Pending { ticket, expected, bytes: Vec::new(), buffer });
    }

    fn is_accepted(&mut self, status: kvc_status, pending: Pending) -> bool {
        if self.pending.len() >= TICKETS_MAX {
            assert_eq!((status, pending.ticket), (KVC_BUSY, 0), "tickets are bounded");
            return false;
        }
        assert_eq!(status, KVC_OK, "{}", last_error());
        let (ticket, last) = (pending.ticket, self.last_ticket);
        self.last_ticket = ticket;
        self.pending.push(pending);
        assert!(ticket > last, "tickets are not used twice");
        true
    }

    /// At tickets: one that is out, one that is not, and those that have ended.
    fn look(&mut self, choices: &mut Choices<'_>) {
        let mut blocks = usize::MAX;
        if !self.pending.is_empty() {
            let index = choices.below(self.pending.len());
            let ticket = self.pending[index].ticket;
            let is_waiting = choices.below(2) == 0;
            // SAFETY: a place.
            let status = unsafe {
                if is_waiting {
                    kvc_wait(self.handle, ticket, 60_000, &mut blocks)
                } else {
                    kvc_poll(self.handle, ticket, &mut blocks)
                }
            };
            if status == KVC_PENDING {
                assert!(!is_waiting);
                assert_eq!(blocks, usize::MAX);
            } else {
                self.end(index, status, blocks);
            }
        }
        blocks = usize::MAX;
        let mut tickets = [0u64; 4];
        let mut count = usize::MAX;
        let unknown = self.last_ticket + 1 + u64::from(choices.byte());
        // SAFETY: places of the lengths that are said.
        unsafe {
            assert_eq!(kvc_poll(self.handle, unknown, &mut blocks), KVC_INVALID_ARGUMENT);
            assert_eq!(kvc_ended(self.handle, tickets.as_mut_ptr(), choices.below(5), &mut count), KVC_OK);
        }
        assert_eq!(blocks, usize::MAX);
        for ticket in &tickets[..count] {
            let index = self.pending.iter().position(|pending| pending.ticket == *ticket);
            // SAFETY: a place.
            let status = unsafe { kvc_poll(self.handle, *ticket, &mut blocks) };
            self.end(index.expect("what has ended was out, and not polled yet"), status, blocks);
        }
    }

    fn lease(&mut self, choices: &mut Choices<'_>) {
        self.settle();
        let keys = choices.keys();
        let mut addresses = vec![null(); keys.len()];
        let (mut leading, mut handle) = (usize::MAX, null_mut());
        // SAFETY: buffers of the lengths that are said.
        let status = unsafe {
            kvc_lease_blocks(
                self.handle,
                keys.as_ptr().cast(),
                keys.len(),
                addresses.as_mut_ptr(),
                &mut leading,
                &mut handle,
            )
        };
        assert_eq!(status, KVC_OK, "{}", last_error());
        let firsts = self.leading(&keys);
        self.check_count(leading, firsts.len(), "lease");
        assert!(addresses[leading..].iter().all(|address| address.is_null()));
        let blocks = addresses[..leading].iter().zip(&firsts).map(|(at, first)| (*at, blocks_of(&[*first])));
        self.leases.push(Lease { handle, blocks: blocks.collect() });
        if self.leases.len() > LEASES_MAX {
            self.leases.remove(0).check_and_release();
        }
    }

    fn release(&mut self, choices: &mut Choices<'_>) {
        if !self.leases.is_empty() {
            let lease = self.leases.remove(choices.below(self.leases.len()));
            lease.check_and_release();
            // Again: nothing happens.
            kvc_lease_release(lease.handle);
        }
    }

    /// Reserves, writes, and commits some, all or none.
    fn fill_in_place(&mut self, choices: &mut Choices<'_>) {
        self.settle();
        let keys = choices.keys();
        let written = [0, 1, 2, usize::MAX][choices.below(4)];
        let is_abandoned = choices.below(4) == 0;
        let mut addresses = vec![null_mut(); keys.len()];
        let (mut reach, mut fill, mut held) = (usize::MAX, null_mut(), 77);
        // SAFETY: as above.
        let status = unsafe {
            kvc_reserve(
                self.handle,
                keys.as_ptr().cast(),
                keys.len(),
                addresses.as_mut_ptr(),
                &mut reach,
                &mut fill,
            )
        };
        assert_eq!(status, KVC_OK, "{}", last_error());
        self.check_count(reach, keys.len(), "reserve");
        let places = keys.iter().zip(&addresses).filter(|(_, address)| !address.is_null());
        let places: Vec<(Key, *mut c_void)> = places.map(|(key, address)| (*key, *address)).collect();
        for (key, address) in &places {
            assert!(!(self.is_roomy && self.model.contains_key(key)), "what is there is not written");
            // SAFETY: a block's bytes, which are this fill's.
            unsafe { address.cast::<u8>().copy_from(blocks_of(&[key[0]]).as_ptr(), BLOCK_BYTES) };
        }
        // SAFETY: nobody writes any more.
        unsafe {
            if is_abandoned {
                kvc_abandon(fill);
            } else {
                assert_eq!(kvc_commit(fill, written, &mut held), KVC_OK, "{}", last_error());
                for (key, _) in places.iter().take(written) {
                    self.model.insert(*key, key[0]);
                }
                self.check_count(held, self.leading(&keys).len(), "commit");
            }
            kvc_abandon(fill);
            let mut again = 77;
            assert_eq!(kvc_commit(fill, written, &mut again), KVC_BAD_HANDLE);
            assert_eq!(again, 77);
        }
    }

    /// As put and get, with every block in two pieces.
    fn put_and_get_in_pieces(&mut self, choices: &mut Choices<'_>, put: u8) {
        self.settle();
        let (keys, mut data) = self.to_put(choices, put);
        let cut = 1 + choices.below(BLOCK_BYTES - 1);
        let pieces = |bytes: &mut [u8]| -> Vec<kvc_segment> {
            let blocks = bytes
                .chunks_mut(BLOCK_BYTES)
                .flat_map(|block| <[&mut [u8]; 2]>::from(block.split_at_mut(cut)));
            blocks.map(|piece| kvc_segment { data: piece.as_mut_ptr().cast(), bytes: piece.len() }).collect()
        };
        let (mut stored, mut loaded) = (usize::MAX, usize::MAX);
        let mut out = vec![0; data.len()];
        let (from, to) = (pieces(&mut data), pieces(&mut out));
        // SAFETY: pieces of buffers that live, of the lengths that they say.
        unsafe {
            let first = keys.as_ptr().cast();
            let put =
                kvc_put_segments(self.handle, first, keys.len(), from.as_ptr(), from.len(), &mut stored);
            assert_eq!(put, KVC_OK, "{}", last_error());
            self.check_count(stored, keys.len(), "put in pieces");
            self.remember(&keys, &data);
            let get = kvc_get_segments(self.handle, first, keys.len(), to.as_ptr(), to.len(), &mut loaded);
            assert_eq!(get, KVC_OK, "{}", last_error());
            if !from.is_empty() {
                let short =
                    kvc_get_segments(self.handle, first, keys.len(), to.as_ptr(), to.len() - 1, &mut loaded);
                assert_ne!(short, KVC_OK, "pieces are missing");
            }
        }
        let firsts = self.leading(&keys);
        self.check_count(loaded, firsts.len(), "get in pieces");
        assert_eq!(out[..loaded * BLOCK_BYTES], blocks_of(&firsts)[..loaded * BLOCK_BYTES]);
    }

    fn wrong_arguments(&mut self, choices: &mut Choices<'_>) {
        let keys = [[0u8; 16]; 4];
        let mut out = [7u8; 4 * BLOCK_BYTES];
        let (mut count, mut ticket) = (77, 77);
        let blocks = choices.below(4);
        let bytes = choices.below(4 * BLOCK_BYTES);
        let (keys, data) = (keys.as_ptr().cast::<u8>(), out.as_mut_ptr().cast::<c_void>());
        let is_wrong = bytes != blocks * BLOCK_BYTES;
        // SAFETY: what is not NULL is as long as it is said to be.
        unsafe {
            if is_wrong {
                assert_eq!(kvc_put(self.handle, keys, blocks, data, bytes, &mut count), KVC_WRONG_SIZE);
                assert_eq!(kvc_get(self.handle, keys, blocks, data, bytes, &mut count), KVC_WRONG_SIZE);
            }
            let size = BLOCK_BYTES;
            assert_eq!(kvc_put(self.handle, null(), 1, data, size, &mut count), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_put(self.handle, keys, 1, null(), size, &mut count), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_put(self.handle, keys, 1, data, size, null_mut()), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_get(self.handle, keys, 1, null_mut(), size, &mut count), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_match(self.handle, null(), 1, &mut count), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_match(self.handle, keys, usize::MAX / 8, &mut count), KVC_INVALID_ARGUMENT);
            assert_eq!(kvc_delete(self.handle, keys, 1, null_mut()), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_get_async(self.handle, keys, 1, data, size, null_mut()), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_put_async(self.handle, keys, 1, null(), size, &mut ticket), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_ended(self.handle, null_mut(), 1, &mut count), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_event_fd(self.handle, null_mut()), KVC_NULL_ARGUMENT);
            assert_eq!(kvc_stats_json(self.handle, null_mut(), null_mut()), KVC_NULL_ARGUMENT);
        }
        assert_eq!((count, ticket, out), (77, 77, [7; 4 * BLOCK_BYTES]), "nothing is written");
    }

    fn statistics(&mut self, choices: &mut Choices<'_>) {
        self.settle();
        let mut needed = 0;
        // SAFETY: a place; so below, with as many bytes as are said.
        unsafe {
            assert_eq!(kvc_stats_json(self.handle, null_mut(), &mut needed), KVC_OK);
            let mut text = vec![0u8; needed];
            let mut bytes = choices.below(needed);
            let small = kvc_stats_json(self.handle, text.as_mut_ptr().cast(), &mut bytes);
            assert_eq!((small, bytes), (KVC_BUFFER_TOO_SMALL, needed));
            assert_eq!(kvc_stats_json(self.handle, text.as_mut_ptr().cast(), &mut bytes), KVC_OK);
            let text = CStr::from_bytes_with_nul(&text[..bytes]).expect("one NUL, at the end").to_str();
            if self.is_roomy {
                let ready = format!("\"slots_ready\": {},", self.model.len());
                assert!(text.expect("UTF-8").contains(&ready), "{text:?} has not {ready}");
            }
        }
    }
}

impl Lease {
    /// Whatever was done to the blocks meanwhile, their bytes are what they were.
    fn check_and_release(&self) {
        for (address, bytes) in &self.blocks {
            // SAFETY: leased, so that they stay; nobody writes to them.
            let now = unsafe { std::slice::from_raw_parts(address.cast::<u8>(), bytes.len()) };
            assert_eq!(now, bytes);
        }
        kvc_lease_release(self.handle);
    }
}
