"""The scheduler side: translates vLLM's questions for the planner, which decides."""

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from aibrix_connector import _native, identity
from aibrix_connector.events import EventLog
from aibrix_connector.kv_groups import Group, check_recovery, hash_tokens, slot_blocks, stored_groups
from aibrix_connector.metadata import EMPTY_STEP, IDLE_STEP, PromisedLoad, StepMetadata, WorkerReports
from aibrix_connector.metrics import CacheStats
from aibrix_connector.settings import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger("vllm.aibrix_connector.scheduler")

FREES_SOON_S = 0.1
"""Blocks held for longer than this are not worth waiting for instead of preempting."""


@dataclass
class _View:
    """What this side remembers of a request."""

    request: "Request"
    next_tokens: int = 0
    """Nothing new can be offloaded before this many tokens are computed."""


class SchedulerSide:
    """Everything the connector does in the scheduler's process. No call blocks."""

    def __init__(self, config: "VllmConfig", kv_cache_config: "KVCacheConfig", settings: Settings) -> None:
        self._settings = settings
        self._groups: list[Group] = stored_groups(kv_cache_config, config)
        check_recovery(self._groups)
        self._slot_blocks = slot_blocks(self._groups, settings.slot_blocks)
        self._by_tokens = settings.key_source == "tokens"
        self._stable_hashes = self._by_tokens or identity.hashes_are_stable(config)
        fields = identity.namespace_fields(config, self._groups, self._slot_blocks, settings)
        events = config.kv_events_config
        self._events = EventLog(self._groups, self._slot_blocks) if events and events.enable_kv_cache_events else None
        self._planner = _native.Planner(
            namespace=identity.namespace(fields),
            groups=[(group.kind, group.block_tokens, group.window_tokens) for group in self._groups],
            slot_blocks=self._slot_blocks,
            hash_tokens=hash_tokens(kv_cache_config, config),
            ranks=config.parallel_config.world_size,
            key_source=settings.key_source,
            hash=settings.hash,
            eviction=settings.eviction,
            load_mode=settings.load_mode,
            min_load_tokens=settings.min_load_tokens,
            fill_wait_s=settings.fill_wait_ms / 1000,
            startup_wait_s=settings.startup_wait_ms / 1000,
            store_on_sight=settings.store_on_sight,
            prompt_only=settings.prompt_only,
            keep_hashes=self._events is not None,
        )
        self._pool: BlockPool | None = None
        self._views: dict[str, _View] = {}
        self._promised: list[PromisedLoad] = []
        self._held: dict[int, float] = {}
        self._stats = CacheStats.Source(self._planner.stats, self._planner.activity, {})

    def bind_block_pool(self, pool: "BlockPool") -> None:
        """Takes the engine's block pool, through which source blocks of offloads are held."""
        self._pool = pool

    def new_request(self, request: "Request") -> _View:
        """Announces a request; known ones are left as they are."""
        view = self._views.get(request.request_id)
        if view is None:
            view = self._views[request.request_id] = _View(request)
            self._planner.add_request(request.request_id, **self._options(request))
        return view

    def _options(self, request: "Request") -> dict[str, Any]:
        wishes = (request.kv_transfer_params or {}).get("kvcache") or {}
        lora = identity.adapter_identity(request.lora_request)
        # Tokens do not say what an image holds, so such requests are left alone where keys come from tokens.
        opaque = self._by_tokens and bool(request.mm_features or request.prompt_token_ids is None)
        extra = lora
        if self._by_tokens:
            name = request.lora_request.lora_name if request.lora_request else ""
            extra = b"\0".join((lora, name.encode(), (request.cache_salt or "").encode()))
        return {
            "prompt_tokens": request.num_prompt_tokens,
            "skip_load": bool(wishes.get("skip_load", False)) or opaque,
            "skip_store": bool(wishes.get("skip_store", False)) or opaque,
            "max_load_tokens": wishes.get("max_load_tokens"),
            "max_store_tokens": wishes.get("max_store_tokens"),
            "extra": extra,
        }

    def _extend(self, request: "Request") -> None:
        known = self._planner.known_units(request.request_id)
        if self._by_tokens:
            if request.num_tokens > known:
                self._planner.extend_tokens(request.request_id, request.all_token_ids[known:])
        elif len(request.block_hashes) > known:
            self._planner.extend_hashes(request.request_id, request.block_hashes[known:])

    def matched_tokens(self, request: "Request", local_tokens: int) -> tuple[int | None, bool]:
        """Returns how many tokens beyond the engine's own can be loaded (None: ask again), and whether between steps."""
        self.new_request(request)
        self._extend(request)
        return self._planner.lookup(request.request_id, local_tokens, request.num_tokens, time.monotonic())

    def allocated(self, request: "Request", blocks: "KVCacheBlocks", external_tokens: int, local_tokens: int) -> None:
        """Starts what was promised, now that there are blocks for it."""
        if external_tokens == 0:
            self._planner.commit_load(request.request_id, 0, [])
            return
        ids = blocks.get_block_ids()
        tables = [ids[group.group_id] for group in self._groups]
        asynchronous = self._planner.commit_load(request.request_id, external_tokens, tables)
        promised = []
        for group, table in zip(self._groups, tables, strict=True):
            first, last = local_tokens // group.block_tokens, -(-(local_tokens + external_tokens) // group.block_tokens)
            promised.extend(block for block in table[first:last] if block)
        self._promised.append(PromisedLoad(request.request_id, asynchronous, tuple(promised)))

    def build_metadata(self, output: "SchedulerOutput") -> StepMetadata:
        """Plans this step's offloads and returns all of the step's work."""
        scheduled = output.num_scheduled_tokens
        state = output.kv_connector_block_state
        for new in output.scheduled_new_reqs:
            self._advance(new.req_id, new.num_computed_tokens + scheduled[new.req_id], state)
        cached = output.scheduled_cached_reqs
        for position, request_id in enumerate(cached.req_ids):
            self._advance(request_id, cached.num_computed_tokens[position] + scheduled[request_id], state)
        plan = self._planner.take_plan(output.total_num_scheduled_tokens, time.monotonic())
        if plan is None and not self._promised:
            return EMPTY_STEP if scheduled else IDLE_STEP
        promised, self._promised = tuple(self._promised), []
        return StepMetadata(plan, promised, finish_in_step=self._pool is None, forward=bool(scheduled))

    def _advance(self, request_id: str, computed_tokens: int, state: Any) -> None:
        view = self._views.get(request_id)
        if view is None or computed_tokens < view.next_tokens:
            return
        self._extend(view.request)
        tables = _block_table(state, request_id)
        if tables is None:
            return
        job, held, slots, view.next_tokens = self._planner.offload(
            request_id, computed_tokens, [tables[group.group_id] for group in self._groups]
        )
        if job is None:
            return
        if self._pool is not None:
            blocks = self._pool.blocks
            self._pool.touch([blocks[block] for block in held])
            self._held[job] = time.monotonic()
        if self._events is not None:
            self._events.offload_began(job, view.request, slots)

    def absorb(self, reports: WorkerReports) -> None:
        """Takes in what the workers have ended: lets go of their blocks and counts their slots as hits."""
        for report in reports.reports:
            for job, released, stored in self._planner.absorb(report):
                if self._held.pop(job, None) is not None and self._pool is not None:
                    blocks = self._pool.blocks
                    self._pool.free_blocks([blocks[block] for block in reversed(released)])
                if self._events is not None:
                    self._events.offload_ended(job, stored)

    def loads_failed(self) -> None:
        """The engine goes back to compute what it has not got: those blocks are to be stored again."""
        for view in self._views.values():
            view.next_tokens = 0

    def finished(self, request_id: str) -> None:
        """The request will not be asked about again. Its jobs end by themselves."""
        self._planner.finish(request_id)
        self._views.pop(request_id, None)

    def has_pending_work(self) -> bool:
        """Whether the engine has to keep stepping for jobs to end."""
        return bool(self._planner.has_pending_work())

    def frees_blocks_soon(self) -> bool:
        """Whether a job in flight is about to give blocks back, so that the engine need not preempt."""
        return bool(self._held) and time.monotonic() - min(self._held.values()) < FREES_SOON_S

    def reset(self) -> bool:
        """Forgets everything."""
        epoch = self._planner.reset()
        for view in self._views.values():
            view.next_tokens = 0
        logger.info("KV cache reset: blocks stored before are not served any more (epoch %d)", epoch)
        return True

    def take_events(self) -> "list[KVCacheEvent]":
        """Returns the events since the last call."""
        if self._events is None:
            return []
        return self._events.take(self._planner.take_removed())

    def take_stats(self) -> CacheStats | None:
        """Returns the counts since the last call."""
        return self._stats.take()


def _block_table(state: Any, request_id: str) -> "tuple[list[int], ...] | None":
    """Returns a request's blocks by group; 0.29 has a mapping where later releases have a method."""
    if state is None:
        return None
    by_request = getattr(state, "block_ids", None)
    table = state.get_block_ids(request_id) if by_request is None else by_request.get(request_id)
    return table  # type: ignore[no-any-return]
