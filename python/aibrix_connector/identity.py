"""What makes the bytes of a block different: the fields of the namespace, read off vLLM's configuration."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aibrix_connector import _native
from aibrix_connector.kv_groups import Group
from aibrix_connector.settings import Settings

if TYPE_CHECKING:
    from vllm.config import VllmConfig

TIME_MARK = "time="
"""Stands before a modification time in an identity, which another machine's copy of the same file does not share."""

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.gguf", "*.npz")


def file_identity(path: Path) -> str:
    """Returns what identifies a file's content without reading it all: size, time, and a safetensors file's header.

    A file in a hub cache is a link to a blob that is named by its content: then the name is enough, on any machine.
    """
    target = path.resolve()
    state = target.stat()
    if path.is_symlink() and target.parent.name == "blobs":
        return f"{path.name}:{target.name}:{state.st_size}"
    digest = ""
    if path.suffix == ".safetensors":
        with target.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            digest = hashlib.sha256(file.read(min(length, 64 << 20))).hexdigest()
    return f"{path.name}:{target.name}:{state.st_size}:{TIME_MARK}{state.st_mtime_ns}:{digest}"


def directory_identity(directory: Path) -> str | None:
    """Returns the identity of all weight files in a directory, or None if there are none."""
    files = sorted(path for pattern in _WEIGHT_FILES for path in directory.glob(pattern))
    return "\n".join(file_identity(path) for path in files) or None


def _hub_directory(model: str, revision: str | None) -> Path | None:
    """Returns the local folder of a model that was downloaded from a hub."""
    try:
        from huggingface_hub import try_to_load_from_cache  # type: ignore[import-not-found]

        config = try_to_load_from_cache(model, "config.json", revision=revision)
    except Exception:
        return None
    return Path(config).parent if isinstance(config, str) else None


def weights_identity(config: "VllmConfig", settings: Settings) -> str | None:
    """Returns what names the content of the weights, or None if nothing here can."""
    model = config.model_config
    if settings.weights_digest is not None:
        return f"digest:{settings.weights_digest}"
    if str(config.load_config.load_format) in ("dummy", "LoadFormat.DUMMY"):
        return f"dummy:{model.seed}"
    path = Path(str(model.model))
    if path.is_file():
        return file_identity(path)
    directory = path if path.is_dir() else _hub_directory(str(model.model), model.revision)
    return directory_identity(directory) if directory is not None else None


def namespace_fields(
    config: "VllmConfig", groups: list[Group], slot_blocks: int, settings: Settings
) -> list[tuple[str, str]]:
    """Returns the named fields of the namespace. Equal on all ranks of an engine.

    Each field changes the bytes of a block, or which tokens its key covers.
    """
    import vllm

    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    speculative = config.speculative_config
    major_minor = ".".join(vllm.__version__.split(".")[:2])
    fields: dict[str, Any] = {
        # With a digest, the same weights in another place are the same.
        "model": model.model if settings.weights_digest is None else "",
        "revision": model.revision if settings.weights_digest is None else "",
        "weights": weights_identity(config, settings),
        "architecture": _plain(_without_place(model.hf_config.to_dict())),
        "overrides": _plain(getattr(model, "hf_overrides", None)),
        "quantization": model.quantization,
        "dtype": str(model.dtype),
        "kv_dtype": str(cache.cache_dtype),
        "vllm": major_minor,
        "hash": f"{cache.prefix_caching_hash_algo}:{os.environ.get('PYTHONHASHSEED', '')}",
        "tensor_parallel": parallel.tensor_parallel_size,
        "pipeline_parallel": parallel.pipeline_parallel_size,
        "decode_context_parallel": getattr(parallel, "decode_context_parallel_size", 1),
        "prefill_context_parallel": getattr(parallel, "prefill_context_parallel_size", 1),
        "speculative": _plain(
            None
            if speculative is None
            else {
                "method": getattr(speculative, "method", None),
                "model": str(getattr(speculative, "model", None)),
                "tokens": getattr(speculative, "num_speculative_tokens", None),
            }
        ),
        "groups": _plain([[group.kind, group.block_tokens, group.window_tokens] for group in groups]),
        "slot_blocks": slot_blocks,
        "key_source": settings.key_source if settings.key_source == "engine" else f"tokens:{settings.hash}",
        "salt": settings.salt,
    }
    return [(name, "" if value is None else str(value)) for name, value in fields.items()]


def namespace(fields: list[tuple[str, str]]) -> bytes:
    """Returns the 16-byte fingerprint of the fields."""
    return _native.fingerprint("namespace", fields)


def hashes_are_stable(config: "VllmConfig") -> bool:
    """Whether the engine's block hashes are the same in another process."""
    return str(config.cache_config.prefix_caching_hash_algo).startswith("sha256") or "PYTHONHASHSEED" in os.environ


def shareable(config: "VllmConfig", fields: list[tuple[str, str]], settings: Settings) -> str | None:
    """Returns why blocks of this engine mean nothing to another process, or None if they do."""
    if not dict(fields)["weights"]:
        return "nothing here names the content of the weights (set weights_digest)"
    if settings.key_source != "tokens" and not hashes_are_stable(config):
        return "the engine's block hashes differ in every process (set PYTHONHASHSEED, or use sha256)"
    return None


def is_of_this_machine(fields: list[tuple[str, str]]) -> bool:
    """Whether the weights are told apart by times that another machine's copies of them do not share."""
    return TIME_MARK in dict(fields)["weights"]


def _without_place(config: dict[str, Any]) -> dict[str, Any]:
    """Leaves out where a model lies: its content is named elsewhere."""
    return {name: value for name, value in config.items() if name != "_name_or_path"}


def _plain(value: object) -> str:
    return json.dumps(value, sort_keys=True, default=str)
