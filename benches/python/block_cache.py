"""The Python API of the block cache: what a prompt's lookup and one block's put, get and miss cost a caller.

    python -m benches.python.block_cache [--quick] [--json FILE]

Each time is that of one call from Python, beside a copy of the same bytes by NumPy in the same run.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt
from aibrix_connector import BlockCache

from benches.rows import Row, row, write
from benches.spread import spread

Bytes: TypeAlias = npt.NDArray[np.uint8]

TOKENS = 32_768
BLOCK_TOKENS = 16
BLOCK_BYTES = 32 << 10


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few repetitions: shows that it runs, not how fast")
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    arguments = parser.parse_args()
    repetitions = 50 if arguments.quick else 1000
    rows = [
        prompt_lookup("xxh3", 0.3, repetitions),
        prompt_lookup("blake3", 0.8, repetitions),
        *one_block(repetitions * 4),
    ]
    write(rows, arguments.json)
    return 0


def prompt_lookup(hash_name: Literal["xxh3", "blake3"], target_ms: float, repetitions: int) -> Row:
    """Keys of a resident prompt, and how many of its blocks are there."""
    tokens: Any = np.arange(TOKENS, dtype=np.int32) * 7 % 50_000
    blocks = TOKENS // BLOCK_TOKENS
    with BlockCache(64, 2 * blocks * 64, namespace="bench", hash=hash_name) as cache:
        keys = cache.hash_tokens(tokens, BLOCK_TOKENS)
        until = time.monotonic() + 10
        while cache.put(keys, np.zeros(blocks * 64, np.uint8)) < blocks and time.monotonic() < until:
            time.sleep(0.01)

        def lookup() -> None:
            assert cache.match(cache.hash_tokens(tokens, BLOCK_TOKENS)) == blocks

        hashed = times_us(lambda: cache.hash_tokens(tokens, BLOCK_TOKENS), repetitions // 4)
        whole = times_us(lookup, repetitions)
        stats = cache.stats()
    reached = spread(whole)
    return row(
        f"hash + match of a resident {TOKENS:,}-token prompt from Python, {hash_name}",
        f"<= {target_ms} ms",
        f"{reached.median / 1e3:.3f} ms",
        f"{quartiles(whole, 1e3)} ms; of it the hash {statistics.median(hashed) / 1e3:.3f} ms",
        reached.median <= target_ms * 1e3,
        lookup_us=reached.json(),
        hash_us=spread(hashed).json(),
        metadata_bytes_per_slot=stats["metadata_bytes"] / stats["slots"],
    )


def one_block(repetitions: int) -> list[Row]:
    """Put of a new block, get of a resident one, get of one that is not there."""
    capacity = 256 << 20
    slots = capacity // BLOCK_BYTES
    rng = np.random.default_rng(0)
    source = rng.integers(0, 255, (slots, BLOCK_BYTES), dtype=np.uint8)
    target: Bytes = np.zeros(BLOCK_BYTES, np.uint8)
    pool: Bytes = np.zeros((slots, BLOCK_BYTES), np.uint8)
    with BlockCache(BLOCK_BYTES, capacity, namespace="bench") as cache:
        resident = all_keys(cache, 0, slots)
        for index in range(slots):
            cache.put(resident[index : index + 1], source[index])
        until = time.monotonic() + 30
        while cache.stats()["slots_ready"] < slots and time.monotonic() < until:
            for index in range(slots):
                cache.put(resident[index : index + 1], source[index])
        absent = all_keys(cache, 1, slots)
        fresh = all_keys(cache, 2, repetitions)
        puts, gets, misses, copies = Times(), Times(), Times(), Times()
        # In turn, so that a slow moment of the machine is a slow moment for all.
        for index, place in enumerate(rng.integers(0, slots, repetitions)):
            one, other, new = resident[place : place + 1], absent[place : place + 1], fresh[index : index + 1]
            got = gets.of(cache.get, one, target)
            missed = misses.of(cache.get, other, target)
            copies.of(np.copyto, pool[place], source[slots - 1 - place])
            # Makes room first: an eviction is measured by `kvcache bench`.
            cache.delete(one)
            stored = puts.of(cache.put, new, source[place])
            assert (got, missed, stored) == (1, 0, 1)
            cache.delete(new)
            cache.put(one, source[place])
    copy = spread(copies.us)
    rows = []
    for name, values, target_us in (("put", puts.us, 8.0), ("get", gets.us, 8.0), ("miss", misses.us, 2.0)):
        reached = spread(values)
        beside = "" if name == "miss" else f"; numpy.copyto of a block {copy.median:.1f} us"
        rows.append(
            row(
                f"one-block {name} from Python, 32 KiB, p50",
                f"<= {target_us:g} us",
                f"{reached.median:.2f} us",
                f"{quartiles(values, 1)} us{beside}",
                reached.median <= target_us,
                **{f"{name}_us": reached.json(), "copy_us": copy.json()},
            )
        )
    return rows


def all_keys(cache: BlockCache, seed: int, count: int) -> Bytes:
    """As many keys as asked for, of a prompt of one-token blocks."""
    tokens = np.random.default_rng([7, seed]).integers(0, 50_000, count, dtype=np.int32)
    keys: Bytes = cache.hash_tokens(tokens, 1)
    return keys


class Times:
    """Microseconds of calls."""

    def __init__(self) -> None:
        self.us: list[float] = []

    def of(self, call: Callable[..., Any], *args: Any) -> Any:
        """Calls, notes the time and returns what the call returned."""
        began = time.perf_counter_ns()
        returned = call(*args)
        self.us.append((time.perf_counter_ns() - began) / 1e3)
        return returned


def times_us(call: Callable[[], Any], repetitions: int) -> list[float]:
    """Microseconds of each call, after one to warm up."""
    call()
    times = Times()
    for _ in range(repetitions):
        times.of(call)
    return times.us


def quartiles(values: list[float], unit: float) -> str:
    """The quartiles, for the column of the spread."""
    low, _, high = statistics.quantiles(values, n=4)
    return f"{low / unit:.3g}..{high / unit:.3g}"


if __name__ == "__main__":
    sys.exit(main())
