"""The worker side: hands the engine's tensors and hooks to the store, which moves the bytes."""

import os
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from aibrix_connector import _native, identity, layer_hooks
from aibrix_connector.engine_device import EngineDevice, device_memory, drilled_device, engine_device
from aibrix_connector.kv_groups import slot_blocks, stored_groups
from aibrix_connector.kv_layout import derive_layers, slot_bytes
from aibrix_connector.metadata import PromisedLoad, StepMetadata, WorkerReports
from aibrix_connector.metrics import CacheStats
from aibrix_connector.placement import (
    capacity_bytes,
    copy_placement,
    fits,
    owner_pid,
    shard_fields,
    sharing,
)
from aibrix_connector.problem_watch import ProblemWatch
from aibrix_connector.self_test import prove_round_trip
from aibrix_connector.settings import Settings

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.kv_cache_interface import KVCacheConfig

logger = init_logger("vllm.aibrix_connector.worker")

L2_PROBLEM_COST = "what it has or would take is missing until this is mended"

REST_S = 0.0005
"""The longest a step without a forward pass waits for values on their way from or to L2."""


class WorkerSide:
    """Everything the connector does in one rank's process."""

    def __init__(self, config: "VllmConfig", kv_cache_config: "KVCacheConfig", settings: Settings) -> None:
        self._config = config
        self._kv_cache_config = kv_cache_config
        self._settings = settings
        self._store: _native.Store | None = None
        self._device: EngineDevice | None = None
        self._positions: dict[str, int] = {}
        self._last_layer = 0
        self._hooks_missing = False
        self.single_group = True
        self._loads_layerwise = False
        self._stores_layers = False
        self._busy = False
        self._settled = False
        self._finish_in_step = False
        self._expected: list[PromisedLoad] = []
        self._awaited: dict[str, PromisedLoad] = {}
        self._lost_blocks: set[int] = set()
        self._lost_requests: set[str] = set()
        self._must_say_broken = False
        self._must_drain = False
        self._said_drained = False
        self._end_is_due = False
        self._stats: CacheStats.Source | None = None
        self._watches: list[ProblemWatch] = []

    def register(self, kv_caches: "dict[str, torch.Tensor]") -> None:
        """Derives the layout, opens the slab and proves both with patterned pages.

        Raises:
            ValueError: The layout, a setting or the slab cannot be used; names the value and the remedy.
        """
        config, settings = self._config, self._settings
        groups = stored_groups(self._kv_cache_config, config)
        blocks = slot_blocks(groups, settings.slot_blocks, config)
        device = engine_device(kv_caches)
        layers, self._positions = derive_layers(kv_caches, self._kv_cache_config, groups)
        self._last_layer = len(layers) - 1
        self.single_group = len(groups) == 1
        missing = layer_hooks.why_missing(config, self._positions)
        self._hooks_missing = missing is not None
        if missing is not None:
            logger.info("what a step loads is there before its first layer, without overlap: %s", missing)
        namespace = identity.namespace_fields(config, groups, blocks, settings)
        slab_dir, remote = settings.slab_dir, settings.remote_options()
        reason = identity.shareable(config, namespace, settings)
        if slab_dir is not None and reason is not None:
            logger.warning("slab_dir is not used, so a restart begins with an empty L1: %s", reason)
            slab_dir = None
        if remote is not None and reason is not None:
            logger.warning("remote is not used, so nothing is shared with other engines: %s", reason)
            remote = None
        rank, world = config.parallel_config.rank, config.parallel_config.world_size
        capacity = capacity_bytes(settings.capacity)
        leader, copies = sharing(config, self._kv_cache_config)
        if copies > 1 and not fits(capacity, shared := slab_dir or "/dev/shm"):
            logger.warning(
                "%d ranks hold the same bytes and store them once each: %s is too small for the capacity of %d bytes "
                "(docker run --shm-size)",
                copies,
                shared,
                capacity,
            )
            leader, copies = rank, 1
        threads, cpus = copy_placement(settings.copy_threads, config)
        engine_id = str(config.kv_transfer_config.engine_id) if config.kv_transfer_config else ""
        native_remote = None if remote is None else _native.Remote(**remote)
        shard = _native.fingerprint("shard", shard_fields(config, self._kv_cache_config, kv_caches, layers))
        store = self._open(
            rank=rank,
            layers=[layer.native() for layer in layers],
            slot_blocks=blocks,
            capacity_bytes=capacity,
            ranks=world,
            leader=leader,
            copies=copies,
            namespace=identity.namespace(namespace),
            shard=shard,
            slab_dir=slab_dir,
            engine_id=engine_id,
            owner_pid=owner_pid(),
            copy_threads=threads,
            copy_cpus=cpus,
            layers_ahead=settings.layers_ahead,
            verify_l1=settings.verify_l1,
            drill=settings.drill,
            remote=native_remote,
            device=None if device is None else device.name,
            device_memory=device_memory(kv_caches),
            copy_path=settings.copy_path,
        )
        if (stream := store.stream_for_cpu()) is not None:
            device = drilled_device(stream)
        self._device = device
        synchronize = device.synchronize if device is not None else (lambda: None)
        prove_round_trip(store, kv_caches, self._kv_cache_config, groups, self._positions, synchronize)
        if native_remote is not None:
            self._watches.append(ProblemWatch("L2", native_remote.problems, L2_PROBLEM_COST))
        if device is not None:
            self._watches.append(ProblemWatch("L1", store.problems))
            self._watches[-1].look()
        self._store = store
        self._stats = CacheStats.Source(store.stats, store.activity, {})
        logger.info("rank %d of %d, process %d: %s", rank, world, os.getpid(), store.describe())
        if native_remote is not None:
            # In the words of kvcache.h's configuration: what another program needs to read these blocks.
            logger.info(
                'L2: rank %d shares its blocks as "namespace_id": "%s", "shard_id": "%s", "block_bytes": %d, '
                "of %s tokens",
                rank,
                identity.namespace(namespace).hex(),
                shard.hex(),
                slot_bytes(layers, blocks),
                "/".join(str(blocks * group.block_tokens) for group in groups),
            )
        for warning in store.warnings():
            logger.warning("%s", _in_our_names(warning))

    @staticmethod
    def _open(**arguments: Any) -> _native.Store:
        try:
            return _native.Store(**arguments)
        except ValueError as error:
            raise ValueError(_in_our_names(str(error))) from None

    def begin_step(self, metadata: StepMetadata) -> bool:
        """A step begins: takes its plan. Returns whether neither the step nor anything before it has work here."""
        self._end_is_due = not metadata.forward
        if metadata.plan is None and not metadata.promised and not metadata.retired:
            return self._settled
        self._busy = True
        self._settled = False
        self._finish_in_step = metadata.finish_in_step
        self._must_drain |= metadata.retired
        for promise in metadata.promised:
            if promise.lost or self._store is None:
                self._lose(promise)
            elif promise.asynchronous:
                self._awaited[promise.request_id] = promise
            else:
                self._expected.append(promise)
        if self._store is not None and metadata.plan is not None:
            self._loads_layerwise, self._stores_layers = self._store.begin_step(metadata.plan, self._stream())
        return False

    def _stream(self) -> int | None:
        """The stream that the engine computes on at this moment, None on a CPU: copies are ordered by it."""
        return None if self._device is None else self._device.current_stream()

    @property
    def uses_layers(self) -> bool:
        """Whether this step has work for the hooks of its layers."""
        return not self._hooks_missing and (self._loads_layerwise or self._stores_layers)

    def start_loads(self, forward_context: "ForwardContext") -> None:
        """Starts this step's loads, and orders them before the forward pass if its layers will not wait for them."""
        if self._busy and self._store is not None:
            self._store.start_loads()
            if self._loads_layerwise and (self._hooks_missing or not layer_hooks.fire_in(forward_context)):
                self._store.wait_layer(self._last_layer, self._stream())
                self._loads_layerwise = False

    def wait_layer(self, name: str) -> None:
        """Returns when the layer's blocks are loaded."""
        if self._loads_layerwise and self._store is not None and name in self._positions:
            self._store.wait_layer(self._positions[name], self._stream())

    def layer_computed(self, name: str) -> None:
        """The layer's new blocks are complete: their offload can start."""
        if self._stores_layers and self._store is not None and name in self._positions:
            self._store.store_layer(self._positions[name], self._stream())

    def end_step(self) -> None:
        """The forward pass is over."""
        self._end_is_due = False
        if self._busy and self._store is not None:
            self._loads_layerwise = self._stores_layers = False
            self._busy = self._store.end_step(self._finish_in_step, self._must_drain, self._stream())

    def received(self) -> tuple[set[str], set[str]]:
        """Returns the requests whose load between steps has ended, and those of them that failed."""
        if not (self._awaited or self._lost_requests or self._end_is_due):
            return set(), set()
        lost, self._lost_requests = self._lost_requests, set()
        if self._store is None:
            return lost, lost
        if self._end_is_due:
            # A step without a forward pass, whose end vLLM does not tell before 0.31.
            self.end_step()
            if self._busy:
                # The engine turns again as soon as this step ends: let it do so when there is something to report.
                self._store.rest(REST_S)
        done, failed = self._store.take_received()
        for request_id in done:
            self._awaited.pop(request_id, None)
        return lost.union(done), lost.union(failed)

    def load_errors(self) -> set[int]:
        """Returns the engine blocks that were promised and not loaded."""
        if self._store is not None:
            self._lost_blocks.update(self._store.take_load_errors())
        # Whatever this step was to load has been loaded or is an error by now.
        self._expected.clear()
        lost, self._lost_blocks = self._lost_blocks, set()
        return lost if self.single_group else set()

    def stop(self) -> None:
        """Something has gone wrong on this rank: the cache is closed, and what was promised is reported as failed.

        Raises:
            BaseException: Copies cannot be stopped. They may write into memory that the engine is about to reuse.
        """
        store, self._store = self._store, None
        self._loads_layerwise = self._stores_layers = self._busy = False
        if store is not None:
            self._must_say_broken = True
            logger.error("this rank's part of the KV cache is closed; requests are computed instead")
            # What they know would seem to be mended.
            for watch in self._watches:
                watch.close()
            # Before this rank takes part in another layer: what the others compute stands on what it has not loaded.
            store.give_up()
            # Returns when no copy touches the engine's memory any more: only then may failures be reported.
            store.close()
        for promise in (*self._expected, *self._awaited.values()):
            self._lose(promise)
        self._expected.clear()
        self._awaited.clear()

    def _lose(self, promise: PromisedLoad) -> None:
        self._lost_blocks.update(promise.block_ids)
        if promise.asynchronous:
            self._lost_requests.add(promise.request_id)

    def take_reports(self) -> WorkerReports | None:
        """Returns this rank's report, if there is anything to say."""
        report = self._store.take_report() if self._store is not None else None
        is_idle = self._store is None or not self._busy
        is_drained = self._must_drain and not self._said_drained and is_idle
        broken, self._must_say_broken = self._must_say_broken, False
        if report is None and not broken and not is_drained:
            # Until work comes, there will be nothing to say: no job is left, and all memory is there.
            waiting = self._busy or self._awaited or self._lost_requests or self._lost_blocks
            self._settled = self._store is not None and not waiting and self._store.is_settled()
            return None
        self._said_drained |= is_drained
        return WorkerReports([] if report is None else [report], broken, int(is_drained))

    def take_stats(self) -> CacheStats | None:
        """Returns the counts since the last call."""
        return self._stats.take() if self._stats is not None and self._store is not None else None

    def close(self) -> None:
        """Ends what is in flight: afterwards nothing touches the engine's memory."""
        for watch in self._watches:
            watch.close()
        if self._store is not None:
            self._store.close()
            self._store = None


def _in_our_names(text: str) -> str:
    """Returns what the native side says, which speaks of the settings of ``BlockCache``, with the names of ours."""
    return text.replace("slab_path", "slab_dir").replace("capacity_bytes", "capacity")
