"""An engine in a process of its own; the handle to it. For what one process cannot show: SIGKILL, several ranks."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.options import EngineOptions, child_environment

START_TIMEOUT_S = 300.0
CALL_TIMEOUT_S = 300.0


class EngineDied(RuntimeError):
    """The engine's process ended or did not answer in time; the message holds the end of its log."""


class EngineClient:
    """Starts an engine's process and talks to it; a context manager that shuts it down.

    The process leads its own process group, to which its workers belong too: `kill` ends them all at once.
    """

    def __init__(self, options: EngineOptions, log: Path, *, threads: int = 1) -> None:
        self.options = options
        self.log = log
        self._received = b""
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.e2e.engine_process", json.dumps(asdict(options))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=child_environment(options, threads=threads),
                start_new_session=True,
            )
        self._ready = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and self._process.poll() is None:
                self.shutdown()
        finally:
            self.kill()

    @property
    def pid(self) -> int:
        """Id of the process and of its process group."""
        return self._process.pid

    def wait_ready(self, timeout_s: float = START_TIMEOUT_S) -> float:
        """Waits for the engine to be ready; returns the seconds its start took, imports included."""
        if self._ready:
            return 0.0
        self._ready = True
        return float(self._read(timeout_s)["seconds"])

    def generate(
        self, prompts: Sequence[Sequence[int]], *, timeout_s: float = CALL_TIMEOUT_S, **arguments: Any
    ) -> list[dict[str, Any]]:
        """Answers prompts greedily; see `Engine.generate`. Each completion comes back as a dict."""
        result = self.call("generate", timeout_s, prompts=[list(p) for p in prompts], **arguments)
        return list(result)

    def metrics(self, prefix: str = "vllm:") -> dict[str, float]:
        """See `Engine.metrics`."""
        return dict(self.call("metrics", CALL_TIMEOUT_S, prefix=prefix))

    def forget(self, *, connector: bool = False) -> None:
        """See `Engine.forget`."""
        self.call("forget", CALL_TIMEOUT_S, connector=connector)

    def call(self, name: str, timeout_s: float, **arguments: Any) -> Any:
        """Calls a method of the engine by name.

        Raises:
            EngineDied: The process ended or gave no answer in time.
            RuntimeError: The method raised.
        """
        self.wait_ready()
        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(json.dumps({"call": name, **arguments}).encode() + b"\n")
            stdin.flush()
        except BrokenPipeError:
            raise EngineDied(self._story("the engine's process has ended")) from None
        return self._read(timeout_s)

    def shutdown(self, timeout_s: float = 60.0) -> None:
        """Asks the engine to end and waits for it."""
        self.call("shutdown", timeout_s)
        self._process.wait(timeout_s)

    def kill(self) -> None:
        """Ends the engine and all its processes with SIGKILL, as a crash or the OOM killer would."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    pass

    def _read(self, timeout_s: float) -> Any:
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._received:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise EngineDied(self._story(f"no answer in {timeout_s:.0f} s"))
            piece = os.read(descriptor, 1 << 16)
            if not piece:
                raise EngineDied(self._story("the engine's process has ended"))
            self._received += piece
        line, _, self._received = self._received.partition(b"\n")
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["result"]

    def _story(self, what: str) -> str:
        tail = self.log.read_text(errors="replace").splitlines()[-60:]
        return "\n".join([what, f"--- end of {self.log}", *tail])
