"""The comparison with foyer and moka, with a small program in the place of the one that is compiled."""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from benches.compare import __main__ as frame
from benches.compare import plain_caches
from benches.compare.side import Side
from benches.eviction import Trace
from benches.machine import ROOT
from benches.rows import Row

TRACE = Trace("small", "small_trace.jsonl.zst", 1000, {20: 0.0, 300: 0.0})
CASE = plain_caches.SpeedCase("get", 32 << 10, 64, 2)

PROGRAM = """
import json, sys
ratios = {"foyer S3-FIFO": {"head first": 0.11, "tail first": 0.25}, "moka LRU": {"head first": 0.2, "tail first": 0.1}}
for line in sys.stdin:
    question = json.loads(line)
    if question["do"] == "quality":
        at = [{"capacity": capacity, "optimum": 0.5, "peers": ratios,
               "ours": {"hit-density": 0.25, "s3fifo": 0.24999, "lru": 0.2}} for capacity in question["capacities"]]
        answer = {"accesses": 5000, "distinct_blocks": 1000, "capacities": at}
    else:
        rounds = question["rounds"]
        answer = {"us": {"ours": [2.0] * rounds, "foyer": [4.0] * rounds, "moka": [1.0] * rounds}}
    if FAILS(question):
        answer = {"error": "Get did 3 of 64 blocks"}
    print(json.dumps(answer), flush=True)
"""


def program(fails: str = "False") -> Side:
    return Side("plain-caches", [sys.executable, "-c", PROGRAM.replace("FAILS(question)", fails)])


def test_a_trace_is_two_rows_a_capacity_beside_the_best_of_the_others() -> None:
    rows = plain_caches.compare(program, 3, [TRACE], [])
    assert [one.what for one in rows] == [
        "hit ratio of `hit-density` (default of engines' caches), small, 20 blocks (2 %)",
        "hit ratio of `s3fifo` (default of BlockCache), small, 20 blocks (2 %)",
        "hit ratio of `hit-density` (default of engines' caches), small, 300 blocks (30 %)",
        "hit ratio of `s3fifo` (default of BlockCache), small, 300 blocks (30 %)",
    ]
    assert {(one.target, one.reached, one.met) for one in rows} == {
        (">= .2500", ".2500", True),
        (">= .2500", ".2500", False),
    }
    assert rows[0].spread == (
        "best other: foyer S3-FIFO, tail first; lru here .2000, optimum .5000; foyer S3-FIFO .2500, moka LRU .2000"
    )
    assert rows[0].details["peers"]["foyer S3-FIFO"] == {"head first": 0.11, "tail first": 0.25}


def test_an_operation_is_a_row_a_peer() -> None:
    rows = plain_caches.compare(program, 3, [], [CASE])
    assert [(one.what, one.reached, one.met) for one in rows] == [
        ("get: time of ours a block to that of foyer, values of 32 KiB, 64 blocks a call, 2 threads", "0.5", True),
        ("get: time of ours a block to that of moka, values of 32 KiB, 64 blocks a call, 2 threads", "2", False),
    ]
    assert rows[0].details["ratio"]["samples"] == 3


def test_what_fails_is_a_row_and_the_others_go_on() -> None:
    rows = plain_caches.compare(lambda: program("question.get('threads') == 2"), 2, [TRACE], [CASE, CASE])
    assert [one.reached for one in rows[-2:]] == ["**could not be measured**"] * 2
    assert rows[-1].spread == "plain-caches: Get did 3 of 64 blocks"
    assert rows[-1].what == "get, values of 32 KiB, 64 blocks a call, 2 threads"
    assert len(rows) == 6


def test_a_program_that_dies_is_started_again() -> None:
    rows = plain_caches.compare(lambda: program("question['do'] == 'quality' and sys.exit(3)"), 2, [TRACE], [CASE])
    assert [one.reached for one in rows] == ["**could not be measured**", "0.5", "2"]
    assert "status 3" in rows[0].spread


def test_a_failed_build_is_a_row_with_its_last_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "scripts" / frame.PLAIN_CACHES_SCRIPT
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\necho compiling >&2\necho 'error: no matching package named `moka` found' >&2\nexit 101\n"
    )
    script.chmod(0o755)
    monkeypatch.setattr(frame, "ROOT", tmp_path)
    assert frame.main(["--only", "plain-caches", "--out", str(tmp_path)]) == 1
    (row,) = json.loads((tmp_path / "compare.json").read_text())["plain-caches"]["rows"]
    assert row["details"]["error"] == (
        "build_plain_caches.sh: cannot be installed: error: no matching package named `moka` found"
    )
    capsys.readouterr()


def test_the_part_asks_for_every_trace_and_case(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "program"
    path.write_text(f"#!{sys.executable}\n{PROGRAM.replace('FAILS(question)', 'False')}")
    path.chmod(0o755)
    monkeypatch.setattr(frame, "script_output", lambda script: str(path))
    quick, versions = frame.PARTS["plain-caches"](argparse.Namespace(quick=True))
    assert len(quick) == 4 + 2 * len(plain_caches.SPEED)
    assert not any("error" in one.details for one in quick)
    assert set(versions) == {"foyer-memory", "moka"}

    asked: list[tuple[int, tuple[Any, ...]]] = []

    def compare(start: plain_caches.Start, rounds: int, *less: Any) -> list[Row]:
        asked.append((rounds, less))
        return []

    monkeypatch.setattr(plain_caches, "compare", compare)
    assert frame.PARTS["plain-caches"](argparse.Namespace(quick=False))[0] == []
    assert asked == [(40, ())], "all traces and cases, which is what `compare` does unless it is told otherwise"


def test_versions_are_those_of_the_lock_file(tmp_path: Path) -> None:
    lock = tmp_path / "Cargo.lock"
    packages = (("foyer-common", "9"), ("foyer-memory", "0.22.6"), ("moka", "0.12.16"))
    lock.write_text("".join(f'[[package]]\nname = "{name}"\nversion = "{version}"\n' for name, version in packages))
    assert plain_caches.versions(lock) == {"foyer-memory": "0.22.6", "moka": "0.12.16"}


def test_the_questions_are_such_as_the_program_knows() -> None:
    """The program is not compiled here; its source names what a question may have."""
    folder = ROOT / "benches" / "compare" / "rust" / "src"
    source = (folder / "main.rs").read_text() + (folder / "speed.rs").read_text()
    for name in {**CASE.question, "rounds": 1, "trace": "", "block_tokens": 1, "capacities": []}:
        assert name == "do" or f"        {name}: " in source or f"    {name}: " in source, name
    assert os.access(ROOT / "scripts" / frame.PLAIN_CACHES_SCRIPT, os.X_OK)
