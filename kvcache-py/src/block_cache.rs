//! `BlockCache`: the engine-agnostic cache.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kvcache_assembly::{Cache, CacheSettings, Error, RemoteSettings, TokenKeys, ingestion_of, named_stats};
use kvcache_core::BlockKey;
use parking_lot::RwLock;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyAny, PyBytes, PyDict};

use crate::buffer::{Bytes, Keys, is_native_order, numbers};
use crate::error::value_error;

/// A cache of fixed-size blocks, keyed by the tokens before them.
#[pyclass(frozen, module = "aibrix_connector._native")]
pub(crate) struct BlockCache {
    opened: RwLock<Option<Arc<Cache>>>,
    keys: TokenKeys,
    block_bytes: usize,
}

static FROM_BUFFER: PyOnceLock<(Py<PyAny>, Py<PyAny>)> = PyOnceLock::new();

#[pymethods]
impl BlockCache {
    #[new]
    #[pyo3(signature = (block_bytes, capacity_bytes, *, eviction="default", namespace=None, remote=None, slab_path=None,
                        copy_threads=None, hash=None, ingestion="all", token_file=None, tls_ca=None, tls_name=None,
                        shared_memory=true))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        py: Python<'_>,
        block_bytes: &Bound<'_, PyAny>,
        capacity_bytes: &Bound<'_, PyAny>,
        eviction: &str,
        namespace: Option<String>,
        remote: Option<String>,
        slab_path: Option<PathBuf>,
        copy_threads: Option<&Bound<'_, PyAny>>,
        hash: Option<&str>,
        ingestion: &str,
        token_file: Option<PathBuf>,
        tls_ca: Option<PathBuf>,
        tls_name: Option<String>,
        shared_memory: bool,
    ) -> PyResult<Self> {
        let block_bytes =
            count_in_memory(block_bytes, "block_bytes", "give the bytes of one block, for all layers")?;
        let capacity_bytes = count(capacity_bytes, "capacity_bytes", "give the bytes of all blocks")?;
        let copy_threads = match copy_threads {
            None => 1,
            Some(threads) => {
                count_in_memory(threads, "copy_threads", "use 1 to copy on the caller's thread, or more")?
            }
        };
        // Also without anything to ingest: a misspelt name is an error now, and not when L2 is added.
        ingestion_of(ingestion).map_err(value_error)?;
        let of_remote = [
            ("token_file", token_file.is_some()),
            ("tls_ca", tls_ca.is_some()),
            ("tls_name", tls_name.is_some()),
        ];
        if let Some((name, _)) = of_remote.into_iter().find(|(_, is_set)| *is_set && remote.is_none()) {
            return Err(value_error(Error::NoRemote(name)));
        }
        let remote = remote.map(|url| RemoteSettings {
            ingestion: ingestion.to_owned(),
            token_file,
            tls_ca,
            tls_name,
            shared_memory,
            ..RemoteSettings::new(url)
        });
        let settings = CacheSettings {
            eviction: eviction.to_owned(),
            namespace,
            slab_path,
            copy_threads,
            hash: hash.map(str::to_owned),
            remote,
            ..CacheSettings::new(block_bytes, capacity_bytes)
        };
        let cache = py.detach(|| settings.open()).map_err(value_error)?;
        for warning in cache.warnings() {
            let category = py.get_type::<pyo3::exceptions::PyRuntimeWarning>();
            let text = std::ffi::CString::new(warning.as_str()).unwrap_or_default();
            PyErr::warn(py, &category, &text, 1)?;
        }
        let keys = cache.keys();
        Ok(Self { opened: RwLock::new(Some(Arc::new(cache))), keys, block_bytes })
    }

    /// Keys of the whole blocks of `tokens`.
    #[pyo3(signature = (tokens, block_tokens=None, extra=b"".to_vec()),
           text_signature = "($self, tokens, block_tokens=16, extra=...)")]
    fn hash_tokens<'py>(
        &self,
        py: Python<'py>,
        tokens: &Bound<'py, PyAny>,
        block_tokens: Option<&Bound<'py, PyAny>>,
        extra: Vec<u8>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let block_tokens = match block_tokens {
            None => 16,
            Some(tokens) => count_in_memory(tokens, "block_tokens", "use 1 or more")?,
        };
        let keys = if let Ok(buffer) = PyBuffer::<i32>::get(tokens)
            && is_native_order(buffer.format())
        {
            // SAFETY: the caller's array is not changed during the call, as the documentation asks.
            let tokens = unsafe { numbers(&buffer, "tokens") }?;
            self.keys.of(tokens, block_tokens, &extra)
        } else if let Ok(buffer) = PyBuffer::<i64>::get(tokens)
            && is_native_order(buffer.format())
        {
            // SAFETY: as above.
            let tokens = unsafe { numbers(&buffer, "tokens") }?;
            self.keys.of(tokens, block_tokens, &extra)
        } else {
            let name = tokens.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "tokens is a {name}, not a buffer of int32 or int64: pass numpy.asarray(tokens, dtype=numpy.int32)"
            )));
        };
        key_array(py, &keys.map_err(value_error)?)
    }

    /// Number of leading blocks that are here.
    #[pyo3(name = "match")]
    fn match_prefix(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let cache = self.open()?;
        let keys = Keys::of(keys)?;
        // SAFETY: the caller's array is not changed during the call, as the documentation asks.
        let keys = unsafe { keys.as_slice() };
        // Without L2 it takes less time than to give the GIL away.
        Ok(if cache.has_remote() {
            py.detach(|| cache.core().match_prefix(keys))
        } else {
            cache.core().match_prefix(keys)
        })
    }

    /// Stores blocks; returns how many leading ones the cache holds then.
    fn put(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let cache = self.open()?;
        let (keys, data) = (Keys::of(keys)?, Bytes::of(data, "data")?);
        // SAFETY: the caller's arrays are not changed during the call, as the documentation asks.
        let (keys, data) = unsafe { (keys.as_slice(), data.as_slice()) };
        py.detach(|| cache.core().put(keys, data)).map_err(value_error)
    }

    /// Copies leading blocks into `out`; returns their number.
    fn get(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<usize> {
        let cache = self.open()?;
        let (keys, out) = (Keys::of(keys)?, Bytes::of(out, "out")?);
        // SAFETY: the caller's arrays are not used by others during the call, as the documentation asks.
        let (keys, out) = unsafe { (keys.as_slice(), out.as_mut_slice()?) };
        py.detach(|| cache.core().get(keys, out)).map_err(value_error)
    }

    /// Removes blocks; returns how many there were.
    fn delete(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let cache = self.open()?;
        let keys = Keys::of(keys)?;
        // SAFETY: as in `match_prefix`.
        let keys = unsafe { keys.as_slice() };
        Ok(py.detach(|| cache.core().delete(keys)))
    }

    /// Waits until no block is on its way to L2; whether none is.
    #[pyo3(signature = (timeout_s=10.0))]
    fn flush(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let cache = self.open()?;
        let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|_| {
            PyValueError::new_err(format!("timeout_s is {timeout_s}: give seconds from 0 up"))
        })?;
        Ok(py.detach(|| cache.core().flush(timeout)))
    }

    /// Removes everything.
    fn clear(&self) -> PyResult<()> {
        self.open()?.core().clear();
        Ok(())
    }

    /// What is wrong now with L2, one line each. May take a millisecond.
    fn problems(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let cache = self.open()?;
        Ok(py.detach(|| cache.problems()))
    }

    /// Every count, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.open()?.core().stats();
        let (out, l2) = (PyDict::new(py), PyDict::new(py));
        for number in named_stats::cache(&stats) {
            match number.name.strip_prefix("l2_") {
                None => out.set_item(number.name, number.value)?,
                Some(name) => l2.set_item(name, number.value)?,
            }
        }
        out.set_item("policy", stats.directory.policy)?;
        if stats.l2.is_some() {
            out.set_item("l2", l2)?;
        }
        Ok(out)
    }

    /// Bytes of a block.
    #[getter]
    fn block_bytes(&self) -> usize {
        self.block_bytes
    }

    /// Gives the memory back once calls under way have returned. Closing twice is fine.
    fn close(&self, py: Python<'_>) {
        let cache = self.opened.write().take();
        py.detach(|| drop(cache));
    }

    fn __enter__(slf: Bound<'_, Self>) -> Bound<'_, Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) {
        self.close(py);
    }
}

