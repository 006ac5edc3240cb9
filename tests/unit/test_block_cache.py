"""`BlockCache` from Python: what users may pass in, what they get back, and what survives the process."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aibrix_connector import BlockCache

BLOCK_BYTES = 256
TOKENS: Any = np.arange(160, dtype=np.int32)


def blocks_of(keys: Any, block_bytes: int = BLOCK_BYTES) -> Any:
    """Returns bytes that are a function of the keys, so that any mix-up shows."""
    return np.stack([np.resize(key, block_bytes) for key in keys]).copy()


@pytest.fixture
def cache() -> Any:
    with BlockCache(BLOCK_BYTES, 1000 * BLOCK_BYTES) as opened:
        yield opened


def test_put_match_get_delete_clear(cache: BlockCache) -> None:
    keys = cache.hash_tokens(TOKENS)
    data = blocks_of(keys)
    assert (keys.shape, keys.dtype, keys.flags.writeable) == ((10, 16), np.uint8, False)
    assert cache.match(keys) == 0
    assert cache.put(keys, data) == 10
    assert cache.match(keys) == 10
    out: Any = np.zeros_like(data)
    assert cache.get(keys, out) == 10
    assert (out == data).all()
    assert cache.delete(keys[4:5]) == 1
    assert cache.match(keys) == 4, "nothing is offered behind a hole"
    out[:] = 7
    assert cache.get(keys, out) == 4
    assert (out[:4] == data[:4]).all()
    assert (out[4:] == 7).all(), "the rest of the buffer is left alone"
    cache.clear()
    assert cache.match(keys) == 0


def test_a_tail_shorter_than_a_block_has_no_key(cache: BlockCache) -> None:
    assert cache.hash_tokens(TOKENS[:15]).shape == (0, 16)
    assert (cache.hash_tokens(TOKENS[:47]) == cache.hash_tokens(TOKENS)[:2]).all()
    assert cache.put(cache.hash_tokens(TOKENS[:15]), b"") == 0
    assert cache.match(b"") == 0


def test_keys_depend_on_every_token_before_and_on_extra(cache: BlockCache) -> None:
    keys = cache.hash_tokens(TOKENS)
    changed = TOKENS.copy()
    changed[40] += 1
    assert ((cache.hash_tokens(changed) == keys).all(axis=1) == [True, True] + [False] * 8).all()
    assert not (cache.hash_tokens(TOKENS, extra=b"lora") == keys).all(axis=1).any()
    assert cache.hash_tokens(TOKENS, 32).shape == (5, 16)
    other = BlockCache(BLOCK_BYTES, BLOCK_BYTES * 10, namespace="other")
    assert not (other.hash_tokens(TOKENS) == keys).all(axis=1).any()


@pytest.mark.parametrize("algorithm", ["blake3", "xxh3"])
def test_keys_are_those_of_the_documented_vectors(algorithm: Any) -> None:
    """The vectors of docs/format.md, which the Rust tests hold too."""
    first = {"blake3": "a174f64d902953da1182c84e85cb4ce0", "xxh3": "c88278f21493e56c119ef9157293be1b"}
    second = {"blake3": "ce21ee27dae92a8e0808f7532c4977d3", "xxh3": "513ffa7b869443d0a815999e01b66a11"}
    cache = BlockCache(1, 1, namespace="demo", hash=algorithm)
    keys = cache.hash_tokens(np.arange(32, dtype=np.int64))
    assert [key.tobytes().hex() for key in keys] == [first[algorithm], second[algorithm]]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_token_buffers_of_any_shape(cache: BlockCache, dtype: Any) -> None:
    expected = cache.hash_tokens(TOKENS).tobytes()
    tokens = TOKENS.astype(dtype)
    assert cache.hash_tokens(tokens.reshape(10, 16)).tobytes() == expected
    assert cache.hash_tokens(memoryview(tokens)).tobytes() == expected
    tokens.flags.writeable = False
    assert cache.hash_tokens(tokens).tobytes() == expected


def test_token_ids_of_the_whole_range(cache: BlockCache) -> None:
    assert cache.hash_tokens(np.array([0, 2**32 - 1] * 8)).shape == (1, 16)


@pytest.mark.parametrize(
    "convert",
    [
        bytes,
        bytearray,
        memoryview,
        lambda data: data,
        lambda data: data.reshape(-1),
        lambda data: data.view(np.float32),
        lambda data: data.view(np.int64),
        lambda data: data.view(np.int16),
        lambda data: data.view(np.float16),
        lambda data: data.view(np.bool_),
        lambda data: data.view(np.complex64),
    ],
)
def test_data_buffers_of_any_type(cache: BlockCache, convert: Callable[[Any], Any]) -> None:
    keys = cache.hash_tokens(TOKENS)
    data = blocks_of(keys)
    assert cache.put(keys, convert(data)) == 10
    out = bytearray(data.nbytes)
    assert cache.get(keys.tobytes(), out) == 10
    assert bytes(out) == data.tobytes()


def test_tensors_go_in_and_out_through_numpy(cache: BlockCache) -> None:
    torch = pytest.importorskip("torch")
    keys = cache.hash_tokens(torch.arange(160).numpy())
    data = torch.randn(10, BLOCK_BYTES // 4)
    assert cache.put(keys, data.numpy()) == 10
    out = torch.zeros_like(data)
    assert cache.get(keys, out.numpy()) == 10
    assert torch.equal(out, data)


def test_eviction_takes_the_tail_of_the_oldest_prompt_first() -> None:
    cache = BlockCache(BLOCK_BYTES, 10 * BLOCK_BYTES, eviction="lru")
    keys = [cache.hash_tokens(TOKENS[:64], extra=bytes([n])) for n in range(3)]
    for some in keys:
        assert cache.put(some, blocks_of(some)) == 4
    assert [cache.match(some) for some in keys] == [2, 4, 4]
    assert cache.stats()["evicted"] == 2


def test_more_than_the_capacity_is_stored_as_far_as_it_goes() -> None:
    cache = BlockCache(BLOCK_BYTES, 4 * BLOCK_BYTES)
    keys = cache.hash_tokens(TOKENS)
    assert cache.put(keys, blocks_of(keys)) == 4
    assert cache.match(keys) == 4


def test_stats_explain_every_slot(cache: BlockCache) -> None:
    keys = cache.hash_tokens(TOKENS)
    cache.put(keys, blocks_of(keys))
    stats = cache.stats()
    parts = ("slots_ready", "slots_free", "slots_filling", "slots_draining", "slots_unusable")
    assert stats["slots"] == 1000 == sum(stats[part] for part in parts)
    assert (stats["slots_ready"], stats["stored"], stats["block_bytes"]) == (10, 10, BLOCK_BYTES)
    assert stats["slab_bytes"] == 1000 * BLOCK_BYTES
    assert 0 < stats["metadata_bytes"] <= 128 * 1000


def test_close_gives_up_and_may_be_repeated(cache: BlockCache) -> None:
    cache.close()
    cache.close()
    assert cache.block_bytes == BLOCK_BYTES
    assert cache.hash_tokens(TOKENS).shape == (10, 16)


@pytest.mark.parametrize("copy_threads", [1, 2])
def test_threads_hammer_one_cache_with_the_gil_released(copy_threads: int) -> None:
    """Every thread reads back exactly what belongs to the key, whoever stored it, while blocks are evicted."""
    block_bytes = 64 << 10
    cache = BlockCache(block_bytes, 24 * block_bytes, copy_threads=copy_threads)
    prompts = [cache.hash_tokens(TOKENS[:128], extra=bytes([n])) for n in range(6)]
    data = [blocks_of(keys, block_bytes) for keys in prompts]
    problems: list[str] = []
    loaded = [0] * 4

    def work(thread: int) -> None:
        generator = np.random.default_rng(thread)
        out: Any = np.empty((8, block_bytes), np.uint8)
        for _ in range(150):
            n = int(generator.integers(len(prompts)))
            cache.put(prompts[n], data[n])
            got = cache.get(prompts[n], out)
            loaded[thread] += got
            if not (out[:got] == data[n][:got]).all():
                problems.append(f"thread {thread}: prompt {n} came back changed")
            if generator.integers(10) == 0:
                cache.delete(prompts[n][int(generator.integers(8)) :])

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == []
    assert min(loaded) > 0
    stats = cache.stats()
    assert stats["evicted"] > 0
    assert stats["slots"] == stats["slots_ready"] + stats["slots_free"], "nothing is left filling, draining or pinned"
    assert stats["slots_pinned"] == 0


def test_the_gil_is_released_in_copies() -> None:
    """A thread that counts goes on while another one copies."""
    block_bytes = 64 << 20
    cache = BlockCache(block_bytes, 2 * block_bytes)
    keys = cache.hash_tokens(TOKENS[:32])
    data: Any = np.ones((2, block_bytes), np.uint8)
    count, stop = [0], threading.Event()

    def work() -> None:
        while not stop.is_set():
            count[0] += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    counter = threading.Thread(target=work)
    counter.start()
    sys.setswitchinterval(100)  # nobody is asked for the GIL: it changes hands only where it is released
    try:
        before = count[0]
        assert cache.put(keys, data) == 2
        during = count[0] - before
    finally:
        stop.set()
        sys.setswitchinterval(interval)
        counter.join()
    assert during > 0


def test_a_call_under_way_survives_close() -> None:
    block_bytes = 8 << 20
    for _ in range(5):
        cache = BlockCache(block_bytes, 4 * block_bytes)
        keys = cache.hash_tokens(TOKENS[:64])
        data: Any = np.ones((4, block_bytes), np.uint8)
        answers: list[Any] = []

        def put(cache: BlockCache = cache, keys: Any = keys, data: Any = data, answers: list[Any] = answers) -> None:
            try:
                answers.append(cache.put(keys, data))
            except ValueError as error:
                answers.append(str(error))

        thread = threading.Thread(target=put)
        thread.start()
        cache.close()
        thread.join()
        assert answers in ([4], ["the cache is closed: open a new BlockCache"])


def shared(directory: Path, namespace: str = "model a", blocks: int = 64) -> BlockCache:
    return BlockCache(BLOCK_BYTES, blocks * BLOCK_BYTES, slab_path=directory, namespace=namespace)


def test_a_restart_over_slab_path_finds_the_blocks(slab_folder: Path) -> None:
    with shared(slab_folder) as first:
        keys = first.hash_tokens(TOKENS)
        assert first.put(keys, blocks_of(keys)) == 10
        first.delete(keys[9:])
    with shared(slab_folder) as second:
        assert second.stats()["adopted"] == 9
        out: Any = np.zeros((10, BLOCK_BYTES), np.uint8)
        assert second.get(keys, out) == 9
        assert (out[:9] == blocks_of(keys)[:9]).all()
        second.clear()
    with shared(slab_folder) as third:
        assert third.match(keys) == 0, "what was cleared stays away"


def test_other_namespaces_and_sizes_find_nothing(slab_folder: Path) -> None:
    with shared(slab_folder) as first:
        keys = first.hash_tokens(TOKENS)
        first.put(keys, blocks_of(keys))
    with shared(slab_folder, "model b") as other:
        assert other.match(keys) == 0
        assert other.match(other.hash_tokens(TOKENS)) == 0
    with shared(slab_folder, blocks=65) as other:
        assert other.match(keys) == 0


_CHILD = """
import os, signal, sys
import numpy as np
from aibrix_connector import BlockCache
from tests.unit.test_block_cache import blocks_of, shared
from pathlib import Path
cache = shared(Path(sys.argv[1]))
keys = cache.hash_tokens(np.arange(160, dtype=np.int32))
assert cache.put(keys, blocks_of(keys)) == 10
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_its_blocks_to_the_next(slab_folder: Path) -> None:
    child = subprocess.run([sys.executable, "-c", _CHILD, str(slab_folder)], env=_environment(), check=False)
    assert child.returncode == -signal.SIGKILL
    with shared(slab_folder) as cache:
        keys = cache.hash_tokens(TOKENS)
        out: Any = np.zeros((10, BLOCK_BYTES), np.uint8)
        assert cache.get(keys, out) == 10
        assert (out == blocks_of(keys)).all()


