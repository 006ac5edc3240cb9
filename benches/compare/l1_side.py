"""The program of one side of the L1 comparison: `python -m benches.compare.l1_side ours|aibrix-kvcache`.

Prompts and bytes follow from numbers in the question: both sides get the same. Keys are made from tokens in every call,
as an engine's connector does for a prompt that it sees for the first time.
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any, Protocol

import numpy as np

from benches.compare.side_program import BLOCK_TOKENS, Blocks, answer, expect, prompt, timed


class Cache(Protocol):
    """What both sides can do; all counts are of leading blocks."""

    def put(self, tokens: Any, data: Any) -> int:
        """Copies blocks in."""

    def get(self, tokens: Any, out: Any) -> int:
        """Copies blocks out."""

    def exists(self, tokens: Any) -> int:
        """How many are there."""

    def serve(self, tokens: Any) -> int:
        """What an engine does with a prompt: uses what is there, stores the rest. Returns how many were there."""


class Ours:
    """`BlockCache` with its defaults, the copy on the caller's thread."""

    distribution = "aibrix-connector"

    def __init__(self, block_bytes: int, capacity_bytes: int, threads: int, eviction: str | None = None) -> None:
        from aibrix_connector import BlockCache

        self._cache = BlockCache(block_bytes, capacity_bytes, namespace="compare", eviction=eviction or "default")
        until = time.monotonic() + 60
        while self._cache.stats()["slots_unusable"]:
            if time.monotonic() > until:
                raise RuntimeError("the cache's memory has not come within 60 s")
            time.sleep(0.01)

    def put(self, tokens: Any, data: Any) -> int:
        return self._cache.put(self._cache.hash_tokens(tokens, BLOCK_TOKENS), data)

    def get(self, tokens: Any, out: Any) -> int:
        return self._cache.get(self._cache.hash_tokens(tokens, BLOCK_TOKENS), out)

    def exists(self, tokens: Any) -> int:
        return self._cache.match(self._cache.hash_tokens(tokens, BLOCK_TOKENS))

    def serve(self, tokens: Any) -> int:
        keys = self._cache.hash_tokens(tokens, BLOCK_TOKENS)
        data: Any = np.zeros(len(keys) * self._cache.block_bytes, np.uint8)
        found = self._cache.get(keys, data)
        if found < len(keys):
            self._cache.put(keys, data)
        return found


class Aibrix:
    """`BaseKVCacheManager` with its defaults and L1 alone; its memory is not pinned, since that needs CUDA."""

    distribution = "aibrix-kvcache"

    def __init__(self, block_bytes: int, capacity_bytes: int, threads: int, eviction: str | None = None) -> None:
        os.environ["AIBRIX_KV_CACHE_OL_L1_CACHE_CAPACITY_GB"] = str(capacity_bytes / (1 << 30))
        if eviction:
            os.environ["AIBRIX_KV_CACHE_OL_L1_CACHE_EVICTION_POLICY"] = eviction
        import torch
        from aibrix_kvcache import (
            BaseKVCacheManager,
            KVCacheBlockLayout,
            KVCacheBlockSpec,
            KVCacheConfig,
            KVCacheTensorSpec,
            ModelSpec,
            TokenListView,
            cache_manager,
        )

        cache_manager.TESTING_DISABLE_PIN_MEMORY = True
        torch.set_num_threads(1)
        # Two bytes a number, keys and values, heads of 64: layers are what is left.
        layers = block_bytes // (2 * 2 * BLOCK_TOKENS * 64)
        spec = KVCacheBlockSpec(
            block_ntokens=BLOCK_TOKENS,
            block_dtype=torch.bfloat16,
            block_layout=KVCacheBlockLayout.LCND,
            tensor_spec=KVCacheTensorSpec(heads=[0], layers=list(range(layers)), head_size=64),
        )
        if spec.block_nbytes != block_bytes:
            raise ValueError(f"a block has {spec.block_nbytes} bytes instead of {block_bytes}")
        config = KVCacheConfig(block_spec=spec, model_spec=ModelSpec(max_model_len=1 << 20), multi_threaded=threads > 1)
        self._manager: Any = BaseKVCacheManager(config)
        self._view: Any = TokenListView
        self._torch: Any = torch
        self._block_bytes = block_bytes

    def put(self, tokens: Any, data: Any) -> int:
        status = self._manager.allocate_for(None, self._view(tokens))
        if not status.is_ok():
            return 0
        handle = status.get()
        source = self._blocks(data)
        # One copy, into memory that then belongs to the cache: how their own connectors do it.
        for block, place in zip(source, handle.to_tensors(), strict=False):
            place.view(-1).view(self._torch.uint8).copy_(block)
        stored = self._manager.put(None, self._view(tokens)[: len(handle) * BLOCK_TOKENS], handle)
        return int(stored.get(0)) // BLOCK_TOKENS

    def get(self, tokens: Any, out: Any) -> int:
        status = self._manager.acquire(None, self._view(tokens))
        if not status.is_ok():
            return 0
        count, handle = status.get()
        target = self._blocks(out)
        for block, place in zip(target, handle.to_tensors(), strict=False):
            block.copy_(place.view(-1).view(self._torch.uint8))
        handle.release()
        return int(count) // BLOCK_TOKENS

    def exists(self, tokens: Any) -> int:
        return int(self._manager.exists(None, self._view(tokens)).get(0)) // BLOCK_TOKENS

    def serve(self, tokens: Any) -> int:
        view = self._view(tokens)
        found, status = 0, self._manager.acquire(None, view)
        if status.is_ok():
            found, handle = status.get()
            handle.release()
        stored = int(found)
        # One call may get less memory than it asked for while the cache has more to give up: asked again, it evicts.
        while stored < len(tokens):
            prefix = view[:stored] if stored else None
            status = self._manager.allocate_for(prefix, view[stored:])
            if not status.is_ok():
                break
            handle = status.get()
            rest = view[stored : stored + len(handle) * BLOCK_TOKENS]
            more = int(self._manager.put(prefix, rest, handle).get(0))
            if more == 0:
                break
            stored += more
        return int(found) // BLOCK_TOKENS

    def _blocks(self, data: Any) -> Any:
        return self._torch.from_numpy(data).view(-1, self._block_bytes)


