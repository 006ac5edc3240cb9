"""Pages are found in the memory that vLLM itself plans and allocates, in each of its layouts."""

import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from aibrix_connector import _native
from aibrix_connector.kv_groups import Group
from aibrix_connector.kv_layout import LAYOUTS, derive_layers, wished_layout
from aibrix_connector.self_test import prove_round_trip
from vllm.v1 import kv_cache_interface as kv
from vllm.v1.core.kv_cache_utils import get_kv_cache_config_from_groups
from vllm.v1.worker.utils import allocate_kv_cache

try:
    from vllm.v1.kv_cache_layout import KVCacheLayout
except ImportError:
    from vllm.v1.kv_cache_interface import KVCacheLayout

pytestmark = pytest.mark.matrix

BLOCKS, TOKENS, LAYERS = 6, 32, 3

SPECS: dict[str, Any] = {
    "two heads": kv.FullAttentionSpec(block_size=TOKENS, num_kv_heads=2, head_size=16, dtype=torch.bfloat16),
    "one head": kv.FullAttentionSpec(block_size=TOKENS, num_kv_heads=1, head_size=16, dtype=torch.bfloat16),
    "short values": kv.FullAttentionSpec(
        block_size=TOKENS, num_kv_heads=2, head_size=16, head_size_v=8, dtype=torch.bfloat16
    ),
    "bytes": kv.FullAttentionSpec(block_size=TOKENS, num_kv_heads=4, head_size=16, dtype=torch.uint8),
    "latent": kv.MLAAttentionSpec(block_size=TOKENS, num_kv_heads=1, head_size=36, dtype=torch.bfloat16),
}


def test_vllm_has_these_layouts() -> None:
    assert tuple(KVCacheLayout.__members__) == LAYOUTS
    assert wished_layout("auto") is None
    assert [wished_layout(name) for name in LAYOUTS] == list(LAYOUTS)


def allocate(spec: Any, layout: Any, split: int) -> tuple[dict[str, Any], Any]:
    """Returns the views that a worker would register, and vLLM's plan of them."""
    names = [f"model.layers.{n}.attn" for n in range(LAYERS)]
    config: Any = SimpleNamespace(
        cache_config=SimpleNamespace(
            get_resolved_kv_cache_layout=lambda: layout,
            prefix_cache_retention_interval=None,
            num_gpu_blocks_override=None,
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
    )
    groups = [kv.KVCacheGroupSpec(layer_names=names, kv_cache_spec=spec)]
    plan = get_kv_cache_config_from_groups(config, groups, LAYERS * BLOCKS * spec.page_size_bytes)
    return allocate_kv_cache(plan, torch.device("cpu"), layout, [TOKENS // split]), plan


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("split", [1, 2])
def test_blocks_leave_and_come_back(name: str, kind: str, split: int) -> None:
    spec, layout = SPECS[kind], KVCacheLayout[name]
    dense = layout.is_layer_compact and (layout.is_block_compact or spec.num_kv_heads == 1)
    if split > 1 and not dense:
        with pytest.raises(ValueError, match="cannot be split"):
            allocate(spec, layout, split)
        return
    views, plan = allocate(spec, layout, split)
    assert plan.num_blocks == BLOCKS
    groups = [Group(0, "full", TOKENS, 0, spec.page_size_bytes)]
    layers, positions = derive_layers(views, plan, groups)
    # A page is in one run, unless other layers or other blocks lie between its heads.
    heads = spec.num_kv_heads if name in ("LHBNC", "BHLNC") else 1
    assert {layer.segments for layer in layers} == {heads}
    store = _native.Store(
        rank=0, ranks=1, leader=0, copies=1, layers=[layer.native() for layer in layers], slot_blocks=1,
        capacity_bytes=1 << 20, namespace=bytes(16), shard=bytes(16), slab_dir=None, engine_id="e", owner_pid=1,
        copy_threads=0, copy_cpus=[], layers_ahead=1, verify_l1=False, drill=None,
    )  # fmt: skip
    prove_round_trip(store, views, plan, groups, positions, lambda: None)

    # The bytes that leave are the engine's own, in the order of their addresses, and those of no other block.
    for number, view in enumerate(views.values()):
        for block in range(BLOCKS):
            view[block * split : (block + 1) * split].view(torch.uint8).fill_(1 + number * BLOCKS + block)
    page = spec.page_size_bytes
    for block in range(BLOCKS):
        expected = b"".join(bytes([1 + number * BLOCKS + block]) * page for number in range(LAYERS))
        assert store.read_block(0, block) == expected
    store.close()


def test_layers_of_different_sizes_share_a_block() -> None:
    """As an indexer's cache beside that of latent attention does."""
    small = kv.MLAAttentionSpec(block_size=TOKENS, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
    specs = {
        "model.layers.0.indexer": small,
        "model.layers.0.mla": SPECS["latent"],
        "model.layers.1.mla": SPECS["latent"],
    }
    uniform = kv.UniformTypeKVCacheSpecs(block_size=TOKENS, kv_cache_specs=specs)
    for name in ("LBHNC", "LBNHC", "BLHNC", "BLNHC"):
        layout = KVCacheLayout[name]
        config: Any = SimpleNamespace(
            cache_config=SimpleNamespace(
                get_resolved_kv_cache_layout=lambda layout=layout: layout,
                prefix_cache_retention_interval=None,
                num_gpu_blocks_override=BLOCKS,
            ),
            attention_config=SimpleNamespace(hisparse_config=None),
        )
        group = kv.KVCacheGroupSpec(layer_names=list(specs), kv_cache_spec=uniform)
        plan = get_kv_cache_config_from_groups(config, [group], 1 << 20)
        views = allocate_kv_cache(plan, torch.device("cpu"), layout, [TOKENS])
        layers, positions = derive_layers(views, plan, [Group(0, "full", TOKENS, 0, small.page_size_bytes)])
        assert [re.sub(r".*\.", "", layer.name) for layer in layers] == ["indexer", "mla", "mla"]
        pages = [layer.segments * layer.segment_bytes for layer in layers]
        assert pages == [specs[layer.name].page_size_bytes for layer in layers]
        assert len(positions) == 3
