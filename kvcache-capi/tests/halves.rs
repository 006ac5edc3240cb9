//! The two halves of an engine's cache, driven through the C functions: as they are meant to be, and in any other way.

mod support;

use std::ffi::{CString, c_void};
use std::ptr::{null, null_mut};

use kvcache::kvc_status::*;
use kvcache::*;
use proptest::prelude::*;
use support::last_error;

const BLOCK_TOKENS: usize = 4;
const BLOCKS: usize = 32;
const PAGE_BYTES: usize = 64;
const LAYERS: usize = 2;
const NAMES: [&std::ffi::CStr; 4] = [c"a", c"b", c"c", c"never added"];

/// An engine that schedules and computes here: both halves, and its blocks.
struct Engine {
    directory: *mut kvc_directory,
    store: *mut kvc_store,
    /// `[layers][blocks][page]`, kept alive for the store.
    memory: Vec<u8>,
    plans: Vec<Vec<u8>>,
    now_s: f64,
}

fn layer(name: &std::ffi::CStr, base: *mut u8) -> kvc_layer {
    kvc_layer {
        struct_size: size_of::<kvc_layer>(),
        name: name.as_ptr(),
        base: base.cast(),
        block_stride: PAGE_BYTES,
        block_count: BLOCKS,
        segments: 1,
        segment_stride: PAGE_BYTES,
        segment_bytes: PAGE_BYTES,
        group: 0,
        reserved: 0,
    }
}

fn directory(more: &str) -> (kvc_status, *mut kvc_directory) {
    let source = if more.contains("key_source") { "" } else { ", \"key_source\": \"tokens\"" };
    let json =
        format!("{{\"groups\": [{{\"block_tokens\": {BLOCK_TOKENS}}}], \"slot_blocks\": 2{source}{more}}}");
    let (json, mut out) = (CString::new(json).expect("no NUL"), null_mut());
    // SAFETY: a text and a place.
    (unsafe { kvc_directory_open_for_abi(KVC_ABI_VERSION, json.as_ptr(), &mut out) }, out)
}

fn open_store(layers: &[kvc_layer]) -> (kvc_status, *mut kvc_store) {
    open_store_with("", layers)
}

fn open_store_with(more: &str, layers: &[kvc_layer]) -> (kvc_status, *mut kvc_store) {
    let json = format!("{{\"slot_blocks\": 2, \"capacity_bytes\": 4096, \"copy_threads\": 0{more}}}");
    let (json, mut out) = (CString::new(json).expect("no NUL"), null_mut());
    // SAFETY: a text, layers of the size that they say, and a place.
    let status = unsafe {
        kvc_store_open_for_abi(KVC_ABI_VERSION, json.as_ptr(), layers.as_ptr(), layers.len(), &mut out)
    };
    (status, out)
}

/// An answer of a function that tells its size first.
fn answer(mut call: impl FnMut(*mut c_void, *mut usize) -> kvc_status) -> Vec<u8> {
    let mut bytes = 0;
    assert_eq!(call(null_mut(), &mut bytes), KVC_OK, "{}", last_error());
    let mut buffer = vec![0u8; bytes.max(1)];
    assert_eq!(call(buffer.as_mut_ptr().cast(), &mut bytes), KVC_OK, "{}", last_error());
    buffer.truncate(bytes);
    buffer
}

fn tables_of(tables: &[Vec<u32>]) -> Vec<kvc_block_table> {
    let table = |blocks: &Vec<u32>| kvc_block_table { blocks: blocks.as_ptr(), count: blocks.len() };
    tables.iter().map(table).collect()
}

impl Engine {
    fn new(load_mode: &str) -> Self {
        let mut memory = vec![0; LAYERS * BLOCKS * PAGE_BYTES];
        let second = memory[BLOCKS * PAGE_BYTES..].as_mut_ptr();
        let (status, store) = open_store(&[layer(c"0", memory.as_mut_ptr()), layer(c"1", second)]);
        assert_eq!(status, KVC_OK, "{}", last_error());
        let (status, directory) = directory(&format!(", \"load_mode\": \"{load_mode}\""));
        assert_eq!(status, KVC_OK, "{}", last_error());
        Self { directory, store, memory, plans: Vec::new(), now_s: 0.0 }
    }

