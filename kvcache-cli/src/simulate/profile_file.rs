//! Profiles: presets, and files of the same form.

use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use kvcache_engine_model::{Error, PRESET_NAMES, Profile, preset};
use serde::de::DeserializeOwned;

use super::SimulateError;

/// A preset, or the profile in a file.
pub(super) fn load(name: &str) -> Result<Profile, SimulateError> {
    if let Some(profile) = preset(name) {
        return Ok(profile);
    }
    let path = Path::new(name);
    if !path.exists() {
        return Err(SimulateError::NoProfile { name: name.to_owned() });
    }
    json(path)
}

/// What a JSON file holds.
pub(super) fn json<T: DeserializeOwned>(path: &Path) -> Result<T, SimulateError> {
    let failed = |source| SimulateError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    let mut file = File::open(path).map_err(failed)?.take(FILE_BYTES_MAX + 1);
    file.read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(std::io::Error::other(format!("it has more than {FILE_BYTES_MAX} bytes"))));
    }
    serde_json::from_str(&text).map_err(|source| SimulateError::File { path: path.to_owned(), source })
}

/// The presets, a line each.
pub(super) fn list() -> String {
    let mut text = String::new();
    for profile in PRESET_NAMES.iter().filter_map(|name| preset(name)) {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "{:<12} {:>7} blocks of {} tokens in the engine ({:.1} GiB), {:.1} us a prompt token, {} GB/s to the host",
            profile.name,
            profile.gpu_blocks,
            profile.block_tokens,
            gib(&profile, profile.gpu_blocks),
            profile.compute.prefill_token_us,
            profile.host_link.to_device_gb_s,
        );
    }
    text
}

/// A preset as JSON.
pub(super) fn show(name: &str) -> Result<String, SimulateError> {
    let profile = preset(name).ok_or_else(|| Error::Preset { name: name.to_owned() })?;
    Ok(serde_json::to_string_pretty(&profile)? + "\n")
}

/// The memory that blocks of a profile need.
pub(super) fn gib(profile: &Profile, blocks: u32) -> f64 {
    let bytes = f64::from(blocks) * f64::from(profile.block_tokens) * profile.kv_bytes_per_token as f64;
    bytes / f64::from(1 << 30)
}

/// A profile has a few kilobytes, a million measured steps some fifty megabytes.
const FILE_BYTES_MAX: u64 = 1 << 26;
