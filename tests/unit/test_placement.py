"""How much memory, which threads, and what makes one rank's bytes differ from another's."""

import os
from types import SimpleNamespace
from typing import Any

import pytest
from aibrix_connector import placement
from aibrix_connector.kv_layout import LayerPages

from tests.unit.fakes import vllm_config

LAYERS = [LayerPages("layers.0", 0, 4096, 512, 10, 1, 512, 512)]


def tensor(
    shape: tuple[int, ...] = (10, 2, 16, 8),
    dtype: str = "torch.bfloat16",
    device: str = "cpu",
    order: tuple[int, ...] | None = None,
) -> Any:
    """A tensor's outline; `order` names its dimensions from the outermost in memory on."""
    strides, step = [0] * len(shape), 1
    for dimension in reversed(order or range(len(shape))):
        strides[dimension], step = step, step * shape[dimension]
    return SimpleNamespace(
        shape=shape,
        dtype=dtype,
        device=SimpleNamespace(type=device),
        dim=lambda: len(shape),
        stride=lambda dimension: strides[dimension],
    )


def fields(
    config: Any | None = None, layers: list[LayerPages] = LAYERS, kv: Any | None = None, replicas: int = 1
) -> dict[str, str]:
    caches = {layer.name: kv or tensor() for layer in layers}
    return dict(
        placement.shard_fields(
            config or vllm_config(), SimpleNamespace(kv_tp_replicas=replicas, kv_cache_groups=[]), caches, layers
        )
    )


@pytest.mark.parametrize(
    ("total_gib", "free_gib", "expected_gib"), [(16, 8, 2), (80, 70, 10), (400, 390, 10), (64, 12, 2), (64, 16, 8)]
)
def test_auto_capacity(monkeypatch: pytest.MonkeyPatch, total_gib: int, free_gib: int, expected_gib: int) -> None:
    found = {"MemTotal": total_gib << 30, "MemAvailable": free_gib << 30}
    monkeypatch.setattr(placement, "memory_bytes", lambda: found)
    assert placement.capacity_bytes(None) == expected_gib << 30
    assert placement.capacity_bytes(5) == 5


def test_memory_is_read() -> None:
    found = placement.memory_bytes()
    assert found["MemTotal"] >= found["MemAvailable"] > 1 << 20


@pytest.mark.parametrize(
    ("rank", "tensor", "replicas", "expected"),
    [
        (0, 1, 1, (0, 1)),
        (3, 4, 1, (3, 1)),
        # MLA: all ranks of a stage.
        (3, 4, 4, (0, 4)),
        (5, 4, 4, (4, 4)),
        # Two KV heads on four ranks.
        (2, 4, 2, (2, 2)),
        (7, 4, 2, (6, 2)),
    ],
)
def test_the_first_of_equal_ranks_stores(rank: int, tensor: int, replicas: int, expected: tuple[int, int]) -> None:
    config = vllm_config(
        parallel_config__rank=rank,
        parallel_config__tensor_parallel_size=tensor,
        parallel_config__distributed_executor_backend="mp",
    )
    assert placement.sharing(config, SimpleNamespace(kv_tp_replicas=replicas, kv_cache_groups=[])) == expected


FullAttentionSpec = type("FullAttentionSpec", (SimpleNamespace,), {})
MLAAttentionSpec = type("MLAAttentionSpec", (SimpleNamespace,), {})


@pytest.mark.parametrize(
    ("heads", "spec", "expected"),
    [
        ({"num_key_value_heads": 2}, FullAttentionSpec(num_kv_heads=1), 2),
        ({"text_config": {"num_key_value_heads": 1}}, FullAttentionSpec(num_kv_heads=1), 4),
        # As many heads as ranks, or more.
        ({"num_key_value_heads": 4}, FullAttentionSpec(num_kv_heads=1), 1),
        ({"num_key_value_heads": 8}, FullAttentionSpec(num_kv_heads=2), 1),
        # Whatever leaves a doubt.
        ({"num_key_value_heads": 3}, FullAttentionSpec(num_kv_heads=1), 1),
        ({"num_key_value_heads": 2}, FullAttentionSpec(num_kv_heads=2), 1),
        ({"num_key_value_heads": 2}, MLAAttentionSpec(num_kv_heads=1), 1),
        ({"num_key_value_heads": [2, 4]}, FullAttentionSpec(num_kv_heads=1), 1),
        ({"num_key_value_heads": 2, "swa_num_key_value_heads": 4}, FullAttentionSpec(num_kv_heads=1), 1),
        ({"num_key_value_heads": 2, "num_global_kv_heads": 4}, FullAttentionSpec(num_kv_heads=1), 1),
        ({"blocks": [{"num_key_value_heads_per_layer": 1}]}, FullAttentionSpec(num_kv_heads=1), 1),
        ({"num_key_value_heads": 2, "vision_config": {"num_key_value_heads": 2}}, FullAttentionSpec(num_kv_heads=1), 1),
        ({"multi_query": True}, FullAttentionSpec(num_kv_heads=1), 1),
    ],
)
def test_copied_heads_are_counted_where_there_is_no_doubt(heads: dict[str, Any], spec: Any, expected: int) -> None:
    kv_cache_config = SimpleNamespace(kv_tp_replicas=1, kv_cache_groups=[SimpleNamespace(kv_cache_spec=spec)])
    config = vllm_config(
        parallel_config__tensor_parallel_size=4,
        model_config__hf_config=SimpleNamespace(to_dict=lambda: {"num_attention_heads": 8} | heads),
    )
    assert placement.replicas(config, kv_cache_config) == expected
    for context in ("decode", "prefill"):
        setattr(config.parallel_config, f"{context}_context_parallel_size", 2)
        assert placement.replicas(config, kv_cache_config) == 1
        setattr(config.parallel_config, f"{context}_context_parallel_size", 1)
    config.speculative_config = SimpleNamespace(method="draft_model")
    assert placement.replicas(config, kv_cache_config) == 1


