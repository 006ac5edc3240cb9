//! The self-test's copies, with and without memory that can be pinned.

use super::*;

/// Where pinned memory is needed for offloads, and none can be had.
fn cannot_pin() -> Rank {
    let rank = rank();
    rank.set(3, 70);
    rank.copies.refuse_to_register_after(0);
    rank.copies.behave(|behaviour| behaviour.pinned_offloads = true);
    rank
}

#[test]
fn a_block_is_read_and_written_through_pinned_memory() {
    let rank = cannot_pin();
    rank.copies.refuse_to_register_after(usize::MAX);
    let bytes = rank.store.read_block(0, 3).unwrap();
    rank.store.write_block(0, 5, &bytes).unwrap();
    assert!((0..LAYERS).all(|layer| rank.holds(layer, 5, 70)));
    assert!(rank.copies.registered().is_empty());
}

#[test]
fn a_block_is_written_without_pinned_memory() {
    let rank = cannot_pin();
    let bytes = vec![9; rank.store.layout.slot_bytes()];
    rank.store.write_block(0, 5, &bytes).unwrap();
    assert_eq!(rank.layers[0].word(5 * PAGE / 8), u64::from_ne_bytes([9; 8]));
}

#[test]
fn who_cannot_read_for_want_of_pinned_memory_says_what_to_do() {
    let rank = cannot_pin();
    let error = rank.store.read_block(0, 3).unwrap_err();
    assert!(matches!(error, ProbeError::NotPinned(_)), "{error}");
    let text = error.to_string();
    assert!(text.starts_with("host memory cannot be pinned: cuMemHostRegister failed"), "{text}");
    assert!(text.contains("ulimit -l"), "{text}");
}
