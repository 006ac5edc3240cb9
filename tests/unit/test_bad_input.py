"""Bad input gives one clear error that names the value and the remedy, and leaves everything as it was.

The texts are golden: users search for them. Those of settings, environment, versions and layouts are in the tests of
these modules.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aibrix_connector import BlockCache, _native

BLOCK_BYTES = 64

CLOSED = "the cache is closed: open a new BlockCache"
NO_BUFFER = "exports no buffer of numbers: pass bytes, a memoryview, a NumPy array or a CPU tensor's .numpy()"
KEYS_REMEDY = "are not uint8[n, 16]: pass what hash_tokens returned, or a slice of its rows"


def opening(**arguments: Any) -> Callable[[], Any]:
    return lambda: BlockCache(**({"block_bytes": BLOCK_BYTES, "capacity_bytes": 100 * BLOCK_BYTES} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block_bytes": 0}, "block_bytes is 0: give the bytes of one block, for all layers"),
        ({"block_bytes": -64}, "block_bytes is -64: give the bytes of one block, for all layers"),
        (
            {"block_bytes": 1 << 64},
            "block_bytes is 18446744073709551616, above 64 bits: give the bytes of one block, for all layers",
        ),
        ({"capacity_bytes": -1}, "capacity_bytes is -1: give the bytes of all blocks"),
        (
            {"capacity_bytes": BLOCK_BYTES - 1},
            "capacity of 63 bytes is below one block of 64 bytes: raise capacity_bytes",
        ),
        (
            {"eviction": "lruu"},
            "unknown eviction policy `lruu` (did you mean `lru`?); "
            "known: default, hit-density, lru, s3fifo, s3fifo-fixed",
        ),
        (
            {"hash": "md5"},
            'unknown hash "md5": use "blake3" (safe to share) or "xxh3" (faster, private single-tenant caches only)',
        ),
        (
            {"remote": "tcp://10.0.0.1:12345"},
            "remote needs a namespace: name the model and everything else that makes its blocks different",
        ),
        (
            {"slab_path": "/dev/shm/x"},
            "slab_path /dev/shm/x needs a namespace: name the model and everything else that makes its blocks "
            "different",
        ),
        ({"copy_threads": 0}, "copy_threads is 0: use 1 to copy on the caller's thread, or more"),
        ({"copy_threads": -1}, "copy_threads is -1: use 1 to copy on the caller's thread, or more"),
        *(
            (
                {"namespace": "", shared: where},
                "namespace is empty, and blocks that others can find need one: name the model and everything else that "
                "makes its blocks different",
            )
            for shared, where in (("slab_path", "/dev/shm"), ("remote", "tcp://10.0.0.1:12345"))
        ),
        *(
            ({name: "/x"}, f"{name} is of no use without remote: set remote, or leave {name} out")
            for name in ("token_file", "tls_ca", "tls_name")
        ),
        (
            {"slab_path": "/no/such/folder", "namespace": "n"},
            "slab_path /no/such/folder does not exist, and would be on a disk: set slab_path to a directory in shared "
            "memory, such as /dev/shm, or make that directory",
        ),
        (
            {"slab_path": "/dev/null", "namespace": "n"},
            "cannot use /dev/null for slab files: File exists (os error 17); it is no directory: set slab_path to one",
        ),
    ],
)
def test_opening(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        opening(**arguments)()


def test_sizes_are_whole_numbers() -> None:
    with pytest.raises(
        TypeError, match=r"^capacity_bytes is a float, not a whole number: give the bytes of all blocks$"
    ):
        opening(capacity_bytes=6400.0)()
    with opening(capacity_bytes=np.int64(6400))() as cache:
        assert len(cache.hash_tokens(np.arange(32), np.int32(8))) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": []}, "groups is empty: give at least one KV cache group"),
        ({"groups": [("full", 16, 0)] * 65537}, "65537 KV cache groups: groups are numbered with 16 bits"),
        ({"groups": [("half", 16, 0)]}, 'unknown group kind "half": use "full", "sliding" or "state"'),
        (
            {"groups": [("full", 16, 0), ("full", 0, 0)]},
            "group 1 has block_tokens 0: give the tokens of one engine block",
        ),
        (
            {"groups": [("sliding", 16, 0)]},
            "group 0 is sliding and has window_tokens 0: give the attention window in tokens",
        ),
        ({"slot_blocks": 0}, "slot_blocks is 0: use 1 or more"),
        (
            {"slot_blocks": 1 << 62},
            "group 0 has 16 tokens a block, times slot_blocks 4611686018427387904: lower slot_blocks",
        ),
        ({"hash_tokens": 0}, "hash_tokens is 0: give the tokens that one engine hash covers"),
        (
            {"hash_tokens": 24},
            "group 0 has slots of 16 tokens, which is no multiple of hash_tokens 24: raise slot_blocks, or take keys "
            "from tokens",
        ),
        ({"ranks": 0}, "ranks is 0: give the number of workers that report"),
        ({"fill_wait_s": -0.5}, "fill_wait_s is -0.5: give seconds from 0 up"),
        ({"startup_wait_s": float("nan")}, "startup_wait_s is NaN: give seconds from 0 up"),
    ],
)
def test_planners(arguments: dict[str, Any], message: str) -> None:
    """What no engine has would give keys and slots that are not those of the tokens they stand for."""
    usual: dict[str, Any] = {
        "namespace": bytes(16),
        "groups": [("full", 16, 0)],
        "slot_blocks": 1,
        "hash_tokens": 16,
        "ranks": 1,
    }
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        _native.Planner(**(usual | arguments))


def test_hashes_that_do_not_end_with_slots_are_fine_where_keys_come_from_tokens() -> None:
    groups = [("full", 16, 0), ("sliding", 16, 32)]
    _native.Planner(namespace=bytes(16), groups=groups, slot_blocks=1, hash_tokens=24, ranks=1, key_source="tokens")


def test_capacity_that_no_machine_has() -> None:
    with pytest.raises(ValueError, match="memory") as caught:
        opening(capacity_bytes=1 << 50)()
    assert re.fullmatch(
        r"capacity of 1125899906842624 bytes is above this machine's memory of \d+ bytes: lower capacity_bytes",
        str(caught.value),
    )


def test_capacity_above_free_memory() -> None:
    with pytest.raises(ValueError, match="memory") as caught:
        opening(block_bytes=1 << 20, capacity_bytes=1 << 46)()
    assert re.fullmatch(
        r"a slab of 70\d{12} bytes does not fit into this machine's memory \(\d+ bytes available\): lower the capacity",
        str(caught.value),
    )


@pytest.fixture
def small_tmpfs(tmp_path: Path) -> Any:
    """A file system in memory of 8 MiB, as /dev/shm is in a container."""
    if os.getuid() != 0:
        pytest.skip("mounting needs root")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8M", "tmpfs", str(tmp_path)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"no permission to mount: {mounted.stderr.decode()}")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_capacity_above_shared_memory_is_private_memory_and_a_warning(small_tmpfs: Path) -> None:
    with pytest.warns(RuntimeWarning) as warned:
        cache = opening(block_bytes=1 << 20, capacity_bytes=64 << 20, slab_path=small_tmpfs, namespace="n")()
    assert len(warned) == 1
    assert re.fullmatch(
        rf"a slab of 69206016 bytes does not fit into the file system of {small_tmpfs} \(\d+ bytes available\): "
        r"lower the capacity, enlarge the file system \(docker run --shm-size, mount -o remount,size=\) or unset "
        r"slab_path; using anonymous memory, which a restart loses",
        str(warned[0].message),
    )
    keys = cache.hash_tokens(np.arange(16))
    assert cache.put(keys, bytes(1 << 20)) == 1
    cache.close()
    assert list(small_tmpfs.glob("*.slab")) == []


def test_a_folder_on_a_disk_is_a_warning(tmp_path: Path) -> None:
    (kind,) = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], capture_output=True, text=True).stdout.split()
    if kind == "tmpfs":
        pytest.skip("temporary files of this machine are in memory")
    with pytest.warns(RuntimeWarning) as warned:
        opening(slab_path=tmp_path, namespace="n")().close()
    assert [str(warning.message) for warning in warned] == [
        f"slab_path {tmp_path} is not in shared memory (tmpfs): its disk gets every block that is stored, which is "
        "slower and wears it out; set slab_path to a directory such as /dev/shm"
    ]


def test_a_directory_without_write_permission(tmp_path: Path) -> None:
    """Root may write everywhere, so the child gives its rights away."""
    target = tmp_path / "closed"
    target.mkdir(mode=0o555)
    program = (
        "import os, sys\n"
        "import aibrix_connector\n"
        "if os.getuid() == 0: os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: aibrix_connector.BlockCache(64, 6400, slab_path=sys.argv[1], namespace='n')\n"
        "except ValueError as error: print(error)\n"
    )
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(path.stat().st_mode | 0o055)
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    child = subprocess.run(
        [sys.executable, "-c", program, str(target)], env=environ, capture_output=True, text=True, check=False
    )
    assert child.stdout.strip() == (
        f"cannot use {target} for slab files: Permission denied (os error 13); give this user write permission there "
        "or set slab_path to another directory"
    ), child.stderr


KEYS: Any = np.arange(64, dtype=np.uint8).reshape(4, 16)

CALLS: list[tuple[str, Callable[[Any], Any], type[Exception], str]] = [
    (
        "data too short",
        lambda cache: cache.put(KEYS, bytes(255)),
        ValueError,
        "data has 255 bytes, but 4 keys of blocks of 64 bytes need 256: pass a buffer of exactly that size",
    ),
    (
        "out too long",
        lambda cache: cache.get(KEYS, bytearray(257)),
        ValueError,
        "out has 257 bytes, but 4 keys of blocks of 64 bytes need 256: pass a buffer of exactly that size",
    ),
    (
        "out read-only",
        lambda cache: cache.get(KEYS, bytes(256)),
        ValueError,
        "out is read-only: pass a writable buffer",
    ),
    (
        "data not contiguous",
        lambda cache: cache.put(KEYS, np.zeros((8, 64), np.uint8)[::2]),
        ValueError,
        "data of shape [4, 64] and strides [128, 1] is not C-contiguous: pass numpy.ascontiguousarray(data)",
    ),
    (
        "floats not contiguous",
        lambda cache: cache.get(KEYS, np.zeros((16, 4), np.float32).T),
        ValueError,
        "out of shape [4, 16] and strides [4, 16] is not C-contiguous: pass numpy.ascontiguousarray(out)",
    ),
    (
        "data an array of objects",
        lambda cache: cache.get(KEYS, np.full((4, 8), None, dtype=object)),
        TypeError,
        f"out is a ndarray, which {NO_BUFFER}",
    ),
    ("data a text", lambda cache: cache.put(KEYS, "x"), TypeError, f"data is a str, which {NO_BUFFER}"),
    ("keys a list", lambda cache: cache.match([1]), TypeError, f"keys is a list, which {NO_BUFFER}"),
    (
        "keys not contiguous",
        lambda cache: cache.match(KEYS[::2]),
        ValueError,
        "keys of shape [2, 16] and strides [32, 1] is not C-contiguous: pass numpy.ascontiguousarray(keys)",
    ),
    (
        "keys too narrow",
        lambda cache: cache.match(np.zeros((2, 8), np.uint8)),
        ValueError,
        f"keys of shape [2, 8] {KEYS_REMEDY}",
    ),
    (
        "keys of three dimensions",
        lambda cache: cache.delete(np.zeros((1, 2, 16), np.uint8)),
        ValueError,
        f"keys of shape [1, 2, 16] {KEYS_REMEDY}",
    ),
    ("keys of odd length", lambda cache: cache.match(bytes(15)), ValueError, f"keys of shape [15] {KEYS_REMEDY}"),
    (
        "keys of another type",
        lambda cache: cache.match(KEYS.view(np.int8)),
        TypeError,
        "keys are not of type uint8: pass what hash_tokens returned",
    ),
    (
        "tokens a list",
        lambda cache: cache.hash_tokens([1, 2]),
        TypeError,
        "tokens is a list, not a buffer of int32 or int64: pass numpy.asarray(tokens, dtype=numpy.int32)",
    ),
    (
        "tokens of another type",
        lambda cache: cache.hash_tokens(np.zeros(16, np.uint32)),
        TypeError,
        "tokens is a ndarray, not a buffer of int32 or int64: pass numpy.asarray(tokens, dtype=numpy.int32)",
    ),
    (
        "tokens in another byte order",
        lambda cache: cache.hash_tokens(np.arange(16).astype(">i4")),
        TypeError,
        "tokens is a ndarray, not a buffer of int32 or int64: pass numpy.asarray(tokens, dtype=numpy.int32)",
    ),
    (
        "token below zero",
        lambda cache: cache.hash_tokens(np.array([1, -100])),
        ValueError,
        "token -100 is not a token id: ids are 0 to 4294967295",
    ),
    (
        "token too large",
        lambda cache: cache.hash_tokens(np.array([1, 2**32])),
        ValueError,
        "token 4294967296 is not a token id: ids are 0 to 4294967295",
    ),
    (
        "tokens not contiguous",
        lambda cache: cache.hash_tokens(np.arange(32)[::2]),
        ValueError,
        "tokens of shape [16] and strides [16] is not C-contiguous: pass numpy.ascontiguousarray(tokens)",
    ),
    (
        "no tokens in a block",
        lambda cache: cache.hash_tokens(np.arange(32), 0),
        ValueError,
        "block_tokens is 0: use 1 or more",
    ),
    (
        "fewer than no tokens in a block",
        lambda cache: cache.hash_tokens(np.arange(32), -16),
        ValueError,
        "block_tokens is -16: use 1 or more",
    ),
    (
        "block tokens a text",
        lambda cache: cache.hash_tokens(np.arange(32), "16"),
        TypeError,
        "block_tokens is a str, not a whole number: use 1 or more",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), [case[1:] for case in CALLS], ids=[case[0] for case in CALLS])
def test_calls_change_nothing(call: Callable[[BlockCache], Any], kind: type[Exception], message: str) -> None:
    with BlockCache(BLOCK_BYTES, 100 * BLOCK_BYTES) as cache:
        cache.put(KEYS[:2], np.ones((2, BLOCK_BYTES), np.uint8))
        before = cache.stats()
        with pytest.raises(kind, match="^" + re.escape(message) + "$"):
            call(cache)
        assert cache.stats() == before
        out: Any = np.zeros((2, BLOCK_BYTES), np.uint8)
        assert cache.get(KEYS[:2], out) == 2
        assert (out == 1).all()


@pytest.mark.parametrize(
    "call",
    [
        lambda cache: cache.match(KEYS),
        lambda cache: cache.put(KEYS, bytes(256)),
        lambda cache: cache.get(KEYS, bytearray(256)),
        lambda cache: cache.delete(KEYS),
        lambda cache: cache.clear(),
        lambda cache: cache.stats(),
    ],
)
def test_use_after_close(call: Callable[[BlockCache], Any]) -> None:
    cache = BlockCache(BLOCK_BYTES, 100 * BLOCK_BYTES)
    cache.close()
    with pytest.raises(ValueError, match="^" + re.escape(CLOSED) + "$"):
        call(cache)
