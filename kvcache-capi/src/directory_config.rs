//! How a directory is opened.

use kvcache_assembly::{GroupSettings, PlannerSettings};
use kvcache_core::planner::Planner;

use crate::json::Settings;
use crate::remote_config::{known, namespace_of, remote_of};
use crate::status::Failure;

const OWN: &[&str] = &[
    "groups",
    "slot_blocks",
    "hash_tokens",
    "ranks",
    "null_block",
    "key_source",
    "hash",
    "eviction",
    "load_mode",
    "min_load_tokens",
    "fill_wait_s",
    "startup_wait_s",
    "store_on_sight",
    "prompt_only",
];

const OF_GROUP: &[&str] = &["kind", "block_tokens", "window_tokens"];

/// Stands for no block in the tables of an engine.
const NO_BLOCK: u32 = u32::MAX;

/// More than any engine has; memory is taken for each.
const RANKS_MAX: u32 = 1 << 16;

/// The planner that a text describes.
pub(crate) fn open(text: &str) -> Result<Planner, Failure> {
    let json = Settings::parse(text, &known(OWN))?;
    let remote = remote_of(&json, None)?;
    let namespace = namespace_of(&json, remote.is_some())?;
    let Some(groups) = json.list("groups", OF_GROUP)? else {
        return Err(json.wrong(
            "groups",
            "give the engine's KV cache groups, such as [{\"kind\": \"full\", \"block_tokens\": 16}]",
        ));
    };
    let groups = groups.iter().map(group).collect::<Result<Vec<_>, _>>()?;
    let slot_blocks = needed(&json, "slot_blocks", "give the engine's blocks of a slot, such as 4")?;
    let hash_tokens = match json.count("hash_tokens")? {
        Some(tokens) => in_memory(tokens),
        // Every block has a hash of its own, as far as nothing else was said.
        None => groups.first().map_or(0, |group| group.block_tokens),
    };
    let mut settings = PlannerSettings::new(namespace, groups, slot_blocks, hash_tokens);
    // Engines number their blocks from 0 unless they say otherwise: a real block must not be taken for none.
    settings.null_block = NO_BLOCK;
    for (name, place) in [
        ("key_source", &mut settings.key_source),
        ("hash", &mut settings.hash),
        ("eviction", &mut settings.eviction),
        ("load_mode", &mut settings.load_mode),
    ] {
        if let Some(text) = json.text(name)? {
            *place = text;
        }
    }
    for (name, place) in
        [("fill_wait_s", &mut settings.fill_wait_s), ("startup_wait_s", &mut settings.startup_wait_s)]
    {
        if let Some(seconds) = json.seconds(name)? {
            *place = seconds;
        }
    }
    for (name, place) in [("ranks", &mut settings.ranks), ("null_block", &mut settings.null_block)] {
        if let Some(count) = json.small_count(name)? {
            *place = count;
        }
    }
    if settings.ranks > RANKS_MAX {
        return Err(json.wrong("ranks", "use 1 to 65536"));
    }
    if let Some(tokens) = json.count("min_load_tokens")? {
        settings.min_load_tokens = in_memory(tokens);
    }
    if let Some(sights) = json.small_count("store_on_sight")? {
        settings.store_on_sight =
            u8::try_from(sights).map_err(|_| json.wrong("store_on_sight", "use 1 to 255"))?;
    }
    settings.prompt_only = json.flag("prompt_only")?.unwrap_or(false);
    let remote = remote.map(|remote| remote.open()).transpose().map_err(config)?;
    settings.open(remote.as_ref()).map_err(config)
}

fn group(json: &Settings<'_>) -> Result<GroupSettings, Failure> {
    let kind = json.text("kind")?.unwrap_or_else(|| "full".to_owned());
    let block_tokens = needed(json, "block_tokens", "give the tokens of one engine block of this group")?;
    let window_tokens = json.count("window_tokens")?.map_or(0, in_memory);
    Ok(GroupSettings { kind, block_tokens, window_tokens })
}

pub(crate) fn needed(json: &Settings<'_>, name: &str, remedy: &str) -> Result<usize, Failure> {
    json.count(name)?.map(in_memory).ok_or_else(|| json.wrong(name, remedy))
}

/// Nothing is lost: what is larger than memory is refused by whatever allocates.
pub(crate) fn in_memory(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn config(error: impl std::fmt::Display) -> Failure {
    Failure::config(error.to_string())
}
