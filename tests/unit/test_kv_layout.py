"""Where pages are, compared with what the engine's own views say, byte by byte."""

import itertools
import random
import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from aibrix_connector import kv_layout
from aibrix_connector.kv_groups import Group, UnsupportedLayoutError
from aibrix_connector.kv_layout import LAYOUTS, LayerPages, derive_layers, page_runs, slot_bytes


def offsets(shape: tuple[int, ...], strides: tuple[int, ...]) -> set[int]:
    """Returns the items of a strided view, the slow way."""
    return {
        sum(index * stride for index, stride in zip(place, strides, strict=True))
        for place in itertools.product(*map(range, shape))
    }


def runs_to_offsets(runs: tuple[int, int, int]) -> list[int]:
    segments, stride, length = runs
    return [segment * stride + byte for segment in range(segments) for byte in range(length)]


def is_equally_spaced(items: set[int]) -> bool:
    """Whether some items are runs of one length at one distance, the slow way."""
    ordered = sorted(items)
    starts = [item for item in ordered if item - 1 not in items]
    lengths = {next(n for n in itertools.count() if start + n not in items) for start in starts}
    gaps = {b - a for a, b in itertools.pairwise(starts)}
    return len(lengths) == 1 and len(gaps) <= 1


def test_page_runs_against_brute_force() -> None:
    generator = random.Random(7)
    found = refused = 0
    for _ in range(4000):
        shape = tuple(generator.choice([1, 1, 2, 2, 3, 4]) for _ in range(generator.randint(1, 4)))
        order = list(range(len(shape)))
        generator.shuffle(order)
        strides, step = [0] * len(shape), 1
        for dimension in order:
            strides[dimension] = step
            step = step * shape[dimension] + generator.choice([0, 0, 0, 0, 1, 4])
        items = offsets(shape, tuple(strides))
        runs = page_runs(shape, tuple(strides), 1)
        if runs is None:
            refused += 1
            assert not is_equally_spaced(items), (shape, strides)
        else:
            found += 1
            assert sorted(runs_to_offsets(runs)) == sorted(items), (shape, strides, runs)
        double = page_runs(shape, tuple(strides), 2)
        assert double == (None if runs is None else (runs[0], 2 * runs[1], 2 * runs[2]))
    assert found > 500
    assert refused > 100


@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((2, 4), (0, 1)),  # expanded
        ((3, 4), (2, 1)),  # overlapping windows
        ((2, 2), (1, 1)),
        ((2,), (0,)),
        ((2, 3), (4, 2)),  # unequal gaps
    ],
)
def test_page_runs_refuses(shape: tuple[int, ...], strides: tuple[int, ...]) -> None:
    items = len(offsets(shape, strides))
    runs = page_runs(shape, strides, 1)
    assert runs is None or (items == int(np.prod(shape)) and set(runs_to_offsets(runs)) == offsets(shape, strides))


def spec(page_bytes: int, **more: Any) -> Any:
    return SimpleNamespace(page_size_bytes=page_bytes, **more)


def cache_config(num_blocks: int, *groups: tuple[list[str], Any]) -> Any:
    return SimpleNamespace(
        num_blocks=num_blocks,
        kv_cache_groups=[SimpleNamespace(layer_names=names, kv_cache_spec=one) for names, one in groups],
    )


def byte_places(tensor: Any, first: int, last: int) -> set[int]:
    """Returns the addresses of every byte of `tensor[first:last]`."""
    item = tensor.element_size()
    strides = tuple(stride * item for stride in tensor.stride())
    items = offsets((last - first, *tensor.shape[1:]), strides)
    base = tensor.data_ptr() + first * strides[0]
    return {base + place + byte for place in items for byte in range(item)}


def page_places(layer: LayerPages, block: int) -> list[int]:
    start = layer.base + block * layer.block_stride
    return [start + place for place in runs_to_offsets((layer.segments, layer.segment_stride, layer.segment_bytes))]


