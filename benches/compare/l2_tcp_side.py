"""One program of the comparison over TCP: `python -m benches.compare.l2_tcp_side ours|mooncake|plain home|client`.

A side has three processes: its *home* holds the memory that values go to, one *client* puts, another gets. Values cross
the loopback interface twice. A value's key follows from the round's number and the value's index.
"""

import importlib.util
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from benches.compare import our_l2
from benches.compare.side_program import BLOCK_TOKENS, Blocks, answer, expect, prompt, timed


class Client(Protocol):
    """What each side's clients can do with the values of a round; all counts are of values."""

    def begin(self, number: int, count: int) -> None:
        """Says which round it is and how many values it has; their bytes are in place."""

    def put(self) -> int:
        """Stores the values and waits until others can get them."""

    def exists(self) -> int:
        """How many are there."""

    def get(self) -> int:
        """Copies them out."""

    def forget(self) -> None:
        """Removes them, so that no side has to evict."""


class Home(Protocol):
    """The memory of a side."""

    address: str


class OurHome:
    """`kvcache serve`."""

    def __init__(self, capacity_bytes: int, tool: str) -> None:
        self.address = our_l2.serve(capacity_bytes, tool)


class OurClient:
    """`BlockCache` over TCP. Its L1 has twice what a round moves: what is put goes there first, what was got last."""

    def __init__(self, address: str, source: Any, out: Any, value_bytes: int) -> None:
        self._source, self._out, self._value_bytes = source, out, value_bytes
        self._cache = our_l2.open_cache(address, value_bytes, 2 * len(source))

    def begin(self, number: int, count: int) -> None:
        self._keys = self._cache.hash_tokens(prompt(number, count), BLOCK_TOKENS)

    def put(self) -> int:
        return our_l2.put(self._cache, self._keys, self._part(self._source))

    def exists(self) -> int:
        return our_l2.match(self._cache, self._keys)

    def get(self) -> int:
        return self._cache.get(self._keys, self._part(self._out))

    def forget(self) -> None:
        expect({"delete": self._cache.delete(self._keys)}, {"delete": len(self._keys)})

    def _part(self, memory: Any) -> Any:
        return memory[: len(self._keys) * self._value_bytes]


class MooncakeHome:
    """`mooncake_master`, and a client in this process that has mounted a segment and does nothing else."""

    def __init__(self, capacity_bytes: int, tool: str) -> None:
        spec = importlib.util.find_spec("mooncake")
        assert spec is not None
        assert spec.origin is not None
        port, metrics_port = free_ports(2)
        self.address = f"127.0.0.1:{port}"
        options = {
            "rpc_address": "127.0.0.1",
            "rpc_port": port,
            "metrics_host": "127.0.0.1",
            "metrics_port": metrics_port,
        }
        command = [str(Path(spec.origin).with_name("mooncake_master")), *(f"-{key}={options[key]}" for key in options)]
        self._master = our_l2.spawn(command, stdout=subprocess.DEVNULL)
        until = time.monotonic() + our_l2.START_TIMEOUT_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError as error:
                if self._master.poll() is not None:
                    raise RuntimeError(f"mooncake_master has ended with {self._master.wait()}") from error
                if time.monotonic() > until:
                    raise RuntimeError(f"mooncake_master does not listen on {self.address}") from error
                time.sleep(0.02)
        self._store = mooncake_store(self.address, capacity_bytes)


class MooncakeClient:
    """`MooncakeDistributedStore` without a segment, from and to registered memory: its calls without a copy."""

    def __init__(self, address: str, source: Any, out: Any, value_bytes: int) -> None:
        self._value_bytes = value_bytes
        self._store = mooncake_store(address, 0)
        self._source, self._out = source.ctypes.data, out.ctypes.data
        for memory in (source, out):
            worked("register_buffer", self._store.register_buffer(memory.ctypes.data, memory.nbytes))

    def begin(self, number: int, count: int) -> None:
        self._names = [f"{number}-{index}" for index in range(count)]
        self._lengths = [self._value_bytes] * count
        self._starts = [index * self._value_bytes for index in range(count)]

    def put(self) -> int:
        if len(self._names) == 1:
            return int(self._store.put_from(self._names[0], self._source, self._value_bytes) == 0)
        places = [self._source + start for start in self._starts]
        return sum(status == 0 for status in self._store.batch_put_from(self._names, places, self._lengths))

    def exists(self) -> int:
        if len(self._names) == 1:
            return int(self._store.is_exist(self._names[0]) == 1)
        return sum(status == 1 for status in self._store.batch_is_exist(self._names))

    def get(self) -> int:
        if len(self._names) == 1:
            return int(self._store.get_into(self._names[0], self._out, self._value_bytes) == self._value_bytes)
        places = [self._out + start for start in self._starts]
        lengths = self._store.batch_get_into(self._names, places, self._lengths)
        return sum(length == self._value_bytes for length in lengths)

    def forget(self) -> None:
        for name in self._names:
            # By force: whoever asked for a value has a lease of it.
            worked("remove", self._store.remove(name, True))


def mooncake_store(address: str, segment_bytes: int) -> Any:
    """A client of the master at `address`."""
    from mooncake.store import MooncakeDistributedStore

    store = MooncakeDistributedStore()
    buffer_bytes = 16 << 20
    worked("setup", store.setup("127.0.0.1", "P2PHANDSHAKE", segment_bytes, buffer_bytes, "tcp", "", address))
    return store


