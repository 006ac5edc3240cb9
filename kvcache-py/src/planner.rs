//! The scheduler half of the vLLM connector.

use std::time::Duration;

use kvcache_assembly::{GroupSettings, PlannerSettings, named_stats};
use kvcache_core::planner::{Lookup, RequestOptions};
use kvcache_core::report::Report;
use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::error::value_error;
use crate::remote::Remote;
use crate::stats::dict;

/// Turns what the engine says of its requests into plans. One call at a time; none blocks.
#[pyclass(frozen, module = "aibrix_connector._native")]
pub(crate) struct Planner(Mutex<kvcache_core::planner::Planner>);

/// A job that every rank has reported: its number, the engine blocks it held, and which of its slots are hits now.
type EndedJob = (u64, Vec<u32>, Vec<usize>);

#[pymethods]
impl Planner {
    /// `groups` are `(kind, block_tokens, window_tokens)` with kind `full`, `sliding` or `state`.
    #[new]
    #[pyo3(signature = (*, namespace, groups, slot_blocks, hash_tokens, ranks, null_block=0, key_source="engine", hash="blake3",
                        eviction="default", load_mode="auto", min_load_tokens=1, fill_wait_s=0.2, startup_wait_s=2.0,
                        store_on_sight=1, prompt_only=false, keep_hashes=false, remote=None))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments of a constructor")]
    fn new(
        namespace: [u8; 16],
        groups: Vec<(String, usize, usize)>,
        slot_blocks: usize,
        hash_tokens: usize,
        ranks: u32,
        null_block: u32,
        key_source: &str,
        hash: &str,
        eviction: &str,
        load_mode: &str,
        min_load_tokens: usize,
        fill_wait_s: f64,
        startup_wait_s: f64,
        store_on_sight: u8,
        prompt_only: bool,
        keep_hashes: bool,
        remote: Option<PyRef<'_, Remote>>,
    ) -> PyResult<Self> {
        let groups = groups.into_iter().map(|(kind, block_tokens, window_tokens)| GroupSettings {
            kind,
            block_tokens,
            window_tokens,
        });
        let settings = PlannerSettings {
            namespace,
            groups: groups.collect(),
            slot_blocks,
            hash_tokens,
            ranks,
            null_block,
            key_source: key_source.to_owned(),
            hash: hash.to_owned(),
            eviction: eviction.to_owned(),
            load_mode: load_mode.to_owned(),
            min_load_tokens,
            fill_wait_s,
            startup_wait_s,
            store_on_sight,
            prompt_only,
            keep_hashes,
        };
        let planner = settings.open(remote.as_deref().map(|remote| &remote.0)).map_err(value_error)?;
        Ok(Self(Mutex::new(planner)))
    }

    /// A request enters.
    #[pyo3(signature = (request, *, prompt_tokens, skip_load=false, skip_store=false, max_load_tokens=None,
                        max_store_tokens=None, extra=b"".to_vec()))]
    #[expect(clippy::too_many_arguments, reason = "keyword arguments")]
    fn add_request(
        &self,
        request: &str,
        prompt_tokens: usize,
        skip_load: bool,
        skip_store: bool,
        max_load_tokens: Option<usize>,
        max_store_tokens: Option<usize>,
        extra: Vec<u8>,
    ) {
        let options = RequestOptions {
            skip_load,
            skip_store,
            max_load_tokens: max_load_tokens.unwrap_or(usize::MAX),
            max_store_tokens: max_store_tokens.unwrap_or(usize::MAX),
            prompt_tokens,
            extra,
        };
        self.0.lock().add_request(request, options);
    }

    /// Engine hashes (or tokens, where keys come from tokens) that are known of a request.
    fn known_units(&self, request: &str) -> usize {
        self.0.lock().known_hashes(request)
    }

    /// Appends engine block hashes of a request.
    fn extend_hashes(&self, request: &str, hashes: Vec<Bound<'_, PyBytes>>) {
        self.0.lock().extend_hashes(request, hashes.iter().map(|hash| hash.as_bytes()));
    }

    /// Appends tokens of a request.
    fn extend_tokens(&self, request: &str, tokens: Vec<u32>) {
        self.0.lock().extend_tokens(request, tokens.into_iter());
    }

    /// Asks L2 for a request's blocks, if there is one, before the engine first asks.
    fn prefetch(&self, request: &str, total_tokens: usize, now: f64) {
        self.0.lock().prefetch(request, total_tokens, time(now));
    }

    /// How many tokens of the request's last load came from L2 for it.
    fn remote_tokens(&self, request: &str) -> usize {
        self.0.lock().remote_tokens(request)
    }

    /// Tokens that can be loaded beyond `local_tokens` (`None`: ask again), and whether that happens between steps.
    fn lookup(
        &self,
        request: &str,
        local_tokens: usize,
        total_tokens: usize,
        now: f64,
    ) -> (Option<usize>, bool) {
        match self.0.lock().lookup(request, local_tokens, total_tokens, time(now)) {
            Lookup::Wait => (None, false),
            Lookup::Hit { tokens, asynchronous } => (Some(tokens), asynchronous),
            Lookup::Miss(_) => (Some(0), false),
        }
    }

    /// The engine counts on `external_tokens` being loaded into `blocks` (one table per group). Whether that happens
    /// between steps.
    fn commit_load(&self, request: &str, external_tokens: usize, blocks: Vec<Vec<u32>>) -> bool {
        self.0.lock().commit_load(request, external_tokens, &blocks)
    }

    /// Offloads what is new of a request's first `computed_tokens` tokens. Returns the job's number, the engine blocks to
    /// hold until it has ended, its slots as `(group, index)`, and the tokens below which nothing new can be offloaded.
    #[expect(clippy::type_complexity, reason = "a plain tuple is the cheapest thing to hand to Python")]
    fn offload(
        &self,
        request: &str,
        computed_tokens: usize,
        blocks: Vec<Vec<u32>>,
    ) -> (Option<u64>, Vec<u32>, Vec<(u16, usize)>, usize) {
        let out = self.0.lock().offload(request, computed_tokens, &blocks);
        (out.job.map(|job| job.number), out.held, out.slots, out.next_tokens)
    }

    /// The request will not be asked about again.
    fn finish(&self, request: &str) {
        self.0.lock().finish(request);
    }

    /// The plan of this step for the workers, if there is any work.
    fn take_plan<'py>(
        &self,
        py: Python<'py>,
        scheduled_tokens: usize,
        now: f64,
    ) -> Option<Bound<'py, PyBytes>> {
        let plan = self.0.lock().take_plan(scheduled_tokens, time(now))?;
        Some(PyBytes::new(py, &plan.encode()))
    }

    /// Takes in one rank's report; the jobs that have ended on all ranks.
    fn absorb(&self, report: &[u8]) -> PyResult<Vec<EndedJob>> {
        let report = Report::decode(report).map_err(value_error)?;
        let ended = self.0.lock().absorb(&report);
        Ok(ended.into_iter().map(|job| (job.id.number, job.released, job.stored)).collect())
    }

    /// Forgets every block; the new epoch.
    fn reset(&self) -> u64 {
        self.0.lock().reset()
    }

    /// Whether the engine has to keep stepping for jobs to end.
    fn has_pending_work(&self) -> bool {
        self.0.lock().has_pending_work()
    }

    /// Engine hashes of blocks that left since the last call.
    fn take_removed<'py>(&self, py: Python<'py>) -> Vec<Bound<'py, PyBytes>> {
        self.0.lock().take_removed().iter().map(|hash| PyBytes::new(py, hash.as_bytes())).collect()
    }

    /// Grows whenever `stats` may have changed.
    fn activity(&self) -> u64 {
        self.0.lock().activity()
    }

    /// Every count, by name.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let stats = self.0.lock().stats();
        let out = dict(py, named_stats::planner(&stats))?;
        if let Some(directory) = stats.directory {
            out.set_item("policy", directory.policy)?;
        }
        Ok(out)
    }
}

fn time(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds).unwrap_or_default()
}
