//! The half that decides: for the process of an engine's scheduler. It touches no block bytes.

use std::collections::VecDeque;
use std::ffi::{c_char, c_void};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use kvcache_assembly::named_stats::{self, Number};
use kvcache_core::plan::JobId;
use kvcache_core::planner::{Ended, Lookup, Planner, RequestOptions};
use kvcache_core::report::Report;

use crate::arguments::{self, Buffer, Growing, Out};
use crate::boundary::{self, Object, Opened, call, call_for, with};
use crate::directory_config;
use crate::handles::Handles;
use crate::statistics::json;
use crate::status::Failure;
use crate::status::kvc_status::{self, KVC_BUFFER_TOO_SMALL, KVC_MALFORMED, KVC_OK, KVC_PENDING};
use crate::version::check_abi;

/// The half of a cache that decides which block is in which slot, for engines that schedule in one process and copy in others (one
/// kvc_store per rank). Plans go down and reports come up as bytes; how they travel is the engine's affair. Closed by
/// kvc_directory_close.
///
/// All functions may be called from any thread; they wait for each other and for nothing else. Times are seconds of any clock that
/// does not go back.
#[expect(non_camel_case_types, reason = "the name of the header")]
pub struct kvc_directory {
    _opaque: [u8; 0],
}

/// What is behind a [`kvc_directory`].
pub(crate) struct OpenDirectory(Mutex<State>);

struct State {
    planner: Planner,
    /// A plan that did not fit the caller's buffer: nothing of it is lost.
    unsent: Option<Vec<u8>>,
    /// Jobs that have ended and that the caller was not told of.
    ended: VecDeque<Ended>,
}

impl Object for OpenDirectory {
    const NAME: &'static str = "directory";
    const OPENED_BY: &'static str = "kvc_directory_open";

    fn table() -> &'static Handles<Opened<Self>> {
        static TABLE: LazyLock<Handles<Opened<OpenDirectory>>> = LazyLock::new(|| Handles::new(2));
        &TABLE
    }
}

fn with_state<R>(
    directory: *const kvc_directory,
    act: impl FnOnce(&mut State) -> Result<R, Failure>,
) -> Result<R, Failure> {
    with::<OpenDirectory, _, _>(directory, |open| act(&mut *boundary::state::<OpenDirectory, _>(&open.0)?))
}

/// What the cache may do for one request. Make one with kvc_request_init.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvc_request {
    /// sizeof(kvc_request) of the program's header.
    pub struct_size: usize,
    /// Tokens of the prompt, for the setting "prompt_only"; 0 if all of its tokens count as that.
    pub prompt_tokens: usize,
    /// Load no more than this many tokens; 0 for any number.
    pub max_load_tokens: usize,
    /// Store no more than this many tokens; 0 for any number.
    pub max_store_tokens: usize,
    /// Not 0: load nothing.
    pub skip_load: u32,
    /// Not 0: store nothing.
    pub skip_store: u32,
    /// What separates its blocks from those of the same tokens: an adapter, a salt. NULL with 0 bytes for none.
    pub extra: *const c_void,
    /// Bytes of `extra`.
    pub extra_bytes: usize,
}

// SAFETY: numbers and a pointer, all of which may be zero; the first field is the size.
unsafe impl Growing for kvc_request {
    const NAME: &'static str = "kvc_request";
    const FIRST_BYTES: usize = 56;
}

/// The engine's blocks of one KV cache group of a request, in the order of its tokens, from its first one on. UINT32_MAX stands for no
/// block, as does the setting "null_block": nothing is loaded there and nothing stored.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvc_block_table {
    /// Their numbers; NULL with a count of 0.
    pub blocks: *const u32,
    /// How many there are.
    pub count: usize,
}

