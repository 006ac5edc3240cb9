"""The settings of the connector: names, defaults, checks. ``docs/settings.md`` is generated from here."""

import dataclasses
import difflib
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from aibrix_connector import aibrix_env
from aibrix_connector.kv_layout import LAYOUTS

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


class SettingError(ValueError):
    """A setting that cannot be used; the message names it, its value and the remedy."""


def parse_bytes(value: object) -> int:
    """Reads a size such as ``8GiB``, ``512 MiB`` or a plain number of bytes.

    Raises:
        ValueError: If it is no size.
    """
    if isinstance(value, bool):
        raise ValueError("not a size")
    if isinstance(value, int | float):
        if value < 0:
            raise ValueError("below zero")
        return int(value)
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", str(value))
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError("not a size")
    return int(float(match[1]) * _UNITS[match[2].lower()])


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    found = words.get(str(value).strip().lower())
    if found is None:
        raise ValueError("not a flag")
    return found


def _whole(low: int, high: int) -> Callable[[object], int]:
    def read(value: object) -> int:
        if isinstance(value, bool) or int(str(value)) != float(str(value)):
            raise ValueError("not a whole number")
        number = int(str(value))
        if not low <= number <= high:
            raise ValueError("out of range")
        return number

    return read


def _number(low: float, high: float) -> Callable[[object], float]:
    def read(value: object) -> float:
        number = float(str(value))
        if not low <= number <= high:
            raise ValueError("out of range")
        return number

    return read


def _auto_or(read: Callable[[object], int]) -> Callable[[object], int | None]:
    return lambda value: None if value is None or str(value).lower() == "auto" else read(value)


