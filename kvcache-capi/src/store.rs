//! The half that moves bytes: for the process of one rank of an engine. It decides nothing.

use std::collections::VecDeque;
use std::ffi::{c_char, c_void};
use std::sync::{LazyLock, Mutex};
use std::time::Duration;

use kvcache_assembly::RankStore;
use kvcache_assembly::named_stats::{self, Number};
use kvcache_core::plan::StepPlan;
use kvcache_core::store::{LayerBinding, PageLayout, Store};

use crate::arguments::{self, Buffer, Growing, Out};
use crate::boundary::{self, Object, Opened, call, call_for, with};
use crate::handles::Handles;
use crate::refusal::refused;
use crate::statistics::json;
use crate::status::Failure;
use crate::status::kvc_status::{self, KVC_NULL_ARGUMENT, KVC_OK, KVC_PENDING};
use crate::store_config;
use crate::version::check_abi;

/// The half of a cache that moves bytes, for one rank of an engine whose scheduler has a kvc_directory. Closed by kvc_store_close.
///
/// The engine drives it by its steps:
///
/// begin_step(plan), start_loads, then for each layer wait_layer, the layer itself, store_layer; end_step, take_report.
///
/// All functions may be called from any thread; one at a time is at work, and the others wait for it. `stream` is NULL where the
/// engine computes on the CPU. On a device it is the address of the raw handle of the stream (a CUstream as a number): then nothing
/// waits, the stream does.
#[expect(non_camel_case_types, reason = "the name of the header")]
pub struct kvc_store {
    _opaque: [u8; 0],
}

/// What is behind a [`kvc_store`].
pub(crate) struct OpenStore(Mutex<State>);

struct State {
    store: RankStore,
    /// What did not fit the caller's buffer: nothing of it is lost.
    report: Option<Vec<u8>>,
    load_errors: Vec<u32>,
    /// Requests whose load between steps has ended, and whether it went well.
    received: VecDeque<(String, bool)>,
}

impl Object for OpenStore {
    const NAME: &'static str = "store";
    const OPENED_BY: &'static str = "kvc_store_open";

    fn table() -> &'static Handles<Opened<Self>> {
        static TABLE: LazyLock<Handles<Opened<OpenStore>>> = LazyLock::new(|| Handles::new(3));
        &TABLE
    }
}

fn with_state<R>(
    store: *const kvc_store,
    act: impl FnOnce(&mut State) -> Result<R, Failure>,
) -> Result<R, Failure> {
    with::<OpenStore, _, _>(store, |open| act(&mut *boundary::state::<OpenStore, _>(&open.0)?))
}

/// Where one layer of the engine keeps its blocks. Block `b` is `segments` pieces of `segment_bytes` bytes; piece `s` begins at
/// base + b * block_stride + s * segment_stride. Strides are in bytes. Make one with kvc_layer_init.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvc_layer {
    /// sizeof(kvc_layer) of the program's header.
    pub struct_size: usize,
    /// The layer's name, which must be another for each.
    pub name: *const c_char,
    /// The first byte of block 0, in host or device memory. It has to stay until the store is closed.
    pub base: *mut c_void,
    /// Bytes from a block to the next.
    pub block_stride: usize,
    /// Blocks.
    pub block_count: usize,
    /// Pieces of a block: 2 where keys and values lie apart.
    pub segments: usize,
    /// Bytes from a piece to the next.
    pub segment_stride: usize,
    /// Bytes of a piece.
    pub segment_bytes: usize,
    /// The KV cache group.
    pub group: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: numbers and pointers, all of which may be zero; the first field is the size.
unsafe impl Growing for kvc_layer {
    const NAME: &'static str = "kvc_layer";
    const FIRST_BYTES: usize = 72;
}