@pytest.mark.parametrize("change", [{"distributed_executor_backend": "ray"}, {"nnodes": 2}])
def test_ranks_that_may_be_on_other_machines_store_for_themselves(change: dict[str, Any]) -> None:
    fields = {"rank": 1, "tensor_parallel_size": 2, "distributed_executor_backend": "mp"} | change
    config = vllm_config(**{f"parallel_config__{name}": value for name, value in fields.items()})
    assert placement.sharing(config, SimpleNamespace(kv_tp_replicas=2)) == (1, 1)


def test_a_small_dev_shm_is_noticed() -> None:
    assert placement.fits(1 << 20, "/dev/shm")
    assert placement.fits(1 << 20, "/dev/shm/not/there/yet/")
    assert not placement.fits(1 << 60, "/dev/shm")
    assert not placement.fits(1 << 60, "/dev/shm/not/there/yet")


def test_owner_is_this_process_when_nobody_started_it() -> None:
    assert placement.owner_pid() == os.getpid()


def test_shards_differ_by_what_changes_their_bytes() -> None:
    base = fields()
    changed = {
        "layers": fields(layers=[LayerPages("layers.1", 0, 4096, 512, 10, 1, 512, 512)]),
        "pages": fields(layers=[LayerPages("layers.0", 0, 4096, 512, 10, 2, 256, 128)]),
        "heads": fields(vllm_config(parallel_config__rank=1, parallel_config__tensor_parallel_size=2)),
        "stage": fields(vllm_config(parallel_config__rank=1, parallel_config__pipeline_parallel_size=2)),
        "item": fields(kv=tensor(dtype="torch.uint8")),
        "page_shape": fields(kv=tensor((10, 4, 8, 8))),
        "page_order": fields(kv=tensor(order=(0, 2, 1, 3))),
        "device": fields(kv=tensor(device="cuda")),
    }
    for name, found in changed.items():
        assert {key for key in base if found.get(key) != base[key]} >= {name}, name


def test_shards_are_the_same_wherever_memory_is_and_however_many_blocks_there_are() -> None:
    other = fields(layers=[LayerPages("layers.0", 0, 1 << 40, 512, 99, 1, 512, 512)], kv=tensor((99, 2, 16, 8)))
    assert other == fields()


def test_pages_of_one_order_are_the_same_in_every_layout() -> None:
    """Whatever lies between the blocks, and however a dimension of one item is called."""
    assert fields(kv=tensor(order=(1, 0, 2, 3)))["page_order"] == fields()["page_order"] == "[[1, 2, 3]]"
    one_head = [fields(kv=tensor((10, 1, 16, 8), order=order))["page_order"] for order in ((0, 1, 2, 3), (0, 2, 1, 3))]
    assert one_head == ["[[2, 3]]"] * 2


def test_replicas_share_a_shard() -> None:
    ranks = [vllm_config(parallel_config__rank=rank, parallel_config__tensor_parallel_size=4) for rank in range(4)]
    assert [fields(rank, replicas=4)["heads"] for rank in ranks] == ["0"] * 4
    assert [fields(rank, replicas=2)["heads"] for rank in ranks] == ["0", "0", "1", "1"]


def test_the_instruction_set_counts_on_a_cpu_only() -> None:
    assert "instruction_set" in fields()
    assert "instruction_set" not in fields(kv=tensor(device="cuda"))


@pytest.mark.parametrize(
    ("cpus", "bound", "ranks", "engine_threads", "expected"),
    [
        (8, 8, 1, 8, (0, [])),
        (8, 8, 1, 6, (2, [])),
        (32, 32, 1, 8, (4, [])),
        (8, 6, 1, 6, (2, [6, 7])),
        (64, 32, 1, 32, (4, list(range(32, 64)))),
    ],
)
def test_copy_threads_take_the_cores_that_the_engine_leaves(
    monkeypatch: pytest.MonkeyPatch, cpus: int, bound: int, ranks: int, engine_threads: int, expected: Any
) -> None:
    pytest.importorskip("torch")
    import torch

    monkeypatch.setattr(os, "cpu_count", lambda: cpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(bound)))
    monkeypatch.setattr(torch, "get_num_threads", lambda: engine_threads)
    assert placement.copy_placement(None, vllm_config(parallel_config__world_size=ranks)) == expected


def test_copy_threads_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    assert placement.copy_placement(3, vllm_config()) == (3, [])
