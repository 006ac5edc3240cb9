"""A few lines of an engine that drive the connector's two sides as vLLM does, over the real native module.

It allocates blocks, "computes" a block by writing bytes that follow from its tokens, and calls the hooks in vLLM's
order. So loads and offloads really move bytes, and what fails can be made to fail.
"""

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aibrix_connector import scheduler, worker
from aibrix_connector.connector import AIBrixOffloadingConnectorV1Type3 as Connector
from vllm.config import CUDAGraphMode
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorRole
from vllm.model_executor.layers.attention import Attention
from vllm.v1 import kv_cache_interface as kv

from tests.unit.fakes import BlockPool, vllm_config

BLOCKS, BLOCK_TOKENS, LAYERS = 64, 16, 3


def context(metadata: bool = True, mode: CUDAGraphMode = CUDAGraphMode.NONE) -> Any:
    """Returns what vLLM's runners give to `start_load_kv`; see `tests/contract/test_step_contexts.py`."""
    return SimpleNamespace(attn_metadata={"layers": object()} if metadata else None, cudagraph_runtime_mode=mode)


EAGER = context()
FULL_GRAPH = {"first runner": context(mode=CUDAGraphMode.FULL), "second runner": context(metadata=False)}
"""A replayed graph of the whole step: no layer calls its hooks."""