/// Opens the store of one rank over the engine's memory. `config_json` is an object of settings, which docs/c-engine.md lists;
/// "slot_blocks" and "capacity_bytes" are needed. The header's macro of the same name passes the header's version as well.
///
/// Errors: KVC_BAD_CONFIG names the value and the remedy; KVC_SYSTEM if memory or a thread is refused; KVC_UNAVAILABLE if the
/// device cannot be used. Any thread.
///
/// # Safety
/// `config_json` is NULL or ends with a NUL; `layers` is NULL or `layer_count` layers, each of the size that it says, all of one
/// size; their memory is what they say, until the store is closed, and is used by others only as plans and reports allow; `out` is
/// NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_open_for_abi(
    abi_version: u32,
    config_json: *const c_char,
    layers: *const kvc_layer,
    layer_count: usize,
    out: *mut *mut kvc_store,
) -> kvc_status {
    call("kvc_store_open", || {
        check_abi(abi_version)?;
        // SAFETY: the caller's promise.
        let (out, text) = unsafe { (Out::of("out", out)?, arguments::text("config_json", config_json)?) };
        // SAFETY: the caller's promise.
        let (settings, remote) = store_config::of_json(text, unsafe { bindings(layers, layer_count) }?)?;
        let remote = remote.map(|remote| remote.open()).transpose().map_err(refused)?;
        let opened = settings.open(remote.as_ref()).map_err(refused)?;
        for warning in opened.warnings() {
            log::warn!("{warning}");
        }
        log::info!("store: {}", opened.describe());
        let state = State { store: opened, report: None, load_errors: Vec::new(), received: VecDeque::new() };
        out.write(boundary::open(OpenStore(Mutex::new(state)))?);
        Ok(())
    })
}

/// Closes a store: ends what is in flight, then gives the memory back. The engine's memory may go after that. NULL is allowed, and so is
/// a store that was closed before. Any thread, but not the log callback.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_store_close(store: *mut kvc_store) {
    if !store.is_null() {
        let _ = call("kvc_store_close", || boundary::close::<OpenStore, _, _>(store, drop));
    }
}

/// A step begins, with the directory's plan; 0 bytes for a step without one. `*loads` is 1 if it loads layer by layer, so that
/// kvc_store_wait_layer has to be called, and `*offloads` 1 if it offloads, so that kvc_store_store_layer should be.
///
/// Errors: KVC_MALFORMED if the bytes are no plan of the same library version.
///
/// # Safety
/// `plan` is NULL or `bytes` bytes; `stream` is NULL or readable; `loads` and `offloads` are NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_begin_step(
    store: *mut kvc_store,
    plan: *const c_void,
    bytes: usize,
    stream: *const u64,
    loads: *mut i32,
    offloads: *mut i32,
) -> kvc_status {
    call("kvc_store_begin_step", || {
        // SAFETY: the caller's promise.
        let (loads, offloads) = unsafe { (Out::of("loads", loads)?, Out::of("offloads", offloads)?) };
        // SAFETY: the caller's promise.
        let (plan, stream) =
            unsafe { (arguments::bytes("plan", plan, bytes)?, arguments::optional("stream", stream)?) };
        let empty = plan.is_empty().then(|| StepPlan::default().encode());
        let plan = empty.as_deref().unwrap_or(plan);
        let (has_loads, has_offloads) =
            with_state(store, |state| state.store.begin_step(plan, stream).map_err(refused))?;
        loads.write(i32::from(has_loads));
        offloads.write(i32::from(has_offloads));
        Ok(())
    })
}

/// Starts this step's loads: before the first layer.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_store_start_loads(store: *mut kvc_store) -> kvc_status {
    call("kvc_store_start_loads", || {
        with_state(store, |state| state.store.with(|store| store.start_loads()).map_err(refused))
    })
}

/// Returns when the blocks of layer `layer` (and of those before it) are loaded, copying meanwhile; with a stream at once, and the
/// stream waits. Before each layer, or once with the last one before a forward pass whose layers cannot call it.
///
/// # Safety
/// `stream` is NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_wait_layer(
    store: *mut kvc_store,
    layer: usize,
    stream: *const u64,
) -> kvc_status {
    call("kvc_store_wait_layer", || {
        // SAFETY: the caller's promise.
        let stream = unsafe { arguments::optional("stream", stream) }?;
        with_state(store, |state| {
            check_layer(&state.store, layer)?;
            state.store.with(|store| store.wait_layer(layer, stream)).map_err(refused)
        })
    })
}

/// Layer `layer` has been computed, or is by the time that the stream gets here: its part of the step's offloads begins.
///
/// # Safety
/// `stream` is NULL or readable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_store_layer(
    store: *mut kvc_store,
    layer: usize,
    stream: *const u64,
) -> kvc_status {
    call("kvc_store_store_layer", || {
        // SAFETY: the caller's promise.
        let stream = unsafe { arguments::optional("stream", stream) }?;
        with_state(store, |state| {
            check_layer(&state.store, layer)?;
            state.store.with(|store| store.store_layer(layer, stream)).map_err(refused)
        })
    })
}

