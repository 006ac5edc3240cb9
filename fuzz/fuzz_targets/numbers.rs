#![no_main]

use kvcache_wire::fuzz_entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzz_entry::numbers(bytes);
});
