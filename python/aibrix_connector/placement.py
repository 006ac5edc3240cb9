"""Where this rank's bytes come from and who copies them."""

import multiprocessing
import os
import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aibrix_connector.kv_layout import LayerPages

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

MOST_THREADS = 4
"""More copy threads than this do not move more bytes: a few cores fill a memory channel."""


AUTO_SHARE = 4
AUTO_MOST_BYTES = 10 << 30
"""What `capacity` is without a setting: a quarter of the available memory, at most 10 GiB."""


def capacity_bytes(wanted: int | None) -> int:
    """Returns the bytes of L1 over all ranks of the engine on this machine."""
    if wanted is not None:
        return wanted
    return min(AUTO_MOST_BYTES, available_memory_bytes() // AUTO_SHARE)


def available_memory_bytes() -> int:
    """Returns the memory that can be taken without swapping."""
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) << 10
    raise OSError("/proc/meminfo has no MemAvailable: set the capacity")


def owner_pid() -> int:
    """Returns the process whose end means that this engine has ended: the one that started this rank, or this one."""
    parent = multiprocessing.parent_process()
    return os.getpid() if parent is None or parent.pid is None else parent.pid


def shard_fields(
    config: "VllmConfig",
    kv_cache_config: "KVCacheConfig",
    kv_caches: "dict[str, torch.Tensor]",
    layers: list[LayerPages],
) -> list[tuple[str, str]]:
    """Returns what makes one rank's bytes differ from another's: its layers and heads, and how pages are laid out.

    A shard is a distinct content, not a rank: ranks that hold replicas of each other have equal fields.
    """
    parallel = config.parallel_config
    replicas = max(1, int(getattr(kv_cache_config, "kv_tp_replicas", 1) or 1))
    tensor_rank = parallel.rank % parallel.tensor_parallel_size
    first = kv_caches[layers[0].name]
    fields: dict[str, Any] = {
        "layers": [layer.name for layer in layers],
        "pages": [(layer.segments, layer.segment_bytes) for layer in layers],
        "heads": tensor_rank // replicas,
        "stage": parallel.rank // parallel.tensor_parallel_size,
        "item": str(first.dtype),
        "page_shape": [(tuple(kv_caches[layer.name].shape[1:]), layer.block_count and 0) for layer in layers],
        "device": first.device.type,
        "attention": _attention_backends(config),
    }
    if first.device.type == "cpu":
        # The CPU backend packs pages for the instruction set that it picked.
        fields["instruction_set"] = _instruction_set()
    return [(name, str(value)) for name, value in fields.items()]


def _attention_backends(config: "VllmConfig") -> list[str]:
    try:
        from vllm.config import get_layers_from_vllm_config
        from vllm.model_executor.layers.attention_layer_base import AttentionLayerBase

        layers = get_layers_from_vllm_config(config, AttentionLayerBase)
        return sorted({layer.get_attn_backend().get_name() for layer in layers.values()})
    except Exception:
        return ["unknown"]


def _instruction_set() -> str:
    wanted = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16", "amx_tile", "asimd", "sve", "bf16")
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as file:
            line = next(line for line in file if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.machine()
    flags = set(line.split())
    return " ".join([platform.machine(), *(flag for flag in wanted if flag in flags)])


def copy_placement(wanted: int | None, config: "VllmConfig") -> tuple[int, list[int]]:
    """Returns how many threads copy beside the engine's, and the CPUs they may use (empty: any).

    The engine's compute threads spin at barriers, so that a copy thread on their core delays all of them: `auto` only
    uses cores that they leave.
    """
    import torch

    everything = sorted(os.sched_getaffinity(os.getppid()) if config.parallel_config.world_size > 1 else _all_cpus())
    bound = os.sched_getaffinity(0)
    ranks = max(1, config.parallel_config.world_size)
    if wanted is not None:
        return wanted, []
    left = [cpu for cpu in everything if cpu not in bound]
    if left:
        return min(MOST_THREADS, max(1, len(left) // ranks)), left
    spare = len(everything) // ranks - torch.get_num_threads()
    return max(0, min(MOST_THREADS, spare)), []


def _all_cpus() -> set[int]:
    return set(range(os.cpu_count() or 1))
