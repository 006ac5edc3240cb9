//! `BlockCache`: the engine-agnostic cache.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use kvcache_core::BlockKey;
use kvcache_core::block_cache::{BlockCache as Core, BlockCacheConfig, L2Config};
use kvcache_core::block_key::{HashAlgorithm, TokenHasher};
use kvcache_core::fingerprint::Namespace;
use kvcache_rdma::members::Members;
use kvcache_rdma::ring::{RingConfig, RingPresence, RingStore};
use parking_lot::RwLock;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyAny, PyBytes, PyDict};

use crate::buffer::{Bytes, Keys, is_native_order, numbers};
use crate::planner::value_error;
use crate::remote::{ingestion_of, open_store, problems_of, ring_config};

/// A cache of fixed-size blocks, keyed by the tokens before them.
#[pyclass(frozen, module = "aibrix_connector._native")]
pub(crate) struct BlockCache {
    core: RwLock<Option<Arc<Core>>>,
    namespace: Namespace,
    hash: HashAlgorithm,
    block_bytes: usize,
    /// Of L2: the members, and the client behind the cache.
    remote: RemoteParts,
}

/// Small blocks on their way to L2 may be this many bytes in all; of large ones it is a number of blocks.
const DEMOTING_BYTES: usize = 64 << 20;

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
        let hash = match hash {
            // A cache that others may read must not be at the mercy of chosen tokens.
            None if slab_path.is_some() || remote.is_some() => HashAlgorithm::Blake3,
            None => HashAlgorithm::Xxh3,
            Some(name) => name.parse().map_err(value_error)?,
        };
        let ingestion = ingestion_of(ingestion)?;
        let l2 = match remote {
            None => None,
            Some(url) => {
                let Some(namespace) = &namespace else {
                    return Err(PyValueError::new_err(
                        "remote needs a namespace: name the model and everything else that makes its blocks different",
                    ));
                };
                if hash == HashAlgorithm::Xxh3 {
                    return Err(PyValueError::new_err(
                        "hash \"xxh3\" cannot be used with remote, since others choose tokens there: use \"blake3\" or leave it \
                         out",
                    ));
                }
                let mut ring = py.detach(|| ring_config(&url, token_file, tls_ca, tls_name))?;
                ring.shared_memory = shared_memory;
                let config = L2Config::new(Namespace::of_text(namespace));
                let demotions_max = config.demotions_max.max(DEMOTING_BYTES / block_bytes.max(1));
                let config = L2Config { ingestion, demotions_max, ..config };
                Some((ring, config))
            }
        };
        let config = BlockCacheConfig {
            eviction: eviction.to_owned(),
            namespace: namespace.clone(),
            slab_path,
            copy_threads,
            ..BlockCacheConfig::new(block_bytes, capacity_bytes)
        };
        let (core, remote) = py.detach(|| open_core(&config, l2))?;
        for warning in core.warnings() {
            let category = py.get_type::<pyo3::exceptions::PyRuntimeWarning>();
            let text = std::ffi::CString::new(warning.as_str()).unwrap_or_default();
            PyErr::warn(py, &category, &text, 1)?;
        }
        let namespace = Namespace::of_text(namespace.as_deref().unwrap_or(""));
        Ok(Self { core: RwLock::new(Some(Arc::new(core))), namespace, hash, block_bytes, remote })
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
        if block_tokens == 0 {
            return Err(PyValueError::new_err("block_tokens is 0: use 1 or more"));
        }
        let mut hasher = TokenHasher::new(self.hash, &self.namespace, &extra, block_tokens);
        let mut keys = Vec::new();
        let root = hasher.root();
        if let Ok(buffer) = PyBuffer::<i32>::get(tokens)
            && is_native_order(buffer.format())
        {
            // SAFETY: the caller's array is not changed during the call, as the documentation asks.
            let tokens = unsafe { numbers(&buffer, "tokens") }?;
            keys.reserve_exact(tokens.len() / block_tokens);
            check_tokens(tokens.iter().map(|token| i64::from(*token)))?;
            hasher.chain(root, tokens.iter().map(|token| *token as u32), &mut keys);
        } else if let Ok(buffer) = PyBuffer::<i64>::get(tokens)
            && is_native_order(buffer.format())
        {
            // SAFETY: as above.
            let tokens = unsafe { numbers(&buffer, "tokens") }?;
            keys.reserve_exact(tokens.len() / block_tokens);
            check_tokens(tokens.iter().copied())?;
            hasher.chain(root, tokens.iter().map(|token| *token as u32), &mut keys);
        } else {
            let name = tokens.get_type().name()?;
            return Err(PyTypeError::new_err(format!(
                "tokens is a {name}, not a buffer of int32 or int64: pass numpy.asarray(tokens, dtype=numpy.int32)"
            )));
        }
        key_array(py, &keys)
    }

    /// Number of leading blocks that are here.
    #[pyo3(name = "match")]
    fn match_prefix(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let core = self.open()?;
        let keys = Keys::of(keys)?;
        // SAFETY: the caller's array is not changed during the call, as the documentation asks.
        let keys = unsafe { keys.as_slice() };
        // Without L2 it takes less time than to give the GIL away.
        Ok(if self.remote.is_some() {
            py.detach(|| core.match_prefix(keys))
        } else {
            core.match_prefix(keys)
        })
    }

    /// Stores blocks; returns how many leading ones the cache holds then.
    fn put(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, data: &Bound<'_, PyAny>) -> PyResult<usize> {
        let core = self.open()?;
        let (keys, data) = (Keys::of(keys)?, Bytes::of(data, "data")?);
        // SAFETY: the caller's arrays are not changed during the call, as the documentation asks.
        let (keys, data) = unsafe { (keys.as_slice(), data.as_slice()) };
        py.detach(|| core.put(keys, data)).map_err(value_error)
    }

    /// Copies leading blocks into `out`; returns their number.
    fn get(&self, py: Python<'_>, keys: &Bound<'_, PyAny>, out: &Bound<'_, PyAny>) -> PyResult<usize> {
        let core = self.open()?;
        let (keys, out) = (Keys::of(keys)?, Bytes::of(out, "out")?);
        // SAFETY: the caller's arrays are not used by others during the call, as the documentation asks.
        let (keys, out) = unsafe { (keys.as_slice(), out.as_mut_slice()?) };
        py.detach(|| core.get(keys, out)).map_err(value_error)
    }

    /// Removes blocks; returns how many there were.
    fn delete(&self, py: Python<'_>, keys: &Bound<'_, PyAny>) -> PyResult<usize> {
        let core = self.open()?;
        let keys = Keys::of(keys)?;
        // SAFETY: as in `match_prefix`.
        let keys = unsafe { keys.as_slice() };
        Ok(py.detach(|| core.delete(keys)))
    }

    /// Waits until no block is on its way to L2; whether none is.
    #[pyo3(signature = (timeout_s=10.0))]
    fn flush(&self, py: Python<'_>, timeout_s: f64) -> PyResult<bool> {
        let core = self.open()?;
        let timeout = Duration::try_from_secs_f64(timeout_s).map_err(|_| {
            PyValueError::new_err(format!("timeout_s is {timeout_s}: give seconds from 0 up"))
        })?;
        Ok(py.detach(|| core.flush(timeout)))
    }

    /// Removes everything.
    fn clear(&self) -> PyResult<()> {
        self.open()?.clear();
        Ok(())
    }

    /// What is wrong now with L2, one line each. May take a millisecond.
    fn problems(&self, py: Python<'_>) -> PyResult<Vec<String>> {
        let _core = self.open()?;
        let Some((members, store)) = &self.remote else { return Ok(Vec::new()) };
        let opened: Vec<_> = store.upgrade().into_iter().collect();
        Ok(py.detach(|| problems_of(members, &opened)))
    }

    /// Every count, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.open()?.stats();
        let out = PyDict::new(py);
        crate::stats::add_directory(&out, &stats.directory)?;
        out.set_item("block_bytes", stats.block_bytes)?;
        out.set_item("slab_bytes", stats.slab_bytes)?;
        if let Some(stats) = stats.l2 {
            let l2 = PyDict::new(py);
            for (name, value) in [
                ("questions", stats.questions),
                ("questions_late", stats.questions_late),
                ("fetched", stats.fetched),
                ("missing", stats.missing),
                ("fetch_failed", stats.fetch_failed),
                ("demoted", stats.demoted),
                ("demote_failed", stats.demote_failed),
                ("demote_dropped", stats.demote_dropped),
                ("demoting", stats.demoting as u64),
            ] {
                l2.set_item(name, value)?;
            }
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
        let core = self.core.write().take();
        py.detach(|| drop(core));
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
    fn open(&self) -> PyResult<Arc<Core>> {
        self.core
            .read()
            .clone()
            .ok_or_else(|| PyValueError::new_err("the cache is closed: open a new BlockCache"))
    }
}

type RemoteParts = Option<(Members, Weak<RingStore>)>;

fn open_core(config: &BlockCacheConfig, l2: Option<(RingConfig, L2Config)>) -> PyResult<(Core, RemoteParts)> {
    let core = Core::open(config).map_err(value_error)?;
    let Some((ring, config)) = l2 else { return Ok((core, None)) };
    let store = open_store(&ring, Arc::clone(core.memory()))?;
    let presence = Box::new(RingPresence::open(&ring).map_err(value_error)?);
    let parts = (ring.members, Arc::downgrade(&store));
    let core = core.with_l2(config, store, presence).map_err(|error| {
        PyValueError::new_err(format!("cannot start the thread of L2: {error}; raise the limit of threads"))
    })?;
    Ok((core, Some(parts)))
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

fn check_tokens(mut tokens: impl Iterator<Item = i64>) -> PyResult<()> {
    match tokens.find(|token| !(0..=i64::from(u32::MAX)).contains(token)) {
        None => Ok(()),
        Some(token) => {
            Err(PyValueError::new_err(format!("token {token} is not a token id: ids are 0 to 4294967295")))
        }
    }
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
