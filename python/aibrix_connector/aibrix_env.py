"""AIBrix's environment names: each is mapped to a setting, has no effect here, or is refused with a reason."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

PREFIX = "AIBRIX_KV_CACHE_OL_"


@dataclass(frozen=True)
class Mapped:
    """Sets a setting of ours."""

    setting: str
    convert: Callable[[str], Any]
    note: str


@dataclass(frozen=True)
class Part:
    """Is read together with others: where L2 is."""

    note: str


@dataclass(frozen=True)
class NoEffect:
    """Has nothing to act on here: kept, with a remark."""

    reason: str


@dataclass(frozen=True)
class Refused:
    """Asks for something that would silently not happen: an error, unless the value says "off"."""

    reason: str
    off_values: tuple[str, ...] = ("", "0")


class AibrixVariableError(ValueError):
    """An ``AIBRIX_KV_CACHE_OL_*`` variable that cannot be honoured; the message names it and the remedy."""


def _gigabytes(value: str) -> int:
    try:
        found = int(float(value) * (1 << 30))
    except (ValueError, OverflowError):
        found = 0
    if found <= 0:
        raise ValueError("give a number of GiB above 0")
    return found


def _policy(value: str) -> str:
    names = {"S3FIFO": "default", "LRU": "lru"}
    if value.upper() not in names:
        raise ValueError("use S3FIFO or LRU")
    return names[value.upper()]


def _must_be_on(value: str) -> None:
    if value.strip().lower() not in ("1", "true"):
        raise ValueError("L1 is what this connector is: remove the connector to switch it off")


def _ingestion(value: str) -> str:
    if value.upper() not in ("ALL", "HOT", "EVICTED"):
        raise ValueError("use ALL, HOT or EVICTED")
    return value.lower()


_L2_DETAIL = NoEffect("L2 needs no such setting here: see docs/settings.md for those that start with remote")
_BACKEND = NoEffect("belongs to an L2 backend that is not spoken here")
_REMOTE = Part("becomes a part of `remote`")

TABLE: dict[str, Mapped | NoEffect | Part | Refused] = {
    "BLOCK_SIZE": NoEffect("slots are sized in engine blocks: see the setting slot_blocks"),
    "CHUNK_SIZE": NoEffect("prompts are not cut into chunks"),
    "MAX_SEQ_LEN": NoEffect("prompts of any length are handled; cap a request with kv_transfer_params"),
    "DOUBLE_GET_THRESHOLD": _L2_DETAIL,
    "TIME_MEASUREMENT_ENABLED": NoEffect("times are always measured; it costs nothing measurable"),
    "BREAKDOWN_MEASUREMENT_ENABLED": NoEffect("times are always measured; it costs nothing measurable"),
    "TOKEN_VALIDATION_ENABLED": NoEffect("keys are collision-resistant hashes of all tokens, so tokens are not stored"),
    "L1_CACHE_ENABLED": Mapped("", _must_be_on, "must be on: L1 is what the connector is"),
    "L1_CACHE_EVICTION_POLICY": Mapped("eviction", _policy, "`S3FIFO` becomes `default`, `LRU` becomes `lru`"),
    "L1_CACHE_CAPACITY_GB": Mapped("capacity", _gigabytes, "GiB; over all ranks of the engine, not for each"),
    "DEVICE": Refused("L1 is in host memory: unset it or set it to cpu", ("", "cpu")),
    "S3FIFO_SMALL_TO_MAIN_PROMO_THRESHOLD": NoEffect("the default policy adapts itself"),
    "S3FIFO_SMALL_FIFO_CAPACITY_RATIO": NoEffect("the default policy adapts itself"),
    "L2_CACHE_BACKEND": Part("`INFINISTORE` sets `remote`; other backends are refused"),
    "L2_CACHE_NAMESPACE": Mapped("salt", str, "separates caches of the same model"),
    "L2_CACHE_COMPRESSION": Refused("stored blocks are never compressed (AIBrix ignored it): unset it", ("",)),
    "L2_CACHE_OP_BATCH": _L2_DETAIL,
    "L2_CACHE_PER_TOKEN_TIMEOUT_MS": _L2_DETAIL,
    "L2_CACHE_PLACEMENT_POLICY": _L2_DETAIL,
    "L2_CACHE_KEY_BUILDER": NoEffect("there is one key derivation, fixed in docs/format.md"),
    "L2_CACHE_INGESTION_TYPE": Mapped("remote_ingestion", _ingestion, "`ALL`, `HOT` or `EVICTED`"),
    "L2_CACHE_INGESTION_MAX_INFLIGHT_TOKENS": NoEffect("offloads are always asynchronous and bounded"),
    "L2_CACHE_NUM_ASYNC_WORKERS": _L2_DETAIL,
    "META_SERVICE_BACKEND": Part("`REDIS` takes the servers from there; empty means one server"),
    "META_SERVICE_REFRESH_INTERVAL_S": _L2_DETAIL,
    "META_SERVICE_URL": _REMOTE,
    "META_SERVICE_CLUSTER_META_KEY": _REMOTE,
    "TRANSPORT_RDMA_ADDR_RANGE": _L2_DETAIL,
    "MOCK_USE_RDMA": _BACKEND,
    "MOCK_USE_MPUT_MGET": _BACKEND,
    "MOCK_USE_GDR_PUT": _BACKEND,
    "MOCK_USE_GDR_GET": _BACKEND,
    "MOCK_USE_NOOP": _BACKEND,
    "EIC_CONFIG_FILE": _BACKEND,
    "ROCKSDB_ROOT": _BACKEND,
    "ROCKSDB_TTL_S": _BACKEND,
    "ROCKSDB_WRITE_BUFFER_SIZE": _BACKEND,
    "ROCKSDB_TARGET_FILE_SIZE_BASE": _BACKEND,
    "ROCKSDB_MAX_WRITE_BUFFER_NUMBER": _BACKEND,
    "ROCKSDB_MAX_TOTAL_WAL_SIZE": _BACKEND,
    "ROCKSDB_MAX_BACKGROUND_JOBS": _BACKEND,
    "SHFS_ROOT": _BACKEND,
    "INFINISTORE_HOST_ADDR": _REMOTE,
    "INFINISTORE_SERVICE_PORT": _REMOTE,
    "INFINISTORE_CONNECTION_TYPE": Part("`TCP` or `RDMA`: the scheme of `remote`"),
    "INFINISTORE_IB_PORT": _BACKEND,
    "INFINISTORE_LINK_TYPE": _BACKEND,
    "INFINISTORE_VISIBLE_DEV_LIST": _BACKEND,
    "INFINISTORE_USE_GDR": _BACKEND,
    "HPKV_USE_GDR": _BACKEND,
    "HPKV_REMOTE_ADDR": _BACKEND,
    "HPKV_REMOTE_PORT": _BACKEND,
    "HPKV_LOCAL_ADDR": _BACKEND,
    "HPKV_LOCAL_PORT": _BACKEND,
    "PRISKV_REMOTE_ADDR": _BACKEND,
    "PRISKV_REMOTE_PORT": _BACKEND,
    "PRISKV_PASSWORD": _BACKEND,
    "PRISKV_USE_MPUT_MGET": _BACKEND,
    "PRISKV_USE_ZERO_COPY": _BACKEND,
    "PRIS_REMOTE_ADDR": _BACKEND,
    "PRIS_REMOTE_PORT": _BACKEND,
    "PRIS_PASSWORD": _BACKEND,
    "PRIS_USE_MPUT_MGET": _BACKEND,
    "PRIS_USE_ZERO_COPY": _BACKEND,
    "PROFILING_ENABLED": Refused("there is no Pyroscope client: use perf or py-spy on the engine, and unset it"),
    "PROFILING_SERVER_ADDRESS": NoEffect("there is no Pyroscope client"),
}
"""Every variable of AIBrix 0.8.0, without the prefix."""

UNPREFIXED: dict[str, NoEffect] = {
    "VLLM_AIBRIX_SYNC_GRANULARITY": NoEffect("one decision is made for all ranks, so there is nothing to agree on"),
    "VLLM_AIBRIX_SIDE_CHANNEL_PORT": NoEffect("scheduler and workers talk through vLLM's own step metadata"),
    "VLLM_AIBRIX_TYPE3_USE_LAYER_WISE_SAVE": NoEffect("offloads always go layer by layer where layer hooks fire"),
}
"""Variables of AIBrix's vLLM connectors."""

