//! What the C boundary costs: the shared library, loaded as a C program loads it, against the Rust API in the same run.
//!
//! `cargo bench -p kvcache-capi --bench overhead` (`-- --json` for `make bench`)
//!
//! Each round times both on a cache of its own with the same blocks, in turn; a ratio is formed within its round, and the
//! median, smallest and largest of the rounds are printed.

use std::ffi::{CString, c_char, c_void};
use std::hint::black_box;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use kvcache_assembly::CacheSettings;
use kvcache_core::BlockKey;
use kvcache_core::block_cache::BlockCache;

const ROUNDS: usize = 15;

fn main() {
    let library = Library::open();
    let mut rows = match_of_one_block(&library);
    for block_bytes in [32 << 10, 2 << 20] {
        rows.extend(put_and_get(&library, block_bytes));
    }
    if std::env::args().any(|argument| argument == "--json") {
        let rows: Vec<String> = rows.iter().map(Row::json).collect();
        println!("[{}]", rows.join(", "));
    } else {
        rows.iter().for_each(|row| println!("{row}"));
    }
}

fn match_of_one_block(library: &Library) -> Vec<Row> {
    const CALLS: u32 = 200_000;
    let both = Both::open(library, 4096, 1 << 20);
    let keys = keys(1);
    let data = vec![1; 4096];
    assert_eq!((both.rust.put(&keys, &data), both.c_put(&keys, &data)), (Ok(1), 1));
    let per_call = |act: &dyn Fn()| {
        let began = Instant::now();
        (0..CALLS).for_each(|_| act());
        began.elapsed().as_nanos() as f64 / f64::from(CALLS)
    };
    let (mut c, mut rust) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        c.push(per_call(&|| assert_eq!(both.c_match(black_box(&keys)), 1)));
        rust.push(per_call(&|| assert_eq!(both.rust.match_prefix(black_box(&keys)), 1)));
    }
    let row = |who, rounds, at_most| Row {
        what: format!("match of one block, {who}"),
        unit: "ns",
        rounds,
        at_most,
        at_least: None,
    };
    vec![row("C", c, Some(300.0)), row("Rust", rust, None)]
}

fn put_and_get(library: &Library, block_bytes: usize) -> Vec<Row> {
    const CACHE_BYTES: usize = 512 << 20;
    const CALL_BYTES: usize = 64 << 20;
    let both = Both::open(library, block_bytes, CACHE_BYTES);
    let blocks = CALL_BYTES / block_bytes;
    let prompts: Vec<Vec<BlockKey>> = (0..CACHE_BYTES / CALL_BYTES).map(|_| keys(blocks)).collect();
    let mut buffer: Vec<u8> = (0..CALL_BYTES).map(|byte| (byte / 3) as u8).collect();
    // Memory that was never touched would be measured otherwise.
    for keys in &prompts {
        assert_eq!((both.rust.put(keys, &buffer), both.c_put(keys, &buffer)), (Ok(blocks), blocks));
    }
    let rate = |act: &mut dyn FnMut(&[BlockKey])| {
        let began = Instant::now();
        prompts.iter().for_each(|keys| act(keys));
        CACHE_BYTES as f64 / began.elapsed().as_nanos() as f64
    };
    let (mut puts, mut gets) = (Vec::new(), Vec::new());
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..ROUNDS {
        for prompt in &prompts {
            assert_eq!((both.rust.delete(prompt), both.c_delete(prompt)), (blocks, blocks));
        }
        let c_put = || rate(&mut |keys| assert_eq!(both.c_put(keys, &buffer), blocks));
        let rust_put = || rate(&mut |keys| assert_eq!(both.rust.put(keys, &buffer), Ok(blocks)));
        // Whoever comes first may find the clock of the processor lower.
        let (c, rust) = if round % 2 == 0 {
            let c = c_put();
            (c, rust_put())
        } else {
            let rust = rust_put();
            (c_put(), rust)
        };
        rates[0].push(c);
        puts.push(c / rust);
        let (c, rust) = if round % 2 == 0 {
            let c = rate(&mut |keys| assert_eq!(both.c_get(keys, &mut buffer), blocks));
            (c, rate(&mut |keys| assert_eq!(both.rust.get(keys, &mut buffer), Ok(blocks))))
        } else {
            let rust = rate(&mut |keys| assert_eq!(both.rust.get(keys, &mut buffer), Ok(blocks)));
            (rate(&mut |keys| assert_eq!(both.c_get(keys, &mut buffer), blocks)), rust)
        };
        rates[1].push(c);
        gets.push(c / rust);
    }
    let mut rows = Vec::new();
    for ((way, ratios), rates) in [("put", puts), ("get", gets)].into_iter().zip(rates) {
        let what = format!("{way} of {} KiB blocks, C", block_bytes >> 10);
        let to_rust = format!("{what} to Rust");
        rows.push(Row { what, unit: "GB/s", rounds: rates, at_most: None, at_least: None });
        rows.push(Row { what: to_rust, unit: "", rounds: ratios, at_most: None, at_least: Some(0.98) });
    }
    rows
}

fn keys(count: usize) -> Vec<BlockKey> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let key = |_| {
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let mut key = [0; 16];
        key[..8].copy_from_slice(&number.wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
        key[8..].copy_from_slice(&number.to_le_bytes());
        BlockKey(key)
    };
    (0..count).map(key).collect()
}

type Counted<P> = unsafe extern "C" fn(*mut c_void, *const u8, usize, P, usize, *mut usize) -> i32;
type Matched = unsafe extern "C" fn(*mut c_void, *const u8, usize, *mut usize) -> i32;

