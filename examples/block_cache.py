"""The block cache without an engine: hash a prompt, store its blocks, find them again, also after a restart.

Usage: python examples/block_cache.py [DIRECTORY]

DIRECTORY is where the blocks are kept for a later process, ideally in shared memory; the default is /dev/shm.
"""

import sys

import numpy as np
from aibrix_connector import BlockCache

BLOCK_TOKENS = 16
BLOCK_BYTES = 64 << 10  # of one block, over all layers


def open_cache(directory: str) -> BlockCache:
    # The namespace names everything that makes the bytes of a block different: model, weights, dtype, layout.
    return BlockCache(BLOCK_BYTES, 64 << 20, namespace="example: my-model, bf16", slab_path=directory)


def main() -> None:
    directory = sys.argv[1] if len(sys.argv) > 1 else "/dev/shm"
    prompt: np.ndarray[tuple[int], np.dtype[np.int32]] = np.arange(1000, dtype=np.int32)

    with open_cache(directory) as cache:
        # A block's key covers every token up to the block's end; 1000 tokens are 62 whole blocks and a tail.
        keys = cache.hash_tokens(prompt, BLOCK_TOKENS)
        here = cache.match(keys)
        print(f"{len(keys)} blocks, {here} of them in the cache already")

        # "Compute" what is missing: an engine would copy its KV cache here.
        kv = np.random.default_rng(0).integers(0, 256, (len(keys), BLOCK_BYTES), np.uint8)
        print(f"{cache.put(keys, kv)} leading blocks are in the cache now")

        # Another prompt that begins with the same 500 tokens finds the 31 blocks that they fill.
        other = np.concatenate([prompt[:500], prompt[::-1]])
        print(f"another prompt: {cache.match(cache.hash_tokens(other, BLOCK_TOKENS))} leading blocks")

    # The cache is closed, as if the process had ended (or had been killed). The next one finds the blocks.
    with open_cache(directory) as cache:
        out = np.empty_like(kv)
        loaded = cache.get(keys, out)
        print(f"after a restart: {loaded} blocks, bytes equal: {np.array_equal(out, kv)}")
        cache.clear()


if __name__ == "__main__":
    main()
