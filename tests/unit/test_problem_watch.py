"""What is wrong is said once when it begins and once when it has ended."""

import logging
from typing import Any

import pytest

pytest.importorskip("vllm")


def test_a_problem_is_said_when_it_begins_and_when_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    from aibrix_connector import problem_watch

    said: list[tuple[int, str]] = []

    def note(level: int) -> Any:
        return lambda text, *values: said.append((level, text % values))

    monkeypatch.setattr(problem_watch.logger, "warning", note(logging.WARNING))
    monkeypatch.setattr(problem_watch.logger, "info", note(logging.INFO))
    now: list[str] = []
    watch = problem_watch.ProblemWatch("L2", lambda: list(now), "its blocks are missing", look_s=3600)
    for problems in ([], ["server a:1: refused"], ["server a:1: refused"], []):
        now[:] = problems
        watch.look()
    watch.close()
    assert [level for level, _ in said] == [logging.WARNING, logging.INFO]
    assert [text for _, text in said] == [
        "L2: server a:1: refused; its blocks are missing",
        "L2: no longer so: server a:1: refused",
    ]
