//! The text of a ring in a file or from another program, with or without the ConfigMap that it was published in.

use std::fs::File;
use std::io::{self, Read};

use kvcache_core::ring::RingDocument;
use serde::Deserialize;

/// What follows `--from` to read from the standard input.
pub(super) const STDIN: &str = "-";

/// Where the text of the ring is in a ConfigMap's data.
const RING_KEY: &str = "ring.json";

/// A ConfigMap holds its text as a JSON string, with every quotation mark escaped, and managed fields beside it.
const BYTES_MAX: u64 = 4 * RingDocument::TEXT_BYTES_MAX as u64;

/// Reads all of `from`, a path or [`STDIN`].
pub(super) fn read(from: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    match from {
        STDIN => io::stdin().lock().take(BYTES_MAX).read_to_end(&mut text)?,
        path => File::open(path)?.take(BYTES_MAX).read_to_end(&mut text)?,
    };
    Ok(text)
}

/// The ring's JSON in `text`: `text` itself, or the data of the ConfigMap that it is (`kubectl get configmap NAME -o
/// json`).
pub(super) fn unwrapped(text: Vec<u8>) -> Result<Vec<u8>, ConfigMapError> {
    if text.starts_with(b"apiVersion:") {
        return Err(ConfigMapError::Yaml);
    }
    // What is no JSON object with a kind is left to the reader of rings, which knows better what is wrong with it.
    let Ok(Object { kind: Some(kind), data }) = serde_json::from_slice(&text) else { return Ok(text) };
    if kind != "ConfigMap" {
        return Err(ConfigMapError::Kind { kind });
    }
    let ring = data.and_then(|data| data.ring);
    Ok(ring.ok_or(ConfigMapError::NoRing)?.into_bytes())
}

#[derive(Deserialize)]
struct Object {
    kind: Option<String>,
    data: Option<Data>,
}

#[derive(Deserialize)]
struct Data {
    #[serde(rename = "ring.json")]
    ring: Option<String>,
}

/// Why an object of Kubernetes holds no ring.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigMapError {
    #[error("this is YAML: write `kubectl get configmap NAME-ring -o json`")]
    Yaml,
    #[error("this is a {kind}, not a ConfigMap: write `kubectl get configmap NAME-ring -o json`")]
    Kind { kind: String },
    #[error("this ConfigMap has no {RING_KEY}: that of a KVCache called NAME is NAME-ring")]
    NoRing,
}
