"""One side of the comparison with AIBrix's file backends: `python -m benches.compare.l2_files_side SIDE PLACE`.

It answers the questions of `l1_side.py`, for a cache whose blocks are all in L2. The peer has no L1 then. Ours has one
in each of two caches, one that puts and another that has never seen the blocks.
"""

import os
import sys
from importlib import metadata
from typing import Any

import numpy as np

from benches.compare import l1_side, our_l2
from benches.compare.side_program import BLOCK_TOKENS, Blocks, answer, prompt

OURS = {"ours-tcp": False, "ours-shared": True}
"""Our sides, and whether they use the memory of a server on their host."""


class Ours:
    """Two `BlockCache`s, and `kvcache serve` between them."""

    distribution = "aibrix-connector"

    def __init__(self, shared_memory: bool, place: str, block_bytes: int, capacity_bytes: int, blocks: int) -> None:
        address = our_l2.serve(capacity_bytes, place)
        settings = (address, block_bytes, 2 * blocks * block_bytes, shared_memory)
        self._putting, self._getting = (our_l2.open_cache(*settings) for _ in range(2))

    def put(self, tokens: Any, data: Any) -> int:
        return our_l2.put(self._putting, self._keys(tokens), data)

    def get(self, tokens: Any, out: Any) -> int:
        return self._getting.get(self._keys(tokens), out)

    def exists(self, tokens: Any) -> int:
        return our_l2.match(self._getting, self._keys(tokens))

    def forget(self, tokens: Any) -> None:
        self._putting.delete(self._keys(tokens))

    def _keys(self, tokens: Any) -> Any:
        return self._putting.hash_tokens(tokens, BLOCK_TOKENS)


class Files(l1_side.Aibrix):
    """`BaseKVCacheManager` without L1, with a backend that keeps blocks in files."""

    def __init__(self, backend: str, place: str, block_bytes: int, capacity_bytes: int) -> None:
        settings = {"L1_CACHE_ENABLED": "0", "L2_CACHE_BACKEND": backend, f"{backend}_ROOT": place}
        os.environ.update({f"AIBRIX_KV_CACHE_OL_{name}": value for name, value in settings.items()})
        super().__init__(block_bytes, capacity_bytes, 1)

    def forget(self, tokens: Any) -> None:
        self._manager.delete(None, self._view(tokens))


class Asked(l1_side.Asked):
    """Answers questions about one cache whose blocks are in L2."""

    def __init__(self, side: str, place: str) -> None:
        """Of the side `side`, with files in the folder `place` or the tool `kvcache` at `place`."""
        self._name, self._place = side, place

    def open(self, block_bytes: int, capacity_bytes: int, threads: int, blocks: int) -> dict[str, Any]:
        """Makes the cache."""
        if self._name in OURS:
            self._cache: Any = Ours(OURS[self._name], self._place, block_bytes, capacity_bytes, blocks)
        else:
            self._cache = Files(self._name, self._place, block_bytes, capacity_bytes)
        self._blocks = Blocks(blocks, block_bytes)
        self._outs = [np.zeros(blocks * block_bytes, np.uint8)]
        return {"version": metadata.version(self._cache.distribution)}

    def verbs(self, number: int, blocks: int) -> dict[str, Any]:
        """As asked of L1. The prompt is removed at the end, so that nothing is evicted."""
        answered = super().verbs(number, blocks)
        self._cache.forget(prompt(number, blocks))
        return answered


if __name__ == "__main__":
    asked = Asked(*sys.argv[1:])
    sys.exit(answer({"open": asked.open, "verbs": asked.verbs}))
