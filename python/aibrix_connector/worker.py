"""The worker side: hands the engine's tensors and hooks to the store, which moves the bytes."""

import os
from typing import TYPE_CHECKING

from vllm.logger import init_logger

from aibrix_connector import _native, identity
from aibrix_connector.kv_groups import slot_blocks, stored_groups
from aibrix_connector.kv_layout import derive_layers
from aibrix_connector.metadata import StepMetadata, WorkerReports
from aibrix_connector.metrics import CacheStats
from aibrix_connector.placement import capacity_bytes, copy_placement, owner_pid, shard_fields
from aibrix_connector.self_test import prove_round_trip
from aibrix_connector.settings import Settings

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger("vllm.aibrix_connector.worker")


class WorkerSide:
    """Everything the connector does in one rank's process."""

    def __init__(self, config: "VllmConfig", kv_cache_config: "KVCacheConfig", settings: Settings) -> None:
        self._config = config
        self._kv_cache_config = kv_cache_config
        self._settings = settings
        self._store: _native.Store | None = None
        self._positions: dict[str, int] = {}
        self.single_group = True
        self._loads_layerwise = False
        self._stores_layers = False
        self._busy = False
        self._finish_in_step = False
        self._end_is_due = False
        self._failed_plan = StepMetadata()
        self._broken: str | None = None
        self._stats: CacheStats.Source | None = None

    def register(self, kv_caches: "dict[str, torch.Tensor]") -> None:
        """Derives the layout, opens the slab and proves both with patterned pages.

        Raises:
            ValueError: The layout, a setting or the slab cannot be used; names the value and the remedy.
        """
        config, settings = self._config, self._settings
        groups = stored_groups(self._kv_cache_config, config)
        blocks = slot_blocks(groups, settings.slot_blocks)
        layers, self._positions = derive_layers(kv_caches, self._kv_cache_config, groups)
        self.single_group = len(groups) == 1
        namespace = identity.namespace_fields(config, groups, blocks, settings)
        weights = dict(namespace)["weights"]
        slab_dir = settings.slab_dir
        stable = settings.key_source == "tokens" or identity.hashes_are_stable(config)
        if slab_dir is not None and not (weights and stable):
            reason = (
                "the engine's block hashes differ in every process (set PYTHONHASHSEED, or use sha256)"
                if weights
                else "nothing here names the content of the weights (set weights_digest)"
            )
            logger.warning("slab_dir is not used, so a restart begins with an empty L1: %s", reason)
            slab_dir = None
        rank, world = config.parallel_config.rank, config.parallel_config.world_size
        threads, cpus = copy_placement(settings.copy_threads, config)
        engine_id = str(config.kv_transfer_config.engine_id) if config.kv_transfer_config else ""
        store = _native.Store(
            rank=rank,
            layers=[layer.native() for layer in layers],
            slot_blocks=blocks,
            capacity_bytes=capacity_bytes(settings.capacity),
            ranks=world,
            namespace=identity.namespace(namespace),
            shard=_native.fingerprint("shard", shard_fields(config, kv_caches, layers)),
            slab_dir=slab_dir,
            engine_id=engine_id,
            owner_pid=owner_pid(),
            copy_threads=threads,
            copy_cpus=cpus,
            layers_ahead=settings.layers_ahead,
            verify_l1=settings.verify_l1,
            drill=settings.drill,
        )
        prove_round_trip(store, kv_caches, self._kv_cache_config, groups, self._positions)
        self._store = store
        self._stats = CacheStats.Source(store.stats, store.activity, {})
        logger.info("rank %d of %d, process %d: %s", rank, world, os.getpid(), store.describe())
        for warning in store.warnings():
            logger.warning("%s", warning)

    def begin_step(self, metadata: StepMetadata) -> None:
        """A step begins: takes its plan."""
        self._end_is_due = not metadata.forward
        if metadata.plan is None and not metadata.promised:
            return
        self._busy = True
        self._finish_in_step = metadata.finish_in_step
        self._failed_plan = metadata
        if self._store is not None and metadata.plan is not None:
            self._loads_layerwise, self._stores_layers = self._store.begin_step(metadata.plan)
        self._failed_plan = StepMetadata()

    def start_loads(self) -> None:
        """Starts this step's loads."""
        if self._busy and self._store is not None:
            self._store.start_loads()

    def wait_layer(self, name: str) -> None:
        """Returns when the layer's blocks are loaded."""
        if self._loads_layerwise and self._store is not None and name in self._positions:
            self._store.wait_layer(self._positions[name])

    def layer_computed(self, name: str) -> None:
        """The layer's new blocks are complete: their offload can start."""
        if self._stores_layers and self._store is not None and name in self._positions:
            self._store.store_layer(self._positions[name])

    def end_step(self) -> None:
        """The forward pass is over."""
        self._end_is_due = False
        if self._busy and self._store is not None:
            self._loads_layerwise = self._stores_layers = False
            self._busy = self._store.end_step(self._finish_in_step)

    def received(self) -> tuple[set[str], set[str]]:
        """Returns the requests whose load between steps has ended, and those of them that failed."""
        if self._store is None:
            promised = self._failed_plan.promised
            return {p.request_id for p in promised if p.asynchronous}, set()
        if self._end_is_due:
            # A step without a forward pass, whose end vLLM does not tell before 0.31.
            self.end_step()
        done, failed = self._store.take_received()
        return set(done), set(failed)

    def load_errors(self) -> set[int]:
        """Returns the engine blocks that were promised and not loaded."""
        if self._store is None:
            return {block for promise in self._failed_plan.promised for block in promise.block_ids}
        errors = set(self._store.take_load_errors())
        return errors if self.single_group else set()

    def take_reports(self) -> WorkerReports | None:
        """Returns this rank's report, if there is anything to say."""
        report = self._store.take_report() if self._store is not None else None
        return None if report is None else WorkerReports([report])

    def take_stats(self) -> CacheStats | None:
        """Returns the counts since the last call."""
        return self._stats.take() if self._stats is not None else None

    def close(self) -> None:
        """Ends what is in flight: afterwards nothing touches the engine's memory."""
        if self._store is not None:
            self._store.close()
            self._store = None