/// Opens a directory. `config_json` is an object of settings, which docs/c-engine.md lists; "groups" and "slot_blocks" are needed, and
/// "ranks" if there is more than one. Every rank has to report before anything is stored. The header's macro of the same name passes
/// the header's version as well.
///
/// Errors: KVC_BAD_CONFIG names key, place, value and remedy. Any thread.
///
/// # Safety
/// `config_json` is NULL or ends with a NUL; `out` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_open_for_abi(
    abi_version: u32,
    config_json: *const c_char,
    out: *mut *mut kvc_directory,
) -> kvc_status {
    call("kvc_directory_open", || {
        check_abi(abi_version)?;
        // SAFETY: the caller's promise.
        let (out, text) = unsafe { (Out::of("out", out)?, arguments::text("config_json", config_json)?) };
        let planner = directory_config::open(text)?;
        let state = State { planner, unsent: None, ended: VecDeque::new() };
        out.write(boundary::open(OpenDirectory(Mutex::new(state)))?);
        Ok(())
    })
}

/// Closes a directory. NULL is allowed, and so is one that was closed before. Any thread.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_directory_close(directory: *mut kvc_directory) {
    if !directory.is_null() {
        let _ = call("kvc_directory_close", || boundary::close::<OpenDirectory, _, _>(directory, drop));
    }
}

/// A request enters, under any name. A known one is left as it is. `options` may be NULL for a request without limits.
///
/// # Safety
/// `request` is NULL or ends with a NUL; `options` is NULL or as long as its first field says, with `extra` NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_add_request(
    directory: *mut kvc_directory,
    request: *const c_char,
    options: *const kvc_request,
) -> kvc_status {
    call("kvc_directory_add_request", || {
        // SAFETY: the caller's promise.
        let id = unsafe { arguments::text("request", request) }?;
        let options = if options.is_null() {
            RequestOptions::default()
        } else {
            // SAFETY: the caller's promise.
            let given = unsafe { arguments::growing("options", options) }?;
            // SAFETY: the caller's promise.
            let extra = unsafe { arguments::bytes("options->extra", given.extra, given.extra_bytes) }?;
            let bound = |tokens| if tokens == 0 { usize::MAX } else { tokens };
            RequestOptions {
                skip_load: given.skip_load != 0,
                skip_store: given.skip_store != 0,
                max_load_tokens: bound(given.max_load_tokens),
                max_store_tokens: bound(given.max_store_tokens),
                prompt_tokens: bound(given.prompt_tokens),
                extra: extra.to_vec(),
            }
        };
        with_state(directory, |state| {
            state.planner.add_request(id, options);
            Ok(())
        })
    })
}

/// Appends tokens of a request, after those given before: for key_source "tokens". Unknown requests are left alone.
///
/// Errors: KVC_INVALID_ARGUMENT for numbers that are no token ids, and where key_source is "engine".
///
/// # Safety
/// `request` is NULL or ends with a NUL; `tokens` is NULL or `count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_extend_tokens(
    directory: *mut kvc_directory,
    request: *const c_char,
    tokens: *const i32,
    count: usize,
) -> kvc_status {
    call("kvc_directory_extend_tokens", || {
        // SAFETY: the caller's promise.
        let (id, tokens) =
            unsafe { (arguments::text("request", request)?, arguments::slice("tokens", tokens, count)?) };
        if let Some(token) = tokens.iter().find(|token| **token < 0) {
            return Err(Failure::argument(format!(
                "token {token} is not a token id: ids are 0 to 2147483647"
            )));
        }
        with_state(directory, |state| {
            if !state.planner.takes_tokens() {
                return Err(Failure::argument(
                    "key_source of this directory is \"engine\": pass hashes to kvc_directory_extend_hashes, or open it with \
                     \"tokens\"",
                ));
            }
            state.planner.extend_tokens(id, tokens.iter().map(|token| *token as u32));
            Ok(())
        })
    })
}