SIDES: dict[str, type[Ours] | type[Aibrix]] = {"ours": Ours, "aibrix-kvcache": Aibrix}


class Asked:
    """Answers questions about one cache."""

    def __init__(self, side: str) -> None:
        self._side = SIDES[side]
        self._cache: Cache | None = None
        self._blocks: Any = None
        self._outs: list[Any] = []

    def open(self, block_bytes: int, capacity_bytes: int, threads: int, blocks: int) -> dict[str, Any]:
        """Makes the cache and fills it, so that every later put has to evict."""
        self._cache = self._side(block_bytes, capacity_bytes, threads)
        self._blocks = Blocks(blocks, block_bytes)
        self._outs = [np.zeros(blocks * block_bytes, np.uint8) for _ in range(threads)]
        filled = min(blocks, 32)
        for number in range(capacity_bytes // block_bytes // filled + 1):
            self._cache.put(prompt(1 << 20 | number, filled), self._blocks.memory[: filled * block_bytes])
        return {"version": metadata.version(self._side.distribution), "python": sys.version.split()[0]}

    def replay(self, trace: str, block_bytes: int, capacity_bytes: int, eviction: str | None) -> dict[str, Any]:
        """Serves each line of a file, the block ids of a request, with a new cache of that size."""
        cache = self._side(block_bytes, capacity_bytes, 1, eviction)
        accesses = hits = 0
        with open(trace) as lines:
            for line in lines:
                # A block's tokens follow from its id, which stands for all that is before it as well.
                ids = np.array(json.loads(line), np.int32)
                hits += cache.serve(np.repeat(ids, BLOCK_TOKENS))
                accesses += len(ids)
        return {"accesses": accesses, "hits": hits, "version": metadata.version(self._side.distribution)}

    def verbs(self, number: int, blocks: int) -> dict[str, Any]:
        """A prompt nobody has seen: put, exists, get, a miss, and a plain copy of the same bytes; microseconds."""
        assert self._cache is not None
        cache, out, source = self._cache, self._outs[0], self._blocks.of(number, blocks)
        tokens, absent = prompt(number, blocks), prompt(number | 1 << 21, blocks)
        out[:] = 0
        us: dict[str, float] = {}
        counts = {
            "put": timed(us, "put", lambda: cache.put(tokens, source)),
            "exists": timed(us, "exists", lambda: cache.exists(tokens)),
            "get": timed(us, "get", lambda: cache.get(tokens, out)),
            "miss": timed(us, "miss", lambda: cache.get(absent, out)),
        }
        expect(counts, {"put": blocks, "exists": blocks, "get": blocks, "miss": 0})
        self._blocks.check(number, blocks, out)
        timed(us, "copy", lambda: np.copyto(out, source))
        return {"us": us}

    def threads(self, number: int, blocks: int, repeats: int) -> dict[str, Any]:
        """As many threads as the cache was opened for, each getting a prompt of its own; microseconds of the whole."""
        assert self._cache is not None
        cache = self._cache
        prompts = [prompt(number * 8 + index, blocks) for index in range(len(self._outs))]
        for tokens in prompts:
            cache.put(tokens, self._blocks.of(number, blocks))
        wrong: list[str] = []

        def work(index: int) -> None:
            try:
                for _ in range(repeats):
                    expect({"get": cache.get(prompts[index], self._outs[index])}, {"get": blocks})
            except Exception as error:
                wrong.append(f"{type(error).__name__}: {error}")

        started = [threading.Thread(target=work, args=(index,)) for index in range(len(prompts))]
        began = time.perf_counter_ns()
        for thread in started:
            thread.start()
        for thread in started:
            thread.join()
        us = (time.perf_counter_ns() - began) / 1e3
        if wrong:
            raise RuntimeError(wrong[0])
        for out in self._outs:
            self._blocks.check(number, blocks, out)
        return {"us": {"get": us}}


if __name__ == "__main__":
    asked = Asked(sys.argv[1])
    verbs: dict[str, Callable[..., dict[str, Any]]] = {
        "open": asked.open,
        "replay": asked.replay,
        "verbs": asked.verbs,
        "threads": asked.threads,
    }
    sys.exit(answer(verbs))
