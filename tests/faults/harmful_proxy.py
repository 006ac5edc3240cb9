"""A TCP proxy on the loopback interface that does to bytes what bad networks do.

TCP hides loss and reordering within a connection: what is lost arrives late, and all behind it with it. So that is what
happens here: a connection stalls, while others overtake it.
"""

import random
import selectors
import socket
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

PIECE_BYTES = 1 << 15
WAITING_BYTES_MAX = 4 << 20


@dataclass
class Harm:
    """What happens to the pieces of a connection, in both directions. Nothing, unless it is said."""

    delay_s: float = 0.0
    """Each piece arrives so much later."""
    jitter_s: float = 0.0
    """And up to so much later still, chosen for each: connections overtake one another."""
    stall_chance: float = 0.0
    """How likely a piece is lost: it arrives after `stall_s`, and all behind it wait for it."""
    stall_s: float = 0.3
    corrupt_chance: float = 0.0
    """How likely a piece has a bit flipped, anywhere in it."""
    cut_chance: float = 0.0
    """How likely a connection ends instead of passing a piece on."""


@dataclass
class Counts:
    """What has happened so far."""

    bytes: int = 0
    stalled: int = 0
    corrupted: int = 0
    cut: int = 0
    connections: int = 0


@dataclass
class _Way:
    """One direction of a connection."""

    source: socket.socket
    sink: socket.socket
    waiting: deque[tuple[float, bytes]] = field(default_factory=deque)
    """Pieces, each with the time at which it is due."""
    waiting_bytes: int = 0


class HarmfulProxy:
    """Forwards connections to one server; a context manager. `harm` can be replaced while it runs.

    One thread serves all connections. What happens follows from `seed` and from how the bytes come in pieces.
    """

    def __init__(self, target: str, *, seed: int = 0) -> None:
        host, port = target.rsplit(":", 1)
        self.target = (host, int(port))
        self.harm = Harm()
        self.counts = Counts()
        self._random = random.Random(seed)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.setblocking(False)
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._selector = selectors.DefaultSelector()
        self._ways: dict[socket.socket, _Way] = {}
        """By the socket that is read."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join(10)
        for way in list(self._ways.values()):
            way.source.close()
        self._listener.close()
        self._selector.close()

    def _run(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        while not self._ending.is_set():
            due = min((way.waiting[0][0] for way in self._ways.values() if way.waiting), default=None)
            timeout = 0.05 if due is None else min(0.05, max(0.0, due - time.monotonic()))
            for key, _ in self._selector.select(timeout):
                if key.fileobj is self._listener:
                    self._accept()
                elif isinstance(key.fileobj, socket.socket) and key.fileobj in self._ways:
                    self._read(self._ways[key.fileobj])
            now = time.monotonic()
            for way in list(self._ways.values()):
                self._write(way, now)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        try:
            server = socket.create_connection(self.target, timeout=1)
        except OSError:
            client.close()
            return
        self.counts.connections += 1
        for source, sink in ((client, server), (server, client)):
            source.setblocking(False)
            source.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._ways[source] = _Way(source, sink)
            self._selector.register(source, selectors.EVENT_READ)

    def _read(self, way: _Way) -> None:
        if way.waiting_bytes > WAITING_BYTES_MAX:
            time.sleep(0.001)  # The peer must wait; the others are served in the same turn.
            return
        try:
            piece = way.source.recv(PIECE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            piece = b""
        harm = self.harm
        if not piece or self._happens(harm.cut_chance):
            self.counts.cut += bool(piece)
            self._close(way)
            return
        due = time.monotonic() + harm.delay_s + self._random.random() * harm.jitter_s
        if self._happens(harm.stall_chance):
            due += harm.stall_s
            self.counts.stalled += 1
        if self._happens(harm.corrupt_chance):
            damaged = bytearray(piece)
            damaged[self._random.randrange(len(piece))] ^= 1 << self._random.randrange(8)
            piece = bytes(damaged)
            self.counts.corrupted += 1
        # In order within a connection, as TCP has it.
        after = way.waiting[-1][0] if way.waiting else due
        way.waiting.append((max(due, after), piece))
        way.waiting_bytes += len(piece)

    def _write(self, way: _Way, now: float) -> None:
        while way.waiting and way.waiting[0][0] <= now and way.source in self._ways:
            _, piece = way.waiting.popleft()
            try:
                sent = way.sink.send(piece)
            except BlockingIOError:
                sent = 0
            except OSError:
                self._close(way)
                return
            way.waiting_bytes -= sent
            self.counts.bytes += sent
            if sent < len(piece):
                # It takes no more for now.
                way.waiting.appendleft((now + 0.001, piece[sent:]))
                return

    def _close(self, way: _Way) -> None:
        """Ends both directions; what waits in them is lost."""
        for end in (way.source, way.sink):
            if self._ways.pop(end, None) is not None:
                self._selector.unregister(end)
                end.close()

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._random.random() < chance
