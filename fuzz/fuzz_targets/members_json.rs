#![no_main]

use kvcache_rdma::members::fuzz_entry;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    fuzz_entry::members_json(bytes);
});
