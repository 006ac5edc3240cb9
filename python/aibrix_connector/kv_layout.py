"""Derives where pages are from the engine's tensors: their strides and specs decide, unknown layouts are refused."""

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from aibrix_connector.kv_groups import Group, UnsupportedLayoutError

if TYPE_CHECKING:
    import torch
    from vllm.v1.kv_cache_interface import KVCacheConfig


@dataclass(frozen=True)
class LayerPages:
    """One layer's pages: equally spaced runs of bytes, at a constant stride from block to block."""

    name: str
    group: int
    """Index among the stored groups."""
    base: int
    """Address of block 0."""
    block_stride: int
    block_count: int
    segments: int
    segment_stride: int
    segment_bytes: int

    def native(self) -> tuple[str, int, int, int, int, int, int, int]:
        """Returns the fields in the order of the native constructor."""
        return (
            self.name,
            self.group,
            self.base,
            self.block_stride,
            self.block_count,
            self.segments,
            self.segment_stride,
            self.segment_bytes,
        )

    @property
    def page_bytes(self) -> int:
        """Bytes of a page."""
        return self.segments * self.segment_bytes


def slot_bytes(layers: list[LayerPages], slot_blocks: int) -> int:
    """Returns the bytes of a slot, which is as large as the largest group needs."""
    groups = {layer.group for layer in layers}
    return slot_blocks * max(sum(layer.page_bytes for layer in layers if layer.group == group) for group in groups)


LAYOUTS = ("LBHNC", "LBNHC", "LHBNC", "BLHNC", "BLNHC", "BHLNC")
"""vLLM's orders of the dimensions layer, block, head, token, content in memory."""


def wished_layout(setting: str) -> str | None:
    """Returns the layout to ask vLLM for, or None for its own choice, which is what `auto` wants."""
    # Of the layouts that all attention backends of a model read vLLM takes the one they like best. On CUDA, from 0.29
    # to 0.32, that has the layers outermost and each page (one block of one layer) in one run, except where a backend
    # reads nothing but blocks-first. Pages are what is copied layer by layer, whatever is outermost (16 tokens, 2
    # bytes for a value):
    #
    #     model                                   one layer   all layers
    #     Llama 3 8B, 32 layers, 8 KV heads          64 KiB        2 MiB
    #     ... on 8 ranks                              8 KiB      256 KiB
    #     Llama 3 70B, 80 layers, 8 KV heads         64 KiB        5 MiB
    #     ... on 8 ranks                              8 KiB      640 KiB
    #     DeepSeek V3, 61 layers of 576 values       18 KiB     1098 KiB
    #
    # With layers first, pages of neighbouring numbers touch, as they do in a slot, whose part of one layer
    # `slot_blocks` makes 64 KiB: where a prompt got such blocks, as from a pool that is not worn yet, they are one
    # piece. With blocks first no two pages of a layer ever touch. The long pieces of that layout are those of several
    # layers at once, and a long copy that waits for layers, or that layers wait for, goes layer by layer. Nor can vLLM
    # split blocks for attention kernels there: to 0.31 an engine that needs it does not start, 0.32 gives a kernel the
    # whole block.
    return setting if setting in LAYOUTS else None


def layer_order(name: str) -> tuple[tuple[int, ...], str]:
    """Sorts layers as the forward pass reaches them: by the numbers in their names."""
    return tuple(int(number) for number in re.findall(r"\d+", name)), name


def page_runs(shape: tuple[int, ...], strides: tuple[int, ...], item_bytes: int) -> tuple[int, int, int] | None:
    """Returns (segments, segment_stride, segment_bytes) of a page, or None if it is no equally spaced runs.

    Args:
        shape: The page's dimensions.
        strides: Their strides, in items.
        item_bytes: Bytes of an item.
    """
    dims = sorted((stride, size) for stride, size in zip(strides, shape, strict=True) if size > 1)
    run = 1
    while dims and dims[0][0] == run:
        run *= dims.pop(0)[1]
    if not dims:
        return 1, run * item_bytes, run * item_bytes
    segment_stride, segments = dims.pop(0)
    if segment_stride < run:
        return None  # runs that overlap: an expanded or a hand-made view
    for stride, size in dims:
        if stride != segment_stride * segments:
            return None
        segments *= size
    return segments, segment_stride * item_bytes, run * item_bytes


