//! Calls of the C library in any order, on handles that are open, closed or never were, with a hash map as the model.
#![no_main]

#[path = "../../kvcache-capi/tests/support/random_calls.rs"]
mod random_calls;

libfuzzer_sys::fuzz_target!(|choices: &[u8]| random_calls::run(choices));
