#![no_main]

use kvcache_wire::extension::CommitItem;
use kvcache_wire::fuzz_entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzz_entry::batch::<CommitItem>(bytes);
});