/// Appends `count` of the engine's own block hashes, `hash_bytes` bytes each (1 to 64), one after the other: for key_source "engine".
/// Each covers the prefix up to its end. Unknown requests are left alone.
///
/// Errors: KVC_INVALID_ARGUMENT for hashes of another length, and where key_source is "tokens".
///
/// # Safety
/// `request` is NULL or ends with a NUL; `hashes` is NULL or count * hash_bytes bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_extend_hashes(
    directory: *mut kvc_directory,
    request: *const c_char,
    hashes: *const u8,
    hash_bytes: usize,
    count: usize,
) -> kvc_status {
    call("kvc_directory_extend_hashes", || {
        if hash_bytes == 0 || hash_bytes > 64 {
            return Err(Failure::argument(format!("hash_bytes is {hash_bytes}: hashes have 1 to 64 bytes")));
        }
        let bytes = count.saturating_mul(hash_bytes);
        // SAFETY: the caller's promise.
        let (id, hashes) =
            unsafe { (arguments::text("request", request)?, arguments::slice("hashes", hashes, bytes)?) };
        with_state(directory, |state| {
            if state.planner.takes_tokens() {
                return Err(Failure::argument(
                    "key_source of this directory is \"tokens\": pass tokens to kvc_directory_extend_tokens, or open it with \
                     \"engine\"",
                ));
            }
            state.planner.extend_hashes(id, hashes.chunks_exact(hash_bytes));
            Ok(())
        })
    })
}

/// How many tokens (or hashes, by key_source) of a request are known: appending continues there. 0 for an unknown request.
///
/// # Safety
/// `request` is NULL or ends with a NUL; `units` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_known(
    directory: *mut kvc_directory,
    request: *const c_char,
    units: *mut usize,
) -> kvc_status {
    call("kvc_directory_known", || {
        // SAFETY: the caller's promise.
        let (units, id) = unsafe { (Out::of("units", units)?, arguments::text("request", request)?) };
        units.write(with_state(directory, |state| Ok(state.planner.known_hashes(id)))?);
        Ok(())
    })
}

/// Asks L2 for a request's blocks, if there is one, so that they are here when the engine first looks. `total_tokens` are the
/// request's tokens so far.
///
/// # Safety
/// `request` is NULL or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_prefetch(
    directory: *mut kvc_directory,
    request: *const c_char,
    total_tokens: usize,
    now_s: f64,
) -> kvc_status {
    call("kvc_directory_prefetch", || {
        let now = time(now_s)?;
        // SAFETY: the caller's promise.
        let id = unsafe { arguments::text("request", request) }?;
        with_state(directory, |state| {
            state.planner.prefetch(id, total_tokens, now);
            Ok(())
        })
    })
}

/// How many tokens of a request can be loaded beyond the first `local_tokens`, which the engine has itself: `*tokens`, 0 for a miss.
/// `*asynchronous` is 1 if the load happens between steps, 0 if within one. KVC_PENDING: ask again in the next step.
///
/// # Safety
/// `request` is NULL or ends with a NUL; `tokens` and `asynchronous` are NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_lookup(
    directory: *mut kvc_directory,
    request: *const c_char,
    local_tokens: usize,
    total_tokens: usize,
    now_s: f64,
    tokens: *mut usize,
    asynchronous: *mut i32,
) -> kvc_status {
    call_for("kvc_directory_lookup", || {
        let now = time(now_s)?;
        // SAFETY: the caller's promise.
        let (tokens, asynchronous) =
            unsafe { (Out::of("tokens", tokens)?, Out::of("asynchronous", asynchronous)?) };
        // SAFETY: the caller's promise.
        let id = unsafe { arguments::text("request", request) }?;
        let found = match with_state(directory, |state| {
            Ok(state.planner.lookup(id, local_tokens, total_tokens, now))
        })? {
            Lookup::Wait => return Ok(KVC_PENDING),
            Lookup::Hit { tokens, asynchronous } => (tokens, asynchronous),
            Lookup::Miss(_) => (0, false),
        };
        tokens.write(found.0);
        asynchronous.write(i32::from(found.1));
        Ok(KVC_OK)
    })
}

