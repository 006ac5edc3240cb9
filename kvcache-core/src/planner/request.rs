//! What the planner remembers of a request: its keys, what it wants, and how far it has been offloaded.

use std::collections::HashMap;

use super::tier::RemoteState;
use super::{Arrival, Lookup, MissReason, PlannerConfig};
use crate::BlockKey;
use crate::block_key::{HashAlgorithm, TokenHasher};
use crate::directory::{Directory, Refusal};
use crate::plan::EngineHash;

/// Where block keys come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum KeySource {
    /// The engine's own block hashes.
    #[default]
    Engine,
    /// Token ids, chained here, so that engines of different kinds share blocks.
    Tokens(HashAlgorithm),
}

/// What a request asks for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RequestOptions {
    /// Load nothing for it.
    pub skip_load: bool,
    /// Store nothing of it.
    pub skip_store: bool,
    /// Load nothing behind this many leading tokens, those that the engine holds itself included.
    pub max_load_tokens: usize,
    /// Store nothing behind this many leading tokens.
    pub max_store_tokens: usize,
    /// Length of its prompt.
    pub prompt_tokens: usize,
    /// Separates keys beyond what the key source covers: LoRA and salt for [`KeySource::Tokens`], the content of a LoRA
    /// adapter for [`KeySource::Engine`].
    pub extra: Vec<u8>,
}

impl Default for RequestOptions {
    fn default() -> Self {
        Self {
            skip_load: false,
            skip_store: false,
            max_load_tokens: usize::MAX,
            max_store_tokens: usize::MAX,
            prompt_tokens: usize::MAX,
            extra: Vec::new(),
        }
    }
}

pub(super) struct Request {
    pub(super) arrival: Arrival,
    pub(super) options: RequestOptions,
    /// Keys of the whole slots so far, per group.
    pub(super) keys: Vec<Vec<BlockKey>>,
    /// Engine hash of the last block of each of those slots, per group; empty when keys come from tokens.
    hashes: Vec<Vec<EngineHash>>,
    hashers: Vec<TokenHasher>,
    tokens: Vec<Vec<u32>>,
    units: usize,
    /// Slots considered for offload, per group.
    pub(super) offloaded: Vec<usize>,
    /// Slots that were hits and are not touched yet, per group: see [`take_hits`](Self::take_hits).
    pub(super) hits: Vec<Vec<usize>>,
    /// Blocks evicted for it so far, of its share.
    pub(super) evicted: usize,
    /// Why a block of it was not stored and will not be: later ones would lie behind a hole.
    pub(super) refused: Option<Refusal>,
    /// For each slot that the reuse gate has counted, whether it passed: a request is one sight. Per group.
    pub(super) sighted: Vec<Vec<bool>>,
    /// Whether its KV was computed before a reset, so that none of it may be stored.
    pub(super) stale: bool,
    /// When it was first told to wait.
    pub(super) first_asked: Option<std::time::Duration>,
    /// The answer that the engine may act on.
    pub(super) answer: Option<Lookup>,
    pub(super) local_tokens: usize,
    pub(super) total_tokens: usize,
    /// How far it has come with L2.
    pub(super) remote: RemoteState,
    /// How often L2 was asked for it, and about how many leading tokens.
    pub(super) questions: u8,
    pub(super) asked_tokens: usize,
    /// Whether the jobs that bring its blocks know that it waits for them.
    pub(super) joined: bool,
    /// Of the slots that were ever sent for, how many until the last that it waits for.
    pub(super) sent_for: u64,
    /// Whether the engine has begun to compute it, so that fetching for it is in vain.
    pub(super) begun: bool,
    /// Tokens of its last load that had come from L2.
    pub(super) remote_tokens: usize,
}

impl Request {
    pub(super) fn new(config: &PlannerConfig, options: RequestOptions, arrival: Arrival) -> Self {
        let groups = config.groups.len();
        let hashers = match config.key_source {
            KeySource::Engine => Vec::new(),
            KeySource::Tokens(algorithm) => (0..groups)
                .map(|group| {
                    let mut extra = (group as u16).to_le_bytes().to_vec();
                    extra.extend_from_slice(&options.extra);
                    let slot_tokens = config.groups[group].block_tokens * config.slot_blocks;
                    TokenHasher::new(algorithm, &config.namespace, &extra, slot_tokens)
                })
                .collect(),
        };
        Self {
            arrival,
            options,
            keys: vec![Vec::new(); groups],
            hashes: vec![Vec::new(); groups],
            tokens: vec![Vec::new(); hashers.len()],
            hashers,
            units: 0,
            offloaded: vec![0; groups],
            hits: vec![Vec::new(); groups],
            evicted: 0,
            refused: None,
            sighted: vec![Vec::new(); groups],
            stale: false,
            first_asked: None,
            answer: None,
            local_tokens: 0,
            total_tokens: 0,
            remote: RemoteState::Fresh,
            questions: 0,
            asked_tokens: 0,
            joined: false,
            sent_for: 0,
            begun: false,
            remote_tokens: 0,
        }
    }

