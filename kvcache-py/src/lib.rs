//! The Python module `aibrix_connector._native`: a thin face of `kvcache-core`, put together by
//! `kvcache-assembly`.
//!
//! The GIL is released around copies. Errors become `ValueError`s with their own message.

mod block_cache;
mod buffer;
mod cuda;
mod error;
mod planner;
mod remote;
mod stats;
mod store;

use kvcache_core::fingerprint::{Namespace, ShardFingerprint};
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

/// The 16-byte fingerprint of named fields; `kind` is `namespace` or `shard`.
#[pyfunction]
fn fingerprint<'py>(
    py: Python<'py>,
    kind: &str,
    fields: Vec<(String, String)>,
) -> PyResult<Bound<'py, PyBytes>> {
    let fields = fields.iter().map(|(name, value)| (name.as_str(), value.as_bytes()));
    let bytes = match kind {
        "namespace" => Namespace::of_fields(fields).0,
        "shard" => ShardFingerprint::of_fields(fields).0,
        _ => {
            return Err(PyValueError::new_err(format!(
                "unknown fingerprint {kind:?}: use \"namespace\" or \"shard\""
            )));
        }
    };
    Ok(PyBytes::new(py, &bytes))
}

#[pymodule(gil_used = false)]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<block_cache::BlockCache>()?;
    module.add_class::<cuda::CudaCopies>()?;
    module.add_class::<planner::Planner>()?;
    module.add_class::<remote::Remote>()?;
    module.add_class::<store::Store>()?;
    module.add_function(wrap_pyfunction!(fingerprint, module)?)
}
