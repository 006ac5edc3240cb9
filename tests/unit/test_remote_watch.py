"""What is wrong with L2 is said once when it begins and once when it has ended."""

import logging
from typing import Any

import pytest

pytest.importorskip("vllm")


class _Remote:
    def __init__(self) -> None:
        self.now: list[str] = []

    def problems(self) -> list[str]:
        return self.now


def test_a_problem_is_said_when_it_begins_and_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    from aibrix_connector import remote_watch

    said: list[tuple[int, str]] = []

    def note(level: int) -> Any:
        return lambda text, *values: said.append((level, text % values))

    monkeypatch.setattr(remote_watch.logger, "warning", note(logging.WARNING))
    monkeypatch.setattr(remote_watch.logger, "info", note(logging.INFO))
    remote: Any = _Remote()
    watch = remote_watch.RemoteWatch(remote, look_s=3600)
    for problems in ([], ["server a:1: refused"], ["server a:1: refused"], []):
        remote.now = problems
        watch.look()
    watch.close()
    assert [level for level, _ in said] == [logging.WARNING, logging.INFO]
    assert all("server a:1: refused" in text for _, text in said)