/// How much kvc_store_end_step waits for.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[expect(non_camel_case_types, reason = "the names of the header")]
pub enum kvc_step_end {
    /// Nothing: copies may outlive the step.
    KVC_STEP_GO_ON = 0,
    /// Every copy: the engine is about to change its blocks, or to sleep.
    KVC_STEP_FINISH = 1,
    /// Everything between L1 and L2 as well: there will be no further step.
    KVC_STEP_LAST = 2,
}

/// The forward pass is over. `end` is a kvc_step_end. `*busy` is 1 while any job of this rank has not ended.
///
/// # Safety
/// `stream` is NULL or readable; `busy` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_end_step(
    store: *mut kvc_store,
    end: i32,
    stream: *const u64,
    busy: *mut i32,
) -> kvc_status {
    call("kvc_store_end_step", || {
        // SAFETY: the caller's promise.
        let (busy, stream) = unsafe { (Out::of("busy", busy)?, arguments::optional("stream", stream)?) };
        if !(0..=2).contains(&end) {
            let text =
                format!("end is {end}: use KVC_STEP_GO_ON (0), KVC_STEP_FINISH (1) or KVC_STEP_LAST (2)");
            return Err(Failure::argument(text));
        }
        let is_busy =
            with_state(store, |state| state.store.end_step(end == 1, end == 2, stream).map_err(refused))?;
        busy.write(i32::from(is_busy));
        Ok(())
    })
}

/// For steps without work: waits until a value has come from L2 or got there, for `timeout_ms` milliseconds at most, if that is all
/// there is to wait for.
#[unsafe(no_mangle)]
pub extern "C" fn kvc_store_rest(store: *mut kvc_store, timeout_ms: u64) -> kvc_status {
    call("kvc_store_rest", || {
        with_state(store, |state| {
            state.store.with(|store| store.rest(Duration::from_millis(timeout_ms))).map_err(refused)
        })
    })
}

/// This rank's report for the directory's kvc_directory_absorb; 0 bytes if there is nothing to say. Sizes as with
/// kvc_directory_take_plan: a report that does not fit is kept.
///
/// # Safety
/// `buffer` is NULL or `*bytes` bytes are writable there; `bytes` is NULL or readable and writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_take_report(
    store: *mut kvc_store,
    buffer: *mut c_void,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_store_take_report", || {
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::of_bytes(buffer, bytes) }?;
        with_state(store, |state| {
            if state.report.is_none() {
                state.report =
                    state.store.with(Store::take_report).map_err(refused)?.map(|report| report.encode());
            }
            let asks_for_length = buffer.asks_for_length();
            buffer.write(state.report.as_deref().unwrap_or_default())?;
            if !asks_for_length {
                state.report = None;
            }
            Ok(())
        })
    })
}

/// A request whose load between steps has ended: its name with a NUL, and in `*loaded` 1, or 0 if its blocks are not what was promised
/// (kvc_store_take_load_errors has them then). KVC_PENDING if there is none.
///
/// `*bytes` is the size of `request` when the call is made and that of the name when it returns. With `request` NULL only the size is
/// said; KVC_BUFFER_TOO_SMALL if it does not fit. The request is kept in both cases.
///
/// # Safety
/// `request` is NULL or `*bytes` bytes are writable there; `bytes` is NULL or readable and writable; `loaded` is NULL or writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_next_received(
    store: *mut kvc_store,
    request: *mut c_char,
    bytes: *mut usize,
    loaded: *mut i32,
) -> kvc_status {
    call_for("kvc_store_next_received", || {
        // SAFETY: the caller's promise.
        let (request, loaded) = unsafe { (Buffer::of(request, bytes)?, Out::of("loaded", loaded)?) };
        with_state(store, |state| {
            let (received, failed) = state.store.with(Store::take_received).map_err(refused)?;
            let outcomes = received.into_iter().map(|name| {
                let is_good = !failed.contains(&name);
                (name, is_good)
            });
            state.received.extend(outcomes);
            let Some((name, is_good)) = state.received.front() else { return Ok(KVC_PENDING) };
            let asks_for_length = request.asks_for_length();
            request.write_text(name)?;
            loaded.write(i32::from(*is_good));
            if !asks_for_length {
                state.received.pop_front();
            }
            Ok(KVC_OK)
        })
    })
}

