"""Says in the log what is wrong with L2's servers, which costs hits and nothing else, so that nobody would notice."""

import threading
from typing import TYPE_CHECKING

from vllm.logger import init_logger

if TYPE_CHECKING:
    from aibrix_connector import _native

logger = init_logger("vllm.aibrix_connector.remote")

LOOK_S = 5.0
"""Seconds from one look to the next."""


class RemoteWatch:
    """Looks every few seconds, on a thread of its own, and logs each problem when it begins and when it has ended."""

    def __init__(self, remote: "_native.Remote", look_s: float = LOOK_S) -> None:
        self._remote = remote
        self._look_s = look_s
        self._known: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvcache-remote-watch", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._look_s):
            self.look()

    def look(self) -> None:
        """Looks once."""
        now = set(self._remote.problems())
        for problem in sorted(now - self._known):
            logger.warning("L2: %s; what it has or would take is missing until this is mended", problem)
        for problem in sorted(self._known - now):
            logger.info("L2: no longer so: %s", problem)
        self._known = now

    def close(self) -> None:
        """Ends the thread. May be repeated."""
        self._ended.set()
