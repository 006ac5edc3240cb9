//! Names of blocks: 16 bytes that cover every token up to the end of the block.

use std::fmt;

/// Identifies a block by its whole prefix. Equal keys mean equal tokens up to the block's end in one namespace.
///
/// A key holds nothing that differs between the ranks of an engine, so that one decision is right for all of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(transparent)]
pub struct BlockKey(pub [u8; 16]);

impl BlockKey {
    /// Bytes of a key, here and in every serialised form.
    pub const BYTES: usize = 16;

    /// The first eight bytes as an integer: enough to address a hash table, never enough to compare keys.
    #[inline]
    pub fn short_hash(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

impl fmt::Debug for BlockKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}