/// Engine blocks that were promised and not loaded: what they hold is undefined, and their tokens have to be computed. `*count` is the
/// room in `blocks` when the call is made and their number when it returns; with `blocks` NULL only that is said, and
/// KVC_BUFFER_TOO_SMALL if they do not fit. They are kept in both cases.
///
/// # Safety
/// `blocks` is NULL or `*count` numbers are writable there; `count` is NULL or readable and writable.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_take_load_errors(
    store: *mut kvc_store,
    blocks: *mut u32,
    count: *mut usize,
) -> kvc_status {
    call("kvc_store_take_load_errors", || {
        // SAFETY: the caller's promise.
        let blocks = unsafe { Buffer::of(blocks, count) }?;
        with_state(store, |state| {
            let new = state.store.with(Store::take_load_errors).map_err(refused)?;
            state.load_errors.extend(new);
            let asks_for_length = blocks.asks_for_length();
            blocks.write(&state.load_errors)?;
            if !asks_for_length {
                state.load_errors.clear();
            }
            Ok(())
        })
    })
}

/// Every count of a store, as kvc_stats_json.
///
/// # Safety
/// As kvc_stats_json.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_stats_json(
    store: *const kvc_store,
    buffer: *mut c_char,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_store_stats_json", || {
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::of(buffer, bytes) }?;
        buffer.write_text(&json(numbers(store)?))
    })
}

/// Every count of a store in Prometheus' text format, as kvc_stats_prometheus.
///
/// # Safety
/// As kvc_stats_prometheus.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_stats_prometheus(
    store: *const kvc_store,
    name: *const c_char,
    buffer: *mut c_char,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_store_stats_prometheus", || {
        // SAFETY: the caller's promise.
        let (buffer, name) = unsafe { (Buffer::of(buffer, bytes)?, arguments::optional_text("name", name)?) };
        let label = name.map(|name| ("cache", name));
        buffer.write_text(&named_stats::prometheus(numbers(store)?, label.as_slice()))
    })
}

/// What is wrong now, one line each, as kvc_problems: memory that could not be pinned, copies that failed, a device that was lost.
///
/// # Safety
/// As kvc_stats_json.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn kvc_store_problems(
    store: *const kvc_store,
    buffer: *mut c_char,
    bytes: *mut usize,
) -> kvc_status {
    call("kvc_store_problems", || {
        // SAFETY: the caller's promise.
        let buffer = unsafe { Buffer::of(buffer, bytes) }?;
        let problems = with_state(store, |state| Ok(state.store.problems()))?;
        buffer.write_text(&problems.join("\n"))
    })
}

fn numbers(store: *const kvc_store) -> Result<Vec<Number>, Failure> {
    with_state(store, |state| state.store.numbers().map_err(refused))
}

fn check_layer(store: &RankStore, layer: usize) -> Result<(), Failure> {
    let last = store.with(|store| store.layout().last_layer()).map_err(refused)?;
    if layer <= last {
        return Ok(());
    }
    Err(Failure::argument(format!("layer is {layer}, and the store's layers are 0 to {last}")))
}

/// # Safety
/// NULL, or `count` layers of the size that the first one says.
unsafe fn bindings(layers: *const kvc_layer, count: usize) -> Result<Vec<LayerBinding>, Failure> {
    // SAFETY: the caller's promise.
    let layers = unsafe { arguments::growing_list("layers", layers, count) }?;
    layers
        .into_iter()
        .enumerate()
        .map(|(position, layer)| {
            // SAFETY: the caller's promise.
            let name = unsafe { arguments::text("layers[].name", layer.name) }?.to_owned();
            let Ok(group) = u16::try_from(layer.group) else {
                return Err(Failure::argument(format!(
                    "layers[{position}].group is {}: groups are 0 to 65535",
                    layer.group
                )));
            };
            if layer.base.is_null() {
                return Err(Failure::new(KVC_NULL_ARGUMENT, format!("layers[{position}].base is NULL")));
            }
            if layer.reserved != 0 {
                let text = format!("layers[{position}].reserved is {}: set it to 0", layer.reserved);
                return Err(Failure::argument(text));
            }
            let pages = PageLayout {
                base: layer.base.addr(),
                block_stride: layer.block_stride,
                block_count: layer.block_count,
                segments: layer.segments,
                segment_stride: layer.segment_stride,
                segment_bytes: layer.segment_bytes,
            };
            Ok(LayerBinding { name, group, pages })
        })
        .collect()
}
