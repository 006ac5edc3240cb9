"""The published InfiniStore client over RDMA: infinistore_client.py PORT. All its operations, against our server.

Prints a line for each check and a closing line; the exit status is 1 if a check failed.
"""

import asyncio
import os
import sys
import time
from collections.abc import Callable

import infinistore
import numpy as np

BLOCK = 65536
COUNT = 64

passed = failed = 0


def check(name: str, found: object, wanted: object = True) -> None:
    """Count and print one check."""
    global passed, failed
    if found == wanted:
        passed += 1
        print(f"ok      {name}", flush=True)
    else:
        failed += 1
        print(f"FAILED  {name}: found {found!r}, wanted {wanted!r}", flush=True)


def error_of(call: Callable[[], object]) -> str:
    """Name the exception that a call raises."""
    try:
        call()
    except Exception as error:
        return type(error).__name__
    return "none"


def main(port: int) -> None:
    """Connect, and run every operation."""
    config = infinistore.ClientConfig(
        connection_type=infinistore.TYPE_RDMA,
        host_addr="127.0.0.1",
        service_port=port,
        dev_name="rxe0",
        link_type="Ethernet",
        log_level="error",
    )
    connection = infinistore.InfinityConnection(config)
    connection.connect()
    source = np.random.default_rng(1).integers(0, 256, BLOCK * COUNT, dtype=np.uint8)
    target = np.zeros_like(source)
    connection.register_mr(source.ctypes.data, source.nbytes)
    connection.register_mr(target.ctypes.data, target.nbytes)

    def write(blocks: list[tuple[str, int]], block: int = BLOCK) -> object:
        return asyncio.run(connection.rdma_write_cache_async(blocks, block, source.ctypes.data))

    def read(blocks: list[tuple[str, int]], block: int = BLOCK) -> object:
        return asyncio.run(connection.rdma_read_cache_async(blocks, block, target.ctypes.data))

    blocks = [(f"key-{index:03d}", index * BLOCK) for index in range(COUNT)]
    check("write", error_of(lambda: write(blocks)), "none")
    check("read", error_of(lambda: read(blocks)), "none")
    check("bytes are equal", bool((source == target).all()))
    target[:] = 0
    check("a missing key", error_of(lambda: read([("key-000", 0), ("no-key", BLOCK)])), "InfiniStoreKeyNotFound")
    check("a missing key moves nothing", bool((target == 0).all()))
    check("a block that is too small", error_of(lambda: read([("key-000", 0)], BLOCK // 2)), "Exception")
    check("a value above the pool", error_of(lambda: write([("huge", 0)], 1 << 30)), "Exception")
    check("overwriting", error_of(lambda: write([("key-000", BLOCK)])), "none")
    read([("key-000", 0)])
    check("the newest is found", bool((target[:BLOCK] == source[BLOCK : 2 * BLOCK]).all()))
    check("exists", (connection.check_exist("key-001"), connection.check_exist("no-key")), (True, False))
    check("match", connection.get_match_last_index(["key-000", "key-001", "no-key"]), 1)
    check("match of nothing", error_of(lambda: connection.get_match_last_index(["no-key"])), "Exception")
    check("delete", connection.delete_keys(["key-002", "no-key"]), 1)
    check("what is deleted is missing", error_of(lambda: read([("key-002", 0)])), "InfiniStoreKeyNotFound")
    value = source[:1000].copy()
    connection.tcp_write_cache("over-tcp", value.ctypes.data, value.nbytes)
    check("put and get over TCP", bool((connection.tcp_read_cache("over-tcp") == value).all()))

    async def many(count: int) -> int:
        """Load one block a request, 61 in flight, every eighth of a missing key; how many answers were right."""
        right = 0
        for _ in range(count // (COUNT - 3)):
            keys = [f"key-{index:03d}" if index % 8 else "no-key" for index in range(3, COUNT)]
            loads = [
                connection.rdma_read_cache_async([(key, index * BLOCK)], BLOCK, target.ctypes.data)
                for index, key in enumerate(keys)
            ]
            answers = await asyncio.gather(*loads, return_exceptions=True)
            right += sum(
                (key == "no-key") == isinstance(answer, Exception) for key, answer in zip(keys, answers, strict=True)
            )
        return right

    count = 20 * (COUNT - 3)
    started = time.monotonic()
    check("refusals among loads in flight are whose they are", asyncio.run(many(count)), count)
    print(f"        {count / (time.monotonic() - started):.0f} requests a second", flush=True)
    print(f"{passed} passed, {failed} failed", flush=True)
    # The client's threads do not end by themselves.
    os._exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main(int(sys.argv[1]))
