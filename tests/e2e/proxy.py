"""A TCP proxy on the loopback interface that harms what passes through it."""

import socket
import threading
import time
from types import TracebackType
from typing import Self

LATE_S = 0.005
"""How late a thread may wake, as threads of a busy machine do."""


class Proxy:
    """Forwards connections to one server; a context manager that closes them all.

    What it does can be changed while it runs: it throttles what the server sends, flips a bit in what is long, and cuts
    connections. The throttle is a line that all connections share.
    """

    def __init__(self, target: tuple[str, int]) -> None:
        self.target = target
        self.bytes_per_s: float | None = None
        self.corrupt_every: int | None = None
        self.corrupted = 0
        """Bits flipped so far."""
        self._line_free_at = 0.0
        self._lock = threading.Lock()
        self._sockets: set[socket.socket] = set()
        self._open = True
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open = False
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Closes every connection."""
        with self._lock:
            sockets, self._sockets = self._sockets, set()
        for one in sockets:
            _close(one)

    def _accept(self) -> None:
        while self._open:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(self.target, timeout=5)
            except OSError:
                continue
            server.settimeout(None)
            with self._lock:
                self._sockets |= {client, server}
            threading.Thread(target=self._forward, args=(client, server, False), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, True), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket, harms: bool) -> None:
        try:
            while data := source.recv(1 << 16):
                if harms and self.corrupt_every is not None and len(data) > self.corrupt_every:
                    # In the middle of what is long: values, not the headers of small answers.
                    damaged = bytearray(data)
                    damaged[len(data) // 2] ^= 1
                    data = bytes(damaged)
                    self.corrupted += 1
                if harms and self.bytes_per_s is not None:
                    self._wait_for_line(len(data), self.bytes_per_s)
                sink.sendall(data)
        except OSError:
            pass
        finally:
            _close(source)
            _close(sink)

    def _wait_for_line(self, sent_bytes: int, bytes_per_s: float) -> None:
        """Returns when a line of this rate, which carries one piece after the other, has carried this one too."""
        with self._lock:
            # A thread that wakes late catches up: the line was not free meanwhile.
            began = max(self._line_free_at, time.monotonic() - LATE_S)
            self._line_free_at = began + sent_bytes / bytes_per_s
            left = self._line_free_at - time.monotonic()
        if left > 0:
            time.sleep(left)


def _close(one: socket.socket) -> None:
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass
    one.close()
