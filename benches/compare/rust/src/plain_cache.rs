//! The caches of others with numbered keys, each with its own eviction, in one shape.

use foyer_memory::{
    Cache, CacheBuilder, EvictionConfig, FifoConfig, LfuConfig, LruConfig, S3FifoConfig, SieveConfig,
};
use kvcache_core::BlockKey;
use moka::policy::EvictionPolicy;

use crate::key::KeyHasher;

/// A cache of keys that knows nothing of prompts.
pub(crate) trait PlainCache {
    /// Whether the key is there. Not a use of it.
    fn contains(&self, key: &BlockKey) -> bool;

    /// A use of the key, which is there afterwards if the cache admits it.
    fn use_or_insert(&self, key: BlockKey);

    /// Keys that are there.
    fn entries(&self) -> u64;
}

/// Which cache of whom.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Peer {
    FoyerS3Fifo,
    FoyerLru,
    FoyerLruOnePool,
    FoyerLfu,
    FoyerSieve,
    FoyerFifo,
    MokaTinyLfu,
    MokaLru,
}

impl Peer {
    pub(crate) const ALL: [Self; 8] = [
        Self::FoyerS3Fifo,
        Self::FoyerLru,
        Self::FoyerLruOnePool,
        Self::FoyerLfu,
        Self::FoyerSieve,
        Self::FoyerFifo,
        Self::MokaTinyLfu,
        Self::MokaLru,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::FoyerS3Fifo => "foyer S3-FIFO",
            Self::FoyerLru => "foyer LRU",
            Self::FoyerLruOnePool => "foyer LRU, one pool",
            Self::FoyerLfu => "foyer LFU",
            Self::FoyerSieve => "foyer SIEVE",
            Self::FoyerFifo => "foyer FIFO",
            Self::MokaTinyLfu => "moka TinyLFU",
            Self::MokaLru => "moka LRU",
        }
    }

    /// An empty cache of `capacity` keys with the published defaults.
    pub(crate) fn build(self, capacity: u32) -> Box<dyn PlainCache> {
        match self {
            Self::FoyerS3Fifo => Box::new(Foyer::new(capacity, S3FifoConfig::default())),
            // A tenth of it is a pool of low priority, in which a hit moves a key up and not out.
            Self::FoyerLru => Box::new(Foyer::new(capacity, LruConfig::default())),
            Self::FoyerLruOnePool => {
                Box::new(Foyer::new(capacity, LruConfig { high_priority_pool_ratio: 1.0 }))
            }
            Self::FoyerLfu => Box::new(Foyer::new(capacity, LfuConfig::default())),
            Self::FoyerSieve => Box::new(Foyer::new(capacity, SieveConfig)),
            Self::FoyerFifo => Box::new(Foyer::new(capacity, FifoConfig {})),
            Self::MokaTinyLfu => Box::new(Moka::new(capacity, EvictionPolicy::tiny_lfu())),
            Self::MokaLru => Box::new(Moka::new(capacity, EvictionPolicy::lru())),
        }
    }
}

/// With one shard: several would each evict for themselves.
struct Foyer(Cache<BlockKey, (), KeyHasher>);

impl Foyer {
    fn new(capacity: u32, eviction: impl Into<EvictionConfig>) -> Self {
        let cache = CacheBuilder::new(capacity as usize)
            .with_shards(1)
            .with_eviction_config(eviction)
            .with_hash_builder(KeyHasher::default());
        Self(cache.build())
    }
}

impl PlainCache for Foyer {
    fn contains(&self, key: &BlockKey) -> bool {
        self.0.contains(key)
    }

    fn use_or_insert(&self, key: BlockKey) {
        if self.0.get(&key).is_none() {
            self.0.insert(key, ());
        }
    }

    fn entries(&self) -> u64 {
        self.0.entries() as u64
    }
}

/// What was done is in queues until somebody works on them, and uses are dropped where these are full: so that nothing
/// depends on when that is, it is done after each use.
struct Moka(moka::sync::Cache<BlockKey, (), KeyHasher>);

impl Moka {
    fn new(capacity: u32, eviction: EvictionPolicy) -> Self {
        let cache = moka::sync::Cache::builder().max_capacity(u64::from(capacity)).eviction_policy(eviction);
        Self(cache.build_with_hasher(KeyHasher::default()))
    }
}

impl PlainCache for Moka {
    fn contains(&self, key: &BlockKey) -> bool {
        self.0.contains_key(key)
    }

    fn use_or_insert(&self, key: BlockKey) {
        if self.0.get(&key).is_none() {
            self.0.insert(key, ());
        }
        self.0.run_pending_tasks();
    }

    fn entries(&self) -> u64 {
        self.0.entry_count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::key;

    #[test]
    fn no_cache_ever_holds_more_than_it_has_room_for() {
        for peer in Peer::ALL {
            let cache = peer.build(50);
            for number in 0..3000 {
                cache.use_or_insert(key(number * number % 331));
                let held = (0..331).filter(|number| cache.contains(&key(*number))).count() as u64;
                assert!(held <= 50 && held == cache.entries(), "{}: {held} of 50", peer.name());
            }
            assert!(cache.entries() >= 45, "{}: only {}", peer.name(), cache.entries());
        }
    }

    #[test]
    fn asking_is_not_using() {
        for peer in [Peer::FoyerLruOnePool, Peer::MokaLru] {
            let cache = peer.build(2);
            cache.use_or_insert(key(1));
            cache.use_or_insert(key(2));
            assert!(cache.contains(&key(1)));
            cache.use_or_insert(key(3));
            assert!(!cache.contains(&key(1)), "{}", peer.name());
        }
    }
}
