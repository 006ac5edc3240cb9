"""Small stand-ins for vLLM's objects: just the attributes that the connector reads."""

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest


def fake_vllm(monkeypatch: pytest.MonkeyPatch, version: str = "0.32.0") -> None:
    """Makes `import vllm` give a module that has nothing but a version, whether vLLM is installed or not."""
    module = ModuleType("vllm")
    module.__version__ = version  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vllm", module)


def vllm_config(**changes: Any) -> Any:
    """Returns a configuration; `part__name=value` changes one attribute of one part."""
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model="org/model",
            revision="main",
            hf_config=SimpleNamespace(to_dict=lambda: {"hidden_size": 64}),
            hf_overrides={},
            quantization=None,
            dtype="torch.bfloat16",
            seed=0,
        ),
        cache_config=SimpleNamespace(cache_dtype="auto", prefix_caching_hash_algo="sha256", kv_cache_layout="LBHNC"),
        parallel_config=SimpleNamespace(
            rank=0,
            world_size=1,
            tensor_parallel_size=1,
            pipeline_parallel_size=1,
            decode_context_parallel_size=1,
            prefill_context_parallel_size=1,
            distributed_executor_backend="uni",
            use_ubatching=False,
        ),
        compilation_config=SimpleNamespace(static_forward_context={}),
        load_config=SimpleNamespace(load_format="auto"),
        speculative_config=None,
        kv_transfer_config=SimpleNamespace(
            engine_id="engine", kv_load_failure_policy="fail", kv_connector_extra_config={}
        ),
        kv_events_config=None,
    )
    for path, value in changes.items():
        part, _, name = path.partition("__")
        if name:
            setattr(getattr(config, part), name, value)
        else:
            setattr(config, part, value)
    return config


def request(request_id: str, tokens: int, hash_tokens: int = 16, **changes: Any) -> Any:
    """Returns a request whose block hashes name its own tokens."""
    values: dict[str, Any] = {
        "request_id": request_id,
        "num_tokens": tokens,
        "num_prompt_tokens": tokens,
        "prompt_token_ids": list(range(tokens)),
        "all_token_ids": list(range(tokens)),
        "block_hashes": [bytes([index, 7]) * 16 for index in range(tokens // hash_tokens)],
        "kv_transfer_params": None,
        "lora_request": None,
        "cache_salt": None,
        "mm_features": [],
    }
    return SimpleNamespace(**(values | changes))


class BlockPool:
    """Counts who holds which block."""

    def __init__(self, count: int) -> None:
        self.blocks = [SimpleNamespace(block_id=index, held=0) for index in range(count)]

    def touch(self, blocks: list[Any]) -> None:
        for block in blocks:
            block.held += 1

    def free_blocks(self, blocks: Any) -> None:
        for block in blocks:
            block.held -= 1

    def held(self) -> list[int]:
        return [block.block_id for block in self.blocks if block.held]
