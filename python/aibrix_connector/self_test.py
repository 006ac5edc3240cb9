"""Proves at registration that blocks leave and come back unchanged.

An engine that changes its KV layout makes a connector that copies the wrong bytes, and nothing fails: the answers are
fluent and wrong. So before the first real load, a block is filled with a pattern through the engine's own view,
read through the derived layout, overwritten, written back and compared; their neighbours must not change.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from aibrix_connector import _native
from aibrix_connector.kv_groups import Group, UnsupportedLayoutError

if TYPE_CHECKING:
    import torch
    from vllm.v1.kv_cache_interface import KVCacheConfig


def prove_round_trip(
    store: _native.Store,
    kv_caches: "dict[str, torch.Tensor]",
    kv_cache_config: "KVCacheConfig",
    groups: list[Group],
    positions: dict[str, int],
    synchronize: Callable[[], object],
) -> None:
    """Copies patterned blocks out and back in.

    Nothing has been computed yet, so the blocks are free; they are zero afterwards.

    Args:
        store: Where they go and come from.
        kv_caches: The engine's tensors by layer name, in host memory or on a device.
        kv_cache_config: The engine's groups and specs.
        groups: The stored groups.
        positions: Each layer's place in the forward pass.
        synchronize: Returns when what torch has written is there, for the store to read.

    Raises:
        UnsupportedLayoutError: A byte came back in the wrong place.
    """
    import torch

    num_blocks = kv_cache_config.num_blocks
    if num_blocks < 3:
        return
    block = num_blocks - 2
    for position, group in enumerate(groups):
        names = [n for n in kv_cache_config.kv_cache_groups[group.group_id].layer_names if n in kv_caches]
        views = {}
        # Layers that share a tensor have one position: one of them is enough.
        for name in {positions[name]: name for name in names}.values():
            tensor = kv_caches[name]
            split = tensor.shape[0] // num_blocks
            # The engine's own view of a block, and of the two around it.
            views[name] = [tensor[(block + at) * split : (block + at + 1) * split] for at in (-1, 0, 1)]
        generator = torch.Generator().manual_seed(position)
        wanted = {name: _fill(neighbours, generator)[1] for name, neighbours in views.items()}
        synchronize()
        out = store.read_block(position, block)
        # Everything changes between the two copies: what is written beside the block shows, even if it was read there.
        expected = {name: _fill(neighbours, generator) for name, neighbours in views.items()}
        synchronize()
        store.write_block(position, block, out)
        for name, neighbours in views.items():
            expected[name][1] = wanted[name]
            for before, after in zip(expected[name], neighbours, strict=True):
                if not torch.equal(_bytes(before), _bytes(after)):
                    raise UnsupportedLayoutError(
                        f"layer {name}: a patterned block of shape {tuple(after.shape)} and strides "
                        f"{tuple(after.stride())} did not survive a copy to host memory and back, so this KV layout is "
                        "not understood: choose another with VLLM_KV_CACHE_LAYOUT, or serve this model without the "
                        "connector"
                    )
        for neighbours in views.values():
            for view in neighbours:
                view.zero_()
        # The engine may compute on another stream than the one of this moment.
        synchronize()


def _fill(views: "list[torch.Tensor]", generator: "torch.Generator") -> "list[torch.Tensor]":
    """Writes random bytes through the engine's views, and returns copies of what is there then."""
    import torch

    for view in views:
        raw = torch.randint(0, 256, (view.numel() * view.element_size(),), generator=generator, dtype=torch.uint8)
        view.copy_(raw.view(view.dtype).reshape(view.shape))
    return [view.clone() for view in views]


def _bytes(tensor: "torch.Tensor") -> "torch.Tensor":
    import torch

    return tensor.contiguous().view(torch.uint8)
