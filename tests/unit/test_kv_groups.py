"""Which KV cache groups are stored, and how large a slot is."""

import re
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from aibrix_connector import kv_groups
from aibrix_connector.kv_groups import Group, UnsupportedLayoutError, hash_tokens, slot_blocks, stored_groups
from vllm.distributed.kv_transfer.kv_connector.v1 import base
from vllm.v1 import kv_cache_interface as kv

from tests.unit.fakes import vllm_config


def full(block_size: int = 16) -> Any:
    return kv.FullAttentionSpec(block_size=block_size, num_kv_heads=2, head_size=64, dtype=torch.bfloat16)


def sliding(window: int, block_size: int = 16) -> Any:
    return kv.SlidingWindowSpec(
        block_size=block_size, num_kv_heads=2, head_size=64, dtype=torch.bfloat16, sliding_window=window
    )


def config(*specs: Any, **more: Any) -> Any:
    groups = [SimpleNamespace(kv_cache_spec=spec, layer_names=[f"layer.{n}"]) for n, spec in enumerate(specs)]
    return SimpleNamespace(kv_cache_groups=groups, **more)


def test_full_and_sliding() -> None:
    groups = stored_groups(config(full(), sliding(128, 32)), vllm_config())
    assert groups == [
        Group(0, "full", 16, 0, full().page_size_bytes),
        Group(1, "sliding", 32, 128, sliding(128, 32).page_size_bytes),
    ]


def test_the_engine_says_which_groups_are_cached_by_prefix() -> None:
    (group,) = stored_groups(config(full(), full(32), prefix_cacheable_group_ids=[1]), vllm_config())
    assert (group.group_id, group.block_tokens) == (1, 32)


def test_context_parallel_ranks_share_a_block() -> None:
    (group,) = stored_groups(config(full()), vllm_config(parallel_config__decode_context_parallel_size=2))
    assert group.block_tokens == 32


def test_what_cannot_be_restored_is_refused() -> None:
    other = SimpleNamespace(block_size=16, page_size_bytes=64)
    message = (
        "KV cache group 1 is of kind SimpleNamespace, which this connector cannot restore: serve this model without "
        "the connector"
    )
    with pytest.raises(UnsupportedLayoutError, match="^" + re.escape(message) + "$"):
        stored_groups(config(full(), other), vllm_config())
    message = "the model has no KV cache group that can be stored by prefix: serve it without the connector"
    with pytest.raises(UnsupportedLayoutError, match="^" + re.escape(message) + "$"):
        stored_groups(config(full(), prefix_cacheable_group_ids=[]), vllm_config())


@pytest.mark.parametrize(
    ("page_bytes", "wanted", "expected"),
    [([64 << 10], None, 1), ([32 << 10], None, 2), ([24 << 10], None, 3), ([1 << 20, 16 << 10], None, 4), ([1], 7, 7)],
)
def test_a_piece_is_at_least_64_kib(page_bytes: list[int], wanted: int | None, expected: int) -> None:
    groups = [Group(0, "full", 16, 0, size) for size in page_bytes]
    assert slot_blocks(groups, wanted, vllm_config()) == expected


@pytest.mark.parametrize(
    ("layout", "wanted", "expected"),
    [
        ("LBNHC", None, 8),
        ("LHBNC", None, 8),
        ("BHLNC", None, 8),
        ("BLHNC", None, 1),
        ("BLNHC", None, 1),
        ("BLNHC", 4, 4),
    ],
)
def test_blocks_whose_layers_touch_have_slots_of_their_own(layout: str, wanted: int | None, expected: int) -> None:
    groups = [Group(0, "full", 16, 0, 8 << 10)]
    assert slot_blocks(groups, wanted, vllm_config(cache_config__kv_cache_layout=layout)) == expected


def test_tokens_of_a_hash() -> None:
    assert hash_tokens(config(full(), hash_block_size=8), vllm_config()) == 8


def test_several_groups_need_a_vllm_that_can_recover(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [Group(0, "full", 16, 0, 64), Group(1, "sliding", 16, 128, 64)]
    kv_groups.check_recovery(groups)
    monkeypatch.delattr(base.KVConnectorBase_V1, "get_transfer_results")
    monkeypatch.setattr("vllm.__version__", "0.29.0")
    kv_groups.check_recovery(groups[:1])
    message = (
        "vLLM 0.29.0 cannot recover from a failed load with 2 KV cache groups: upgrade vLLM, or start it with "
        "--disable-hybrid-kv-cache-manager"
    )
    with pytest.raises(UnsupportedLayoutError, match="^" + re.escape(message) + "$"):
        kv_groups.check_recovery(groups)
