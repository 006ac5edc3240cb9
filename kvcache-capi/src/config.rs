//! How a cache is opened: a structure for the common settings, JSON for all of them.

use std::ffi::c_char;

use kvcache_assembly::{CacheSettings, RemoteSettings};

use crate::arguments::{Growing, optional_text};
use crate::directory_config::in_memory;
use crate::json::Settings;
use crate::remote_config::{known, remote_of};
use crate::status::Failure;

/// The common settings of a cache, for kvc_open_config. Make one with kvc_config_init, then set fields; texts may go when
/// the call has returned.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct kvc_config {
    /// sizeof(kvc_config) of the program's header.
    pub struct_size: usize,
    /// KVC_ABI_VERSION of the program's header.
    pub abi_version: u32,
    /// Threads that copy, the caller's included; 0 means 1.
    pub copy_threads: u32,
    /// Bytes of one block, for all layers.
    pub block_bytes: u64,
    /// Bytes of memory for blocks.
    pub capacity_bytes: u64,
    /// Separates caches; needed with `slab_path` and `remote`. NULL: none.
    pub namespace_name: *const c_char,
    /// "default", "s3fifo", "lru"; NULL: default.
    pub eviction: *const c_char,
    /// A directory in shared memory, such as "/dev/shm", in which blocks outlive this process. NULL: none.
    pub slab_path: *const c_char,
    /// Servers of L2, such as "tcp://cache-0:12345,cache-1:12345". NULL: none.
    pub remote: *const c_char,
    /// More settings, as the JSON object of kvc_open; none that stands here as well. NULL: none.
    pub more_json: *const c_char,
}

// SAFETY: numbers and pointers, all of which may be zero; the first field is the size.
unsafe impl Growing for kvc_config {
    const NAME: &'static str = "kvc_config";
    const FIRST_BYTES: usize = 72;
}

const _: () = assert!(size_of::<kvc_config>() >= kvc_config::FIRST_BYTES);

/// What a cache is opened with.
pub(crate) struct Config {
    pub(crate) cache: CacheSettings,
    /// Threads for calls that return at once. They are started with the first of these.
    pub(crate) async_threads: usize,
    /// Tickets that are out at a time, at most.
    pub(crate) async_tickets: usize,
}

impl Config {
    fn new(cache: CacheSettings) -> Self {
        Self { cache, async_threads: 4, async_tickets: 1024 }
    }
}

/// Every setting of a cache in JSON, but for those of L2.
const OWN: &[&str] = &[
    "block_bytes",
    "capacity_bytes",
    "eviction",
    "shard_id",
    "slab_path",
    "copy_threads",
    "hash",
    "device",
    "copy_path",
    "async_threads",
    "async_tickets",
];

/// The settings in a text.
pub(crate) fn of_json(text: &str) -> Result<Config, Failure> {
    let json = Settings::parse(text, &known(OWN))?;
    let needed = |name| json.byte_count(name)?.ok_or_else(|| json.wrong(name, "give a number of bytes"));
    with_more(CacheSettings::new(in_memory(needed("block_bytes")?), needed("capacity_bytes")?), &json)
}

/// The settings in a structure.
///
/// # Safety
/// Its texts are NULL or end with a NUL, and nobody changes them before the call returns.
pub(crate) unsafe fn of_struct(config: &kvc_config) -> Result<Config, Failure> {
    // SAFETY: the caller's promise, for all of these.
    let text = |what, text| unsafe { optional_text(what, text) };
    let owned = |what, given| Ok::<_, Failure>(text(what, given)?.map(str::to_owned));
    let remote = owned("config->remote", config.remote)?;
    let mut settings = CacheSettings::new(in_memory(config.block_bytes), config.capacity_bytes);
    settings.namespace = owned("config->namespace_name", config.namespace_name)?;
    settings.slab_path = owned("config->slab_path", config.slab_path)?.map(Into::into);
    if let Some(eviction) = owned("config->eviction", config.eviction)? {
        settings.eviction = eviction;
    }
    if config.copy_threads > 0 {
        settings.copy_threads = config.copy_threads as usize;
    }
    settings.remote = remote.map(RemoteSettings::new);
    let Some(more) = text("config->more_json", config.more_json)? else { return Ok(Config::new(settings)) };
    let json = Settings::parse(more, &known(OWN))?;
    let here = [
        ("block_bytes", true),
        ("capacity_bytes", true),
        ("namespace", settings.namespace.is_some()),
        ("eviction", !config.eviction.is_null()),
        ("slab_path", settings.slab_path.is_some()),
        ("remote", settings.remote.is_some()),
        ("copy_threads", config.copy_threads > 0),
    ];
    match here.iter().find(|(name, is_set)| *is_set && json.has(name)) {
        Some((name, _)) => Err(json.wrong(name, "it is set in the structure as well: set it in one place")),
        None => with_more(settings, &json),
    }
}

fn with_more(mut settings: CacheSettings, json: &Settings<'_>) -> Result<Config, Failure> {
    if let Some(name) = json.text("eviction")? {
        settings.eviction = name;
    }
    if let Some(threads) = json.count("copy_threads")? {
        settings.copy_threads = in_memory(threads);
    }
    settings.namespace = json.text("namespace")?.or(settings.namespace);
    settings.namespace_id = json.fingerprint("namespace_id")?;
    settings.shard_id = json.fingerprint("shard_id")?;
    settings.slab_path = json.text("slab_path")?.map(Into::into).or(settings.slab_path);
    settings.hash = json.text("hash")?;
    settings.device = json.text("device")?;
    if let Some(path) = json.text("copy_path")? {
        settings.copy_path = path;
    }
    let url = settings.remote.take().map(|remote| remote.url);
    settings.remote = remote_of(json, url)?;
    let mut config = Config::new(settings);
    for (name, place) in
        [("async_threads", &mut config.async_threads), ("async_tickets", &mut config.async_tickets)]
    {
        match json.count(name)? {
            None => {}
            Some(0) => return Err(json.wrong(name, "use 1 or more")),
            Some(count) => *place = in_memory(count),
        }
    }
    Ok(config)
}