/// The engine counts on `external_tokens` of the last look-up being loaded into the blocks of `tables`, one table for each group. The
/// load is in the next plan. `*asynchronous` as in kvc_directory_lookup. Once for each look-up, with 0 if the engine declines.
///
/// Errors: KVC_INVALID_ARGUMENT, and nothing is loaded, for more tokens than the last look-up has offered, or tables that do not reach to
/// the end of what is loaded. It has offered 0 if it was a miss or KVC_PENDING, if there was none, or if this function has answered it
/// before.
///
/// # Safety
/// `request` is NULL or ends with a NUL; `tables` is NULL or `groups` tables of readable blocks; `asynchronous` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_commit_load(
    directory: *mut kvc_directory,
    request: *const c_char,
    external_tokens: usize,
    tables: *const kvc_block_table,
    groups: usize,
    asynchronous: *mut i32,
) -> kvc_status {
    call("kvc_directory_commit_load", || {
        // SAFETY: the caller's promise.
        let (asynchronous, id) =
            unsafe { (Out::of("asynchronous", asynchronous)?, arguments::text("request", request)?) };
        // SAFETY: the caller's promise.
        let tables = unsafe { block_tables(tables, groups) }?;
        let between = with_state(directory, |state| {
            check_groups(&state.planner, &tables)?;
            let offered = state.planner.offered_tokens(id);
            if external_tokens > offered {
                return Err(Failure::argument(format!(
                    "external_tokens is {external_tokens} and the last look-up of \"{id}\" offers {offered}: pass no more than \
                     that, once for each look-up"
                )));
            }
            if external_tokens > 0 {
                let end = state.planner.local_tokens(id) + external_tokens;
                check_reach(&state.planner, &tables, |_| end)?;
            }
            Ok(state.planner.commit_load(id, external_tokens, &tables))
        })?;
        asynchronous.write(i32::from(between));
        Ok(())
    })
}

/// Offloads what is new of a request's first `computed_tokens` tokens, which are or will be in the blocks of `tables` at the end of
/// this step. The copies are in the next plan, as job `*job`; 0 if there is nothing to copy.
///
/// The blocks in `held` must not be used again before kvc_directory_next_ended says that the job has ended. `*held_count` is the
/// room in `held` when the call is made, at least as many as all tables have blocks, and their number when it returns; with less
/// room KVC_BUFFER_TOO_SMALL, with what is needed in `*held_count`, and nothing is offloaded. Nothing new can be offloaded before
/// `*next_tokens` tokens are computed.
///
/// Errors: KVC_INVALID_ARGUMENT, and nothing is offloaded, for tables that do not reach to the end of the last slot that is computed.
///
/// # Safety
/// `request` is NULL or ends with a NUL; `tables` is NULL or `groups` tables of readable blocks; the others are NULL or writable,
/// `held` for `*held_count` numbers.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_offload(
    directory: *mut kvc_directory,
    request: *const c_char,
    computed_tokens: usize,
    tables: *const kvc_block_table,
    groups: usize,
    job: *mut u64,
    held: *mut u32,
    held_count: *mut usize,
    next_tokens: *mut usize,
) -> kvc_status {
    call("kvc_directory_offload", || {
        // SAFETY: the caller's promise.
        let (job, next_tokens) = unsafe { (Out::of("job", job)?, Out::of("next_tokens", next_tokens)?) };
        // SAFETY: the caller's promise.
        let (id, room) =
            unsafe { (arguments::text("request", request)?, arguments::slice("held_count", held_count, 1)?) };
        let Some(room) = room.first().copied() else { return Ok(()) };
        // SAFETY: the caller's promise.
        let (tables, held_count) =
            unsafe { (block_tables(tables, groups)?, Out::of("held_count", held_count)?) };
        let blocks: usize = tables.iter().map(Vec::len).sum();
        if room < blocks {
            held_count.write(blocks);
            return Err(Failure::new(
                KVC_BUFFER_TOO_SMALL,
                format!("held has room for {room} blocks and the tables have {blocks}: pass room for all"),
            ));
        }
        // SAFETY: the caller's promise.
        let held = unsafe { arguments::slice_mut("held", held, blocks) }?;
        let offloading = with_state(directory, |state| {
            check_groups(&state.planner, &tables)?;
            // Slots are copied when they are whole.
            let whole = |group| computed_tokens - computed_tokens % state.planner.slot_tokens(group);
            check_reach(&state.planner, &tables, whole)?;
            Ok(state.planner.offload(id, computed_tokens, &tables))
        })?;
        for (place, block) in held.iter_mut().zip(&offloading.held) {
            *place = *block;
        }
        // A block is held once, and each is in the tables.
        held_count.write(offloading.held.len().min(blocks));
        job.write(offloading.job.map_or(0, number_of));
        next_tokens.write(offloading.next_tokens);
        Ok(())
    })
}