_SECRETS = ("PRISKV_PASSWORD", "PRIS_PASSWORD")


def translate(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Turns AIBrix's variables into settings.

    Returns:
        Settings by name, and remarks on variables that have no effect.

    Raises:
        AibrixVariableError: A variable is unknown, malformed, or asks for what does not exist here.
    """
    settings: dict[str, Any] = {}
    remarks: list[str] = []
    for name in sorted(environ):
        entry: Mapped | NoEffect | Part | Refused | None = UNPREFIXED.get(name)
        short = name.removeprefix(PREFIX)
        if entry is None and short == name:
            continue
        value = environ[name]
        entry = entry or TABLE.get(short)
        if entry is None:
            near = difflib.get_close_matches(short, TABLE, n=1, cutoff=0.7)
            hint = f"; did you mean {PREFIX}{near[0]}?" if near else ""
            raise AibrixVariableError(
                f"environment variable {name}={value!r} is not known: unset it, or set what you mean in "
                f"kv_connector_extra_config (see docs/settings.md){hint}"
            )
        if isinstance(entry, NoEffect):
            shown = name if short in _SECRETS else f"{name}={value}"
            remarks.append(f"{shown} has no effect: {entry.reason}")
        elif isinstance(entry, Part):
            pass
        elif isinstance(entry, Refused):
            if value.strip().lower() not in entry.off_values:
                raise AibrixVariableError(f"environment variable {name}={value!r} is refused: {entry.reason}")
        else:
            try:
                converted = entry.convert(value)
            except ValueError as error:
                raise AibrixVariableError(f"environment variable {name}={value!r} is refused: {error}") from None
            if entry.setting:
                settings[entry.setting] = converted
    if remote := _remote(environ):
        settings["remote"] = remote
    return settings, remarks


def _remote(environ: Mapping[str, str]) -> str | None:
    """Returns where L2 is, if the variables name one.

    Raises:
        AibrixVariableError: They name one that does not exist here.
    """

    def read(short: str, default: str = "") -> str:
        return environ.get(PREFIX + short, "").strip() or default

    def refused(short: str, why: str) -> AibrixVariableError:
        name = PREFIX + short
        return AibrixVariableError(f"environment variable {name}={environ.get(name, '')!r} is refused: {why}")

    backend = read("L2_CACHE_BACKEND").upper()
    if backend in ("", "0"):
        return None
    if backend != "INFINISTORE":
        raise refused("L2_CACHE_BACKEND", "use INFINISTORE, whose protocol L2 speaks, or unset it to run with L1 alone")
    transport = read("INFINISTORE_CONNECTION_TYPE", "RDMA").upper()
    if transport not in ("TCP", "RDMA"):
        raise refused("INFINISTORE_CONNECTION_TYPE", "use TCP or RDMA")
    meta = read("META_SERVICE_BACKEND").upper()
    if meta not in ("", "REDIS"):
        raise refused("META_SERVICE_BACKEND", "use REDIS, or unset it for one server")
    if meta == "REDIS":
        address, key = read("META_SERVICE_URL"), read("META_SERVICE_CLUSTER_META_KEY")
        if not address:
            raise refused("META_SERVICE_URL", "with META_SERVICE_BACKEND=REDIS, set it to redis://host:port")
        if not key:
            raise refused("META_SERVICE_CLUSTER_META_KEY", "with META_SERVICE_BACKEND=REDIS, set it to the key's name")
        address = address if "://" in address else f"redis://{address}"
        return f"{address.rstrip('/')}/{key}"
    scheme = "tcp" if transport == "TCP" else "infinistore+rdma"
    return f"{scheme}://{read('INFINISTORE_HOST_ADDR', '127.0.0.1')}:{read('INFINISTORE_SERVICE_PORT', '12345')}"


def reference() -> str:
    """Returns the Markdown table of all variables."""
    lines = [f"| `{PREFIX}…` | here |", "|---|---|"]
    for name, entry in TABLE.items():
        if isinstance(entry, Mapped):
            text = f"sets `{entry.setting}`: {entry.note}" if entry.setting else entry.note
        elif isinstance(entry, Part):
            text = entry.note
        elif isinstance(entry, Refused):
            text = f"refused: {entry.reason}"
        else:
            text = f"no effect: {entry.reason}"
        lines.append(f"| `{name}` | {text} |")
    lines += [f"| `{name}` (without the prefix) | no effect: {entry.reason} |" for name, entry in UNPREFIXED.items()]
    return "\n".join(lines) + "\n"
