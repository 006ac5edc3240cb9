"""The published InfiniStore client, told what to do by `test_infinistore.py`: infinistore_client.py SCENARIO PORT.

Runs in an environment of its own that has nothing but that client and numpy, and in a process of its own since that
client installs signal handlers and can crash. A scenario that holds ends with exit status 0.
"""

import sys
from typing import Any, TypeAlias

import infinistore
import numpy as np

Bytes: TypeAlias = "np.ndarray[Any, np.dtype[np.uint8]]"


class Client:
    """One connection."""

    def __init__(self, port: int) -> None:
        config = infinistore.ClientConfig(
            connection_type=infinistore.TYPE_TCP, host_addr="127.0.0.1", service_port=port, log_level="error"
        )
        self.connection = infinistore.InfinityConnection(config)
        self.connection.connect()

    def put(self, key: str, value: Bytes) -> None:
        self.connection.tcp_write_cache(key, value.ctypes.data, value.nbytes)

    def holds(self, key: str, value: Bytes) -> bool:
        return bool(np.array_equal(self.connection.tcp_read_cache(key), value))

    def exists(self, key: str) -> bool:
        return bool(self.connection.check_exist(key))


def content(seed: int, count: int) -> Bytes:
    values: Bytes = np.random.default_rng(seed).integers(0, 256, count, dtype=np.uint8)
    return values


def raises(kind: type[BaseException], text: str, call: Any, *arguments: Any) -> None:
    """There is no pytest here."""
    raised = None
    try:
        answer = call(*arguments)
    except kind as error:
        raised = str(error)
    assert raised is not None, f"{kind.__name__} expected, got {answer!r}"
    assert text in raised, raised


def every_operation(port: int) -> None:
    client = Client(port)
    values = {f"key-{index:03}": content(index, 1 + index * 7919) for index in range(20)}
    for key, value in values.items():
        client.put(key, value)
    for key, value in values.items():
        assert client.exists(key)
        assert client.holds(key, value), key
    assert not client.exists("zz")
    connection = client.connection
    assert connection.get_match_last_index(["key-000", "key-001", "zz"]) == 1
    assert connection.get_match_last_index(list(values)) == 19
    assert connection.delete_keys(["key-002", "zz"]) == 1
    assert not client.exists("key-002")
    assert connection.get_match_last_index(["key-000", "key-001", "key-002", "key-003"]) == 1
    assert connection.delete_keys(list(values)) == 19
    connection.close()


def match_of_nothing(port: int) -> None:
    client = Client(port)
    raises(Exception, "", client.connection.get_match_last_index, ["zz"])
    assert not client.exists("zz"), "the connection goes on"


def overwrite(port: int) -> None:
    client, other = Client(port), Client(port)
    for seed in range(10):
        client.put("same", content(seed, 100_000 + seed))
        assert other.holds("same", content(seed, 100_000 + seed))


def missing_get(port: int) -> None:
    client = Client(port)
    client.put("there", content(1, 1000))
    for _ in range(3):
        raises(ValueError, "max_size", client.connection.tcp_read_cache, "missing")
        assert client.holds("there", content(1, 1000)), "the connection goes on, in step"


def without_room(port: int) -> None:
    """The server has 16 MiB."""
    client = Client(port)
    client.put("kept", content(1, 1000))
    for _ in range(3):
        raises(Exception, "Failed to write", client.put, "large", content(2, 20 << 20))
        assert client.holds("kept", content(1, 1000)), "the connection goes on, in step"
    assert not client.exists("large")


def evictions(port: int) -> None:
    """Four times what the server holds: something goes, and what is there is right."""
    client = Client(port)
    for seed in range(64):
        client.put(f"v{seed}", content(seed, 1 << 20))
    present = [seed for seed in range(64) if client.exists(f"v{seed}")]
    assert 8 <= len(present) <= 16, present
    assert all(client.holds(f"v{seed}", content(seed, 1 << 20)) for seed in present)


def many_requests(port: int) -> None:
    client = Client(port)
    for number in range(3000):
        key = f"k{number % 50}"
        client.put(key, content(number, 64))
        assert client.holds(key, content(number, 64))
        assert client.exists(key)


def only_missing_get(port: int) -> None:
    """For a server that answers as the stock server does."""
    Client(port).connection.tcp_read_cache("missing")


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        every_operation,
        match_of_nothing,
        overwrite,
        missing_get,
        without_room,
        evictions,
        many_requests,
        only_missing_get,
    )
}

if __name__ == "__main__":
    SCENARIOS[sys.argv[1]](int(sys.argv[2]))