/// The request will not be asked about again. Its jobs go on.
///
/// # Safety
/// `request` is NULL or ends with a NUL.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_finish(
    directory: *mut kvc_directory,
    request: *const c_char,
) -> kvc_status {
    call("kvc_directory_finish", || {
        // SAFETY: the caller's promise.
        let id = unsafe { arguments::text("request", request) }?;
        with_state(directory, |state| {
            state.planner.finish(id);
            Ok(())
        })
    })
}

/// The plan of this step, to be given to every rank's kvc_store_begin_step; 0 bytes if there is nothing to do. `scheduled_tokens` are
/// the tokens that the step computes.
///
/// `*bytes` is the size of `buffer` when the call is made and that of the plan when it returns. With `buffer` NULL only the size is
/// said; KVC_BUFFER_TOO_SMALL if it does not fit. The plan is kept in both cases, and the next call gives it: without what was
/// committed or offloaded in between, so ask when all of the step was said.
///
/// # Safety
/// `buffer` is NULL or `*bytes` bytes are writable there; `bytes` is NULL or readable and writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_take_plan(
    directory: *mut kvc_directory,
    scheduled_tokens: usize,
    now_s: f64,
    buffer: *mut c_void,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_directory_take_plan", || {
        let now = time(now_s)?;
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::of_bytes(buffer, bytes) }?;
        with_state(directory, |state| {
            if state.unsent.is_none() {
                state.unsent = state.planner.take_plan(scheduled_tokens, now).map(|plan| plan.encode());
            }
            let asks_for_length = buffer.asks_for_length();
            buffer.write(state.unsent.as_deref().unwrap_or_default())?;
            if !asks_for_length {
                state.unsent = None;
            }
            Ok(())
        })
    })
}

/// Takes in a report of one rank, from kvc_store_take_report. What has ended by it is given by kvc_directory_next_ended.
///
/// Errors: KVC_MALFORMED if the bytes are not what a rank of the same library version says, or not one of this directory's ranks.
///
/// # Safety
/// `report` is NULL or `bytes` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_absorb(
    directory: *mut kvc_directory,
    report: *const c_void,
    bytes: usize,
) -> kvc_status {
    call("kvc_directory_absorb", || {
        // SAFETY: the caller's promise.
        let report = unsafe { arguments::bytes("report", report, bytes) }?;
        let report =
            Report::decode(report).map_err(|error| Failure::new(KVC_MALFORMED, error.to_string()))?;
        with_state(directory, |state| {
            let ranks = state.planner.ranks();
            if report.rank >= ranks {
                let text = format!(
                    "the report is of rank {}, and \"ranks\" of this directory is {ranks}: open it and its stores with the same",
                    report.rank
                );
                return Err(Failure::new(KVC_MALFORMED, text));
            }
            let ended = state.planner.absorb(&report);
            state.ended.extend(ended);
            Ok(())
        })
    })
}

/// A job that has ended on every rank: its number, and the engine blocks that were held for it. KVC_PENDING if there is none.
///
/// `*released_count` is the room in `released` when the call is made and the number of blocks when it returns. With `released`
/// NULL only the number is said; KVC_BUFFER_TOO_SMALL if they do not fit. The job is kept in both cases.
///
/// # Safety
/// `job` is NULL or writable; `released_count` is NULL or readable and writable; `released` is NULL or as many numbers are writable
/// there.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_next_ended(
    directory: *mut kvc_directory,
    job: *mut u64,
    released: *mut u32,
    released_count: *mut usize,
) -> kvc_status {
    call_for("kvc_directory_next_ended", || {
        // SAFETY: the caller's promise.
        let (job, released) = unsafe { (Out::of("job", job)?, Buffer::of(released, released_count)?) };
        with_state(directory, |state| {
            let Some(ended) = state.ended.front() else { return Ok(KVC_PENDING) };
            let asks_for_length = released.asks_for_length();
            released.write(&ended.released)?;
            job.write(number_of(ended.id));
            if !asks_for_length {
                state.ended.pop_front();
            }
            Ok(KVC_OK)
        })
    })
}

