//! How a rank's store is opened.

use kvcache_assembly::{RankStoreSettings, RemoteSettings};
use kvcache_core::fingerprint::ShardFingerprint;
use kvcache_core::store::LayerBinding;

use crate::directory_config::{in_memory, needed};
use crate::json::Settings;
use crate::remote_config::{known, namespace_of, remote_of};
use crate::status::Failure;

const OWN: &[&str] = &[
    "capacity_bytes",
    "copies",
    "copy_cpus",
    "copy_path",
    "copy_threads",
    "device",
    "drill",
    "engine_id",
    "layers_ahead",
    "leader",
    "owner_pid",
    "rank",
    "ranks",
    "shard",
    "shard_id",
    "slab_path",
    "slot_blocks",
    "verify_l1",
];

/// What a text and the engine's layers say.
pub(crate) fn of_json(
    text: &str,
    layers: Vec<LayerBinding>,
) -> Result<(RankStoreSettings, Option<RemoteSettings>), Failure> {
    let json = Settings::parse(text, &known(OWN))?;
    let remote = remote_of(&json, None)?;
    let slot_blocks = needed(&json, "slot_blocks", "give the engine's blocks of a slot, such as 4")?;
    let capacity_bytes = json.byte_count("capacity_bytes")?.ok_or_else(|| {
        json.wrong("capacity_bytes", "give the bytes of all ranks' slots, such as \"8GiB\"")
    })?;
    // A device's tensors, for the drill that plays one.
    let device_memory = layers.iter().map(|layer| {
        let pages = &layer.pages;
        (pages.base, pages.block_stride.saturating_mul(pages.block_count))
    });
    let device_memory = device_memory.collect();
    let mut settings = RankStoreSettings::new(layers, slot_blocks, capacity_bytes);
    settings.device_memory = device_memory;
    settings.slab_dir = json.text("slab_path")?.map(Into::into);
    let is_shared = remote.is_some() || settings.slab_dir.is_some();
    settings.namespace = namespace_of(&json, is_shared)?;
    settings.shard = match (json.text("shard")?, json.fingerprint("shard_id")?) {
        (Some(_), Some(_)) => {
            return Err(json.wrong("shard_id", "\"shard\" is set as well: set the name, or its fingerprint"));
        }
        (None, Some(id)) => id,
        (name, None) if is_shared && name.as_ref().is_none_or(|name| name.trim().is_empty()) => {
            return Err(json.wrong(
                "shard",
                "blocks that others can find need one: name what this rank's bytes depend on beside the namespace, such \
                 as its layers and heads",
            ));
        }
        (Some(name), None) => ShardFingerprint::of_fields([("name", name.as_bytes())]).0,
        (None, None) => settings.shard,
    };
    for (name, place) in [
        ("rank", &mut settings.rank),
        ("ranks", &mut settings.ranks),
        ("leader", &mut settings.leader),
        ("copies", &mut settings.copies),
        ("owner_pid", &mut settings.owner_pid),
    ] {
        if let Some(count) = json.small_count(name)? {
            *place = count;
        }
    }
    if !json.has("leader") {
        settings.leader = settings.rank;
    }
    for (name, place) in
        [("copy_threads", &mut settings.copy_threads), ("layers_ahead", &mut settings.layers_ahead)]
    {
        if let Some(count) = json.count(name)? {
            *place = in_memory(count);
        }
    }
    settings.copy_cpus = json.counts("copy_cpus")?.into_iter().map(in_memory).collect();
    settings.verify_l1 = json.flag("verify_l1")?.unwrap_or(false);
    settings.device = json.text("device")?;
    for (name, place) in [
        ("engine_id", &mut settings.engine_id),
        ("copy_path", &mut settings.copy_path),
        ("drill", &mut settings.drill),
    ] {
        if let Some(text) = json.text(name)? {
            *place = text;
        }
    }
    Ok((settings, remote))
}