@pytest.mark.parametrize("damage", ["truncated", "header", "garbage"])
def test_a_damaged_slab_file_is_a_cold_start(slab_folder: Path, damage: str) -> None:
    with shared(slab_folder) as first:
        keys = first.hash_tokens(TOKENS)
        first.put(keys, blocks_of(keys))
    (slab,) = slab_folder.glob("*.slab")
    content = bytearray(slab.read_bytes())
    if damage == "truncated":
        slab.write_bytes(content[: len(content) // 2])
    elif damage == "header":
        content[20] ^= 1
        slab.write_bytes(content)
    else:
        slab.write_bytes(os.urandom(len(content)))
    with shared(slab_folder) as second:
        assert second.match(keys) == 0
        assert second.put(keys, blocks_of(keys)) == 10
        out: Any = np.zeros((10, BLOCK_BYTES), np.uint8)
        assert second.get(keys, out) == 10
        assert (out == blocks_of(keys)).all()


def test_one_damaged_record_costs_one_block(slab_folder: Path) -> None:
    with shared(slab_folder) as first:
        keys = first.hash_tokens(TOKENS)
        first.put(keys, blocks_of(keys))
    (slab,) = slab_folder.glob("*.slab")
    content = bytearray(slab.read_bytes())
    at = content.index(keys[5].tobytes())
    content[at] ^= 1
    slab.write_bytes(content)
    with shared(slab_folder) as second:
        assert second.match(keys) == 5
        assert second.stats()["adopted"] == 9


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