/// Forgets every block, here, on the ranks and for restarts: what was computed before is not served after, as when weights change.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_directory_reset(directory: *mut kvc_directory) -> kvc_status {
    call("kvc_directory_reset", || {
        with_state(directory, |state| {
            state.planner.reset();
            Ok(())
        })
    })
}

/// Whether the engine has to go on making steps, if need be empty ones, for jobs to end: `*pending` is 1 or 0.
///
/// # Safety
/// `pending` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_has_pending_work(
    directory: *mut kvc_directory,
    pending: *mut i32,
) -> kvc_status {
    call("kvc_directory_has_pending_work", || {
        // SAFETY: the caller's promise.
        let pending = unsafe { Out::of("pending", pending) }?;
        let has_work =
            with_state(directory, |state| Ok(state.planner.has_pending_work() || state.unsent.is_some()))?;
        pending.write(i32::from(has_work));
        Ok(())
    })
}

/// Every count of a directory, as kvc_stats_json.
///
/// # Safety
/// As kvc_stats_json.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_stats_json(
    directory: *const kvc_directory,
    buffer: *mut c_char,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_directory_stats_json", || {
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::of(buffer, bytes) }?;
        buffer.write_text(&json(numbers(directory)?))
    })
}

/// Every count of a directory in Prometheus' text format, as kvc_stats_prometheus.
///
/// # Safety
/// As kvc_stats_prometheus.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_directory_stats_prometheus(
    directory: *const kvc_directory,
    name: *const c_char,
    buffer: *mut c_char,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_directory_stats_prometheus", || {
        // SAFETY: the caller's promise.
        let (buffer, name) = unsafe { (Buffer::of(buffer, bytes)?, arguments::optional_text("name", name)?) };
        let label = name.map(|name| ("cache", name));
        buffer.write_text(&named_stats::prometheus(numbers(directory)?, label.as_slice()))
    })
}

fn numbers(directory: *const kvc_directory) -> Result<Vec<Number>, Failure> {
    let stats = with_state(directory, |state| Ok(state.planner.stats()))?;
    Ok(named_stats::planner(&stats).collect())
}

/// # Safety
/// NULL or `groups` tables, each NULL or readable.
unsafe fn block_tables(tables: *const kvc_block_table, groups: usize) -> Result<Vec<Vec<u32>>, Failure> {
    // SAFETY: the caller's promise.
    let tables = unsafe { arguments::slice("tables", tables, groups) }?;
    tables
        .iter()
        .map(|table| {
            // SAFETY: the caller's promise.
            Ok(unsafe { arguments::slice("tables[].blocks", table.blocks, table.count) }?.to_vec())
        })
        .collect()
}

/// A job's number for the caller, to whom 0 is none.
fn number_of(job: JobId) -> u64 {
    job.number + 1
}

fn check_groups(planner: &Planner, tables: &[Vec<u32>]) -> Result<(), Failure> {
    let groups = planner.groups();
    if tables.len() == groups {
        return Ok(());
    }
    Err(Failure::argument(format!(
        "{} block tables were given and the directory has {groups} groups: pass one table for each",
        tables.len()
    )))
}

/// Whether the tables have a place for every token that each group is to copy, from the request's first one on. What lies behind a
/// table's end would not be copied, and nobody would know.
fn check_reach(
    planner: &Planner,
    tables: &[Vec<u32>],
    tokens: impl Fn(usize) -> usize,
) -> Result<(), Failure> {
    for (group, table) in tables.iter().enumerate() {
        let (tokens, block_tokens) = (tokens(group), planner.block_tokens(group));
        let needed = tokens.div_ceil(block_tokens);
        if table.len() < needed {
            return Err(Failure::argument(format!(
                "tables[{group}] has {} blocks of {block_tokens} tokens, and {tokens} tokens need {needed}: pass the request's \
                 whole table, with UINT32_MAX where there is no block",
                table.len()
            )));
        }
    }
    Ok(())
}

fn time(seconds: f64) -> Result<Duration, Failure> {
    Duration::try_from_secs_f64(seconds)
        .map_err(|_| Failure::argument(format!("now_s is {seconds}: give seconds from 0 up")))
}