def _one_of(*words: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        if str(value) not in words:
            raise ValueError("unknown word")
        return str(value)

    return read


def _text(value: object) -> str:
    return str(value)


def _optional_text(value: object) -> str | None:
    return None if value is None or value == "" else str(value)


def _setting(default: Any, read: Callable[[object], Any], accepts: str, meaning: str) -> Any:
    return dataclasses.field(default=default, metadata={"read": read, "accepts": accepts, "meaning": meaning})


@dataclasses.dataclass(frozen=True)
class Settings:
    """Everything that can be set in ``kv_connector_extra_config``."""

    capacity: int | None = _setting(
        None,
        _auto_or(parse_bytes),
        'a size such as "8GiB", or "auto"',
        "Host memory for L1, over all ranks of the engine on this machine. `auto` takes an eighth of the machine's "
        "memory, at most 10 GiB; if that is more than half of what is available, a quarter of what is available, "
        "down to a power of two.",
    )
    slab_dir: str | None = _setting(
        None,
        _optional_text,
        "a directory in shared memory such as `/dev/shm`",
        "Keep L1 in files there, so that an engine that was killed finds its cache again. Without it, L1 is private "
        "memory and is gone with the engine.",
    )
    eviction: str = _setting(
        "default",
        _text,
        "the name of a policy",
        "Which block leaves when room is needed, and with `hit-density`, the default without `remote`, whether a new "
        "one is stored at all (with `remote` each is). Others: `s3fifo`, the default with `remote`, `lru`, "
        "`s3fifo-fixed`.",
    )
    slot_blocks: int | None = _setting(
        None,
        _auto_or(_whole(1, 4096)),
        'a whole number from 1 to 4096, or "auto"',
        "Engine blocks in a slot, the unit of hits. `auto` takes the smallest number that makes one layer's part of a "
        "slot at least 64 KiB, and 1 where the KV cache's memory layout has blocks outside of layers.",
    )
    load_mode: str = _setting(
        "auto",
        _one_of("auto", "layerwise", "async"),
        "`auto`, `layerwise` or `async`",
        "Load layer by layer within the step, or between steps. `auto` loads between steps where a load is long "
        "compared with a step and other requests run meanwhile, and with several KV cache groups.",
    )
    min_load_tokens: int = _setting(
        1,
        _whole(1, 1 << 30),
        "a number of tokens from 1 up",
        "Do not load fewer tokens than this: compute them instead.",
    )
    fill_wait_ms: float = _setting(
        200.0,
        _number(0, 60_000),
        "milliseconds from 0 to 60000",
        "The longest a request waits for blocks that another request is just storing, instead of computing them again.",
    )
    startup_wait_ms: float = _setting(
        2000.0,
        _number(0, 60_000),
        "milliseconds from 0 to 60000",
        "The longest the first requests wait for the slabs of all ranks; after that they start without a cache.",
    )
    store_on_sight: int = _setting(
        1,
        _whole(1, 255),
        "a whole number from 1 to 255",
        "Store a block when it is computed for this many times: 2 skips one-time prompts.",
    )
    prompt_only: bool = _setting(False, _flag, "true or false", "Store blocks of prompts only, not of answers.")
    key_source: str = _setting(
        "engine",
        _one_of("engine", "tokens"),
        "`engine` or `tokens`",
        "Derive block keys from the engine's block hashes, or from token ids so that engines of different kinds share "
        "blocks. With `tokens`, requests with multimodal inputs or prompt embeddings are neither stored nor loaded.",
    )
    hash: str = _setting(
        "blake3",
        _one_of("blake3", "xxh3"),
        "`blake3` or `xxh3`",
        "How token ids become keys with `key_source` `tokens`. `xxh3` is for private, single-tenant caches only.",
    )
    salt: str = _setting("", _text, "any text", "Caches with different salts never share a block.")
    weights_digest: str | None = _setting(
        None,
        _optional_text,
        "any text",
        "Names the content of the model's weights, where it cannot be read off local files.",
    )
    copy_threads: int | None = _setting(
        None,
        _auto_or(_whole(0, 64)),
        'a whole number from 0 to 64, or "auto"',
        "Threads that copy beside the engine's. `auto` takes the cores that the engine's compute threads leave, at "
        "most 4.",
    )
    layers_ahead: int = _setting(
        8,
        _whole(0, 1024),
        "a number of layers from 0 to 1024",
        "How many layers a layer-wise load runs ahead of the forward pass.",
    )
    copy_path: str = _setting(
        "auto",
        _one_of("auto", "dma_batch", "dma", "kernel"),
        "`auto`, `dma_batch`, `dma` or `kernel`",
        "How bytes get to a CUDA device and back: by its copy engines with one call for many pieces (`dma_batch`, CUDA "
        "12.8 or later) or one for each (`dma`), or by a kernel. `auto` chooses for each copy by the length and number "
        "of its pieces.",
    )
    kv_layout: str = _setting(
        "auto",
        _one_of("auto", *LAYOUTS),
        "`auto` or " + ", ".join(f"`{name}`" for name in LAYOUTS),
        "The memory layout of the KV cache that vLLM is asked for, by its names: the order of layer (`L`), block "
        "(`B`), head (`H`), token (`N`) and content (`C`) in memory, from the outside in. `HND` is `LBHNC` and `NHD` "
        "is `LBNHC`. With blocks first an engine that has to split blocks does not start up to vLLM 0.31. vLLM drops "
        "one that an attention backend does not support, with a warning. `auto` asks for none: what vLLM chooses "
        "suits loads layer by layer.",
    )
    verify_l1: bool = _setting(
        False,
        _flag,
        "true or false",
        "Keep a checksum of each slot and verify it before every load and before it goes to L2, not only after a "
        "restart.",
    )
    remote: str | None = _setting(
        None,
        _optional_text,
        "a URL such as `tcp://a:12345,b:12345`, `rdma://a:12345`, `file:///etc/kvcache/members.json` or "
        "`redis://host:6379/kvcache_nodes`",
        "The servers of L2, a cache that engines share: a list of them, a file or a key of Redis that holds it. With "
        "RDMA `?rdma_device=`, `&rdma_port=` and `&rdma_gid=` choose a port.",
    )
    remote_ingestion: str = _setting(
        "all",
        _one_of("all", "hot", "evicted"),
        "`all`, `hot` or `evicted`",
        "Which blocks go to L2: every stored one, those that are used again, or those that leave L1.",
    )
    remote_replicas: int = _setting(
        1, _whole(1, 4), "a whole number from 1 to 4", "Servers that hold each block, so that one may fail."
    )
    remote_token_file: str | None = _setting(
        None, _optional_text, "a path", "A file with the token that L2's servers ask for."
    )
    remote_tls_ca: str | None = _setting(
        None, _optional_text, "a path", "The certificates (PEM) that sign those of L2's servers, with `tls://`."
    )
    remote_tls_name: str | None = _setting(
        None,
        _optional_text,
        "a host name",
        "The name in the certificates of L2's servers, where it is not the host of their addresses.",
    )
    remote_shared_memory: bool = _setting(
        True,
        _flag,
        "true or false",
        "Use the memory of a server on this host directly, where both run as one user: faster than TCP.",
    )
    remote_timeout_ms: float = _setting(
        2000.0,
        _number(1, 60_000),
        "milliseconds from 1 to 60000",
        "The longest one operation with L2 may take. It runs beside the engine: what takes longer is a miss.",
    )
    remote_wait_ms: float = _setting(
        2000.0,
        _number(0, 60_000),
        "milliseconds from 0 to 60000",
        "The longest a request waits for blocks on their way from L2. Less where computing them is known to be "
        "quicker.",
    )
    remote_presence_wait_ms: float = _setting(
        50.0,
        _number(0, 60_000),
        "milliseconds from 0 to 60000",
        "The longest a request waits to hear what L2 has.",
    )
    remote_in_flight: int = _setting(
        32,
        _whole(1, 4096),
        "a whole number from 1 to 4096",
        "Slots on their way at once on each rank, in either direction. From L2 they get more where the engine's steps "
        "take longer than these.",
    )
    piecewise_cudagraph: bool = _setting(
        False, _flag, "true or false", "Ask vLLM for piecewise CUDA graphs, so that layer hooks fire in every step."
    )
    allow_untested_vllm: bool = _setting(False, _flag, "true or false", "Run with a vLLM newer than what was tested.")
    drill: str | None = _setting(
        None,
        _optional_text,
        "see `docs/troubleshooting.md`",
        "Break something on purpose, for tests of a deployment: never set it on an engine that serves users.",
    )

    def shown(self) -> "Settings":
        """Returns the settings as they may be logged: without the password of `remote`."""
        hidden = None if self.remote is None else re.sub(r"//[^/@]*@", "//…@", self.remote)
        return dataclasses.replace(self, remote=hidden)

    def remote_options(self) -> dict[str, Any] | None:
        """Returns what :class:`_native.Remote` wants, or None without L2."""
        if self.remote is None:
            return None
        return {
            "url": self.remote,
            "ingestion": self.remote_ingestion,
            "replicas": self.remote_replicas,
            "token_file": self.remote_token_file,
            "tls_ca": self.remote_tls_ca,
            "tls_name": self.remote_tls_name,
            "shared_memory": self.remote_shared_memory,
            "timeout_s": self.remote_timeout_ms / 1000,
            "fetch_wait_s": self.remote_wait_ms / 1000,
            "presence_wait_s": self.remote_presence_wait_ms / 1000,
            "in_flight": self.remote_in_flight,
        }


def read(extra_config: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> tuple[Settings, list[str]]:
    """Reads and checks the settings. What ``extra_config`` says wins over AIBrix's environment names.

    Args:
        extra_config: ``kv_connector_extra_config`` of vLLM's ``KVTransferConfig``.
        environ: The environment, ``os.environ`` if not given.

    Returns:
        The settings, and remarks on environment variables that have no effect here.

    Raises:
        SettingError: Names the setting, its value and the remedy.
    """
    from_env, remarks = aibrix_env.translate(os.environ if environ is None else environ)
    fields = {field.name: field for field in dataclasses.fields(Settings)}
    values: dict[str, Any] = {}
    for name, value in {**from_env, **extra_config}.items():
        field = fields.get(name)
        if field is None:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known settings are {', '.join(sorted(fields))}"
            raise SettingError(f"unknown setting {name!r} in kv_connector_extra_config: {hint}")
        try:
            values[name] = field.metadata["read"](value)
        except (ValueError, TypeError, OverflowError):
            raise SettingError(
                f"setting {name!r} has the value {value!r}, which is not {field.metadata['accepts'].replace('`', '')}: "
                f"correct it, or leave it out for the default {_shown_default(field)}"
            ) from None
    settings = Settings(**values)
    if settings.remote is not None and settings.key_source == "tokens" and settings.hash != "blake3":
        raise SettingError(
            f"setting 'hash' has the value {settings.hash!r} and 'remote' is set: blocks that engines share need keys "
            "that nobody can make collide: use blake3"
        )
    return settings, remarks


def _shown_default(field: "dataclasses.Field[Any]") -> str:
    """Returns a default as a user would write it in JSON."""
    if field.default is None:
        return "auto" if "auto" in field.metadata["accepts"] else "none"
    return json.dumps(field.default)


def reference() -> str:
    """Returns the Markdown table of all settings."""
    lines = ["| setting | default | accepts | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(Settings):
        accepts, meaning = field.metadata["accepts"], field.metadata["meaning"]
        lines.append(f"| `{field.name}` | `{_shown_default(field)}` | {accepts} | {meaning} |")
    return "\n".join(lines) + "\n"