    fn take_plan(&mut self) {
        self.now_s += 0.01;
        // SAFETY: a buffer of the size that is said.
        let plan = answer(|buffer, bytes| unsafe {
            kvc_directory_take_plan(self.directory, 8, self.now_s, buffer, bytes)
        });
        self.plans.push(plan);
    }

    /// A whole step with the oldest plan.
    fn step(&mut self) {
        if self.plans.is_empty() {
            self.take_plan();
        }
        let plan = self.plans.remove(0);
        let (mut flag, mut other) = (0, 0);
        // SAFETY: buffers of the sizes that are said.
        unsafe {
            let status = kvc_store_begin_step(
                self.store,
                plan.as_ptr().cast(),
                plan.len(),
                null(),
                &mut flag,
                &mut other,
            );
            assert_eq!(status, KVC_OK, "{}", last_error());
            assert_eq!(kvc_store_start_loads(self.store), KVC_OK);
            for layer in 0..LAYERS {
                assert_eq!(kvc_store_wait_layer(self.store, layer, null()), KVC_OK);
                assert_eq!(kvc_store_store_layer(self.store, layer, null()), KVC_OK);
            }
            assert_eq!(kvc_store_end_step(self.store, 1, null(), &mut flag), KVC_OK);
        }
        self.report();
    }

    fn report(&mut self) {
        // SAFETY: as above.
        unsafe {
            let report = answer(|buffer, bytes| kvc_store_take_report(self.store, buffer, bytes));
            if !report.is_empty() {
                let status = kvc_directory_absorb(self.directory, report.as_ptr().cast(), report.len());
                assert_eq!(status, KVC_OK, "{}", last_error());
            }
        }
    }

    fn add(&self, request: &std::ffi::CStr, tokens: &[i32]) {
        // SAFETY: texts and numbers that live here.
        unsafe {
            assert_eq!(kvc_directory_add_request(self.directory, request.as_ptr(), null()), KVC_OK);
            let status =
                kvc_directory_extend_tokens(self.directory, request.as_ptr(), tokens.as_ptr(), tokens.len());
            assert_eq!(status, KVC_OK, "{}", last_error());
        }
    }

    fn lookup(&self, request: &std::ffi::CStr, local: usize, total: usize) -> (kvc_status, usize) {
        let (mut tokens, mut asynchronous) = (0, 0);
        // SAFETY: a text and places.
        let status = unsafe {
            kvc_directory_lookup(
                self.directory,
                request.as_ptr(),
                local,
                total,
                self.now_s,
                &mut tokens,
                &mut asynchronous,
            )
        };
        (status, tokens)
    }

    fn commit_load(&self, request: &std::ffi::CStr, tokens: usize, tables: &[Vec<u32>]) -> kvc_status {
        let (tables, mut asynchronous) = (tables_of(tables), 0);
        // SAFETY: a text, tables that live in the caller, and a place.
        unsafe {
            kvc_directory_commit_load(
                self.directory,
                request.as_ptr(),
                tokens,
                tables.as_ptr(),
                tables.len(),
                &mut asynchronous,
            )
        }
    }

    /// The job, or what was refused, and the number of blocks that are held.
    fn offload(
        &self,
        request: &std::ffi::CStr,
        computed: usize,
        tables: &[Vec<u32>],
        room: usize,
    ) -> (kvc_status, u64, usize) {
        let (mut held, mut held_count) = (vec![0; room.max(1)], room);
        let (tables, mut job, mut next) = (tables_of(tables), 0, 0);
        // SAFETY: a text, tables that live in the caller, and places as long as they are said to be.
        let status = unsafe {
            kvc_directory_offload(
                self.directory,
                request.as_ptr(),
                computed,
                tables.as_ptr(),
                tables.len(),
                &mut job,
                held.as_mut_ptr(),
                &mut held_count,
                &mut next,
            )
        };
        (status, job, held_count)
    }

    /// All jobs that have ended, with the number of blocks that are given back.
    fn ended(&self) -> Vec<(u64, usize)> {
        let mut jobs = Vec::new();
        loop {
            let (mut job, mut blocks, mut count) = (0, [0; 64], 64);
            // SAFETY: places, and as much room as is said.
            let status = unsafe {
                kvc_directory_next_ended(self.directory, &mut job, blocks.as_mut_ptr(), &mut count)
            };
            if status == KVC_PENDING {
                return jobs;
            }
            assert_eq!(status, KVC_OK, "{}", last_error());
            jobs.push((job, count));
        }
    }

