//! How many slots a capacity is, and whether any machine has them.

use kvcache_core::slab::machine_memory_bytes;

use crate::Error;

/// Slots of `slot_bytes` in each of `shards` equal parts of a capacity; may be none.
///
/// # Errors
/// More than can be numbered. What is only above the memory that is left is for whoever takes it: a file that was found has its
/// memory already.
pub(crate) fn slot_count(capacity_bytes: u64, shards: u32, slot_bytes: usize) -> Result<u64, Error> {
    let part_bytes = capacity_bytes / u64::from(shards.max(1));
    let slots = part_bytes / (slot_bytes as u64).max(1);
    if slots <= u64::from(u32::MAX) {
        return Ok(slots);
    }
    Err(match machine_memory_bytes() {
        Some(memory_bytes) if memory_bytes < part_bytes => {
            Error::CapacityAboveMemory { capacity_bytes, memory_bytes }
        }
        _ => Error::SlotsAboveCount { capacity_bytes, slots, slot_bytes, shards },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_numbered_is_told_in_bytes() {
        assert_eq!(slot_count(1 << 40, 1, 1 << 20).unwrap(), 1 << 20);
        assert_eq!(slot_count(u64::from(u32::MAX), 1, 1).unwrap(), u64::from(u32::MAX));
        assert_eq!(slot_count(1 << 40, 4, 1 << 20).unwrap(), 1 << 18);
        let above = slot_count(u64::MAX, 1, 64).unwrap_err().to_string();
        let memory_bytes = machine_memory_bytes().unwrap();
        assert_eq!(
            above,
            format!(
                "capacity of {} bytes is above this machine's memory of {memory_bytes} bytes: lower capacity_bytes",
                u64::MAX
            )
        );
        // 4 GiB of single bytes: a machine has them, and no numbers for them.
        let text = slot_count(1 << 32, 1, 1).unwrap_err().to_string();
        assert!(text.contains("4294967296 bytes"), "{text}");
    }
}
