"""The KV cache groups that are stored, and what each needs for a hit."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

PIECE_BYTES = 64 << 10
"""The default slot makes one layer's part of it at least this long: shorter pieces are copied below link speed."""


class UnsupportedLayoutError(ValueError):
    """A model or KV cache layout that cannot be stored safely."""


@dataclass(frozen=True)
class Group:
    """One KV cache group."""

    group_id: int
    """Its index in the engine."""
    kind: str
    """``full`` or ``sliding``."""
    block_tokens: int
    """Tokens of one engine block."""
    window_tokens: int
    """Size of the attention window, 0 without one."""
    page_bytes: int
    """Bytes of one block of one layer."""


def stored_groups(kv_cache_config: "KVCacheConfig", vllm_config: "VllmConfig") -> list[Group]:
    """Returns the groups that a hit must restore, in the engine's order.

    Raises:
        UnsupportedLayoutError: A group is of a kind that this connector cannot restore.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec, UniformTypeKVCacheSpecs

    dcp = getattr(vllm_config.parallel_config, "decode_context_parallel_size", 1)
    ids = getattr(kv_cache_config, "prefix_cacheable_group_ids", None)
    groups: list[Group] = []
    for group_id in range(len(kv_cache_config.kv_cache_groups)) if ids is None else ids:
        spec: Any = kv_cache_config.kv_cache_groups[group_id].kv_cache_spec
        if isinstance(spec, UniformTypeKVCacheSpecs):
            spec = next(iter(spec.kv_cache_specs.values()))
        tokens = spec.block_size * (dcp if getattr(spec, "dcp_sharded", True) else 1)
        if isinstance(spec, SlidingWindowSpec):
            window = spec.sliding_window + getattr(spec, "extra_retained_tokens", 0)
            groups.append(Group(group_id, "sliding", tokens, window, spec.page_size_bytes))
        elif isinstance(spec, FullAttentionSpec):
            groups.append(Group(group_id, "full", tokens, 0, spec.page_size_bytes))
        else:
            raise UnsupportedLayoutError(
                f"KV cache group {group_id} is of kind {type(spec).__name__}, which this connector cannot restore: "
                "serve this model without the connector"
            )
    if not groups:
        raise UnsupportedLayoutError(
            "the model has no KV cache group that can be stored by prefix: serve it without the connector"
        )
    return groups


def check_recovery(groups: list[Group]) -> None:
    """Refuses several groups where vLLM cannot be told that a load failed for a request: 0.29 knows block ids only.

    Raises:
        UnsupportedLayoutError: Names the remedy.
    """
    from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1

    if len(groups) > 1 and not hasattr(KVConnectorBase_V1, "get_transfer_results"):
        import vllm

        raise UnsupportedLayoutError(
            f"vLLM {vllm.__version__} cannot recover from a failed load with {len(groups)} KV cache groups: upgrade "
            "vLLM, or start it with --disable-hybrid-kv-cache-manager"
        )


def slot_blocks(groups: list[Group], wanted: int | None, vllm_config: "VllmConfig") -> int:
    """Returns the engine blocks of a slot: what was asked for, or enough to make a piece 64 KiB.

    In a layout with blocks outside of layers no two pages of a layer touch, so that larger slots would gain nothing,
    while all layers of one block do touch, in the engine as in a slot of one block.
    """
    if wanted is not None:
        return wanted
    if str(vllm_config.cache_config.kv_cache_layout).startswith("BL"):
        return 1
    return max(1, -(-PIECE_BYTES // min(group.page_bytes for group in groups)))


def hash_tokens(kv_cache_config: "KVCacheConfig", vllm_config: "VllmConfig") -> int:
    """Returns the tokens that one of the engine's block hashes covers."""
    known = getattr(kv_cache_config, "hash_block_size", None)
    if known is not None:
        return int(known)
    from vllm.v1.core.kv_cache_utils import resolve_kv_cache_block_sizes

    return int(resolve_kv_cache_block_sizes(kv_cache_config, vllm_config)[1])
