"""Models with random weights, made on the spot.

An end-to-end test needs a model whose greedy output depends on every byte of its KV cache; what it says does not
matter. So the weights are random, seeded, and scaled for that purpose: attention is sharp (a token looks at a few
others and not at the mean of all, which would hardly change), and the residual stream is what the layers made, not
the embedding of the last token (which would make the output a function of the last token alone, soon in a cycle).

The files are written without torch or transformers: `config.json`, a tokenizer whose words are `t0`, `t1`, ... for the
token ids, and `model.safetensors` in bfloat16. They are
cached under a folder named after the hash of this file, so that a change here makes new models.

Usage: python -m tests.models NAME... (prints the folders; with no name, lists the models)
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Floats: TypeAlias = npt.NDArray[np.float32]
"""A weight in the shape in which the safetensors file holds it: [out, in] for a linear layer."""

Tensors: TypeAlias = Iterator[tuple[str, Floats]]


@dataclass(frozen=True)
class Model:
    """A model that can be made: its `config.json` and its weights."""

    name: str
    about: str
    config: dict[str, Any]
    tensors: Callable[[dict[str, Any], np.random.Generator], Tensors]

    def folder(self) -> Path:
        """The folder of the model, which is made first if it is not there.

        Returns:
            A folder with `config.json` and `model.safetensors`.
        """
        folder = models_folder() / self.name
        return _made(folder, lambda at: self._write(at))

    def _write(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(self.config, indent=1))
        for file, content in tokenizer(self.config["vocab_size"]).items():
            (folder / file).write_text(json.dumps(content))
        write_safetensors(folder / "model.safetensors", self.tensors(self.config, _random(self.name)))


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter in PEFT's format, for a Llama."""

    name: str
    base: Model
    rank: int = 8

    def folder(self) -> Path:
        """The folder of the adapter, which is made first if it is not there.

        Returns:
            A folder with `adapter_config.json` and `adapter_model.safetensors`.
        """
        return _made(models_folder() / self.name, lambda at: self._write(at))

    def _write(self, folder: Path) -> None:
        modules = ["q_proj", "k_proj", "v_proj", "o_proj"]
        (folder / "adapter_config.json").write_text(
            json.dumps(
                {
                    "peft_type": "LORA",
                    "task_type": "CAUSAL_LM",
                    "base_model_name_or_path": self.base.name,
                    "r": self.rank,
                    "lora_alpha": 2 * self.rank,
                    "lora_dropout": 0.0,
                    "bias": "none",
                    "fan_in_fan_out": False,
                    "target_modules": modules,
                },
                indent=1,
            )
        )
        write_safetensors(folder / "adapter_model.safetensors", self._tensors(modules))

    def _tensors(self, modules: list[str]) -> Tensors:
        config, random = self.base.config, _random(self.name)
        for name, weight in self.base.tensors(config, _random(self.base.name)):
            module = name.removesuffix(".weight")
            if module.rsplit(".", 1)[-1] not in modules:
                continue
            rows, columns = weight.shape
            yield f"base_model.model.{module}.lora_A.weight", linear(random, self.rank, columns, 1.0)
            yield f"base_model.model.{module}.lora_B.weight", linear(random, rows, self.rank, 1.0)


def models_folder() -> Path:
    """The cache folder of the models that this version of the file makes."""
    cache = os.environ.get("KVCACHE_DEV_CACHE") or Path.home() / ".cache" / "kvcache-dev"
    return Path(cache) / "models" / hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]


def linear(random: np.random.Generator, rows: int, columns: int, gain: float) -> Floats:
    """A linear layer that maps unit variance to variance `gain` squared.

    Returns:
        Weights of shape [rows, columns].
    """
    weight = random.standard_normal((rows, columns), dtype=np.float32)
    weight *= gain / np.sqrt(columns)
    return weight


