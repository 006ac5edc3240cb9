"""A layout that is wrong in any way is caught at registration, before it can corrupt an answer."""

import dataclasses
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from aibrix_connector import _native
from aibrix_connector.kv_groups import Group, UnsupportedLayoutError
from aibrix_connector.kv_layout import LayerPages, derive_layers
from aibrix_connector.self_test import prove_round_trip

BLOCKS, MARGIN = 8, 4096
SHAPE = (2, 16, 8)
PAGE_BYTES = 2 * 16 * 8 * 2
GROUPS = [Group(0, "full", 16, 0, PAGE_BYTES)]


def engine(layers: int = 2) -> tuple[dict[str, Any], Any]:
    """Returns views with room around them, so that a wrong layout hits no foreign memory, and their configuration."""
    views = {}
    for index in range(layers):
        storage = torch.zeros(BLOCKS * PAGE_BYTES // 2 + 2 * MARGIN, dtype=torch.bfloat16)
        views[f"layers.{index}"] = storage[MARGIN : MARGIN + BLOCKS * PAGE_BYTES // 2].view(BLOCKS, *SHAPE)
    group = SimpleNamespace(layer_names=list(views), kv_cache_spec=SimpleNamespace(page_size_bytes=PAGE_BYTES))
    return views, SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=[group])


def store(layers: list[LayerPages]) -> _native.Store:
    return _native.Store(
        rank=0, ranks=1, leader=0, copies=1, layers=[layer.native() for layer in layers], slot_blocks=1,
        capacity_bytes=1 << 20, namespace=bytes(16), shard=bytes(16), slab_dir=None, engine_id="e", owner_pid=1,
        copy_threads=0, copy_cpus=[],
        layers_ahead=1, verify_l1=False, drill=None,
    )  # fmt: skip


def prove(change: Any) -> dict[str, Any]:
    views, config = engine()
    layers, positions = derive_layers(views, config, GROUPS)
    prove_round_trip(store([change(layer) for layer in layers]), views, config, GROUPS, positions, lambda: None)
    return views


def test_a_right_layout_passes_and_leaves_zeroes() -> None:
    views = prove(lambda layer: layer)
    assert all(not view.any() for view in views.values())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("the next block", lambda layer: {"base": layer.base + PAGE_BYTES}),
        ("the block before", lambda layer: {"base": layer.base - PAGE_BYTES}),
        ("base off by a byte", lambda layer: {"base": layer.base + 1}),
        ("stride off by a byte", lambda layer: {"block_stride": layer.block_stride + 1}),
        ("stride too short", lambda layer: {"block_stride": layer.block_stride - 2}),
        ("half a page", lambda layer: {"segment_bytes": layer.segment_bytes // 2}),
        ("overlaps the next block", lambda layer: {"segment_bytes": layer.segment_bytes + 2}),
        ("two runs where there is one", lambda _: {"segments": 2, "segment_stride": 8, "segment_bytes": 4}),
        ("reaches into the next block", lambda _: {"segments": 2, "segment_stride": PAGE_BYTES}),
    ],
)
def test_a_wrong_layout_is_caught(name: str, change: Any) -> None:
    def wrong(layer: LayerPages) -> LayerPages:
        return dataclasses.replace(layer, **change(layer)) if layer.name == "layers.1" else layer

    with pytest.raises(ValueError, match=r"layer layers\.1|layers\.1") as caught:
        prove(wrong)
    if isinstance(caught.value, UnsupportedLayoutError):
        assert str(caught.value) == (
            "layer layers.1: a patterned block of shape (1, 2, 16, 8) and strides (256, 128, 8, 1) did not survive a "
            "copy to host memory and back, so this KV layout is not understood: choose another with "
            "VLLM_KV_CACHE_LAYOUT, or serve this model without the connector"
        )
    else:
        # The native side refuses what cannot be a layout at all, before any copy.
        assert "layers.1" in str(caught.value)


def test_swapped_blocks_are_caught() -> None:
    """A layout that counts blocks from the end."""

    def wrong(layer: LayerPages) -> LayerPages:
        return dataclasses.replace(layer, base=layer.base + 3 * PAGE_BYTES, block_stride=PAGE_BYTES)

    with pytest.raises(UnsupportedLayoutError):
        prove(wrong)
