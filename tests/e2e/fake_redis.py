"""A Redis server of one key, on the loopback interface, that can go away and come back."""

import json
import socket
import threading
from types import TracebackType
from typing import BinaryIO, Self

KEY = "kvcache_nodes"


class FakeRedis:
    """Serves AIBrix's list of cache servers; a context manager.

    `is_silent` makes it read commands and answer none, as a server does that hangs.
    """

    def __init__(self, addresses: list[str]) -> None:
        self.is_silent = False
        self.gets = 0
        """Times that the key was asked for."""
        self._port = 0
        self._value = b""
        self._lock = threading.Lock()
        self._listener: socket.socket | None = None
        self._connections: set[socket.socket] = set()
        self.publish(addresses)
        self.come_up()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.go_down()

    @property
    def url(self) -> str:
        """For `remote`."""
        return f"redis://127.0.0.1:{self._port}/{KEY}"

    def publish(self, addresses: list[str]) -> None:
        """Sets the list, as AIBrix's watcher does."""
        pairs = [address.rsplit(":", 1) for address in addresses]
        nodes = [{"name": f"kv-{number}", "addr": host, "port": int(port)} for number, (host, port) in enumerate(pairs)]
        self._value = json.dumps({"nodes": nodes, "version": len(nodes)}).encode()

    def come_up(self) -> None:
        """Listens, on the port that it had before."""
        listener = socket.create_server(("127.0.0.1", self._port))
        self._port = listener.getsockname()[1]
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def go_down(self) -> None:
        """Ends all connections and refuses new ones."""
        listener, self._listener = self._listener, None
        if listener is not None:
            # Closing alone would leave it listening while a thread waits there.
            listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        with self._lock:
            connections, self._connections = self._connections, set()
        for connection in connections:
            _end(connection)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self._lock:
                self._connections.add(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection.makefile("rb") as commands:
                while command := _read_command(commands):
                    if not self.is_silent:
                        connection.sendall(self._answer(command))
        except OSError:
            pass
        finally:
            with self._lock:
                self._connections.discard(connection)
            _end(connection)

    def _answer(self, command: list[bytes]) -> bytes:
        if command[0].upper() in (b"AUTH", b"SELECT"):
            return b"+OK\r\n"
        if command[0].upper() != b"GET":
            return b"-ERR unknown command\r\n"
        self.gets += 1
        if command[1:] != [KEY.encode()]:
            return b"$-1\r\n"
        return b"$%d\r\n%s\r\n" % (len(self._value), self._value)


def _read_command(commands: BinaryIO) -> list[bytes]:
    """The words of the next command; none at the end."""
    head = commands.readline()
    if not head.startswith(b"*"):
        return []
    words = []
    for _ in range(int(head[1:])):
        length = int(commands.readline()[1:])
        words.append(commands.read(length + 2)[:length])
    return words


def _end(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    connection.close()
