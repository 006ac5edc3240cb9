"""What a user asks for with a request: ``kv_transfer_params={"kvcache": {...}}``. Untrusted input."""

import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MOST_TOKENS = 1 << 40
"""Caps above this are no caps."""


@dataclass(frozen=True)
class Wishes:
    """What one request asks for."""

    skip_load: bool = False
    """Load nothing for it."""
    skip_store: bool = False
    """Store nothing of it."""
    max_load_tokens: int | None = None
    """Load nothing behind this many leading tokens of the prompt, those that the engine holds itself included."""
    max_store_tokens: int | None = None
    """Store nothing behind this many leading tokens."""


_FLAGS = ("skip_load", "skip_store")
_CAPS = ("max_load_tokens", "max_store_tokens")


def read(params: object) -> tuple[Wishes, dict[str, str]]:
    """Reads a request's ``kv_transfer_params``. Whatever is not understood is left out.

    Args:
        params: Anything at all.

    Returns:
        The wishes, and a remark for each thing that was left out, by its name.
    """
    if params is None:
        return Wishes(), {}
    if not isinstance(params, Mapping):
        return Wishes(), {"kv_transfer_params": f"kv_transfer_params is {_shown(params)}, not an object: it is ignored"}
    ours = params.get("kvcache")
    if ours is None:
        return Wishes(), {}
    if not isinstance(ours, Mapping):
        return Wishes(), {"kvcache": f"kv_transfer_params.kvcache is {_shown(ours)}, not an object: it is ignored"}
    values: dict[str, Any] = {}
    remarks: dict[str, str] = {}
    for name, value in ours.items():
        where = f"kv_transfer_params.kvcache.{_shown(name, quoted=False)}"
        if name in _FLAGS:
            if isinstance(value, bool):
                values[name] = value
            else:
                remarks[name] = f"{where} is {_shown(value)}, not true or false: it is ignored"
        elif name in _CAPS:
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                values[name] = value if value < MOST_TOKENS else None
            elif value is not None:
                remarks[name] = f"{where} is {_shown(value)}, not a number of tokens from 0 up: it is ignored"
        else:
            known = ", ".join(_FLAGS + _CAPS)
            remarks["unknown"] = f"{where} is not known: it is ignored, known are {known}"
    return Wishes(**values), remarks


def _shown(value: object, *, quoted: bool = True) -> str:
    """Returns a value for a log line: short, on one line, whatever a user has sent."""
    if isinstance(value, str) and not quoted:
        return reprlib.repr(value)[1:-1]
    return reprlib.repr(value)
