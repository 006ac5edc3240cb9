"""Says in the log what is wrong and costs hits and nothing else, so that nobody would notice."""

import threading
from collections.abc import Callable

from vllm.logger import init_logger

logger = init_logger("vllm.aibrix_connector.problems")

LOOK_S = 5.0
"""Seconds from one look to the next."""


class ProblemWatch:
    """Looks every few seconds, on a thread of its own, and logs each problem when it begins and when it has ended."""

    def __init__(self, what: str, problems: Callable[[], list[str]], cost: str = "", look_s: float = LOOK_S) -> None:
        """Starts to look.

        Args:
            what: What has the problems, as in ``L2``.
            problems: Returns those of the moment, one line each.
            cost: What a problem costs, for the log.
            look_s: Seconds from one look to the next.
        """
        self._what = what
        self._problems = problems
        self._cost = cost and f"; {cost}"
        self._look_s = look_s
        self._known: set[str] = set()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kvcache-problems", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(self._look_s):
            self.look()

    def look(self) -> None:
        """Looks once."""
        now = set(self._problems())
        if self._ended.is_set():
            return  # of what has just been closed, which has no problems any more
        for problem in sorted(now - self._known):
            logger.warning("%s: %s%s", self._what, problem, self._cost)
        for problem in sorted(self._known - now):
            logger.info("%s: no longer so: %s", self._what, problem)
        self._known = now

    def close(self) -> None:
        """Ends the thread, and says nothing any more. May be repeated."""
        self._ended.set()
