"""`ring-load` in a process of its own: a client of the ring that verifies whatever it is told."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.e2e.cache_server import ROOT

Report = dict[str, Any]

END_TIMEOUT_S = 30.0


def tool() -> Path:
    """Returns the built `ring-load`.

    Raises:
        FileNotFoundError: There is none.
    """
    given = os.environ.get("RING_LOAD_TOOL")
    for path in [Path(given)] if given else [ROOT / "target/debug/ring-load", ROOT / "target/release/ring-load"]:
        if path.is_file():
            return path
    raise FileNotFoundError("no target/debug/ring-load: run cargo build -p ring-load")


class RingLoad:
    """A running client; a context manager that ends it.

    `flags` are those of `ring-load --help`, with underscores: `value_bytes=4096`.
    """

    def __init__(self, remote: str, log: Path, *, within: tuple[str, ...] = (), **flags: Any) -> None:
        self.log = log
        self.patience_s = flags.get("patience_ms", 1000) / 1000
        self.slack_s = flags.get("slack_ms", 1000) / 1000
        said = [part for name, value in flags.items() for part in (f"--{name.replace('_', '-')}", str(value))]
        with log.open("ab") as errors:
            self.process = subprocess.Popen(
                [*within, tool(), "--remote", remote, *said],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.reports: list[Report] = []
        """All so far; appended to by a thread."""
        self._arrived = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._arrived:
                self.reports.append(json.loads(line))
                self._arrived.notify_all()
        with self._arrived:
            self._arrived.notify_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait(10)
        self._reader.join(10)
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def say(self, word: str) -> None:
        """Says `pause` or `resume`."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()

    def last(self) -> Report:
        """The newest report."""
        return self.reports[-1]

    def until(self, what: str, is_so: Callable[[Report], bool], timeout_s: float = 30.0) -> Report:
        """Waits for a report that came after this call and says what is wanted.

        Raises:
            AssertionError: None does, or the client ended; names `what`.
        """
        deadline = time.monotonic() + timeout_s
        with self._arrived:
            seen = len(self.reports)
            while True:
                for report in self.reports[seen:]:
                    if is_so(report):
                        return report
                seen = len(self.reports)
                left_s = deadline - time.monotonic()
                ended = not self._reader.is_alive()
                if ended or left_s <= 0:
                    errors = self.log.read_text(errors="replace")[-2000:]
                    why = "the client ended" if ended else f"not within {timeout_s} s"
                    raise AssertionError(f"{what}: {why}\n{self.reports[-1:]}\n{errors}")
                self._arrived.wait(min(left_s, 0.2))

    def during(self, seconds: float) -> list[Report]:
        """The reports of the next `seconds`."""
        first = len(self.reports)
        until = self.last()["time_s"] + seconds if self.reports else seconds
        self.until(f"{seconds} s pass", lambda report: report["time_s"] >= until, timeout_s=2 * seconds + 30)
        return self.reports[first:]

    def end(self) -> Report:
        """Lets everything in flight end, and returns the last report.

        Raises:
            AssertionError: It does not.
        """
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(END_TIMEOUT_S)
        self._reader.join(10)
        assert self.process.returncode == 0, self.log.read_text(errors="replace")[-2000:]
        report = self.last()
        assert report["event"] == "end"
        return report

    def check(self, report: Report) -> None:
        """Whatever happened: nothing is wrong, late or stuck, and the counters add up."""
        assert not any(report["violations"].values()), report["violations"]
        # `stale_ends` of the client may count: a request may be given up in the turn in which its last item ends. That
        # every transfer ends once is seen from outside.
        oldest_s = report["oldest_s"]
        assert oldest_s <= self.patience_s + self.slack_s, f"something is stuck since {oldest_s} s"
        if report["event"] == "end":
            assert report["submitted"] == report["ended"]
            assert report["open"] == report["client"]["open"] == 0
            assert report["questions"]["asked"] == report["questions"]["answered"]
            for op in ("get", "put"):
                assert report[op] == report["client"][op], "the client counted something else than it said"
            assert sum(ended(report, op) for op in ("get", "put")) == report["ended"]


def done(report: Report, server: str | None = None) -> int:
    """Values that were moved, in all or to and from one server."""
    counts = report if server is None else report["servers"][server]
    return int(counts["get"]["done"] + counts["put"]["done"])


def failed(report: Report, reason: str | None = None) -> int:
    """Transfers that failed, in all or for one reason."""
    counts = [report[op]["failed"] for op in ("get", "put")]
    return sum(sum(count.values()) if reason is None else count[reason] for count in counts)


def ended(report: Report, op: str) -> int:
    """Transfers that ended, however."""
    counts = report[op]
    return int(counts["done"] + counts["missing"] + sum(counts["failed"].values()))


def breaker(report: Report, server: str) -> str:
    """The state of a server's circuit breaker."""
    return str(report["servers"][server]["breaker"])
