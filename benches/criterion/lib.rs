//! The benches are in `parts.rs` and `block_cache.rs`; there is nothing to link.
