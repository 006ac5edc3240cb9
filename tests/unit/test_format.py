"""`docs/format.md` says what is in a slab file: this reads one with nothing but the document."""

import re
import struct
from pathlib import Path

import numpy as np
import pytest
import xxhash
from aibrix_connector import BlockCache, _native

DOCUMENT = Path(__file__).parents[2] / "docs" / "format.md"
BLOCK_BYTES, SLOTS = 1000, 5


@pytest.fixture
def slab(slab_folder: Path) -> tuple[bytes, bytes, str]:
    """The content of a slab file with two blocks, their keys, and the file's name."""
    with BlockCache(BLOCK_BYTES, SLOTS * BLOCK_BYTES, namespace="demo", slab_path=slab_folder) as cache:
        keys = cache.hash_tokens(np.arange(32, dtype=np.int32))
        assert cache.put(keys, bytes([1]) * BLOCK_BYTES + bytes([2]) * BLOCK_BYTES) == 2
    (path,) = slab_folder.glob("*.slab")
    return path.read_bytes(), keys.tobytes(), path.name


def test_header(slab: tuple[bytes, bytes, str]) -> None:
    content, _, name = slab
    magic, version, page, shard, namespace, slot_bytes, slots, table, data = struct.unpack_from(
        "<8sII16s16sQQQQ", content
    )
    assert (magic, version, page, table) == (b"KVCSLAB\n", 1, 4096, 4096)
    assert (slot_bytes, slots, data) == (BLOCK_BYTES, SLOTS, 2 << 20)
    assert namespace == _native.fingerprint("namespace", [("name", "demo")])
    assert name == f"kvcache-{namespace.hex()}-lane0-shard{shard.hex()}-rank0.slab"
    assert content[88:128] == bytes(40)
    epoch, highest_fill, reserved = struct.unpack_from("<QQQ", content, 128)
    assert epoch == 0
    assert highest_fill >= 2
    assert 0 < reserved <= len(content)


def test_records_and_slots(slab: tuple[bytes, bytes, str]) -> None:
    content, keys, _ = slab
    found: dict[bytes, bytes] = {}
    for index in range(SLOTS):
        at = 4096 + 128 * index
        state, info, key, parent, engine_hash, fill, epoch = struct.unpack_from("<II16s16s32sQQ", content, at)
        assert state in (0, 2)
        if state == 2:
            assert (info, engine_hash, epoch) == (0, bytes(32), 0)
            assert fill > 0
            found[key] = parent
            begin = (2 << 20) + 1024 * index
            expected = 1 if key == keys[:16] else 2
            assert content[begin : begin + BLOCK_BYTES] == bytes([expected]) * BLOCK_BYTES
    assert found == {keys[:16]: bytes(16), keys[16:]: keys[:16]}


def test_checksums(slab: tuple[bytes, bytes, str]) -> None:
    content, _, _ = slab
    assert struct.unpack_from("<Q", content, 80)[0] == xxhash.xxh3_64_intdigest(content[:80])
    for index in range(SLOTS):
        record = content[4096 + 128 * index :][:128]
        if record[0] == 2:
            covered = record[8:96] + struct.pack("<I", index) + record[4:8]
            assert struct.unpack_from("<Q", record, 96)[0] == xxhash.xxh3_64_intdigest(covered)


def test_the_documents_vectors_are_those_of_the_rust_tests() -> None:
    rust = (DOCUMENT.parents[1] / "kvcache-core" / "src" / "block_key.rs").read_text()
    vectors = re.findall(r"[0-9a-f]{32}", rust[rust.index("const VECTORS") :])
    assert len(vectors) == 7
    document, found, _ = DOCUMENT.read_text().partition("\n## Ring\n")
    assert found, "what comes after has vectors of its own"
    (space,) = re.findall(r"\| space of .* \| `([0-9a-f]{32})` \|", document)
    assert space in (DOCUMENT.parents[1] / "kvcache-core" / "src" / "remote" / "key.rs").read_text()
    assert [vector for vector in re.findall(r"`([0-9a-f]{32})`", document) if vector != space] == vectors


def test_fingerprints() -> None:
    assert _native.fingerprint("namespace", [("name", "demo")]).hex() in DOCUMENT.read_text()
    fields = [("a", "bc")]
    assert _native.fingerprint("shard", fields) != _native.fingerprint("namespace", fields)
    assert _native.fingerprint("shard", [("ab", "c")]) != _native.fingerprint("shard", fields)
    with pytest.raises(ValueError, match='unknown fingerprint "x": use "namespace" or "shard"'):
        _native.fingerprint("x", fields)  # type: ignore[arg-type]
