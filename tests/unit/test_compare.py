"""The frame of the side-by-side comparison, with small programs in the place of the sides."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benches.compare import __main__ as frame
from benches.compare import l1, l1_traces
from benches.compare.side import Side, SideError, one_line
from benches.machine import ROOT

CASE = l1.Case(32 << 10, 512, 1)

ANSWERS = """
import json, sys
for line in sys.stdin:
    question = json.loads(line)
    print(json.dumps({answer}), flush=True)
"""
OPENED = "{'version': '1.2'} if question['do'] == 'open' else "


def side(name: str, answer: str) -> Side:
    return Side(name, [sys.executable, "-c", ANSWERS.replace("{answer}", answer)])


def starter(**answers: str) -> l1.Start:
    return lambda name: side(name, answers[name])


def test_a_side_that_ends_says_its_last_words() -> None:
    with Side("peer", [sys.executable, "-c", "import sys; sys.exit('no such | module')"]) as peer:
        with pytest.raises(SideError, match="peer: has ended: status 1; no such / module"):
            peer.ask(20, do="open")
        with pytest.raises(SideError, match="has ended"):
            peer.ask(20, do="open")


def test_a_side_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    with pytest.raises(SideError, match=r"peer: cannot be started: .*nowhere"):
        Side("peer", [tmp_path / "nowhere"])


def test_a_side_that_hangs_is_left() -> None:
    sleeper = Side("peer", [sys.executable, "-c", "import time; time.sleep(600)"])
    with sleeper as peer, pytest.raises(SideError, match=r"no answer within 0\.2 s"):
        peer.ask(0.2, do="open")


@pytest.mark.parametrize("answer", ["[1]", "1"])
def test_an_answer_of_another_shape_is_refused(answer: str) -> None:
    with side("peer", answer) as peer, pytest.raises(SideError, match="no JSON object"):
        peer.ask(20, do="open")


def test_an_answer_that_comes_in_pieces_is_put_together() -> None:
    program = "\n".join(
        (
            "import time",
            "for part in ['{\"a\"', ': 1}\\n{\"b\": 2}\\n']:",
            "    print(part, end='', flush=True)",
            "    time.sleep(0.05)",
            "input(), input()",
        )
    )
    with Side("peer", [sys.executable, "-c", program]) as peer:
        assert (peer.ask(20), peer.ask(20)) == ({"a": 1}, {"b": 2})


def test_sides_are_compared_by_pairs_and_the_first_round_is_left_out() -> None:
    us = "{{'us': {{'put': {} if question['number'] else 9999, 'copy': 1}}}}"
    rows, versions = l1.compare(
        "peer", starter(ours=OPENED + us.format(5), peer=OPENED + us.format(20)), rounds=4, cases=(CASE,)
    )
    assert versions == {"ours": "1.2", "peer": "1.2"}
    assert [one.what for one in rows] == [
        "put: time of ours to that of peer L1, 512 tokens, blocks of 32 KiB, one thread"
    ]
    assert (rows[0].reached, rows[0].met) == ("0.25", True)
    assert rows[0].details["ratio"] == {"median": 0.25, "low": 0.25, "high": 0.25, "samples": 4}


@pytest.mark.parametrize(("ours", "met"), [([1.0, 1.0], True), ([3.0, 3.0], False), ([1.0, 3.0], None)])
def test_a_target_is_met_or_missed_only_where_the_interval_says_so(ours: list[float], met: bool | None) -> None:
    (row,) = l1.rows_of(CASE, "peer", {"ours": {"get": ours}, "peer": {"get": [2.0, 2.0]}})
    assert row.met is met


def test_a_case_that_fails_is_a_row_and_the_others_go_on() -> None:
    peer = OPENED + "{'error': 'get answered 3 of 32 blocks'} if question['blocks'] == 32 else {'us': {'get': 2}}"
    cases = (CASE, l1.Case(32 << 10, 1024, 1))
    ours = OPENED + "{'us': {'get': 1}}"
    rows, _ = l1.compare("peer", starter(ours=ours, peer=peer), rounds=1, cases=cases)
    assert [(one.reached, one.spread.split(",")[0]) for one in rows] == [
        ("**could not be measured**", "peer: get answered 3 of 32 blocks"),
        ("0.5", "0.5..0.5"),
    ]


def test_a_peer_that_cannot_be_installed_is_a_row_and_the_status(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def part(arguments: argparse.Namespace) -> tuple[list[Any], dict[str, str]]:
        frame.peer_python("no-such-peer")
        raise AssertionError("was installed")

    monkeypatch.setattr(frame, "PARTS", {"absent": part})
    assert frame.main(["--out", str(tmp_path)]) == 1
    page = (tmp_path / "compare.md").read_text()
    assert "| absent |  | **could not be measured** | no-such-peer: cannot be installed: error: no lock file" in page
    assert "no side ran" in page
    (row,) = json.loads((tmp_path / "compare.json").read_text())["absent"]["rows"]
    assert "known: aibrix-kvcache" in row["details"]["error"]
    monkeypatch.setattr(frame, "PARTS", {"absent": part, "other": lambda arguments: ([], {"ours": "1"})})
    assert frame.main(["--out", str(tmp_path), "--only", "other"]) == 0
    assert set(json.loads((tmp_path / "compare.json").read_text())) == {"absent", "other"}, "what was there stays"
    capsys.readouterr()


def test_errors_stay_in_their_cell() -> None:
    assert one_line("a\n  b | c") == "a b / c"
    assert len(one_line("x" * 999)) == 300


def test_our_side_answers_as_the_comparison_asks() -> None:
    with Side("ours", [sys.executable, *l1.PROGRAM, "ours"], cwd=ROOT) as ours:
        opened = ours.ask(60, do="open", block_bytes=4096, capacity_bytes=1 << 20, threads=2, blocks=4)
        assert opened["version"]
        assert set(ours.ask(60, do="verbs", number=1, blocks=4)["us"]) == {"put", "exists", "get", "miss", "copy"}
        assert set(ours.ask(60, do="threads", number=2, blocks=4, repeats=2)["us"]) == {"get"}
        # More blocks than there are slots: less than asked for is no measurement.
        ours.ask(60, do="open", block_bytes=4096, capacity_bytes=1 << 20, threads=1, blocks=512)
        with pytest.raises(SideError, match=r"ours: RuntimeError: .* of 512 blocks"):
            ours.ask(60, do="verbs", number=1, blocks=512)


TRACE = l1_traces.Case("synthetic", 2, 439)
REPLAY = (
    "(lambda lines: {'version': '1', 'accesses': 100, 'hits': HITS[question['eviction']]}"
    " if len(lines) == 2 and lines[0].startswith('[') else {'error': 'another trace'})"
    "(open(question['trace']).readlines())"
)


def replays(hits: dict[str, int]) -> l1.Start:
    """Sides that answer a replay of two requests with the hits of the policy."""
    return lambda name: side(name, REPLAY.replace("HITS", repr(hits)))


def decompressor(tmp_path: Path) -> Path:
    """What stands for the Python of the peer's environment: prints three requests, whatever it is asked."""
    path = tmp_path / "python"
    path.write_text("#!/bin/sh\n" + "echo '{\"hash_ids\": [1, 2]}'\n" * 3)
    path.chmod(0o755)
    return path


def test_hit_ratios_of_traces_are_compared_with_each_policy_of_the_peer(tmp_path: Path) -> None:
    start = replays({"default": 30, "S3FIFO": 20, "LRU": 40})
    rows, versions = l1_traces.compare("peer", decompressor(tmp_path), start, quick=False, cases=(TRACE,))
    assert versions == {"ours": "1", "peer": "1"}
    assert [(one.reached, one.met) for one in rows] == [("+0.1000", True), ("-0.1000", False)]
    assert "(S3FIFO), the first 2 requests of synthetic, 439 blocks" in rows[0].what


def test_a_side_that_cannot_replay_is_a_row_with_its_error(tmp_path: Path) -> None:
    rows, _ = l1_traces.compare("peer", decompressor(tmp_path), replays({"default": 30}), quick=False, cases=(TRACE,))
    assert len(rows) == 1
    assert "has ended" in rows[0].details["error"]


def test_both_caches_of_a_trace_have_the_same_blocks() -> None:
    for case in l1_traces.CASES:
        assert case.blocks * case.block_bytes <= l1.CAPACITY_BYTES < (case.blocks + 1) * case.block_bytes
        assert case.about <= case.blocks <= 1.03 * case.about
