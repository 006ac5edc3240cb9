"""One side of a comparison, in a process of its own: asked and answering in lines of JSON.

The side's program may run in another environment, and die or hang: each becomes a `SideError` that says which and why.
"""

import json
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self


class SideError(Exception):
    """A side could not do what it was asked for; the text is one line."""


class Side:
    """A running side.

    Args:
        name: Of the side, for errors.
        command: Its program, that answers each line on its standard input with one on its standard output.
    """

    def __init__(
        self, name: str, command: Sequence[str | os.PathLike[str]], cwd: os.PathLike[str] | None = None
    ) -> None:
        self.name = name
        self._said = tempfile.TemporaryFile()
        self._unread = b""
        self._closed = False
        try:
            self._process = subprocess.Popen(
                command,
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                start_new_session=True,
            )
        except OSError as error:
            self._said.close()
            raise SideError(f"{name}: cannot be started: {error}") from error

    def ask(self, timeout_s: float, **question: Any) -> dict[str, Any]:
        """Sends a question and waits for the answer.

        Raises:
            SideError: The side ended, answered with an error or with no JSON object, or not within `timeout_s`.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(question).encode() + b"\n")
            self._process.stdin.flush()
        except OSError as error:
            raise SideError(f"{self.name}: has ended: {self._last_words()}") from error
        line = self._line(time.monotonic() + timeout_s, timeout_s)
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise SideError(f"{self.name}: answered {line[:80]!r}, which is no JSON object")
        if "error" in answer:
            raise SideError(f"{self.name}: {one_line(str(answer['error']))}")
        return answer

    def close(self) -> None:
        """Ends the process and all that it has started. May be repeated."""
        if not self._closed:
            self._closed = True
            try:
                # Its group is its own, and lives on while a process of it does, even when the first has ended.
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._said):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    # A question that nobody was left to read.
                    pass

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _line(self, until: float, timeout_s: float) -> bytes:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            wait_s = until - time.monotonic()
            if wait_s <= 0 or not select.select([self._process.stdout], [], [], wait_s)[0]:
                raise SideError(f"{self.name}: no answer within {timeout_s:g} s")
            more = os.read(self._process.stdout.fileno(), 1 << 16)
            if not more:
                raise SideError(f"{self.name}: has ended: {self._last_words()}")
            self._unread += more
        line, self._unread = self._unread.split(b"\n", 1)
        return line

    def _last_words(self) -> str:
        try:
            status = f"status {self._process.wait(timeout=10)}"
        except subprocess.TimeoutExpired:
            status = "still running with its pipes closed"
        self._said.seek(0)
        lines = [line for line in self._said.read().decode(errors="replace").splitlines() if line.strip()]
        return one_line(f"{status}; {lines[-1] if lines else 'said nothing'}")


def one_line(text: str) -> str:
    """The text as a cell of a table: one line of at most 300 characters, without the cell's border."""
    return " ".join(text.split()).replace("|", "/")[:300]