def derive_layers(
    kv_caches: dict[str, "torch.Tensor"], kv_cache_config: "KVCacheConfig", groups: list[Group]
) -> tuple[list[LayerPages], dict[str, int]]:
    """Derives the pages of all stored layers.

    Args:
        kv_caches: The engine's tensors by layer name, dimension 0 over blocks.
        kv_cache_config: The engine's groups and specs.
        groups: The stored groups.

    Returns:
        The layers in forward order, and the position in it of every layer name (layers that share a tensor share it).

    Raises:
        UnsupportedLayoutError: Names the layer, its shape and strides.
    """
    from vllm.v1.kv_cache_interface import UniformTypeKVCacheSpecs

    layers: list[LayerPages] = []
    positions: dict[str, int] = {}
    seen: dict[tuple[int, int, tuple[int, ...]], str] = {}
    aliases: dict[str, str] = {}
    for position, group in enumerate(groups):
        engine_group = kv_cache_config.kv_cache_groups[group.group_id]
        group_spec: Any = engine_group.kv_cache_spec
        for name in engine_group.layer_names:
            tensor = kv_caches.get(name)
            if tensor is None:
                continue
            spec = group_spec.kv_cache_specs[name] if isinstance(group_spec, UniformTypeKVCacheSpecs) else group_spec
            place = (position, tensor.data_ptr(), tuple(tensor.stride()))
            if place in seen:
                aliases[name] = seen[place]
                continue
            seen[place] = name
            layers.append(_layer(name, position, tensor, spec, kv_cache_config.num_blocks))
    if not layers:
        raise UnsupportedLayoutError(
            "the engine registered no KV cache tensors: serve this model without the connector"
        )
    layers.sort(key=lambda layer: layer_order(layer.name))
    for index, layer in enumerate(layers):
        positions[layer.name] = index
    positions.update({alias: positions[name] for alias, name in aliases.items()})
    return layers, positions


def _layer(name: str, group: int, tensor: "torch.Tensor", spec: Any, num_blocks: int) -> LayerPages:
    shape, strides = tuple(tensor.shape), tuple(tensor.stride())
    where = f"layer {name}: a KV cache of shape {shape}, strides {strides}, type {tensor.dtype} and {num_blocks} blocks"
    if not shape or num_blocks < 1 or shape[0] % num_blocks != 0:
        raise UnsupportedLayoutError(
            f"{where} does not have blocks in its first dimension: choose another with VLLM_KV_CACHE_LAYOUT"
        )
    # The kernel may see a block as several smaller ones.
    split = shape[0] // num_blocks
    item = tensor.element_size()
    runs = page_runs((split, *shape[1:]), strides, item)
    page_bytes = 1
    for size in (split, *shape[1:]):
        page_bytes *= size
    page_bytes *= item
    expected = {
        spec.page_size_bytes,
        getattr(spec, "unpadded_page_size_bytes", None),
        getattr(spec, "real_page_size_bytes", None),
    }
    if runs is None or page_bytes not in expected:
        raise UnsupportedLayoutError(
            f"{where} has pages of {page_bytes} bytes where the engine's specification says {spec.page_size_bytes}: "
            "this layout is not known, choose another with VLLM_KV_CACHE_LAYOUT"
        )
    segments, segment_stride, segment_bytes = runs
    return LayerPages(
        name, group, tensor.data_ptr(), strides[0] * split * item, num_blocks, segments, segment_stride, segment_bytes
    )
