//! The scheduler half of a connector, from settings in text.

use kvcache_core::block_key::HashAlgorithm;
use kvcache_core::directory::GroupKind;
use kvcache_core::eviction::PolicyRegistry;
use kvcache_core::fingerprint::Namespace;
use kvcache_core::planner::{GroupConfig, KeySource, LoadMode, Planner, PlannerConfig};

use crate::remote::seconds;
use crate::{Error, Remote};

/// One KV cache group of an engine.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupSettings {
    /// `full`, `sliding` or `state`.
    pub kind: String,
    /// Tokens of one engine block.
    pub block_tokens: usize,
    /// The attention window of a sliding group.
    pub window_tokens: usize,
}

/// What an engine says of its scheduler. Times are in seconds. See [`PlannerConfig`] for what each decides.
#[derive(Clone, PartialEq, Debug)]
pub struct PlannerSettings {
    /// Fingerprint of what all ranks share.
    pub namespace: [u8; 16],
    /// The engine's groups.
    pub groups: Vec<GroupSettings>,
    /// Engine blocks in a slot.
    pub slot_blocks: usize,
    /// Tokens that one engine hash covers.
    pub hash_tokens: usize,
    /// Workers that report.
    pub ranks: u32,
    /// The engine's block that holds nothing.
    pub null_block: u32,
    /// `engine` or `tokens`.
    pub key_source: String,
    /// Chains tokens, with `tokens`: `blake3` or `xxh3`.
    pub hash: String,
    /// Name of the eviction policy.
    pub eviction: String,
    /// `auto`, `layerwise` or `async`.
    pub load_mode: String,
    /// Less is not loaded.
    pub min_load_tokens: usize,
    /// The longest that a request waits for blocks that are being stored.
    pub fill_wait_s: f64,
    /// The longest that a request waits for the ranks' first report.
    pub startup_wait_s: f64,
    /// Requests that must have shown a block before it is stored.
    pub store_on_sight: u8,
    /// Store nothing behind the prompt.
    pub prompt_only: bool,
    /// Remember the engine's hashes, for events.
    pub keep_hashes: bool,
}

impl PlannerSettings {
    /// One rank, keys from the engine's hashes of `hash_tokens` tokens, the default policy.
    pub fn new(
        namespace: [u8; 16],
        groups: Vec<GroupSettings>,
        slot_blocks: usize,
        hash_tokens: usize,
    ) -> Self {
        Self {
            namespace,
            groups,
            slot_blocks,
            hash_tokens,
            ranks: 1,
            null_block: 0,
            key_source: "engine".to_owned(),
            hash: "blake3".to_owned(),
            eviction: "default".to_owned(),
            load_mode: "auto".to_owned(),
            min_load_tokens: 1,
            fill_wait_s: 0.2,
            startup_wait_s: 2.0,
            store_on_sight: 1,
            prompt_only: false,
            keep_hashes: false,
        }
    }

    /// Makes the planner, with L2 if there is one.
    ///
    /// # Errors
    /// What cannot be meant, with its remedy.
    pub fn open(&self, remote: Option<&Remote>) -> Result<Planner, Error> {
        let groups = self.groups.iter().map(GroupSettings::config).collect::<Result<_, _>>()?;
        let key_source = match self.key_source.as_str() {
            "engine" => KeySource::Engine,
            "tokens" => KeySource::Tokens(self.hash.parse::<HashAlgorithm>()?),
            _ => return Err(Error::KeySource(self.key_source.clone())),
        };
        let load_mode = match self.load_mode.as_str() {
            "auto" => LoadMode::Auto,
            "layerwise" => LoadMode::Layerwise,
            "async" => LoadMode::Async,
            _ => return Err(Error::LoadMode(self.load_mode.clone())),
        };
        // Made here once so that an unknown name is an error now and not a surprise at the first report.
        let registry = PolicyRegistry::for_planner(remote.is_some());
        registry.build(&self.eviction, 1)?;
        let eviction = self.eviction.clone();
        let config = PlannerConfig {
            namespace: Namespace(self.namespace),
            groups,
            slot_blocks: self.slot_blocks,
            hash_tokens: self.hash_tokens,
            key_source,
            ranks: self.ranks,
            null_block: self.null_block,
            load_mode,
            min_load_tokens: self.min_load_tokens,
            fill_wait: seconds("fill_wait_s", self.fill_wait_s)?,
            startup_wait: seconds("startup_wait_s", self.startup_wait_s)?,
            store_on_sight: self.store_on_sight,
            prompt_only: self.prompt_only,
            keep_hashes: self.keep_hashes,
        };
        config.check()?;
        let policy = Box::new(move |slots| match registry.build(&eviction, slots) {
            Ok(policy) => policy,
            Err(_) => unreachable!("the name was checked above"),
        });
        let planner = Planner::new(config, policy);
        Ok(match remote {
            None => planner,
            Some(remote) => planner.with_remote(remote.tier(), remote.presence()?),
        })
    }
}

impl GroupSettings {
    fn config(&self) -> Result<GroupConfig, Error> {
        let kind = match self.kind.as_str() {
            "full" => GroupKind::Full,
            "sliding" => GroupKind::Sliding { window_tokens: self.window_tokens },
            "state" => GroupKind::State,
            _ => return Err(Error::GroupKind(self.kind.clone())),
        };
        Ok(GroupConfig { kind, block_tokens: self.block_tokens })
    }
}
