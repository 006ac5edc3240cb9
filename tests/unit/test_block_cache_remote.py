"""`BlockCache` with a ring of real cache servers behind it."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aibrix_connector import BlockCache

from tests.e2e.cache_server import CacheServer

BLOCK_BYTES = 4096
TOKENS: Any = np.arange(320, dtype=np.int32)


def blocks_of(keys: Any) -> Any:
    """Returns bytes that are a function of the keys, so that any mix-up shows."""
    return np.stack([np.resize(key, BLOCK_BYTES) for key in keys]).copy()


class Servers:
    """Servers on free ports of loopback, killed with the test at the latest."""

    def __init__(self, logs: Path) -> None:
        self.logs = logs
        self.running: list[CacheServer] = []

    def start(self, count: int) -> str:
        for index in range(count):
            self.running.append(CacheServer(self.logs / f"server-{index}.log", capacity="64MiB"))
        return "tcp://" + ",".join(server.address for server in self.running)

    def kill(self) -> None:
        for server in self.running:
            server.kill()
        self.running = []


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[Servers]:
    started = Servers(tmp_path)
    yield started
    started.kill()


@pytest.mark.parametrize("servers_there", [True, False])
def test_without_rdma_the_cache_goes_on(servers: Servers, servers_there: bool) -> None:
    """Names a device that no machine has, so that it is the same where there is RDMA."""
    address = servers.start(1).removeprefix("tcp://") if servers_there else "127.0.0.1:1"
    with cache(f"infinistore+rdma://{address}?rdma_device=no_such_device") as one:
        keys = one.hash_tokens(TOKENS, 16)
        assert one.put(keys, blocks_of(keys)) == len(keys)
        assert one.flush(5)
        out: Any = np.zeros((len(keys), BLOCK_BYTES), np.uint8)
        assert one.get(keys, out) == len(keys)
        assert (out == blocks_of(keys)).all()
        assert one.match(one.hash_tokens(TOKENS + 1, 16)) == 0
    for option in ("rdma_device=", "rdma_port=0", "rdma_gid=x", "rdma_prot=1"):
        with pytest.raises(ValueError, match="rdma_"):
            cache(f"rdma://{address}?{option}")


def cache(remote: str, **settings: Any) -> BlockCache:
    return BlockCache(BLOCK_BYTES, 64 * BLOCK_BYTES, namespace="test", remote=remote, **settings)


def test_caches_share_blocks(servers: Servers) -> None:
    remote = servers.start(3)
    with cache(remote) as first, cache(remote) as second:
        keys = first.hash_tokens(TOKENS)
        data = blocks_of(keys)
        assert second.match(keys) == 0
        assert first.put(keys[:12], data[:12]) == 12
        assert first.flush()
        assert first.stats()["l2"]["demoted"] == 12
        assert second.match(keys) == 12
        out: Any = np.zeros_like(data)
        assert second.get(keys, out) == 12
        assert np.array_equal(out[:12], data[:12])
        assert second.stats()["l2"]["fetched"] == 12
        # Now they are its own as well.
        servers.kill()
        assert second.get(keys[:12], out[:12]) == 12


def test_other_names_share_nothing(servers: Servers) -> None:
    remote = servers.start(1)
    with cache(remote) as first, BlockCache(BLOCK_BYTES, 1 << 20, namespace="other", remote=remote) as second:
        keys = first.hash_tokens(TOKENS)
        first.put(keys, blocks_of(keys))
        assert first.flush()
        assert second.match(keys) == 0
        assert second.match(second.hash_tokens(TOKENS)) == 0


def test_dead_servers_are_misses(servers: Servers) -> None:
    remote = servers.start(2)
    with cache(remote) as opened:
        keys = opened.hash_tokens(TOKENS)
        data = blocks_of(keys)
        servers.kill()
        assert opened.match(keys) == 0
        assert opened.put(keys, data) == 20
        assert opened.flush()
        assert opened.stats()["l2"]["demote_failed"] == 20
        out: Any = np.zeros_like(data)
        assert opened.get(keys, out) == 20


def test_what_is_wrong_with_servers_is_said() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        with cache(f"tcp://{address}") as alone:
            assert alone.problems() == []
            keys = alone.hash_tokens(TOKENS)
            alone.put(keys, blocks_of(keys))
            assert alone.flush()
            (problem,) = alone.problems()
            assert problem.startswith(f"server {address}: unreachable: ")
        with pytest.raises(ValueError, match="closed"):
            alone.problems()
    with BlockCache(BLOCK_BYTES, 1 << 20) as without:
        assert without.problems() == []


def test_deleting_reaches_the_servers(servers: Servers) -> None:
    remote = servers.start(2)
    with cache(remote) as first, cache(remote) as second:
        keys = first.hash_tokens(TOKENS)
        first.put(keys, blocks_of(keys))
        assert first.flush()
        assert first.delete(keys[5:]) == 15
        assert (first.match(keys), second.match(keys)) == (5, 5)


@pytest.mark.parametrize("shared_memory", [True, False])
def test_memory_of_a_server_on_this_host_is_shared_unless_it_is_switched_off(
    servers: Servers, shared_memory: bool
) -> None:
    remote = servers.start(1)
    server = servers.running[0]
    with cache(remote, shared_memory=shared_memory) as opened:
        # The first values go over TCP in any case: it leads to the Unix socket.
        keys = opened.hash_tokens(np.arange(16 * 200, dtype=np.int32))
        for start in range(len(keys)):
            opened.put(keys[start : start + 1], blocks_of(keys[start : start + 1]))
            assert opened.flush()
        metrics = server.metrics()
        shared = metrics["kvcache_server_shared_written_bytes_total"]
        assert (shared > 0) == shared_memory
        assert shared + metrics["kvcache_server_received_bytes_total"] == len(keys) * BLOCK_BYTES


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remote": "10.0.0.1:12345"}, "has no scheme"),
        ({"namespace": None}, "remote needs a namespace"),
        ({"hash": "xxh3"}, 'hash "xxh3" cannot be used with remote'),
        ({"ingestion": "some"}, "unknown ingestion"),
        ({"remote": "tls://localhost:1"}, "tls_ca is missing"),
        ({"token_file": "/nowhere"}, "cannot read the token file /nowhere"),
        ({"token_file": "/dev/null"}, "the token file /dev/null is empty"),
    ],
)
def test_settings_that_cannot_work_are_named(settings: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"namespace": "n", "remote": "tcp://localhost:1"} | settings
    with pytest.raises(ValueError, match=message):
        BlockCache(BLOCK_BYTES, 1 << 20, **arguments)