def engine_tensors(layout: str, layers: int, blocks: int, heads: int, tokens: int, content: int, dtype: Any) -> Any:
    """Returns the views [B, H, N, C] of each layer over one storage in the order of `layout`."""
    import torch

    sizes = {"L": layers, "B": blocks, "H": heads, "N": tokens, "C": content}
    storage = torch.zeros([sizes[letter] for letter in layout], dtype=dtype)
    logical = storage.permute([layout.index(letter) for letter in "LBHNC"])
    return {f"model.layers.{index}.attn": logical[index] for index in range(layers)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_the_engine(layout: str) -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    generator = random.Random(layout)
    for _ in range(12):
        layers, blocks, split = generator.randint(1, 3), generator.randint(2, 4), generator.choice([1, 1, 2])
        heads, tokens, content = generator.randint(1, 3), generator.choice([1, 4]), generator.choice([2, 8])
        dtype = generator.choice([torch.bfloat16, torch.uint8, torch.float32])
        views = engine_tensors(layout, layers, blocks * split, heads, tokens, content, dtype)
        page_bytes = split * heads * tokens * content * dtype.itemsize
        group = Group(0, "full", tokens * split, 0, page_bytes)
        derived, positions = derive_layers(views, cache_config(blocks, (list(views), spec(page_bytes))), [group])
        assert positions == {name: index for index, name in enumerate(views)}
        seen: set[int] = set()
        for layer in derived:
            assert layer.block_count == blocks
            for block in range(blocks):
                places = page_places(layer, block)
                expected = byte_places(views[layer.name], block * split, (block + 1) * split)
                assert sorted(places) == sorted(expected)
                assert seen.isdisjoint(expected), "no byte belongs to two blocks or layers"
                seen |= expected


def test_latent_attention_has_three_dimensions() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    views = {"model.layers.0.attn": torch.zeros(5, 16, 40, dtype=torch.bfloat16)}
    group = Group(0, "full", 16, 0, 16 * 40 * 2)
    (layer,), _ = derive_layers(views, cache_config(5, (list(views), spec(1280))), [group])
    assert (layer.segments, layer.segment_bytes, layer.block_stride) == (1, 1280, 1280)


def test_padded_pages_are_copied_without_their_padding() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    storage = torch.zeros(5 * 1536, dtype=torch.uint8)
    views = {"layers.0": torch.as_strided(storage, (5, 1, 16, 80), (1536, 1280, 80, 1))}
    padded = spec(1536, unpadded_page_size_bytes=1280)
    (layer,), _ = derive_layers(views, cache_config(5, (list(views), padded)), [Group(0, "full", 16, 0, 1536)])
    assert (layer.segment_bytes, layer.block_stride) == (1280, 1536)


def test_layers_come_in_forward_order_and_shared_tensors_once() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    views = {f"model.layers.{n}.attn": torch.zeros(4, 1, 8, 8, dtype=torch.uint8) for n in (10, 2, 0)}
    views["model.layers.11.attn"] = views["model.layers.10.attn"]
    layers, positions = derive_layers(views, cache_config(4, (list(views), spec(64))), [Group(0, "full", 8, 0, 64)])
    assert [layer.name for layer in layers] == [f"model.layers.{n}.attn" for n in (0, 2, 10)]
    assert positions["model.layers.11.attn"] == positions["model.layers.10.attn"] == 2


def test_groups_are_numbered_as_stored_and_missing_layers_are_left_out() -> None:
    """A pipeline stage registers its own layers only."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    views = {"a.0": torch.zeros(4, 1, 8, 8, dtype=torch.uint8), "b.1": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}
    config = cache_config(4, (["skipped.5"], spec(64)), (["a.0", "a.9"], spec(64)), (["b.1"], spec(64)))
    layers, _ = derive_layers(views, config, [Group(1, "full", 8, 0, 64), Group(2, "full", 8, 0, 64)])
    assert [(layer.name, layer.group) for layer in layers] == [("a.0", 0), ("b.1", 1)]


def golden(message: str) -> Any:
    return pytest.raises(UnsupportedLayoutError, match="^" + re.escape(message) + "$")


def derive_one(tensor: Any, num_blocks: int, page_bytes: int) -> Any:
    views = {"layers.0": tensor}
    group = Group(0, "full", 16, 0, page_bytes)
    return derive_layers(views, cache_config(num_blocks, (["layers.0"], spec(page_bytes))), [group])


def test_unknown_layouts_are_refused_and_named() -> None:
    torch = pytest.importorskip("torch")
    pytest.importorskip("vllm")
    with golden(
        "layer layers.0: a KV cache of shape (2, 10, 16, 8), strides (1280, 128, 8, 1), type torch.uint8 and 10 blocks "
        "does not have blocks in its first dimension: choose another with VLLM_KV_CACHE_LAYOUT"
    ):
        derive_one(torch.zeros(2, 10, 16, 8, dtype=torch.uint8), 10, 256)
    with golden(
        "layer layers.0: a KV cache of shape (10, 16, 8), strides (128, 8, 1), type torch.uint8 and 10 blocks has "
        "pages of 128 bytes where the engine's specification says 256: this layout is not known, choose another with "
        "VLLM_KV_CACHE_LAYOUT"
    ):
        derive_one(torch.zeros(10, 16, 8, dtype=torch.uint8), 10, 256)
    storage = torch.zeros(100_000, dtype=torch.uint8)
    with golden(
        "layer layers.0: a KV cache of shape (10, 2, 3, 8), strides (1000, 100, 10, 1), type torch.uint8 and 10 blocks "
        "has pages of 48 bytes where the engine's specification says 48: this layout is not known, choose another with "
        "VLLM_KV_CACHE_LAYOUT"
    ):
        derive_one(torch.as_strided(storage, (10, 2, 3, 8), (1000, 100, 10, 1)), 10, 48)
    with golden("the engine registered no KV cache tensors: serve this model without the connector"):
        derive_layers({}, cache_config(10, (["layers.0"], spec(64))), [Group(0, "full", 16, 0, 64)])


def test_layer_order_is_numeric() -> None:
    names = ["model.layers.10.a", "model.layers.9.a", "model.layers.9.b", "x"]
    assert sorted(names, key=kv_layout.layer_order) == [
        "x",
        "model.layers.9.a",
        "model.layers.9.b",
        "model.layers.10.a",
    ]


def test_a_slot_is_as_large_as_the_largest_group_needs() -> None:
    def layer(group: int, segments: int, segment_bytes: int) -> LayerPages:
        return LayerPages(f"{group}", group, 0, 4096, 8, segments, 2048, segment_bytes)

    full, window = [layer(0, 2, 100), layer(0, 1, 50)], [layer(1, 1, 120)]
    assert slot_bytes(full + window, 3) == 3 * (2 * 100 + 50)
    assert slot_bytes(window, 1) == 120