def llama_tensors(config: dict[str, Any], random: np.random.Generator) -> Tensors:
    """Weights of a Llama: grouped-query attention and a gated MLP."""
    hidden, head = config["hidden_size"], config["head_dim"]
    query, key = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    yield "model.embed_tokens.weight", linear(random, config["vocab_size"], hidden, np.sqrt(hidden))
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", np.ones(hidden, np.float32)
        yield f"{layer}.self_attn.q_proj.weight", linear(random, query, hidden, SHARPNESS)
        yield f"{layer}.self_attn.k_proj.weight", linear(random, key, hidden, SHARPNESS)
        yield f"{layer}.self_attn.v_proj.weight", linear(random, key, hidden, 1.0)
        yield f"{layer}.self_attn.o_proj.weight", linear(random, hidden, query, CONTEXT)
        yield from _gated_mlp(config, random, layer)
    yield "model.norm.weight", np.ones(hidden, np.float32)
    yield "lm_head.weight", linear(random, config["vocab_size"], hidden, 1.0)


def deepseek_tensors(config: dict[str, Any], random: np.random.Generator) -> Tensors:
    """Weights of a DeepSeek-V2 without experts: multi-head latent attention and a gated MLP."""
    hidden, heads, latent = config["hidden_size"], config["num_attention_heads"], config["kv_lora_rank"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    yield "model.embed_tokens.weight", linear(random, config["vocab_size"], hidden, np.sqrt(hidden))
    for index in range(config["num_hidden_layers"]):
        layer = f"model.layers.{index}"
        yield f"{layer}.input_layernorm.weight", np.ones(hidden, np.float32)
        yield f"{layer}.self_attn.q_proj.weight", linear(random, heads * (nope + rope), hidden, SHARPNESS)
        yield f"{layer}.self_attn.kv_a_proj_with_mqa.weight", linear(random, latent + rope, hidden, SHARPNESS)
        yield f"{layer}.self_attn.kv_a_layernorm.weight", np.ones(latent, np.float32)
        yield f"{layer}.self_attn.kv_b_proj.weight", linear(random, heads * (nope + value), latent, SHARPNESS)
        yield f"{layer}.self_attn.o_proj.weight", linear(random, hidden, heads * value, CONTEXT)
        yield from _gated_mlp(config, random, layer)
    yield "model.norm.weight", np.ones(hidden, np.float32)
    yield "lm_head.weight", linear(random, config["vocab_size"], hidden, 1.0)


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Writes tensors in bfloat16 to a safetensors file.

    Args:
        path: The file, overwritten if it is there.
        tensors: Names and float32 arrays; each is converted and written before the next is asked for.
    """
    # The header comes first and names every offset, so the bodies are written to a second file and appended.
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    bodies = path.with_suffix(".bodies")
    offset = 0
    with bodies.open("wb") as file:
        for name, array in tensors:
            data = _bfloat16(array).tobytes()
            header[name] = {
                "dtype": "BF16",
                "shape": list(array.shape),
                "data_offsets": [offset, offset + len(data)],
            }
            offset += len(data)
            file.write(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file, bodies.open("rb") as body:
        file.write(len(text).to_bytes(8, "little") + text)
        while piece := body.read(1 << 24):
            file.write(piece)
    bodies.unlink()


def tokenizer(vocabulary: int) -> dict[str, Any]:
    """The files of a tokenizer that reads `t17 t4` as the token ids 17 and 4, for servers that insist on text."""
    return {
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 1 << 20},
        "tokenizer.json": {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [],
            "normalizer": None,
            "pre_tokenizer": {"type": "WhitespaceSplit"},
            "post_processor": None,
            "decoder": None,
            "model": {
                "type": "WordLevel",
                "vocab": {f"t{token}": token for token in range(vocabulary)},
                "unk_token": "t0",
            },
        },
    }


def prompt(seed: int, tokens: int, vocabulary: int = 512) -> list[int]:
    """A prompt of random token ids; the first three ids, which models give a meaning, are left out."""
    random = np.random.default_rng([seed, tokens])
    return [int(token) for token in random.integers(3, vocabulary, tokens)]


def _gated_mlp(config: dict[str, Any], random: np.random.Generator, layer: str) -> Tensors:
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    yield f"{layer}.post_attention_layernorm.weight", np.ones(hidden, np.float32)
    yield f"{layer}.mlp.gate_proj.weight", linear(random, inner, hidden, 1.0)
    yield f"{layer}.mlp.up_proj.weight", linear(random, inner, hidden, 1.0)
    yield f"{layer}.mlp.down_proj.weight", linear(random, hidden, inner, 1.0)


def _bfloat16(array: Floats) -> npt.NDArray[np.uint16]:
    """The upper halves of the float32 values, rounded half up; there are no NaNs here."""
    return ((np.ascontiguousarray(array).view(np.uint32) + np.uint32(0x8000)) >> np.uint32(16)).astype(np.uint16)


def _random(name: str) -> np.random.Generator:
    return np.random.default_rng(list(name.encode()))


def _made(folder: Path, write: Callable[[Path], None]) -> Path:
    """Fills `folder` with `write` unless it is there; the folder appears whole or not at all."""
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
        partial.mkdir(parents=True, exist_ok=True)
        write(partial)
        try:
            partial.rename(folder)
        except OSError:  # Another process was faster; its folder has the same bytes.
            for file in partial.iterdir():
                file.unlink()
            partial.rmdir()
    return folder


def _llama(
    *, layers: int, hidden: int, inner: int, heads: int, kv_heads: int, vocabulary: int, **more: Any
) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": 64,
        "vocab_size": vocabulary,
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
        **more,
    }


SHARPNESS = 2.0
"""Gain of the query and key projections: attention scores then have a standard deviation near its square."""

CONTEXT = 1.5
"""Gain of the attention's output projection: how much of the residual stream comes from other tokens."""

TINY = Model(
    "tiny",
    "Llama, 4 layers, 2 KV heads: 2 KiB of KV per token; the model of nearly every scenario",
    _llama(layers=4, hidden=256, inner=512, heads=4, kv_heads=2, vocabulary=512),
    llama_tensors,
)
SINGLE_HEAD = Model(
    "single-head",
    "Llama with one KV head, which every tensor-parallel rank holds",
    _llama(layers=4, hidden=256, inner=512, heads=4, kv_heads=1, vocabulary=512),
    llama_tensors,
)
DEMO = Model(
    "demo",
    "Llama, 8 layers, 4 KV heads: prefilling 2,000 tokens takes seconds on a CPU; for the demo and measurements",
    _llama(layers=8, hidden=768, inner=2048, heads=12, kv_heads=4, vocabulary=2048),
    llama_tensors,
)
HYBRID = Model(
    "hybrid",
    "Llama with a sliding window of 96 tokens in four of six layers: three KV cache groups",
    _llama(
        layers=6,
        hidden=256,
        inner=512,
        heads=4,
        kv_heads=2,
        vocabulary=512,
        sliding_window=96,
        layer_types=["sliding_attention", "sliding_attention", "full_attention"] * 2,
    ),
    llama_tensors,
)
MLA = Model(
    "mla",
    "DeepSeek-V2 without experts, latent attention of 512 + 64: the only size that vLLM's CPU kernel has",
    {
        "architectures": ["DeepseekV2ForCausalLM"],
        "model_type": "deepseek_v2",
        "hidden_size": 256,
        "intermediate_size": 512,
        "moe_intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "kv_lora_rank": 512,
        "q_lora_rank": None,
        "qk_nope_head_dim": 64,
        "qk_rope_head_dim": 64,
        "v_head_dim": 64,
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 2,
        "vocab_size": 512,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    deepseek_tensors,
)
MODELS = {model.name: model for model in (TINY, SINGLE_HEAD, DEMO, HYBRID, MLA)}

ADAPTERS = (Adapter("tiny-lora-a", TINY), Adapter("tiny-lora-b", TINY))


def main() -> None:
    names = sys.argv[1:]
    if not names:
        for model in MODELS.values():
            print(f"{model.name:8} {model.about}")
    for name in names:
        started = time.monotonic()
        folder = MODELS[name].folder()
        print(f"{folder} ({time.monotonic() - started:.1f} s)")


if __name__ == "__main__":
    main()
