"""Proves at registration that blocks leave and come back unchanged.

An engine that changes its KV layout makes a connector that copies the wrong bytes, and nothing fails: the answers are
fluent and wrong. So before the first real load, two blocks are filled with a pattern through the engine's own view,
read through the derived layout and compared, wiped, written back and compared again; their neighbours must not change.
"""

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
) -> None:
    """Copies patterned blocks out and back in.

    Nothing has been computed yet, so the blocks are free; they are zero afterwards.

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
        patterns = {}
        for name, neighbours in views.items():
            for view in neighbours:
                raw = torch.randint(
                    0, 255, (view.numel() * view.element_size(),), generator=generator, dtype=torch.uint8
                )
                view.copy_(raw.view(view.dtype).reshape(view.shape))
            patterns[name] = [view.clone() for view in neighbours]
        out = store.read_block(position, block)
        for name in views:
            views[name][1].zero_()
        store.write_block(position, block, out)
        for name, neighbours in views.items():
            for before, after in zip(patterns[name], neighbours, strict=True):
                if not torch.equal(before.contiguous().view(torch.uint8), after.contiguous().view(torch.uint8)):
                    raise UnsupportedLayoutError(
                        f"layer {name}: a patterned block of shape {tuple(after.shape)} and strides "
                        f"{tuple(after.stride())} did not survive a copy to host memory and back, so this KV layout is "
                        "not understood: choose another with VLLM_KV_CACHE_LAYOUT, or serve this model without the "
                        "connector"
                    )
        for neighbours in views.values():
            for view in neighbours:
                view.zero_()
