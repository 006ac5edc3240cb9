"""Our L2 in the programs of sides: a server of ours, and caches that reach it over TCP."""

import json
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from aibrix_connector import BlockCache

START_TIMEOUT_S = 30.0
MATCHES_MAX = 5
"""A lookup gives up after 50 ms: on a busy machine it may have to be asked again, in the same measurement."""


def spawn(command: list[str], **pipes: Any) -> "subprocess.Popen[bytes]":
    """Starts a server that the kernel kills when this process ends, however it does."""
    # This process may have ended before the kernel was told: then the server has another parent by now.
    checked = ["sh", "-c", '[ "$PPID" = "$0" ] && exec "$@"', str(os.getpid()), *command]
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *checked], stdin=subprocess.DEVNULL, **pipes)


def serve(capacity_bytes: int, tool: str) -> str:
    """Starts `kvcache serve`; returns where it listens.

    Args:
        capacity_bytes: Memory for values.
        tool: The path of `kvcache`.

    Raises:
        RuntimeError: It ended; why is on the standard error.
    """
    command = [tool, "serve", "--listen", "127.0.0.1:0", "--capacity", str(capacity_bytes)]
    server = spawn(command, stdout=subprocess.PIPE)
    assert server.stdout is not None
    line = server.stdout.readline()
    if not line:
        raise RuntimeError(f"kvcache serve has ended with {server.wait()}")
    return str(json.loads(line)["listen"])


def open_cache(address: str, block_bytes: int, capacity_bytes: int, shared_memory: bool = False) -> "BlockCache":
    """A cache with L1 and L2 whose memory is there. Without shared memory it uses the server as one on another host."""
    from aibrix_connector import BlockCache

    remote = f"tcp://{address}"
    cache = BlockCache(block_bytes, capacity_bytes, namespace="compare", remote=remote, shared_memory=shared_memory)
    until = time.monotonic() + START_TIMEOUT_S
    while cache.stats()["slots_unusable"]:
        if time.monotonic() > until:
            raise RuntimeError(f"the cache's memory has not come within {START_TIMEOUT_S:g} s")
        time.sleep(0.01)
    return cache


def put(cache: "BlockCache", keys: Any, data: Any) -> int:
    """Stores blocks in L1 and L2, and waits until others can get them; how many are there."""
    held = cache.put(keys, data)
    return held if cache.flush() else 0


def match(cache: "BlockCache", keys: Any) -> int:
    """How many leading blocks are there."""
    there = 0
    for _ in range(MATCHES_MAX):
        there = cache.match(keys)
        if there == len(keys):
            break
    return there
