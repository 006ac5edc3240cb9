"""The report of `make bench`: tables read from programs, hit ratios against the best known, the page and its plots."""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benches import cargo_parts, collect, engine_model, eviction
from benches.machine import machine_facts, slug
from benches.rows import margin, row

RING_TABLE = """a line of text
| what | median | quartiles | target | load |
|---|---|---|---|---|
| put 2 MiB to a plain copy | 1.110 | 0.900-1.150 | ≥ 0.8 | 0.50 |
| get 1 MiB, µs | 623.000 | 600.000-640.000 | ≤ 500 | 0.50 |
| a plain message there and back, µs | 110.000 | 100.000-120.000 |  | 0.50 |

| CPU time that a step takes more, µs | median | 90 % | 99 % | mean | target |
|---|---|---|---|---|---|
| any step | 2.1 | 5.0 | 9.0 | 3.8 | ≤ 20 |
"""


def test_tables_of_programs_become_rows() -> None:
    rows = [cargo_parts.measured("l2", cells) for cells in cargo_parts.table_cells(RING_TABLE)]
    assert [(one.what, one.target, one.reached, one.met) for one in rows] == [
        ("l2: put 2 MiB to a plain copy", ">= 0.8", "1.110", True),
        ("l2: get 1 MiB, µs", "<= 500", "623.000", False),
        ("l2: a plain message there and back, µs", "", "110.000", None),
        ("l2: CPU time that a step takes more, µs: any step", "<= 20", "3.8", True),
    ]
    assert rows[0].spread == "median 1.110, quartiles 0.900-1.150"


def program(folder: Path, text: str) -> Path:
    """A small program in the place of `kvcache`."""
    path = folder / "kvcache"
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(0o755)
    return path


REPLAY = """
import json, sys
words = sys.argv
for capacity in words[words.index("--capacity") + 1].split(","):
    for policy, ratio in (("lru", 0.1), ("s3fifo", 0.2), ("default", {default})):
        print(json.dumps({{"policy": policy, "capacity_blocks": int(capacity), "block_hit_ratio": ratio,
                           "optimum": {{"block_hit_ratio": 0.5}}}}))
"""


@pytest.mark.parametrize(("default", "share", "met"), [(0.3, "0.500", True), (0.1, "0.000", False)])
def test_hit_ratios_stand_beside_the_best_known(tmp_path: Path, default: float, share: str, met: bool) -> None:
    tool = program(tmp_path, REPLAY.format(default=default))
    rows = eviction.eviction(tmp_path / "eviction.json", argparse.Namespace(kvcache=tool))
    assert len(rows) == 1 + sum(len(trace.best_known) for trace in eviction.SET)
    small, large = rows[0], rows[4]
    assert (small.target, large.target) == (">= 0.0603", ">= 0.2821")
    assert small.met == (default >= 0.0603)
    assert large.met == (default >= 0.2821)
    assert (rows[-1].reached, rows[-1].met) == (share, met)


SIMULATE = """
import json, sys
words = sys.argv
if words[1] == "simulate":
    for rate in words[words.index("--qps") + 1].split(","):
        for setup in ("none", "layers"):
            print(json.dumps({"qps": float(rate), "setup": setup, "ttft_s": {"mean": 0.25, "p99": 2.0}}))
"""


def test_each_rate_of_a_simulated_workload_is_a_row(tmp_path: Path) -> None:
    rows = engine_model.simulated(program(tmp_path, SIMULATE), tmp_path, "W2")
    assert len(rows) == len(engine_model.RATES)
    assert rows[0].reached == "none 0.25, layers 0.25"
    assert rows[0].spread == "p99: none 2, layers 2"


def test_a_program_that_fails_is_no_result(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError):
        eviction.eviction(tmp_path / "x", argparse.Namespace(kvcache=program(tmp_path, "raise SystemExit(2)")))


def document(rows: list[Any]) -> str:
    facts = {**machine_facts(), "seconds": 1.0, "quick": False}
    return json.dumps({"facts": facts, "command": "a command", "rows": [vars(one) for one in rows]})


def test_a_folder_of_results_gets_a_page_and_plots(tmp_path: Path) -> None:
    ratios = {"optimum": 0.5, "lru": 0.1, "s3fifo": 0.2, "default": 0.3}
    points = [
        row("hits", ">= 0.1", "0.3", "", True, trace="t", capacity=9, share=share, best_known=0.2, ratios=ratios)
        for share in (0.01, 0.02)
    ]
    (tmp_path / "eviction.json").write_text(document(points))
    (tmp_path / "copies.json").write_text(
        document([row("put", ">= 1.3", "1.65", "", True), row("step", "<= 50 us", "249 us", "", False)])
    )
    ratio = {"median": 0.5, "low": 0.4, "high": 0.7, "samples": 9}
    compared = [row("get, $5 of `ours`", "<= 1", "0.5", "", True, ratio=ratio), row("peer", "", "error", "", None)]
    (tmp_path / "compare.json").write_text(json.dumps({"peer-l1": json.loads(document(compared))}))
    plots = collect.draw(tmp_path)
    assert plots == ["targets.png", "eviction.png", "compare-peer-l1.png"]
    drawn = {name: (tmp_path / name).read_bytes() for name in plots}
    assert all(data.startswith(b"\x89PNG\r\n\x1a\n") for data in drawn.values())
    collect.draw(tmp_path)
    assert drawn == {name: (tmp_path / name).read_bytes() for name in plots}, "the same numbers, the same plots"
    page = collect.results(tmp_path, plots)
    assert "![eviction](eviction.png)" in page
    assert "| step | <= 50 us | 249 us |  | **no** |" in page
    (tmp_path / "eviction.json").write_text(document([]))
    assert "eviction.png" not in collect.draw(tmp_path), "what was not measured is not drawn"


@pytest.mark.parametrize(
    ("target", "reached", "factor"),
    [
        (">= 1.3", "1.65", 1.65 / 1.3),
        ("<= 50 us", "249 us", 50 / 249),
        ("<= tail + 2 ms + copy = 19.16 ms", "16.90 ms", 19.16 / 16.9),
        ("<= 0.3 / 0.8 ms", "two", None),
        (">= 0.98, >= 99 % stored", "0.992, 100.0% stored, 0 dropped", None),
        ("", "249 us", None),
        ("<= 2 %", "-1 %", None),
    ],
)
def test_margins_are_read_where_target_and_result_are_numbers(target: str, reached: str, factor: float | None) -> None:
    assert margin(target, reached) == (None if factor is None else pytest.approx(factor))


def test_a_machine_has_a_name_for_folders() -> None:
    assert slug({"processor": "AMD EPYC family 26 AVX-512", "cpus": 2}) == "amd-epyc-family-26-avx-512-2-cpus"
