"""A vLLM engine for tests: starts one from `EngineOptions`, generates greedily, and looks inside."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from vllm import LLM, SamplingParams
from vllm.config import KVTransferConfig
from vllm.lora.request import LoRARequest

from tests.e2e.options import EngineOptions, engine_environment

PATTERN = 0x3F
"""Byte for `overwrite_kv`: 0.75 in bfloat16 and in float32, finite and large enough to be noticed."""


@dataclass(frozen=True)
class Completion:
    """What came back for one prompt."""

    tokens: list[int]
    cached_tokens: int
    """Prompt tokens that were not computed: found in the engine's cache or loaded by the connector."""
    ttft_s: float
    finish_reason: str | None
    kv_transfer_params: dict[str, Any] | None


class Engine:
    """A running engine; a context manager that shuts it down.

    Everything is in this process if the options allow it (no tensor or pipeline parallelism), scheduler and worker
    included: `llm` leads to all of it. A process can have one engine after another, but each scenario has its own
    process anyway (`tests.e2e.scenario`).
    """

    def __init__(self, options: EngineOptions) -> None:
        os.environ.update(engine_environment(threads=torch.get_num_threads()))
        os.environ.update(options.environment)
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0" if options.in_process() else "1"
        arguments = options.vllm_arguments()
        transfer = options.kv_transfer()
        if transfer is not None:
            arguments["kv_transfer_config"] = KVTransferConfig(**transfer)
        self.options = options
        self.llm = LLM(**arguments)
        if options.pipeline_parallel > 1 and options.eager:
            self.llm.collective_rpc(_allocate_stage_inputs)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.shutdown()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        tokens: int = 40,
        lora: Path | None = None,
        salt: str | None = None,
        kv_transfer_params: dict[str, Any] | None = None,
    ) -> list[Completion]:
        """Answers prompts greedily, all at once.

        Args:
            prompts: Token ids of each prompt.
            tokens: Tokens to generate for each.
            lora: Folder of a LoRA adapter.
            salt: vLLM's cache salt, which separates the prefixes of one user from those of another.
            kv_transfer_params: Passed to the connector with each request.

        Returns:
            One completion per prompt, in their order.
        """
        sampling = SamplingParams(
            temperature=0,
            max_tokens=tokens,
            detokenize=False,
            ignore_eos=True,
            extra_args={"kv_transfer_params": kv_transfer_params} if kv_transfer_params else None,
        )
        inputs: list[dict[str, Any]] = [
            {"prompt_token_ids": list(prompt)} | ({"cache_salt": salt} if salt else {}) for prompt in prompts
        ]
        adapter = LoRARequest(lora.name, _adapter_id(lora), str(lora)) if lora else None
        outputs = self.llm.generate(inputs, sampling, use_tqdm=False, lora_request=adapter)
        return [
            Completion(
                tokens=list(output.outputs[0].token_ids),
                cached_tokens=output.num_cached_tokens or 0,
                ttft_s=output.metrics.first_token_latency if output.metrics else 0.0,
                finish_reason=output.outputs[0].finish_reason,
                kv_transfer_params=output.kv_transfer_params,
            )
            for output in outputs
        ]

    def reset_prefix_cache(self, *, connector: bool = False) -> bool:
        """Empties the engine's own prefix cache, and with `connector` the connector's cache too."""
        return bool(self.llm.reset_prefix_cache(reset_connector=connector))

    def overwrite_kv(self, pattern: int = PATTERN) -> int:
        """Overwrites all KV memory on all ranks.

        A reset of the prefix cache forgets what a block held but leaves the bytes, and the next run may get the same
        blocks: a connector that loads nothing would pass. After this it cannot.

        Returns:
            Bytes overwritten.
        """
        return sum(self.llm.collective_rpc(_overwrite_worker_kv, args=(pattern,)))

    def forget(self, *, connector: bool = False) -> None:
        """Makes sure that what the next run does not compute can only come from the connector.

        An offload of the last step may still hold its blocks, and its end is told with a step: where the reset is
        refused, a prompt of one token makes one. It fills no block, so nothing is stored.
        """
        deadline = time.monotonic() + 30
        while not self.reset_prefix_cache(connector=connector):
            assert time.monotonic() < deadline, "the prefix cache was not reset: requests are running"
            time.sleep(0.05)
            self.generate([[1]], tokens=1)
        self.overwrite_kv()

    def metrics(self, prefix: str = "vllm:") -> dict[str, float]:
        """Counters and gauges whose name starts with `prefix`, summed over their labels."""
        values: dict[str, float] = {}
        for metric in self.llm.get_metrics():
            value = getattr(metric, "value", None)
            if metric.name.startswith(prefix) and isinstance(value, int | float):
                values[metric.name] = values.get(metric.name, 0.0) + value
        return values

    def external_hit_tokens(self) -> int:
        """Prompt tokens that the scheduler counted as found by the connector, since the start."""
        return int(self.metrics().get("vllm:external_prefix_cache_hits", 0))

    def preemptions(self) -> int:
        """Requests that lost their blocks to others, since the start."""
        return int(self.metrics().get("vllm:num_preemptions", 0))

    def kv_cache_groups(self) -> list[dict[str, Any]]:
        """The engine's KV cache groups: kind, block tokens, window and layers of each. In-process engines only."""
        return [
            {
                "kind": type(group.kv_cache_spec).__name__,
                "block_tokens": group.kv_cache_spec.block_size,
                "window_tokens": getattr(group.kv_cache_spec, "sliding_window", None),
                "layers": list(group.layer_names),
            }
            for group in self.core().scheduler.kv_cache_config.kv_cache_groups
        ]

    def core(self) -> Any:
        """vLLM's `EngineCore`: `.scheduler` and `.model_executor`. In-process engines only."""
        assert self.options.in_process(), "the scheduler lives in another process"
        return self.llm.llm_engine.engine_core.engine_core

    def shutdown(self) -> None:
        """Stops the engine; the connector's `shutdown` is called."""
        self.llm.llm_engine.engine_core.shutdown()


def _allocate_stage_inputs(worker: Any) -> None:
    """Does what vLLM leaves out on the CPU in eager mode, where it runs no warm-up (seen in 0.32.0).

    The first dummy run allocates the buffer for what the previous stage sends; without it the first step of a later
    stage fails its assertion.
    """
    runner = worker.model_runner
    if runner.intermediate_tensors is None:
        runner.intermediate_tensors = runner.model.make_empty_intermediate_tensors(
            batch_size=runner.max_num_tokens, dtype=runner.model_config.dtype, device=runner.device
        )


def _overwrite_worker_kv(worker: Any, pattern: int) -> int:
    """Runs in each worker; the layers' tensors are views of one storage or of several."""
    total_bytes = 0
    for tensor in worker.model_runner.kv_caches:
        tensor.view(torch.uint8).fill_(pattern)
        total_bytes += tensor.numel() * tensor.element_size()
    return total_bytes


def _adapter_id(folder: Path) -> int:
    """vLLM wants a number from 1 per adapter; it must be the same for the same folder."""
    return 1 + sum(folder.name.encode()) % 10_000
