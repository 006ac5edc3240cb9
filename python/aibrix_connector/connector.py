"""The connector that vLLM loads: each hook is handed to the side that this object plays."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import vllm
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.logger import init_logger

from aibrix_connector import settings as settings_module
from aibrix_connector import versions
from aibrix_connector.kv_layout import wished_layout
from aibrix_connector.metadata import StepMetadata, WorkerReports
from aibrix_connector.metrics import CachePromMetrics, CacheStats
from aibrix_connector.scheduler import SchedulerSide
from aibrix_connector.shield import Shield, nothing, recoverable, returning, shielded
from aibrix_connector.worker import WorkerSide

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorWorkerMetadata
    from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
        KVConnectorPromMetrics,
        KVConnectorStats,
        PromMetric,
        PromMetricT,
    )
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

logger = init_logger("vllm.aibrix_connector")

versions.check(vllm.__version__, allow_untested=True)


# What hooks do and return when they have failed; see the module `shield`.


def _ignore_request(connector: "AIBrixOffloadingConnectorV1Type3", request: "Request") -> None:
    assert connector._scheduler is not None
    connector._scheduler.ignore(request.request_id)


def _miss(
    connector: "AIBrixOffloadingConnectorV1Type3", request: "Request", num_computed_tokens: int
) -> tuple[int | None, bool]:
    _ignore_request(connector, request)
    return 0, False


def _lose_promise(
    connector: "AIBrixOffloadingConnectorV1Type3", request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
) -> None:
    assert connector._scheduler is not None
    connector._scheduler.lose_promise(request, blocks, num_external_tokens)


def _step_without_plan(
    connector: "AIBrixOffloadingConnectorV1Type3", scheduler_output: "SchedulerOutput"
) -> KVConnectorMetadata:
    assert connector._scheduler is not None
    return connector._scheduler.metadata_without_plan()


def _retire(connector: "AIBrixOffloadingConnectorV1Type3", connector_output: "KVConnectorOutput") -> None:
    # A report is lost, so that jobs in it would never end.
    assert connector._scheduler is not None
    connector._scheduler.retire()


def _failed_reset(connector: "AIBrixOffloadingConnectorV1Type3") -> bool:
    # Nobody knows what the reset has reached: serve nothing, and say that it failed.
    assert connector._scheduler is not None
    connector._scheduler.retire()
    return False


def _stop_worker(connector: "AIBrixOffloadingConnectorV1Type3", *args: Any, **kwargs: Any) -> None:
    assert connector._worker is not None
    connector.quiet = False
    connector._worker.stop()


def _received_after_stop(
    connector: "AIBrixOffloadingConnectorV1Type3", finished_req_ids: set[str]
) -> tuple[set[str] | None, set[str] | None]:
    assert connector._worker is not None
    connector._worker.stop()
    received, connector._failed_received = connector._worker.received()
    return None, received or None


def _load_errors_after_stop(connector: "AIBrixOffloadingConnectorV1Type3") -> set[int]:
    assert connector._worker is not None
    connector._worker.stop()
    return connector._worker.load_errors()


def _reports_after_stop(connector: "AIBrixOffloadingConnectorV1Type3") -> "KVConnectorWorkerMetadata | None":
    if connector._worker is None:
        return None
    connector._worker.stop()
    return connector._worker.take_reports()


class AIBrixOffloadingConnectorV1Type3(KVConnectorBase_V1, SupportsHMA):
    """Keeps the KV cache of prompts in host memory and loads it back instead of computing it again.

    Offload and load are pipelined with the forward pass, layer by layer. Whatever fails here is a miss: the engine
    computes what it would have loaded.
    """

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig | None" = None
    ) -> None:
        assert kv_cache_config is not None, "vLLM passes its KV cache configuration from 0.22 on"
        super().__init__(vllm_config, role, kv_cache_config)
        extra = self._kv_transfer_config.kv_connector_extra_config or {}
        settings, remarks = settings_module.read(extra)
        versions.check(vllm.__version__, settings.allow_untested_vllm)
        self._scheduler: SchedulerSide | None = None
        self._worker: WorkerSide | None = None
        self._failed_received: set[str] = set()
        self._layers_have_work = False
        self.quiet = False
        self.shield = Shield()
        if role == KVConnectorRole.SCHEDULER:
            self._scheduler = SchedulerSide(vllm_config, kv_cache_config, settings, self.shield)
            logger.info("settings: %s", settings.shown())
            for remark in remarks:
                logger.info("%s", remark)
            self._recompute_on_failure()
        else:
            self._worker = WorkerSide(vllm_config, kv_cache_config, settings)

    def _recompute_on_failure(self) -> None:
        config = self._kv_transfer_config
        if config.kv_load_failure_policy != "recompute":
            logger.info(
                "kv_load_failure_policy: recompute (was %s, which ends requests)", config.kv_load_failure_policy
            )
            config.kv_load_failure_policy = "recompute"

    def poison(self) -> None:
        """Native code has panicked: uses it no more."""
        if self._scheduler is not None:
            self._scheduler.retire()
        if self._worker is not None:
            self._worker.stop()

    @property
    def requires_kv_delivery(self) -> bool:
        """A cache may drop a block: requests never wait for one to be stored."""
        return False

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        """Layer hooks do not fire in a replayed full CUDA graph; such steps load before the forward pass."""
        return bool(settings_module.read(extra_config)[0].piecewise_cudagraph)

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: "VllmConfig") -> str | None:
        """The memory layout to ask vLLM for, if the setting `kv_layout` names one."""
        transfer = vllm_config.kv_transfer_config
        extra = transfer.kv_connector_extra_config if transfer is not None else None
        return wished_layout(settings_module.read(extra or {})[0].kv_layout)

    # Scheduler side, in call order.

    @shielded(returning(None))
    def bind_gpu_block_pool(self, gpu_block_pool: "BlockPool") -> None:
        """Takes the block pool, through which source blocks are held."""
        if self._scheduler is not None:
            self._scheduler.bind_block_pool(gpu_block_pool)

    @shielded(_ignore_request)
    def on_new_request(self, request: "Request") -> None:
        """A request enters."""
        assert self._scheduler is not None
        self._scheduler.announce(request)

    @shielded(_miss)
    def get_num_new_matched_tokens(self, request: "Request", num_computed_tokens: int) -> tuple[int | None, bool]:
        """Answers how many tokens can be loaded beyond the engine's own."""
        assert self._scheduler is not None
        return self._scheduler.matched_tokens(request, num_computed_tokens)

    @shielded(_lose_promise)
    def update_state_after_alloc(self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int) -> None:
        """Starts what was promised."""
        assert self._scheduler is not None
        self._scheduler.allocated(request, blocks, num_external_tokens)

    @shielded(_step_without_plan)
    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        """Returns the step's work."""
        assert self._scheduler is not None
        return self._scheduler.build_metadata(scheduler_output)

    @shielded(_retire)
    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        """Takes in what the workers report."""
        reports = connector_output.kv_connector_worker_meta
        if self._scheduler is not None and isinstance(reports, WorkerReports):
            self._scheduler.absorb(reports)
        failed = connector_output.invalid_block_ids or getattr(connector_output, "failed_recving", None)
        if self._scheduler is not None and failed:
            self._scheduler.loads_failed()

    @shielded(returning((False, None)))
    def request_finished(self, request: "Request", block_ids: list[int]) -> tuple[bool, dict[str, Any] | None]:
        """The request has ended; nothing of it has to be kept, because source blocks are held one by one."""
        assert self._scheduler is not None
        self._scheduler.finished(request.request_id)
        return False, None

    def request_finished_all_groups(
        self, request: "Request", block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        """The request has ended, with several KV cache groups."""
        return self.request_finished(request, [])

    @shielded(returning(()))
    def take_events(self) -> "Iterable[KVCacheEvent]":
        """Returns the events of L1 since the last call."""
        return self._scheduler.take_events() if self._scheduler is not None else ()

    @shielded(returning(False))
    def has_pending_push_work(self) -> bool:
        """Whether the engine has to keep stepping, so that jobs in flight can end."""
        return self._scheduler is not None and self._scheduler.has_pending_work()

    @shielded(returning(False))
    def has_pending_block_frees(self) -> bool:
        """Whether a job is about to give blocks back, so that the engine need not preempt."""
        return self._scheduler is not None and self._scheduler.frees_blocks_soon()

    @shielded(_failed_reset)
    def reset_cache(self) -> bool | None:
        """Forgets every block, for restarts too."""
        return self._scheduler.reset() if self._scheduler is not None else None

    # Worker side, in call order.

    def register_kv_caches(self, kv_caches: "dict[str, torch.Tensor]") -> None:
        """Takes the engine's KV tensors."""
        assert self._worker is not None
        self._worker.register(kv_caches)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        """A step begins."""
        super().bind_connector_metadata(connector_metadata)
        self._begin_step(connector_metadata)

    @shielded(_stop_worker)
    def _begin_step(self, connector_metadata: KVConnectorMetadata) -> None:
        assert self._worker is not None
        assert isinstance(connector_metadata, StepMetadata)
        self.quiet = self._worker.begin_step(connector_metadata)
        self._layers_have_work = self._worker.uses_layers

    def has_connector_metadata(self) -> bool:
        """Whether this step's layers call the hooks: in most steps there is nothing to load or to store."""
        # Asked by every layer of every step, so that even a second attribute would show.
        return self._layers_have_work

    @shielded(_stop_worker, nothing)
    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        """Starts the step's loads."""
        assert self._worker is not None
        self._worker.start_loads(forward_context)
        self._layers_have_work = self._worker.uses_layers

    # These two are called for every layer of every step, so they are shielded in place, which costs nothing.

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Returns when the layer's blocks are there."""
        assert self._worker is not None
        try:
            self._worker.wait_layer(layer_name)
        except BaseException as error:
            self._layer_failed("wait_for_layer_load", error)

    def save_kv_layer(
        self, layer_name: str, kv_layer: "torch.Tensor", attn_metadata: "AttentionMetadata", **kwargs: Any
    ) -> None:
        """The layer's new blocks are complete."""
        assert self._worker is not None
        try:
            self._worker.layer_computed(layer_name)
        except BaseException as error:
            self._layer_failed("save_kv_layer", error)

    def _layer_failed(self, hook: str, error: BaseException) -> None:
        if not recoverable(error):
            raise error
        self.shield.caught(hook, error)
        _stop_worker(self)

    @shielded(_stop_worker, nothing)
    def wait_for_save(self) -> None:
        """The forward pass is over. Offloads may go on: their source blocks are held."""
        assert self._worker is not None
        self._worker.end_step()

    @shielded(_received_after_stop, lambda: (None, None))
    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        """Returns the requests whose load between steps has ended."""
        assert self._worker is not None
        received, self._failed_received = self._worker.received()
        return None, received or None

    @shielded(_load_errors_after_stop, set)
    def get_block_ids_with_load_errors(self) -> set[int]:
        """Returns the blocks that were promised and not loaded."""
        assert self._worker is not None
        return self._worker.load_errors()

    @shielded(_reports_after_stop, nothing)
    def build_connector_worker_meta(self) -> "KVConnectorWorkerMetadata | None":
        """Returns this rank's report."""
        return self._worker.take_reports() if self._worker is not None else None

    # Both sides.

    @shielded(returning(None), nothing)
    def get_kv_connector_stats(self) -> "KVConnectorStats | None":
        """Returns the counts since the last call."""
        side = self._scheduler or self._worker
        stats = side.take_stats() if side is not None else None
        if errors := self.shield.take_count():
            stats = stats or CacheStats()
            stats.data["internal_errors"] = errors
        return stats

    @classmethod
    def build_kv_connector_stats(cls, data: dict[str, Any] | None = None) -> "KVConnectorStats | None":
        """Makes statistics of what another process sent."""
        return CacheStats(data=data or {})

    @classmethod
    def build_prom_metrics(
        cls,
        vllm_config: "VllmConfig",
        metric_types: "dict[type[PromMetric], type[PromMetricT]]",
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> "KVConnectorPromMetrics | None":
        """Makes the metrics of ``/metrics``."""
        return CachePromMetrics(vllm_config, metric_types, labelnames, per_engine_labelvalues)

    @shielded(returning(None))
    def shutdown(self) -> None:
        """Ends what is in flight."""
        if self._worker is not None:
            self._worker.close()


try:
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorTransferResults
except ImportError:
    pass
else:

    def _transfer_results(
        self: AIBrixOffloadingConnectorV1Type3, finished_req_ids: set[str]
    ) -> KVConnectorTransferResults:
        """Returns what has ended, with failures by request: block ids cannot say them with several groups."""
        _, received = self.get_finished(finished_req_ids)
        fresh = self._worker is not None and not self._worker.single_group and not self.quiet
        failed = self._failed_received if fresh else set()
        return KVConnectorTransferResults(
            finished_sending=set(), finished_recving=received or set(), failed_recving=failed
        )

    AIBrixOffloadingConnectorV1Type3.get_transfer_results = _transfer_results

try:
    from vllm.v1.metrics.cache_hit_source import CacheHitSource
except ImportError:
    pass
else:
    AIBrixOffloadingConnectorV1Type3._cache_hit_source = CacheHitSource.HOST

    def _hit_sources(
        self: AIBrixOffloadingConnectorV1Type3, request: "Request", num_external_tokens: int
    ) -> dict[CacheHitSource, int]:
        """Splits a hit by where it came from: vLLM calls what is neither here nor at a peer unspecified."""
        remote = min(self._scheduler.remote_tokens(request) if self._scheduler else 0, num_external_tokens)
        sources = {
            CacheHitSource.HOST: num_external_tokens - remote,
            CacheHitSource.EXTERNAL_UNSPECIFIED: remote,
        }
        return {source: tokens for source, tokens in sources.items() if tokens}

    AIBrixOffloadingConnectorV1Type3.get_external_cache_hit_sources = shielded(
        lambda self, request, num_external_tokens: {CacheHitSource.HOST: num_external_tokens}
    )(_hit_sources)


class OffloadingConnectorV1Type3(AIBrixOffloadingConnectorV1Type3):
    """The same under AIBrix's other name."""