    fn page(&mut self, layer: usize, block: u32) -> &mut [u8] {
        let start = (layer * BLOCKS + block as usize) * PAGE_BYTES;
        &mut self.memory[start..start + PAGE_BYTES]
    }

    fn finish(&self, request: &std::ffi::CStr) {
        // SAFETY: a text.
        assert_eq!(unsafe { kvc_directory_finish(self.directory, request.as_ptr()) }, KVC_OK);
    }

    fn is_pending(&self) -> bool {
        let mut pending = 0;
        // SAFETY: a place.
        assert_eq!(unsafe { kvc_directory_has_pending_work(self.directory, &mut pending) }, KVC_OK);
        pending == 1
    }

    /// Stores two slots from some blocks and loads them into others, in which there was something else.
    fn bytes_come_back(&mut self) {
        let tokens: Vec<i32> = (7000..7000 + 17).collect();
        for (index, block) in (0..4).enumerate() {
            for layer in 0..LAYERS {
                self.page(layer, block).fill((16 * layer + index + 1) as u8);
            }
        }
        self.add(c"writer", &tokens);
        let (_, job, held) = self.offload(c"writer", 16, &[(0..4).collect()], 4);
        assert!(held == 0 || job > 0, "0 stands for no job");
        self.step();
        self.finish(c"writer");
        assert!(held == 0 || self.ended().contains(&(job, held)));
        self.add(c"reader", &tokens);
        assert_eq!(self.lookup(c"reader", 0, 17), (KVC_OK, 16), "{}", last_error());
        self.memory[..].fill(0xEE);
        assert_eq!(self.commit_load(c"reader", 16, &[(8..12).collect()]), KVC_OK, "{}", last_error());
        self.step();
        self.finish(c"reader");
        for (index, block) in (8..12).enumerate() {
            for layer in 0..LAYERS {
                let expected = (16 * layer + index + 1) as u8;
                assert!(self.page(layer, block).iter().all(|byte| *byte == expected), "{layer} {block}");
            }
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        kvc_store_close(self.store);
        kvc_directory_close(self.directory);
    }
}

#[test]
fn bytes_come_back_through_both_halves() {
    for mode in ["layerwise", "async"] {
        let mut engine = Engine::new(mode);
        engine.step();
        engine.bytes_come_back();
    }
}

/// The engine would compute with blocks that nobody has filled.
#[test]
fn a_load_that_was_not_offered_is_an_error() {
    let mut engine = Engine::new("layerwise");
    engine.step();
    engine.bytes_come_back();
    engine.add(c"a", &(7000..7017).collect::<Vec<i32>>());
    let table = [(8..12).collect::<Vec<u32>>()];
    let refused = |status| {
        assert_eq!(status, KVC_INVALID_ARGUMENT);
        assert!(last_error().contains("the last look-up of \"a\" offers 0"), "{}", last_error());
    };
    refused(engine.commit_load(c"a", 16, &table));
    assert_eq!(engine.lookup(c"a", 0, 17), (KVC_OK, 16));
    assert_eq!(engine.commit_load(c"a", usize::MAX, &table), KVC_INVALID_ARGUMENT);
    assert_eq!(engine.commit_load(c"a", 16, &table), KVC_OK);
    refused(engine.commit_load(c"a", 16, &table));
    assert_eq!(engine.commit_load(c"a", 0, &table), KVC_OK, "nothing is counted on");
}

/// What lies behind the end of a table would be neither loaded nor stored, and the engine would compute with it.
#[test]
fn tables_that_end_early_are_errors() {
    let mut engine = Engine::new("layerwise");
    engine.step();
    engine.bytes_come_back();
    engine.add(c"a", &(7000..7017).collect::<Vec<i32>>());
    assert_eq!(engine.lookup(c"a", 4, 17), (KVC_OK, 12));
    let refused = |status, words| {
        assert_eq!(status, KVC_INVALID_ARGUMENT);
        assert!(last_error().contains(words), "{}", last_error());
    };
    let (short, whole) = ([vec![8, 9, 10]], [vec![8, 9, 10, 11]]);
    refused(engine.commit_load(c"a", 12, &short), "tables[0] has 3 blocks of 4 tokens, and 16 tokens need 4");
    assert_eq!(engine.commit_load(c"a", 12, &whole), KVC_OK, "{}", last_error());
    engine.add(c"b", &(0..9).collect::<Vec<i32>>());
    refused(
        engine.offload(c"b", 9, &[vec![0]], 1).0,
        "tables[0] has 1 blocks of 4 tokens, and 8 tokens need 2",
    );
    assert_eq!(engine.offload(c"b", 9, &[vec![0, 1]], 2).2, 2, "a block that is not whole is not copied");
}

/// One source of keys for a directory: what the other one gives would be forgotten.
#[test]
fn keys_of_the_wrong_source_are_errors() {
    for (source, takes_tokens) in [("tokens", true), ("engine", false)] {
        let (status, directory) = directory(&format!(", \"key_source\": \"{source}\""));
        assert_eq!(status, KVC_OK, "{}", last_error());
        // SAFETY: texts and numbers that live here.
        unsafe {
            assert_eq!(kvc_directory_add_request(directory, c"a".as_ptr(), null()), KVC_OK);
            let tokens = kvc_directory_extend_tokens(directory, c"a".as_ptr(), [1, 2].as_ptr(), 2);
            let hashes = kvc_directory_extend_hashes(directory, c"a".as_ptr(), [7; 32].as_ptr(), 32, 1);
            let refused =
                if takes_tokens { (KVC_OK, KVC_INVALID_ARGUMENT) } else { (KVC_INVALID_ARGUMENT, KVC_OK) };
            assert_eq!((tokens, hashes), refused);
            assert!(last_error().contains(&format!("is \"{source}\": pass")), "{}", last_error());
        }
        kvc_directory_close(directory);
    }
}

/// A rank more than the directory counts with would never be waited for.
#[test]
fn reports_of_unknown_ranks_are_errors() {
    let mut memory = vec![0; BLOCKS * PAGE_BYTES];
    let (status, store) = open_store_with(", \"rank\": 1, \"ranks\": 2", &[layer(c"0", memory.as_mut_ptr())]);
    assert_eq!(status, KVC_OK, "{}", last_error());
    // SAFETY: a buffer of the size that is said.
    let report = answer(|buffer, bytes| unsafe { kvc_store_take_report(store, buffer, bytes) });
    for (ranks, expected) in [(1, KVC_MALFORMED), (2, KVC_OK)] {
        let (_, directory) = directory(&format!(", \"ranks\": {ranks}"));
        // SAFETY: bytes that live here.
        let status = unsafe { kvc_directory_absorb(directory, report.as_ptr().cast(), report.len()) };
        assert_eq!(status, expected, "{}", last_error());
        kvc_directory_close(directory);
    }
    assert!(last_error().contains("of rank 1, and \"ranks\" of this directory is 1"), "{}", last_error());
    kvc_store_close(store);
}

/// Engines fill the tails of their tables with -1; and number blocks from 0.
#[test]
fn no_block_is_not_stored_and_block_0_is_one() {
    let mut engine = Engine::new("layerwise");
    engine.step();
    engine.add(c"a", &(0..8).collect::<Vec<i32>>());
    assert_eq!(engine.offload(c"a", 8, &[vec![3, u32::MAX]], 2).1, 0);
    engine.add(c"b", &(0..8).collect::<Vec<i32>>());
    let (status, _, held) = engine.offload(c"b", 8, &[vec![0, 1]], 1);
    assert_eq!((status, held), (KVC_BUFFER_TOO_SMALL, 2), "what is needed is told");
    let (status, _, held) = engine.offload(c"b", 8, &[vec![0, 1]], 2);
    assert_eq!((status, held), (KVC_OK, 2));
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let mut memory = vec![0; BLOCKS * PAGE_BYTES];
    let good = layer(c"0", memory.as_mut_ptr());
    assert_eq!(open_store(&[kvc_layer { base: null_mut(), ..good }]).0, KVC_NULL_ARGUMENT);
    assert!(last_error().contains("layers[0].base is NULL"), "{}", last_error());
    assert_eq!(open_store(&[kvc_layer { reserved: 1, ..good }]).0, KVC_INVALID_ARGUMENT);
    for more in
        ["", ", \"namespace\": \" \"", ", \"namespace\": \"a\"", ", \"namespace\": \"a\", \"shard\": \"\""]
    {
        let more = format!(", \"slab_path\": \"/dev/shm\"{more}");
        assert_eq!(open_store_with(&more, &[good]).0, KVC_BAD_CONFIG);
        assert!(last_error().contains("blocks that others can find need one"), "{}", last_error());
    }
    let nowhere = ", \"slab_path\": \"/no/such\", \"namespace\": \"a\", \"shard\": \"b\"";
    assert_eq!(open_store_with(nowhere, &[good]).0, KVC_BAD_CONFIG);
    assert!(last_error().contains("slab_path /no/such does not exist"), "{}", last_error());
    assert_eq!(directory(", \"ranks\": 4000000000").0, KVC_BAD_CONFIG);
    assert!(last_error().contains("use 1 to 65536"), "{}", last_error());
}

/// Without a word on the prompt's length all of a request counts as prompt.
#[test]
fn an_unset_prompt_length_limits_nothing() {
    let mut engine = Engine::new("layerwise");
    kvc_directory_close(engine.directory);
    engine.directory = directory(", \"prompt_only\": true").1;
    engine.step();
    let options = kvc_request {
        struct_size: size_of::<kvc_request>(),
        prompt_tokens: 0,
        max_load_tokens: 0,
        max_store_tokens: 0,
        skip_load: 0,
        skip_store: 0,
        extra: null(),
        extra_bytes: 0,
    };
    // SAFETY: a text and a structure of the size that it says.
    assert_eq!(unsafe { kvc_directory_add_request(engine.directory, c"a".as_ptr(), &options) }, KVC_OK);
    engine.add(c"a", &(0..8).collect::<Vec<i32>>());
    assert_eq!(engine.offload(c"a", 8, &[vec![0, 1]], 2).2, 2);
}

#[derive(Clone, Debug)]
enum Call {
    Add(usize),
    Extend(usize, usize),
    Prefetch(usize, usize),
    Lookup(usize, usize, usize),
    CommitLoad(usize, usize, Vec<Vec<u32>>),
    Offload(usize, usize, Vec<Vec<u32>>),
    Finish(usize),
    Reset,
    TakePlan,
    Begin,
    BeginGarbage(Vec<u8>),
    StartLoads,
    WaitLayer(usize),
    StoreLayer(usize),
    EndStep(i32),
    Report,
    AbsorbGarbage(Vec<u8>),
    NextReceived,
    LoadErrors,
    NextEnded,
    Step,
}

fn calls() -> impl Strategy<Value = Call> {
    use Call::*;
    let request = || 0..NAMES.len();
    let number = || {
        prop_oneof![
            6 => 0usize..40,
            1 => prop::sample::select(vec![usize::MAX, usize::MAX / 2 + 1, 1 << 32, 1 << 20]),
        ]
    };
    let block =
        || prop_oneof![12 => 0u32..BLOCKS as u32, 1 => prop::sample::select(vec![32, 1 << 20, u32::MAX])];
    let table = move || prop::collection::vec(block(), 0..12);
    let tables = move || prop_oneof![8 => table().prop_map(|table| vec![table]), 1 => prop::collection::vec(table(), 0..3)];
    let garbage = || prop::collection::vec(any::<u8>(), 1..40);
    prop_oneof![
        4 => request().prop_map(|of| Add(of % 3)),
        4 => (request(), 0usize..24).prop_map(|(of, count)| Extend(of, count)),
        1 => (request(), number()).prop_map(|(of, total)| Prefetch(of, total)),
        6 => (request(), number(), number()).prop_map(|(of, local, total)| Lookup(of, local, total)),
        6 => (request(), number(), tables()).prop_map(|(of, tokens, tables)| CommitLoad(of, tokens, tables)),
        6 => (request(), number(), tables()).prop_map(|(of, tokens, tables)| Offload(of, tokens, tables)),
        2 => request().prop_map(Finish),
        1 => Just(Reset),
        3 => Just(TakePlan),
        3 => Just(Begin),
        1 => garbage().prop_map(BeginGarbage),
        2 => Just(StartLoads),
        2 => number().prop_map(WaitLayer),
        2 => number().prop_map(StoreLayer),
        2 => (-1i32..4).prop_map(EndStep),
        3 => Just(Report),
        1 => garbage().prop_map(AbsorbGarbage),
        1 => Just(NextReceived),
        1 => Just(LoadErrors),
        1 => Just(NextEnded),
        8 => Just(Step),
    ]
}

impl Engine {
    fn make(&mut self, call: Call) -> kvc_status {
        let (directory, store) = (self.directory, self.store);
        let name = |of: usize| NAMES[of].as_ptr();
        let (mut number, mut flag, mut other) = (0usize, 0i32, 0i32);
        // SAFETY: texts and buffers that live through the calls and are as long as they are said to be.
        unsafe {
            match call {
                Call::Add(of) => kvc_directory_add_request(directory, name(of), null()),
                Call::Extend(of, count) => {
                    assert_eq!(kvc_directory_known(directory, name(of), &mut number), KVC_OK);
                    // All requests have the same tokens, so that they share blocks.
                    let tokens: Vec<i32> = (number as i32..(number + count) as i32).collect();
                    kvc_directory_extend_tokens(directory, name(of), tokens.as_ptr(), count)
                }
                Call::Prefetch(of, total) => kvc_directory_prefetch(directory, name(of), total, self.now_s),
                Call::Lookup(of, local, total) => self.lookup(NAMES[of], local, total).0,
                Call::CommitLoad(of, tokens, tables) => self.commit_load(NAMES[of], tokens, &tables),
                Call::Offload(of, tokens, tables) => self.offload(NAMES[of], tokens, &tables, 40).0,
                Call::Finish(of) => kvc_directory_finish(directory, name(of)),
                Call::Reset => kvc_directory_reset(directory),
                Call::TakePlan => {
                    self.take_plan();
                    KVC_OK
                }
                Call::Begin if self.plans.is_empty() => KVC_OK,
                Call::Begin => {
                    let plan = self.plans.remove(0);
                    let bytes = plan.len();
                    kvc_store_begin_step(store, plan.as_ptr().cast(), bytes, null(), &mut flag, &mut other)
                }
                Call::BeginGarbage(plan) => {
                    let bytes = plan.len();
                    kvc_store_begin_step(store, plan.as_ptr().cast(), bytes, null(), &mut flag, &mut other)
                }
                Call::StartLoads => kvc_store_start_loads(store),
                Call::WaitLayer(layer) => kvc_store_wait_layer(store, layer, null()),
                Call::StoreLayer(layer) => kvc_store_store_layer(store, layer, null()),
                Call::EndStep(end) => kvc_store_end_step(store, end, null(), &mut flag),
                Call::Report => {
                    self.report();
                    KVC_OK
                }
                Call::AbsorbGarbage(report) => {
                    kvc_directory_absorb(directory, report.as_ptr().cast(), report.len())
                }
                Call::NextReceived => {
                    let mut buffer = [0; 32];
                    number = buffer.len();
                    kvc_store_next_received(store, buffer.as_mut_ptr(), &mut number, &mut flag)
                }
                Call::LoadErrors => {
                    let mut blocks = [0; 4];
                    number = blocks.len();
                    kvc_store_take_load_errors(store, blocks.as_mut_ptr(), &mut number)
                }
                Call::NextEnded => {
                    let (mut job, mut blocks) = (0, [0; 4]);
                    number = blocks.len();
                    kvc_directory_next_ended(directory, &mut job, blocks.as_mut_ptr(), &mut number)
                }
                Call::Step => {
                    self.step();
                    KVC_OK
                }
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever an engine calls, in whatever order: no defect is found, all jobs end, and bytes still come back.
    #[test]
    fn any_calls_leave_both_halves_whole(
        mode in prop::sample::select(vec!["layerwise", "async", "auto"]),
        calls in prop::collection::vec(calls(), 0..60),
    ) {
        let mut engine = Engine::new(mode);
        for call in calls {
            let words = format!("{call:?}");
            let status = engine.make(call);
            prop_assert!(status != KVC_INTERNAL && status != KVC_BAD_HANDLE, "{words}: {}", last_error());
        }
        for name in NAMES {
            engine.finish(name);
        }
        let mut steps = 0;
        while engine.is_pending() || !engine.plans.is_empty() || steps == 0 {
            engine.step();
            steps += 1;
            prop_assert!(steps < 100, "jobs do not end");
        }
        engine.bytes_come_back();
    }
}
