"""The scheduler side: translates vLLM's questions for the planner, which decides."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vllm.logger import init_logger

from aibrix_connector import _native, identity, wishes
from aibrix_connector.adapters import Adapters
from aibrix_connector.events import EventLog
from aibrix_connector.kv_groups import Group, check_recovery, hash_tokens, slot_blocks, stored_groups
from aibrix_connector.metadata import EMPTY_STEP, IDLE_STEP, PromisedLoad, StepMetadata, WorkerReports
from aibrix_connector.metrics import CacheStats
from aibrix_connector.settings import Settings
from aibrix_connector.shield import Shield, recoverable

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.distributed.kv_events import KVCacheEvent
    from vllm.v1.core.block_pool import BlockPool
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.request import Request

logger = init_logger("vllm.aibrix_connector.scheduler")

MOST_REMARKS = 100
"""Different remarks on what requests ask for; after that nothing is said any more."""

FREES_SOON_S = 0.1
"""Blocks held for longer than this are not worth waiting for instead of preempting."""


@dataclass
class _View:
    """What this side remembers of a request."""

    request: "Request"
    next_tokens: int = 0
    """Nothing new can be offloaded before this many tokens are computed."""
    local_tokens: int = 0
    """What the engine had itself when it last asked."""
    asynchronous: bool = False
    """Whether the load that was last offered runs between steps."""
    ignored: bool = False
    """Something has gone wrong with it: it is neither stored nor loaded any more."""


@dataclass
class _Held:
    """The engine's blocks that a job reads."""

    since: float
    blocks: list[int]