impl BlockCache {
    fn open(&self) -> PyResult<Arc<Cache>> {
        self.opened
            .read()
            .clone()
            .ok_or_else(|| PyValueError::new_err("the cache is closed: open a new BlockCache"))
    }
}

/// A number from 0 up. Python's own errors for other values name neither the argument nor what to do.
fn count(value: &Bound<'_, PyAny>, name: &str, remedy: &str) -> PyResult<u64> {
    value.extract::<u64>().map_err(|error| {
        if !error.is_instance_of::<PyOverflowError>(value.py()) {
            return match value.get_type().name() {
                Ok(kind) => PyTypeError::new_err(format!("{name} is a {kind}, not a whole number: {remedy}")),
                Err(error) => error,
            };
        }
        match value.lt(0) {
            Ok(true) => PyValueError::new_err(format!("{name} is {value}: {remedy}")),
            Ok(false) => PyValueError::new_err(format!("{name} is {value}, above 64 bits: {remedy}")),
            Err(error) => error,
        }
    })
}

/// The same for what is counted in memory.
fn count_in_memory(value: &Bound<'_, PyAny>, name: &str, remedy: &str) -> PyResult<usize> {
    // No loss: the module is built for 64-bit machines only, and saturating is refused by whatever allocates.
    Ok(usize::try_from(count(value, name, remedy)?).unwrap_or(usize::MAX))
}

/// The keys as a NumPy array `uint8[n, 16]`.
fn key_array<'py>(py: Python<'py>, keys: &[BlockKey]) -> PyResult<Bound<'py, PyAny>> {
    let (from_buffer, uint8) = FROM_BUFFER.get_or_try_init(py, || {
        let numpy = py.import("numpy")?;
        PyResult::Ok((numpy.getattr("frombuffer")?.unbind(), numpy.getattr("uint8")?.unbind()))
    })?;
    let bytes = PyBytes::new_with(py, keys.len() * BlockKey::BYTES, |out| {
        for (place, key) in out.chunks_exact_mut(BlockKey::BYTES).zip(keys) {
            place.copy_from_slice(&key.0);
        }
        Ok(())
    })?;
    from_buffer
        .bind(py)
        .call1((bytes, uint8.bind(py)))?
        .call_method1("reshape", (keys.len(), BlockKey::BYTES))
}
