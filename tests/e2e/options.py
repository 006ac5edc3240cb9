"""What an engine is started with. Imports nothing heavy, so that a test can use it before vLLM is loaded."""

import os
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.models import MODELS

CONNECTOR = "AIBrixOffloadingConnectorV1Type3"


@dataclass(frozen=True)
class EngineOptions:
    """Options of an engine, in this project's words; `more` goes to vLLM as it is."""

    model: str = "tiny"
    """A name in `tests.models.MODELS`."""
    connector: dict[str, Any] | None = None
    """The connector's extra config; None starts the engine without a connector."""
    connector_name: str = CONNECTOR
    connector_module: str | None = None
    """Module to import the class from; None relies on the plug-in that the wheel registers."""
    load_failure_policy: str | None = None
    """`recompute`, `fail`, or None for what vLLM and the connector agree on."""
    dtype: str = "bfloat16"
    kv_dtype: str = "auto"
    block_tokens: int = 32
    """On the CPU a multiple of 32; latent attention needs 16."""
    kv_bytes: int = 64 << 20
    kv_blocks: int | None = None
    """Overrides the number of KV blocks that `kv_bytes` gives; few blocks bring preemption."""
    tokens_max: int = 2048
    step_tokens_max: int = 128
    """Tokens computed in one step; a longer prompt is prefilled in chunks."""
    requests_max: int = 16
    """Requests that run at the same time."""
    prefix_caching: bool = True
    """The engine's own cache of prefixes."""
    eager: bool = True
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    core_process: bool = False
    """The engine's core in a process of its own, which steps by itself, as behind `vllm serve`."""
    engine_id: str | None = None
    """Names the engine to its connector, over restarts too; None lets vLLM make one up."""
    lora: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def without_connector(self) -> Self:
        """The same engine without a connector: what the tokens should be is defined by this one."""
        nothing = dict.fromkeys(("connector", "connector_module", "load_failure_policy", "engine_id"))
        return type(self)(**{**asdict(self), **nothing})

    def in_process(self) -> bool:
        """Whether the whole engine can live in one process."""
        return self.tensor_parallel * self.pipeline_parallel == 1 and not self.core_process

    def kv_transfer(self) -> dict[str, Any] | None:
        """The fields of vLLM's `KVTransferConfig`."""
        if self.connector is None:
            return None
        fields: dict[str, Any] = {
            "kv_connector": self.connector_name,
            "kv_role": "kv_both",
            "kv_connector_extra_config": self.connector,
        }
        if self.connector_module is not None:
            fields["kv_connector_module_path"] = self.connector_module
        if self.engine_id is not None:
            fields["engine_id"] = self.engine_id
        if self.load_failure_policy is not None:
            fields["kv_load_failure_policy"] = self.load_failure_policy
        return fields

    def vllm_arguments(self) -> dict[str, Any]:
        """Keyword arguments of vLLM's engine, less the connector's."""
        arguments: dict[str, Any] = {
            "model": str(MODELS[self.model].folder()),
            "skip_tokenizer_init": True,
            "dtype": self.dtype,
            "kv_cache_dtype": self.kv_dtype,
            "block_size": self.block_tokens,
            "kv_cache_memory_bytes": self.kv_bytes,
            "max_model_len": self.tokens_max,
            "max_num_batched_tokens": self.step_tokens_max,
            "max_num_seqs": self.requests_max,
            "enable_prefix_caching": self.prefix_caching,
            "enforce_eager": self.eager,
            "tensor_parallel_size": self.tensor_parallel,
            "pipeline_parallel_size": self.pipeline_parallel,
            "disable_log_stats": False,
            "seed": 0,
        }
        if self.kv_blocks is not None:
            arguments["num_gpu_blocks_override"] = self.kv_blocks
        if self.lora:
            arguments |= {"enable_lora": True, "max_loras": 2, "max_lora_rank": 8}
        return arguments | self.more


def cpu_has(feature: str) -> bool:
    """Whether the processor has an instruction set, by its name in /proc/cpuinfo, such as `avx512f`."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return any(feature in line.split() for line in lines if line.startswith("flags"))


def engine_environment(*, threads: int = 1) -> dict[str, str]:
    """Environment variables that every engine of ours runs with.

    Args:
        threads: Threads of a matrix multiplication. It is read when torch is loaded, so it must be set before.
    """
    return {
        "OMP_NUM_THREADS": str(threads),
        # vLLM's own binding puts the threads of all engines on the same cores.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # Lets `Engine.overwrite_kv` send a function to the workers.
        "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
        # Multi-process engines rendezvous on the loopback interface, whatever else the machine has.
        "VLLM_HOST_IP": "127.0.0.1",
        "GLOO_SOCKET_IFNAME": "lo",
    }


def child_environment(options: EngineOptions, *, threads: int = 1) -> dict[str, str]:
    """The whole environment of a process of its own that runs an engine."""
    root = Path(__file__).resolve().parents[2]
    path = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
    # A virtual environment's tools (ninja, for compiled models) lie beside its interpreter.
    tools = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return {
        **os.environ,
        **engine_environment(threads=threads),
        "PYTHONPATH": path,
        "PATH": tools,
        **options.environment,
    }
