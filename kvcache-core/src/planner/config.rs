//! What a planner is told of its engine, and what of it cannot be meant.

use super::{PlannerConfig, request::KeySource};
use crate::directory::GroupKind;

/// A configuration that no engine has: with it, keys and slots would not be those of the tokens they stand for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum PlannerConfigError {
    /// There is nothing to store.
    #[error("groups is empty: give at least one KV cache group")]
    NoGroup,
    /// More groups than keys can tell apart.
    #[error("{0} KV cache groups: groups are numbered with 16 bits")]
    Groups(usize),
    /// A slot of no blocks.
    #[error("slot_blocks is 0: use 1 or more")]
    NoSlotBlocks,
    /// Hashes of no tokens.
    #[error("hash_tokens is 0: give the tokens that one engine hash covers")]
    NoHashTokens,
    /// Nobody would ever report.
    #[error("ranks is 0: give the number of workers that report")]
    NoRanks,
    /// Blocks of no tokens.
    #[error("group {0} has block_tokens 0: give the tokens of one engine block")]
    NoBlockTokens(usize),
    /// A window that sees nothing.
    #[error("group {0} is sliding and has window_tokens 0: give the attention window in tokens")]
    NoWindow(usize),
    /// The tokens of a slot cannot be counted.
    #[error(
        "group {group} has {block_tokens} tokens a block, times slot_blocks {slot_blocks}: lower slot_blocks"
    )]
    SlotTokens {
        /// The group.
        group: usize,
        /// Tokens of one of its blocks.
        block_tokens: usize,
        /// Blocks in a slot.
        slot_blocks: usize,
    },
    /// A slot's end is not the end of a hash, so no hash names the slot.
    #[error(
        "group {group} has slots of {slot_tokens} tokens, which is no multiple of hash_tokens {hash_tokens}: raise \
         slot_blocks, or take keys from tokens"
    )]
    HashTokens {
        /// The group.
        group: usize,
        /// Tokens of one of its slots.
        slot_tokens: usize,
        /// Tokens of an engine hash.
        hash_tokens: usize,
    },
}

impl PlannerConfig {
    /// Whether a planner can work with this.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), PlannerConfigError> {
        use PlannerConfigError as Error;
        if self.groups.is_empty() {
            return Err(Error::NoGroup);
        }
        if self.groups.len() > usize::from(u16::MAX) + 1 {
            return Err(Error::Groups(self.groups.len()));
        }
        if self.slot_blocks == 0 {
            return Err(Error::NoSlotBlocks);
        }
        if self.hash_tokens == 0 {
            return Err(Error::NoHashTokens);
        }
        if self.ranks == 0 {
            return Err(Error::NoRanks);
        }
        for (group, spec) in self.groups.iter().enumerate() {
            let (block_tokens, slot_blocks, hash_tokens) =
                (spec.block_tokens, self.slot_blocks, self.hash_tokens);
            if block_tokens == 0 {
                return Err(Error::NoBlockTokens(group));
            }
            if spec.kind == (GroupKind::Sliding { window_tokens: 0 }) {
                return Err(Error::NoWindow(group));
            }
            let slot_tokens = block_tokens.checked_mul(slot_blocks).ok_or(Error::SlotTokens {
                group,
                block_tokens,
                slot_blocks,
            })?;
            if self.key_source == KeySource::Engine && !slot_tokens.is_multiple_of(hash_tokens) {
                return Err(Error::HashTokens { group, slot_tokens, hash_tokens });
            }
        }
        Ok(())
    }
}