def worked(call: str, status: int) -> None:
    """Raises if a call of Mooncake's has failed."""
    if status != 0:
        raise RuntimeError(f"{call} answered {status}")


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [int(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


# What is wanted (p, g or e), and which bytes of the memory.
PLAIN_HEAD = struct.Struct("<cQQ")


class PlainHome:
    """Memory behind sockets, without names, answers that say more than "done", or checksums: nothing can be quicker."""

    def __init__(self, capacity_bytes: int, tool: str) -> None:
        self._memory = memoryview(bytearray(capacity_bytes))
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        head = bytearray(PLAIN_HEAD.size)
        while receive(connection, memoryview(head)):
            verb, start, length = PLAIN_HEAD.unpack(head)
            part = self._memory[start : start + length]
            if verb == b"g":
                connection.sendall(part)
            elif verb == b"e" or receive(connection, part):
                connection.sendall(verb)


class PlainClient:
    """Two connections, as our client has; one value goes over the first."""

    def __init__(self, address: str, source: Any, out: Any, value_bytes: int) -> None:
        host, port = address.rsplit(":", 1)
        self._source, self._out, self._value_bytes = memoryview(source), memoryview(out), value_bytes
        self._connections = [socket.create_connection((host, int(port)), our_l2.START_TIMEOUT_S) for _ in range(2)]
        for connection in self._connections:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self, number: int, count: int) -> None:
        self._count = count

    def put(self) -> int:
        return self._share(self._put)

    def get(self) -> int:
        return self._share(self._get)

    def exists(self) -> int:
        self._connections[0].sendall(PLAIN_HEAD.pack(b"e", 0, 0))
        receive(self._connections[0], memoryview(bytearray(1)))
        return self._count

    def forget(self) -> None:
        """Values are overwritten."""

    def _put(self, connection: socket.socket, start: int, end: int) -> None:
        connection.sendall(PLAIN_HEAD.pack(b"p", start, end - start))
        connection.sendall(self._source[start:end])
        receive(connection, memoryview(bytearray(1)))

    def _get(self, connection: socket.socket, start: int, end: int) -> None:
        connection.sendall(PLAIN_HEAD.pack(b"g", start, end - start))
        receive(connection, self._out[start:end])

    def _share(self, move: Callable[[socket.socket, int, int], None]) -> int:
        middle, end = self._count // 2 * self._value_bytes, self._count * self._value_bytes
        if middle == 0:
            move(self._connections[0], 0, end)
            return self._count
        other = threading.Thread(target=move, args=(self._connections[1], middle, end))
        other.start()
        move(self._connections[0], 0, middle)
        other.join()
        return self._count


def receive(connection: socket.socket, into: memoryview) -> bool:
    """Fills `into`; whether it could before the other end closed."""
    while len(into):
        got = connection.recv_into(into)
        if not got:
            return False
        into = into[got:]
    return True


HOMES: dict[str, Callable[[int, str], Home]] = {"ours": OurHome, "mooncake": MooncakeHome, "plain": PlainHome}
CLIENTS: dict[str, Callable[[str, Any, Any, int], Client]] = {
    "ours": OurClient,
    "mooncake": MooncakeClient,
    "plain": PlainClient,
}
DISTRIBUTIONS = {"ours": "aibrix-connector", "mooncake": "mooncake-transfer-engine-non-cuda"}


class AskedHome:
    """Answers the one question that a home is asked."""

    def __init__(self, side: str) -> None:
        self._side = side
        self._home: Home | None = None

    def open(self, capacity_bytes: int, tool: str) -> dict[str, Any]:
        """Takes the memory; says where clients connect."""
        self._home = HOMES[self._side](capacity_bytes, tool)
        return {"address": self._home.address}


class AskedClient:
    """Answers questions about one client."""

    def __init__(self, side: str) -> None:
        self._side = side

    def open(self, address: str, value_bytes: int, count: int) -> dict[str, Any]:
        """Connects."""
        self._values = Blocks(count, value_bytes)
        self._out: Any = np.zeros(count * value_bytes, np.uint8)
        self._client = CLIENTS[self._side](address, self._values.memory, self._out, value_bytes)
        name = DISTRIBUTIONS.get(self._side)
        return {"version": metadata.version(name) if name else sys.version.split()[0]}

    def put(self, number: int, count: int) -> dict[str, Any]:
        """The values of a round go home; microseconds."""
        self._values.of(number, count)
        self._client.begin(number, count)
        us: dict[str, float] = {}
        expect({"put": timed(us, "put", self._client.put)}, {"put": count})
        return {"us": us}

    def get(self, number: int, count: int) -> dict[str, Any]:
        """Asks for them and gets them; microseconds."""
        self._out[:] = 0
        self._client.begin(number, count)
        us: dict[str, float] = {}
        there = {
            "exists": timed(us, "exists", self._client.exists),
            "get": timed(us, "get", self._client.get),
        }
        expect(there, {"exists": count, "get": count})
        self._values.check(number, count, self._out)
        return {"us": us}

    def forget(self, number: int, count: int) -> dict[str, Any]:
        """Removes them."""
        self._client.begin(number, count)
        self._client.forget()
        return {}


if __name__ == "__main__":
    if sys.argv[2] == "home":
        sys.exit(answer({"open": AskedHome(sys.argv[1]).open}))
    asked = AskedClient(sys.argv[1])
    sys.exit(answer({"open": asked.open, "put": asked.put, "get": asked.get, "forget": asked.forget}))
