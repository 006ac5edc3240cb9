"""LMCache's server for one engine on this machine, with the ports and the shared memory that it gets."""

import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Self

START_TIMEOUT_S = 90.0
END_TIMEOUT_S = 10.0


class LmcacheServer:
    """A running `lmcache server` with L1 alone, from the environment of this Python.

    It has LMCache's defaults but for what a machine without a GPU needs: both ways of transfer, since the engine's
    side asks for the one that is off by default and then waits without end, and a name for its shared memory, since
    without one every block is pickled and sent.

    Args:
        capacity_bytes: Of L1; must be set, as must the policy.
        shared_memory: Name of the shared memory.
        program: The `lmcache` command.
        timeout_s: Until it is ready.

    Raises:
        RuntimeError: It has ended, or is not ready in time.
    """

    def __init__(
        self, capacity_bytes: int, shared_memory: str, program: Path | None = None, timeout_s: float = START_TIMEOUT_S
    ) -> None:
        self._shared_memory = shared_memory
        self._said = tempfile.TemporaryFile()
        self.port, http_port, metrics_port = free_ports(3)
        command = [
            str(program or Path(sys.executable).with_name("lmcache")),
            "server",
            *("--host", "127.0.0.1"),
            *("--port", str(self.port)),
            *("--http-port", str(http_port)),
            *("--prometheus-port", str(metrics_port)),
            *("--l1-size-gb", str(capacity_bytes / (1 << 30))),
            *("--eviction-policy", "LRU"),
            *("--supported-transfer-mode", "auto"),
            *("--shm-name", shared_memory),
        ]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._said, stderr=self._said, env=dict(os.environ)
        )
        self.process_id = self._process.pid
        try:
            self._wait(f"http://127.0.0.1:{http_port}/healthcheck", timeout_s)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends it and removes what it left in shared memory. May be repeated."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()
        self._said.close()
        remove_shared_memory(self._shared_memory)

    def _wait(self, url: str, timeout_s: float) -> None:
        until = time.monotonic() + timeout_s
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError):
                pass
            if self._process.poll() is not None:
                raise RuntimeError(f"lmcache server has ended: status {self._process.returncode}; {self._last_line()}")
            if time.monotonic() > until:
                raise RuntimeError(f"lmcache server is not ready after {timeout_s:g} s; {self._last_line()}")
            time.sleep(0.1)

    def _last_line(self) -> str:
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else "it said nothing"


def remove_shared_memory(name: str, folder: Path = Path("/dev/shm")) -> None:
    """Removes what carries this name; a server that was killed leaves it."""
    for path in folder.glob(f"*{name}"):
        path.unlink(missing_ok=True)


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, all different."""
    listeners = [socket.socket() for _ in range(count)]
    try:
        for listener in listeners:
            listener.bind(("127.0.0.1", 0))
        return [int(listener.getsockname()[1]) for listener in listeners]
    finally:
        for listener in listeners:
            listener.close()