    pub(super) fn known_units(&self) -> usize {
        self.units
    }

    pub(super) fn extend_hashes<'a>(
        &mut self,
        config: &PlannerConfig,
        hashes: impl Iterator<Item = &'a [u8]>,
    ) {
        if !self.hashers.is_empty() {
            return;
        }
        for hash in hashes {
            self.units += 1;
            let tokens = self.units * config.hash_tokens;
            for (group, spec) in config.groups.iter().enumerate() {
                if tokens.is_multiple_of(spec.block_tokens * config.slot_blocks) {
                    self.keys[group].push(BlockKey::from_engine_hash(
                        &config.namespace,
                        group as u16,
                        hash,
                        &self.options.extra,
                    ));
                    self.hashes[group].push(EngineHash::new(hash));
                }
            }
        }
    }

    pub(super) fn extend_tokens(&mut self, tokens: impl Iterator<Item = u32>) {
        let Some(first) = self.tokens.first_mut() else { return };
        let before = first.len();
        first.extend(tokens);
        let new = first[before..].to_vec();
        self.units += new.len();
        for rest in &mut self.tokens[1..] {
            rest.extend_from_slice(&new);
        }
        for ((hasher, tail), keys) in self.hashers.iter_mut().zip(&mut self.tokens).zip(&mut self.keys) {
            let whole = tail.len() / hasher.block_tokens() * hasher.block_tokens();
            let parent = keys.last().copied().unwrap_or(hasher.root());
            hasher.chain(parent, tail.drain(..whole), keys);
        }
    }

    pub(super) fn engine_hash(&self, group: usize, slot: usize) -> EngineHash {
        self.hashes[group].get(slot).copied().unwrap_or_default()
    }

    /// The blocks that it hit since the last call, each once, heads before tails.
    ///
    /// They are touched after the blocks stored behind them: the other way round the new tails would outlive the heads
    /// without which they are unreachable.
    pub(super) fn take_hits(&mut self) -> Vec<BlockKey> {
        let mut taken = Vec::new();
        for (hits, keys) in self.hits.iter_mut().zip(&self.keys) {
            let mut hits = std::mem::take(hits);
            // A block that was loaded is found present again by the offload.
            hits.sort_unstable();
            hits.dedup();
            taken.extend(hits.into_iter().filter_map(|index| keys.get(index)).copied());
        }
        taken
    }

    /// Why nothing beyond `local_tokens` is there.
    pub(super) fn reason_at(
        &self,
        directory: &Directory,
        config: &PlannerConfig,
        local_tokens: usize,
        limit: usize,
    ) -> MissReason {
        let slot_tokens = config.groups[0].block_tokens * config.slot_blocks;
        if limit / slot_tokens * slot_tokens <= local_tokens {
            return MissReason::TooShort;
        }
        let found = directory.match_prefix(&self.keys[0]);
        if found.evicted { MissReason::Evicted } else { MissReason::Absent }
    }
}

/// Remembers prefixes seen before, in bounded memory, for the reuse gate: two generations of a hash set.
#[derive(Default)]
pub(super) struct SightGate {
    capacity: usize,
    young: HashMap<u64, u8>,
    old: HashMap<u64, u8>,
}

impl SightGate {
    pub(super) fn new(slots: usize) -> Self {
        Self { capacity: slots.max(1024), ..Self::default() }
    }

    /// Prefixes remembered now.
    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.young.len() + self.old.len()
    }

    /// Counts this sight of `key`; whether it is at least the `wanted`-th.
    pub(super) fn passes(&mut self, key: &BlockKey, wanted: u8) -> bool {
        let hash = key.short_hash();
        if self.young.len() >= self.capacity && !self.young.contains_key(&hash) {
            self.old = std::mem::take(&mut self.young);
        }
        let before = self.old.remove(&hash).unwrap_or(0);
        let count = self.young.entry(hash).or_insert(before);
        *count = count.saturating_add(1);
        *count >= wanted
    }
}
