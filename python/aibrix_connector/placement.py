"""Where this rank's bytes come from and who copies them."""

import contextlib
import multiprocessing
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aibrix_connector.kv_layout import LayerPages

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.v1.kv_cache_interface import KVCacheConfig

MOST_THREADS = 4
"""More copy threads than this do not move more bytes: a few cores fill a memory channel."""


AUTO_SHARE = 8
AUTO_MOST_BYTES = 10 << 30
"""What `capacity` is without a setting: an eighth of the machine's memory, at most 10 GiB and what is available."""


def capacity_bytes(wanted: int | None) -> int:
    """Returns the bytes of L1 over all ranks of the engine on this machine.

    Without a setting they depend on the machine's memory rather than on what is left of it at the moment: a restarted
    engine finds its slab again only if it asks for the same size.
    """
    if wanted is not None:
        return wanted
    memory = memory_bytes()
    auto = min(AUTO_MOST_BYTES, memory["MemTotal"] // AUTO_SHARE)
    if auto <= memory["MemAvailable"] // 2:
        return auto
    # In coarse steps, so that ranks and restarts mostly come to the same.
    return 1 << (memory["MemAvailable"] // 4).bit_length() - 1


def memory_bytes() -> dict[str, int]:
    """Returns the machine's memory (``MemTotal``), and what can be taken without swapping (``MemAvailable``)."""
    found: dict[str, int] = {}
    with Path("/proc/meminfo").open(encoding="ascii") as file:
        for line in file:
            name, _, value = line.partition(":")
            if name in ("MemTotal", "MemAvailable"):
                found[name] = int(value.split()[0]) << 10
    if len(found) < 2:
        raise OSError("/proc/meminfo does not say how much memory there is: set the capacity")
    limit = Path("/sys/fs/cgroup/memory.max")
    with contextlib.suppress(OSError, ValueError):
        found["MemTotal"] = min(found["MemTotal"], int(limit.read_text(encoding="ascii")))
    return found


_KV_HEADS = re.compile(r"(kv|key_value).*heads?|heads?.*(kv|key_value)|multi_query|query_group")
"""Names of configuration fields that say how many KV heads a layer has."""


def replicas(config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> int:
    """Returns how many neighbouring ranks of a tensor-parallel group hold the same KV bytes.

    vLLM says so for latent attention (since 0.31). With fewer KV heads than ranks it copies heads without saying so:
    that is counted only where the model's configuration leaves no doubt that it is so in every layer.
    """
    said = max(1, int(getattr(kv_cache_config, "kv_tp_replicas", 1) or 1))
    parallel = config.parallel_config
    tensor = parallel.tensor_parallel_size
    # With context parallelism, ranks that have the same head hold different tokens of it.
    context = [getattr(parallel, f"{kind}_context_parallel_size", 1) for kind in ("decode", "prefill")]
    if said > 1 or tensor == 1 or max(context) > 1 or config.speculative_config is not None:
        return said
    found = list(_fields(config.model_config.hf_config.to_dict(), _KV_HEADS))
    name, total = found[0] if len(found) == 1 else ("", 0)
    specs = [spec for group in kv_cache_config.kv_cache_groups for spec in _layer_specs(group.kv_cache_spec)]
    one_each = all(type(spec).__name__ in _PLAIN_SPECS and spec.num_kv_heads == 1 for spec in specs)
    if name != "num_key_value_heads" or not isinstance(total, int) or not one_each:
        return 1
    return tensor // total if 0 < total < tensor and tensor % total == 0 else 1


_PLAIN_SPECS = ("FullAttentionSpec", "SlidingWindowSpec")


def _fields(value: object, pattern: re.Pattern[str]) -> Iterator[tuple[str, object]]:
    """The fields of a nested configuration whose names match; those without a value say nothing."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if pattern.search(str(name)) and inner is not None:
                yield str(name), inner
            yield from _fields(inner, pattern)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _fields(inner, pattern)


def _layer_specs(spec: Any) -> list[Any]:
    by_layer = getattr(spec, "kv_cache_specs", None)
    return [spec] if by_layer is None else list(by_layer.values())


def sharing(config: "VllmConfig", kv_cache_config: "KVCacheConfig") -> tuple[int, int]:
    """Returns the rank that stores what this one holds, and how many ranks hold the same, itself included.

    On one machine such bytes are stored once, by the first of those ranks.
    """
    parallel = config.parallel_config
    copies = replicas(config, kv_cache_config)
    one_machine = str(parallel.distributed_executor_backend) == "mp" and getattr(parallel, "nnodes", 1) == 1
    if copies == 1 or not one_machine:
        return parallel.rank, 1
    return parallel.rank - parallel.rank % parallel.tensor_parallel_size % copies, copies


def fits(capacity: int, directory: str) -> bool:
    """Whether a slab of this size can ever lie in a directory: ``/dev/shm`` is often small in containers.

    What is free at the moment does not count, so that all ranks get the same answer.
    """
    try:
        whole = os.statvfs(directory)
    except OSError:
        # It is made when the slab is opened, on the file system of a folder above it.
        parent = os.path.dirname(directory.rstrip("/"))
        return bool(parent) and parent != directory and fits(capacity, parent)
    # Without a limit it has no blocks. The table and its rounding take a little more than the slots.
    return whole.f_blocks == 0 or whole.f_blocks * whole.f_frsize > capacity * 1.02 + (4 << 20)


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
    tensor_rank = parallel.rank % parallel.tensor_parallel_size
    first = kv_caches[layers[0].name]
    fields: dict[str, Any] = {
        "layers": [layer.name for layer in layers],
        "pages": [(layer.segments, layer.segment_bytes) for layer in layers],
        "heads": tensor_rank // replicas(config, kv_cache_config),
        "stage": parallel.rank // parallel.tensor_parallel_size,
        "item": str(first.dtype),
        "page_shape": [(tuple(kv_caches[layer.name].shape[1:]), layer.block_count and 0) for layer in layers],
        "page_order": [_page_order(kv_caches[layer.name]) for layer in layers],
        "device": first.device.type,
        "attention": _attention_backends(config),
    }
    if first.device.type == "cpu":
        # The CPU backend packs pages for the instruction set that it picked.
        fields["instruction_set"] = _instruction_set()
    return [(name, str(value)) for name, value in fields.items()]


def _page_order(tensor: "torch.Tensor") -> list[int]:
    """The dimensions of a page from the outermost in memory to the innermost, those of one item left out.

    Layouts with heads outside of tokens and the other way round have pages of one shape, and of other bytes.
    """
    inner = [dimension for dimension in range(1, tensor.dim()) if tensor.shape[dimension] > 1]
    return sorted(inner, key=lambda dimension: -tensor.stride(dimension))


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
