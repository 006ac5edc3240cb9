#![no_main]

// The first byte says in parts of how many bytes the rest comes.
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Some((part_bytes, stream)) = bytes.split_first() {
        let in_parts = kvcache_load::fuzz_entry(stream, usize::from(*part_bytes));
        assert_eq!(in_parts, kvcache_load::fuzz_entry(stream, stream.len()));
    }
});