class Engine:
    """Scheduler and one worker in a process, with one connector object each."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *,
        layers_without_hooks: int = 0,
        speculative: bool = False,
        **settings: Any,
    ) -> None:
        def init(self: Any, config: Any, role: Any, kv_cache_config: Any) -> None:
            self._kv_transfer_config = config.kv_transfer_config
            self._connector_metadata = None

        monkeypatch.setattr(KVConnectorBase_V1, "__init__", init)
        spec = kv.FullAttentionSpec(block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=8, dtype=torch.bfloat16)
        self.names = [f"model.layers.{n}.attn" for n in range(LAYERS)]
        group = SimpleNamespace(layer_names=self.names, kv_cache_spec=spec)
        self.kv_config = SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=[group], hash_block_size=BLOCK_TOKENS)
        hooked = self.names[: LAYERS - layers_without_hooks]
        settings = {"capacity": "4MiB", "load_mode": "layerwise", "copy_threads": 0, "slot_blocks": 1} | settings
        self.config = vllm_config(
            load_config__load_format="dummy",
            compilation_config__static_forward_context={name: Attention.__new__(Attention) for name in hooked},
            speculative_config=SimpleNamespace(method="eagle") if speculative else None,
            kv_transfer_config=SimpleNamespace(
                engine_id="e", kv_load_failure_policy="fail", kv_connector_extra_config=settings
            ),
        )
        self.down = Connector(self.config, KVConnectorRole.SCHEDULER, self.kv_config)
        self.up = Connector(self.config, KVConnectorRole.WORKER, self.kv_config)
        self.pool = BlockPool(BLOCKS)
        self.down.bind_gpu_block_pool(self.pool)
        page = spec.page_size_bytes
        self.views = {name: torch.zeros(BLOCKS, page, dtype=torch.uint8) for name in self.names}
        self.context = EAGER
        self.up.register_kv_caches(self.registered())
        self.next_block = 1
        self.errors: set[int] = set()
        self.received: set[str] = set()
        self.step()

    @property
    def scheduling(self) -> scheduler.SchedulerSide:
        assert self.down._scheduler is not None
        return self.down._scheduler

    @property
    def working(self) -> worker.WorkerSide:
        assert self.up._worker is not None
        return self.up._worker

    def side_of_scheduler(self) -> Any:
        """The scheduler's side, to break it."""
        return self.scheduling

    def side_of_worker(self) -> Any:
        """The worker's side, to break it."""
        return self.working

    def registered(self) -> dict[str, Any]:
        """What the engine registers: the tensors as they are."""
        return self.views

    def content(self, block: int, seed: int) -> None:
        for index, view in enumerate(self.views.values()):
            view[block] = (seed * 7 + index) % 251 + 1

    def step(self, scheduled: dict[str, tuple[int, list[int]]] | None = None) -> None:
        """One engine step; `scheduled` gives (tokens computed after it, block table) by request."""
        scheduled = scheduled or {}
        tables = {request_id: (table,) for request_id, (_, table) in scheduled.items()}
        output = SimpleNamespace(
            num_scheduled_tokens={request_id: 1 for request_id in scheduled},
            total_num_scheduled_tokens=len(scheduled),
            kv_connector_block_state=SimpleNamespace(get_block_ids=tables.get),
            scheduled_new_reqs=[],
            scheduled_cached_reqs=SimpleNamespace(
                req_ids=list(scheduled), num_computed_tokens=[tokens - 1 for tokens, _ in scheduled.values()]
            ),
        )
        meta = self.down.build_connector_meta(output)
        self.up.bind_connector_metadata(meta)
        self.up.start_load_kv(self.context)
        self.forward()
        self.up.wait_for_save()
        _, received = self.up.get_finished(set())
        self.received |= received or set()
        errors = self.up.get_block_ids_with_load_errors()
        self.errors |= errors
        reports = self.up.build_connector_worker_meta()
        self.down.update_connector_output(
            SimpleNamespace(kv_connector_worker_meta=reports, invalid_block_ids=errors, failed_recving=set())
        )
        self.up.clear_connector_metadata()

    def forward(self) -> None:
        """The layers, with hooks where vLLM calls them."""
        for name, view in self.views.items():
            if self.context is EAGER and self.up.has_connector_metadata():
                self.up.wait_for_layer_load(name)
                self.up.save_kv_layer(name, view, None)

    def settle(self) -> None:
        """Steps until nothing is pending, as vLLM does."""
        for _ in range(50):
            if not self.down.has_pending_push_work():
                return
            self.step()
            time.sleep(0.001)
        raise AssertionError("the connector keeps the engine stepping")

    def quieten(self) -> None:
        """Steps until steps have no work, which is not before the slab's memory has been taken in the background."""
        until = time.monotonic() + 60
        while not self.up.quiet and time.monotonic() < until:
            self.step()
            time.sleep(0.001)
        assert self.up.quiet

    def compute(self, asked: Any) -> list[int]:
        """Computes a request from its first token on; returns its block table."""
        count = asked.num_tokens // BLOCK_TOKENS
        table = list(range(self.next_block, self.next_block + count))
        self.next_block += count
        for index, block in enumerate(table):
            self.content(block, index)
        self.down.on_new_request(asked)
        assert self.down.get_num_new_matched_tokens(asked, 0)[0] == 0
        self.down.update_state_after_alloc(asked, blocks(table), 0)
        self.step({asked.request_id: (asked.num_tokens, table)})
        self.settle()
        return table

    def load(self, asked: Any, tokens: int, **step: Any) -> list[int]:
        """Admits a request with a hit of `tokens`; returns its block table after the step."""
        table = list(range(self.next_block, self.next_block + asked.num_tokens // BLOCK_TOKENS))
        self.next_block += len(table)
        self.down.on_new_request(asked)
        assert self.down.get_num_new_matched_tokens(asked, 0)[0] == tokens
        self.down.update_state_after_alloc(asked, blocks(table), tokens)
        self.step()
        return table

    def is_loaded(self, block: int, seed: int) -> bool:
        return all((view[block] == (seed * 7 + n) % 251 + 1).all() for n, view in enumerate(self.views.values()))

    def internal_errors(self) -> int:
        found = 0
        for side in (self.down, self.up):
            stats = side.get_kv_connector_stats()
            found += stats.data.get("internal_errors", 0) if stats is not None else 0
        return found


def blocks(table: list[int]) -> Any:
    return SimpleNamespace(get_block_ids=lambda: (table,))