type Open = unsafe extern "C" fn(*const c_char, *mut *mut c_void) -> i32;
type Close = unsafe extern "C" fn(*mut c_void);

/// The functions of the shared library.
struct Library {
    open: Open,
    close: Close,
    find: Matched,
    delete: Matched,
    put: Counted<*const c_void>,
    get: Counted<*mut c_void>,
}

impl Library {
    fn open() -> Self {
        // Cargo builds it beside this program.
        let program = std::env::current_exe().expect("the path of this program");
        let path: PathBuf = program.with_file_name("libkvcache.so");
        let name = CString::new(path.to_str().expect("a path of text")).expect("no NUL");
        // SAFETY: a path; loading the library runs nothing but the runtime's own constructors.
        let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
        assert!(!library.is_null(), "cannot load {}", path.display());
        let symbol = |name: &std::ffi::CStr| {
            // SAFETY: an open library and a name.
            let symbol = unsafe { libc::dlsym(library, name.as_ptr()) };
            assert!(!symbol.is_null(), "{name:?} is missing");
            symbol
        };
        // SAFETY: these functions have these types in include/kvcache.h; the library is never closed.
        unsafe {
            use std::mem::transmute;
            Self {
                open: transmute::<*mut c_void, Open>(symbol(c"kvc_open")),
                close: transmute::<*mut c_void, Close>(symbol(c"kvc_close")),
                find: transmute::<*mut c_void, Matched>(symbol(c"kvc_match")),
                delete: transmute::<*mut c_void, Matched>(symbol(c"kvc_delete")),
                put: transmute::<*mut c_void, Counted<*const c_void>>(symbol(c"kvc_put")),
                get: transmute::<*mut c_void, Counted<*mut c_void>>(symbol(c"kvc_get")),
            }
        }
    }
}

/// The same cache twice: behind the C functions and behind the Rust API.
struct Both<'a> {
    library: &'a Library,
    handle: *mut c_void,
    rust: Arc<BlockCache>,
}

impl<'a> Both<'a> {
    fn open(library: &'a Library, block_bytes: usize, capacity_bytes: usize) -> Self {
        let rust = CacheSettings::new(block_bytes, capacity_bytes as u64).open().expect("a cache");
        let json = format!("{{\"block_bytes\": {block_bytes}, \"capacity_bytes\": {capacity_bytes}}}");
        let json = CString::new(json).expect("no NUL");
        let mut handle = std::ptr::null_mut();
        // SAFETY: a text and a place.
        assert_eq!(unsafe { (library.open)(json.as_ptr(), &mut handle) }, 0);
        Self { library, handle, rust: Arc::clone(rust.core()) }
    }

    fn c_match(&self, keys: &[BlockKey]) -> usize {
        // SAFETY: keys of the length that is said, an open handle; so below.
        count(|count| unsafe { (self.library.find)(self.handle, keys.as_ptr().cast(), keys.len(), count) })
    }

    fn c_delete(&self, keys: &[BlockKey]) -> usize {
        // SAFETY: as above.
        count(|count| unsafe { (self.library.delete)(self.handle, keys.as_ptr().cast(), keys.len(), count) })
    }

    fn c_put(&self, keys: &[BlockKey], data: &[u8]) -> usize {
        let (start, bytes) = (data.as_ptr().cast(), data.len());
        // SAFETY: as above, and a buffer of the length that is said.
        count(|count| unsafe {
            (self.library.put)(self.handle, keys.as_ptr().cast(), keys.len(), start, bytes, count)
        })
    }

    fn c_get(&self, keys: &[BlockKey], out: &mut [u8]) -> usize {
        let (start, bytes) = (out.as_mut_ptr().cast(), out.len());
        // SAFETY: as above.
        count(|count| unsafe {
            (self.library.get)(self.handle, keys.as_ptr().cast(), keys.len(), start, bytes, count)
        })
    }
}

impl Drop for Both<'_> {
    fn drop(&mut self) {
        // SAFETY: a handle of this library.
        unsafe { (self.library.close)(self.handle) };
    }
}

fn count(call: impl FnOnce(*mut usize) -> i32) -> usize {
    let mut count = 0;
    assert_eq!(call(&mut count), 0);
    count
}

/// What was measured in every round, and what its median has to be.
struct Row {
    what: String,
    unit: &'static str,
    rounds: Vec<f64>,
    at_most: Option<f64>,
    at_least: Option<f64>,
}

impl Row {
    /// Smallest, median and largest.
    fn spread(&self) -> [f64; 3] {
        let mut sorted = self.rounds.clone();
        sorted.sort_by(f64::total_cmp);
        [sorted[0], sorted[sorted.len() / 2], sorted[sorted.len() - 1]]
    }

    fn json(&self) -> String {
        let [low, median, high] = self.spread();
        let or_null = |bound: Option<f64>| bound.map_or("null".to_owned(), |bound| bound.to_string());
        format!(
            "{{\"what\": \"{}\", \"unit\": \"{}\", \"low\": {low}, \"median\": {median}, \"high\": {high}, \"rounds\": {}, \
             \"at_most\": {}, \"at_least\": {}}}",
            self.what,
            self.unit,
            self.rounds.len(),
            or_null(self.at_most),
            or_null(self.at_least)
        )
    }
}

impl std::fmt::Display for Row {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [low, median, high] = self.spread();
        let places = if low >= 10.0 { 0 } else { 3 };
        write!(f, "{}: {median:.places$} ({low:.places$} to {high:.places$}) {}", self.what, self.unit)?;
        if let Some(bound) = self.at_most {
            write!(f, ", at most {bound}")?;
        }
        if let Some(bound) = self.at_least {
            write!(f, ", at least {bound}")?;
        }
        Ok(())
    }
}
