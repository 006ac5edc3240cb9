//! Snapshots as dictionaries.

use kvcache_core::directory::DirectoryStats;
use pyo3::prelude::*;
use pyo3::types::PyDict;

pub(crate) fn add_directory(out: &Bound<'_, PyDict>, stats: &DirectoryStats) -> PyResult<()> {
    for (name, value) in [
        ("slots", stats.slot_count as u64),
        ("slots_unusable", stats.unusable as u64),
        ("slots_free", stats.free as u64),
        ("slots_filling", stats.filling as u64),
        ("slots_ready", stats.ready as u64),
        ("slots_draining", stats.draining as u64),
        ("slots_pinned", stats.pinned as u64),
        ("stored", stats.stored),
        ("evicted", stats.evicted),
        ("refused", stats.refused),
        ("over_share", stats.over_share),
        ("failed_fills", stats.failed_fills),
        ("cancelled_fills", stats.cancelled_fills),
        ("adopted", stats.adopted),
        ("removed", stats.removed),
        ("metadata_bytes", stats.metadata_bytes as u64),
    ] {
        out.set_item(name, value)?;
    }
    out.set_item("policy", stats.policy)
}