class SchedulerSide:
    """Everything the connector does in the scheduler's process. No call blocks."""

    def __init__(
        self, config: "VllmConfig", kv_cache_config: "KVCacheConfig", settings: Settings, shield: Shield
    ) -> None:
        self._settings = settings
        self._shield = shield
        self._groups: list[Group] = stored_groups(kv_cache_config, config)
        check_recovery(self._groups)
        self._slot_blocks = slot_blocks(self._groups, settings.slot_blocks, config)
        self._by_tokens = settings.key_source == "tokens"
        self._stable_hashes = self._by_tokens or identity.hashes_are_stable(config)
        fields = identity.namespace_fields(config, self._groups, self._slot_blocks, settings)
        events = config.kv_events_config
        unit_tokens = hash_tokens(kv_cache_config, config)
        wanted = events is not None and events.enable_kv_cache_events
        self._events = EventLog(self._groups, self._slot_blocks, unit_tokens) if wanted else None
        remote = settings.remote_options() if identity.shareable(config, fields, settings) is None else None
        self._remote = None if remote is None else _native.Remote(**remote)
        if remote is not None:
            logger.info("L2: blocks of this engine have the namespace %s", identity.namespace(fields).hex())
            if identity.is_of_this_machine(fields):
                logger.warning(
                    "remote: these weights are told apart by the times of their files, so engines on other machines "
                    "share nothing with this one: give all of them the same weights_digest"
                )
        self._planner = _native.Planner(
            namespace=identity.namespace(fields),
            groups=[(group.kind, group.block_tokens, group.window_tokens) for group in self._groups],
            slot_blocks=self._slot_blocks,
            hash_tokens=unit_tokens,
            ranks=config.parallel_config.world_size,
            key_source=settings.key_source,
            hash=settings.hash,
            eviction=settings.eviction,
            load_mode=self._load_mode(config),
            min_load_tokens=settings.min_load_tokens,
            fill_wait_s=settings.fill_wait_ms / 1000,
            startup_wait_s=settings.startup_wait_ms / 1000,
            store_on_sight=settings.store_on_sight,
            prompt_only=settings.prompt_only,
            keep_hashes=self._events is not None,
            remote=self._remote,
        )
        self._pool: BlockPool | None = None
        self._views: dict[str, _View] = {}
        self._promised: list[PromisedLoad] = []
        self._held: dict[int, _Held] = {}
        self._adapters = Adapters()
        self._remarked: set[str] = set()
        self._must_finish_in_step = False
        self._retired = False
        self._persistent = settings.slab_dir is not None
        self._ranks: int = config.parallel_config.world_size
        self._drained_ranks = 0
        self._stats = CacheStats.Source(self._planner.stats, self._planner.activity, {})

    def _load_mode(self, config: "VllmConfig") -> str:
        """Returns how to load: between steps with speculative decoding, whatever is set.

        vLLM's first model runner then asks what a step could not load before it ends the step, so that it would hear
        of a failure when the step's tokens are out already; and the draft's layers call hooks in graphs of their own.
        """
        if config.speculative_config is None or self._settings.load_mode == "async":
            return self._settings.load_mode
        if self._settings.load_mode == "layerwise":
            logger.warning("load_mode: async instead of layerwise, because of speculative decoding")
        return "async"

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

    def announce(self, request: "Request") -> None:
        """A request enters: what L2 has of it may be on its way before its turn comes."""
        view = self.new_request(request)
        if self._remote is not None and not (view.ignored or self._retired):
            self._extend(request)
            self._planner.prefetch(request.request_id, request.num_tokens, time.monotonic())

    def remote_tokens(self, request: "Request") -> int:
        """Returns how many tokens of the request's load came from L2 for it."""
        return self._planner.remote_tokens(request.request_id) if self._remote is not None else 0

    def _options(self, request: "Request") -> dict[str, Any]:
        wished, remarks = wishes.read(request.kv_transfer_params)
        for name, remark in remarks.items():
            self._remark_once(name, remark)
        adapter = self._adapters.identity(request.lora_request)
        if adapter is None:
            self._remark_once(
                f"adapter {request.lora_request.lora_name}",
                f"LoRA adapter {request.lora_request.lora_name!r}: its files in {request.lora_request.lora_path} have "
                "changed since this engine first used it, so its requests are neither stored nor loaded: restart the "
                "engine, or load the new content under another name",
            )
        # Tokens do not say what an image holds, so such requests are left alone where keys come from tokens.
        opaque = self._by_tokens and bool(request.mm_features or request.prompt_token_ids is None)
        opaque = opaque or adapter is None
        extra = adapter or b""
        if self._by_tokens:
            name = request.lora_request.lora_name if request.lora_request else ""
            parts = (extra, _encoded(name), _encoded(request.cache_salt or ""))
            # With their lengths, so that a salt cannot look like the name of an adapter.
            extra = b"".join(len(part).to_bytes(8, "little") + part for part in parts)
        return {
            "prompt_tokens": request.num_prompt_tokens,
            "skip_load": wished.skip_load or opaque,
            "skip_store": wished.skip_store or opaque,
            "max_load_tokens": wished.max_load_tokens,
            "max_store_tokens": wished.max_store_tokens,
            "extra": extra,
        }

    def _remark_once(self, name: str, remark: str) -> None:
        # Users can send anything with every request: the log must not grow with what they send.
        if name not in self._remarked and len(self._remarked) < MOST_REMARKS:
            self._remarked.add(name)
            logger.warning("%s (said once)", remark)

    def _extend(self, request: "Request") -> None:
        known = self._planner.known_units(request.request_id)
        if self._by_tokens:
            if request.num_tokens > known:
                self._planner.extend_tokens(request.request_id, request.all_token_ids[known:])
        elif len(request.block_hashes) > known:
            self._planner.extend_hashes(request.request_id, request.block_hashes[known:])

    def matched_tokens(self, request: "Request", local_tokens: int) -> tuple[int | None, bool]:
        """Returns the tokens to load beyond the engine's own (None: ask again), and whether between steps."""
        view = self.new_request(request)
        view.local_tokens = local_tokens
        if view.ignored or self._retired:
            return 0, False
        self._extend(request)
        tokens, view.asynchronous = self._planner.lookup(
            request.request_id, local_tokens, request.num_tokens, time.monotonic()
        )
        return tokens, view.asynchronous

    def allocated(self, request: "Request", blocks: "KVCacheBlocks", external_tokens: int) -> None:
        """Starts what was promised, now that there are blocks for it."""
        if external_tokens == 0:
            self._planner.commit_load(request.request_id, 0, [])
            return
        ids = blocks.get_block_ids()
        promise = self._promise(request, ids, external_tokens)
        self._planner.commit_load(request.request_id, external_tokens, [ids[group.group_id] for group in self._groups])
        self._promised.append(promise)

    def lose_promise(self, request: "Request", blocks: "KVCacheBlocks", external_tokens: int) -> None:
        """`allocated` has failed: the workers report the load as failed, so that the engine computes instead.

        Raises:
            Exception: The engine's own block table cannot be read: it counts on tokens in blocks that nobody can name.
        """
        if external_tokens:
            promise = self._promise(request, blocks.get_block_ids(), external_tokens)
            self._promised.append(dataclasses.replace(promise, lost=True))
        self.ignore(request.request_id)

    def _promise(self, request: "Request", ids: Sequence[Sequence[int]], external_tokens: int) -> PromisedLoad:
        view = self._views[request.request_id]
        end = view.local_tokens + external_tokens
        promised: list[int] = []
        for group in self._groups:
            first, last = view.local_tokens // group.block_tokens, -(-end // group.block_tokens)
            promised.extend(block for block in ids[group.group_id][first:last] if block)
        return PromisedLoad(request.request_id, view.asynchronous, tuple(promised))

    def ignore(self, request_id: str) -> None:
        """Something has gone wrong with a request: it is neither stored nor loaded any more."""
        view = self._views.get(request_id)
        if view is not None:
            view.ignored, view.next_tokens = True, sys.maxsize
        self._try("ignore", lambda: self._planner.finish(request_id))

    def retire(self) -> None:
        """Nothing is stored or loaded any more, because what is left cannot be trusted or cannot be followed.

        The engine's blocks that jobs read are let go of when every rank has said that nothing is in flight.
        """
        if not self._retired:
            self._retired = True
            logger.error("the KV cache is switched off until this engine is restarted; requests are computed instead")
            # Voids what ranks have stored, for restarts too: it may stand on what was never loaded.
            self._try("retire", self._planner.reset)

    def _try(self, what: str, act: Callable[[], object]) -> None:
        """Does what is good to have when something has gone wrong already."""
        try:
            act()
        except BaseException as error:
            if not recoverable(error):
                raise
            self._shield.caught(what, error)

    def build_metadata(self, output: "SchedulerOutput") -> StepMetadata:
        """Plans this step's offloads and returns all of the step's work."""
        if not self._retired:
            self._plan_offloads(output)
        plan = self._planner.take_plan(output.total_num_scheduled_tokens, time.monotonic())
        forward = bool(output.num_scheduled_tokens)
        if plan is None and not self._promised and not self._retired:
            return EMPTY_STEP if forward else IDLE_STEP
        return self._metadata(plan, forward)

    def metadata_without_plan(self) -> StepMetadata:
        """`build_metadata` has failed: the workers get no work, and report what was promised as failed."""
        self.retire()
        self._promised = [dataclasses.replace(promise, lost=True) for promise in self._promised]
        # Without knowing better, the workers take any step for one whose end the engine tells.
        return self._metadata(None, forward=True)

    def _metadata(self, plan: bytes | None, forward: bool) -> StepMetadata:
        promised, self._promised = tuple(self._promised), []
        finish_in_step = self._pool is None or self._must_finish_in_step or self._retired
        self._must_finish_in_step = False
        retired = self._retired and self._drained_ranks < self._ranks
        return StepMetadata(plan, promised, finish_in_step, retired, forward)

    def _plan_offloads(self, output: "SchedulerOutput") -> None:
        scheduled = output.num_scheduled_tokens
        state = output.kv_connector_block_state
        for new in output.scheduled_new_reqs:
            self._try_advance(new.req_id, new.num_computed_tokens + scheduled[new.req_id], state)
        cached = output.scheduled_cached_reqs
        for position, request_id in enumerate(cached.req_ids):
            view = self._views.get(request_id)
            computed = cached.num_computed_tokens[position] + scheduled[request_id]
            # Most steps decode, and fill no block: this loop is all that they cost.
            if view is not None and computed >= view.next_tokens:
                self._try_advance(request_id, computed, state)

    def _try_advance(self, request_id: str, computed_tokens: int, state: Any) -> None:
        # One request's trouble must not cost the others' work of this step.
        try:
            self._advance(request_id, computed_tokens, state)
        except Exception as error:
            self._shield.caught("build_connector_meta", error)
            self.ignore(request_id)

    def _advance(self, request_id: str, computed_tokens: int, state: Any) -> None:
        view = self._views.get(request_id)
        if view is None or computed_tokens < view.next_tokens:
            return
        self._extend(view.request)
        tables = _block_tables(state, request_id)
        if tables is None:
            return
        job, held, slots, view.next_tokens = self._planner.offload(
            request_id, computed_tokens, [tables[group.group_id] for group in self._groups]
        )
        if self._events is not None:
            self._events.removed(self._planner.take_removed())
        if job is None:
            return
        if self._pool is not None:
            # Until they are held, the only protection of the source blocks is to be done with them in this step.
            self._must_finish_in_step, before = True, self._must_finish_in_step
            blocks = self._pool.blocks
            self._pool.touch([blocks[block] for block in held])
            self._held[job] = _Held(time.monotonic(), held)
            self._must_finish_in_step = before
        if self._events is not None:
            self._events.offload_began(job, view.request, slots)

    def absorb(self, reports: WorkerReports) -> None:
        """Takes in what the workers have ended: lets go of their blocks and counts their slots as hits."""
        if reports.broken:
            self.retire()
        if self._retired:
            self._drained_ranks += reports.drained_ranks
            if self._drained_ranks >= self._ranks:
                for job in list(self._held):
                    self._release(job)
            return
        for report in reports.reports:
            ended = self._planner.absorb(report)
            if self._events is not None:
                self._events.removed(self._planner.take_removed())
            for job, _, stored in ended:
                self._release(job)
                if self._events is not None:
                    self._events.offload_ended(job, stored)

    def _release(self, job: int) -> None:
        held = self._held.pop(job, None)
        if held is not None and self._pool is not None:
            blocks = self._pool.blocks
            self._pool.free_blocks([blocks[block] for block in reversed(held.blocks)])

    def loads_failed(self) -> None:
        """The engine goes back to compute what it has not got: those blocks are to be stored again."""
        for view in self._views.values():
            view.next_tokens = sys.maxsize if view.ignored else 0

    def finished(self, request_id: str) -> None:
        """The request will not be asked about again. Its jobs end by themselves."""
        self._views.pop(request_id, None)
        self._planner.finish(request_id)

    def has_pending_work(self) -> bool:
        """Whether the engine has to keep stepping for jobs to end."""
        if self._retired:
            return self._drained_ranks < self._ranks
        return self._planner.has_pending_work()

    def frees_blocks_soon(self) -> bool:
        """Whether a job in flight is about to give blocks back, so that the engine need not preempt."""
        return bool(self._held) and time.monotonic() - next(iter(self._held.values())).since < FREES_SOON_S

    def reset(self) -> bool:
        """Forgets everything; whether that holds for restarts too."""
        if self._retired:
            return not self._persistent
        epoch = self._planner.reset()
        if self._events is not None:
            self._events.removed(self._planner.take_removed())
        for view in self._views.values():
            view.next_tokens = sys.maxsize if view.ignored else 0
        logger.info("KV cache reset: blocks stored before are not served any more (epoch %d)", epoch)
        return True

    def take_events(self) -> "list[KVCacheEvent]":
        """Returns the events since the last call."""
        return [] if self._events is None else self._events.take()

    def take_stats(self) -> CacheStats | None:
        """Returns the counts since the last call."""
        return self._stats.take()


def _encoded(text: str) -> bytes:
    # Users can send half a surrogate pair, which has no UTF-8.
    return text.encode(errors="surrogatepass")


def _block_tables(state: Any, request_id: str) -> Sequence[Sequence[int]] | None:
    """Returns a request's block table per group. vLLM 0.29 has a dictionary of them; later ones are asked."""
    if state is None:
        return None
    ask = getattr(state, "get_block_ids", None)
    tables: Sequence[Sequence[int]] | None = ask(request_id) if ask else state.block_ids.get(request_id)
    return tables
