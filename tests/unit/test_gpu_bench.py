"""The script for a GPU machine runs without one, and its checks see what is broken."""

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from benches.gpu import order_of_work, programs, summary
from benches.gpu.__main__ import main
from benches.gpu.bytes_of_engine import Compared
from benches.gpu.machine import FakeMachine, stay_near
from benches.gpu.report import Options, Report
from benches.gpu.torch_engine import Model, TorchEngine

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benches" / "gpu" / "run.sh"


def run_script(*arguments: str, **changes: str) -> "subprocess.CompletedProcess[str]":
    environ = os.environ | {"PYTHON": sys.executable} | changes
    return subprocess.run([str(SCRIPT), *arguments], env=environ, capture_output=True, text=True, check=False)


def test_a_fake_run_passes_and_says_that_it_is_none(tmp_path: Path) -> None:
    done = run_script("--fake", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["facts"]["fake"] is True
    parts = document["parts"]
    assert [name for name, part in parts.items() if part["ended"]] == [
        *("machine", "kernels", "copies", "order", "engine", "rates", "overlap", "interference", "pinning")
    ]
    checks = [check for part in parts.values() for check in part["checks"]]
    assert {check["status"] for check in checks if check["name"].startswith("kernel, ")} == {"pass"}
    assert len(checks) > 75
    # Only what no fake can have is left out.
    assert len([check for check in checks if check["status"] == "skip"]) == 4
    page = (tmp_path / "results.md").read_text()
    assert "**A fake device" in page
    assert ">= 0.95" not in page, "a fake reaches no target"


def test_a_fake_run_does_not_go_among_results(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--fake", "--out", str(ROOT / "benches" / "results" / "2000-01-01-fake")])
    assert ended.value.code == 2
    assert "measures nothing" in capsys.readouterr().err
    assert not (ROOT / "benches" / "results" / "2000-01-01-fake").exists()


def test_waits_that_are_left_out_are_seen() -> None:
    report = Report()
    order_of_work.run(FakeMachine(seed=5), report, Options(fake=True, sabotage="wait"))
    assert len([check for check in report.checks if check.status == "fail"]) >= 3


@pytest.mark.parametrize("sabotage", ["byte", "wait"])
def test_an_engine_that_is_broken_is_seen(sabotage: str) -> None:
    engine = Compared(FakeMachine(seed=5), "LBHNC", "auto", Options(fake=True, sabotage=sabotage))
    problems = [problem for scenario in engine.scenarios().values() for problem in scenario()]
    engine.close()
    assert any("read other bytes" in problem for problem in problems)


class WarmingMachine(FakeMachine):
    """As a GPU: what is captured has run once before. Its replay does nothing."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        work()
        return lambda: None


def test_a_graph_that_writes_nothing_is_seen() -> None:
    """Also by the offload of what it was to write: the blocks do not hold that from the run before the capture."""
    engine = Compared(WarmingMachine(seed=5), "LBHNC", "auto", Options(fake=True))
    problems = engine.graph()
    engine.close()
    assert any("read other bytes of e" in problem for problem in problems)


def test_pictures_that_fail_cost_nothing_else(tmp_path: Path) -> None:
    broken = tmp_path / "modules" / "matplotlib"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("def use(name):\n    raise RuntimeError('no folder for its cache')\n")
    results = tmp_path / "results"
    done = run_script("--fake", "--only", "pinning", "--out", str(results), PYTHONPATH=str(broken.parent))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no pictures: RuntimeError('no folder for its cache')" in done.stdout
    assert "# fake device" in done.stdout


def test_parts_stay_on_the_cpus_of_the_gpu_s_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[set[int]] = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda thread: {0, 1, 2, 3, 8})
    monkeypatch.setattr(os, "sched_setaffinity", lambda thread, cpus: kept.append(cpus))
    for address, listed in {"0000:1b:00.0": "2-4,8,10-11\n", "0000:2b:00.0": "\n", "0000:3b:00.0": "5-7\n"}.items():
        (tmp_path / address).mkdir()
        (tmp_path / address / "local_cpulist").write_text(listed)
    assert stay_near("0000:1b:00.0", tmp_path) == 3
    for unknown in ("0000:2b:00.0", "0000:3b:00.0", "0000:4b:00.0", ""):
        assert stay_near(unknown, tmp_path) is None
    assert kept == [{2, 3, 8}]


def test_whoever_asks_for_problems_stops_nobody() -> None:
    """A hook copies for a second and holds the store. Who asks for its problems waits, and other threads go on."""
    model = Model(layers=3, heads=1, block_tokens=16, content=32, width=8, blocks=20)
    drill = f"copy_bytes_per_s={16 * model.block_bytes}"
    engine = TorchEngine(FakeMachine(), model, capacity_bytes=32 * model.block_bytes, drill=drill)
    table = list(range(1, 17))
    engine.start_to_compute("p", table)
    engine.begin(tokens=len(table) * model.block_tokens)
    stream = engine.machine.stream_of(engine.store)
    hook = threading.Thread(target=lambda: engine.store.end_step(True, False, stream))
    hook.start()
    time.sleep(0.1)
    asking = threading.Thread(target=engine.store.problems)
    began = time.monotonic()
    asking.start()
    # The first thing that stands still is the start of the thread.
    longest, last = 0.0, began
    while asking.is_alive() or last == began:
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        time.sleep(0.001)
    hook.join()
    engine.settle()
    engine.close()
    assert longest < 0.4


def test_a_check_that_fails_is_the_exit_status(tmp_path: Path) -> None:
    done = run_script("--fake", "--only", "copies", "--sabotage", "byte", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "**fail**: copies: " in (tmp_path / "results.md").read_text()


@pytest.mark.parametrize(
    ("script", "status"),
    [
        ("echo 'test result: ok. 1 passed; 0 failed'", "pass"),
        ("echo 'test result: FAILED. 0 passed; 1 failed'; exit 101", "fail"),
        ("echo 'test result: ok. 0 passed; 0 failed'", "fail"),
        ("exit 0", "fail"),
    ],
)
def test_programs_that_were_brought_along_have_to_pass(tmp_path: Path, script: str, status: str) -> None:
    program = tmp_path / "all_kernels"
    program.write_text(f'#!/bin/sh\n[ "$1" = --ignored ] && {script}\n')
    program.chmod(0o755)
    machine = FakeMachine()
    machine.is_fake = False
    report = Report()
    programs.run(machine, report, Options(), tmp_path)
    assert [check.status for check in report.checks] == [status]


def rates(count: int = 1024, **changes: Any) -> dict[str, Any]:
    place = {"direction": "load", "piece_bytes": 64 << 10, "count": count}
    one = {**place, "path": "dma", "gb_s": 50.0, "gb_s_low": 49.0, "gb_s_high": 51.0, "to_plain": 0.96} | changes
    choice = {**place, "chosen": "dma", "best": "dma", "to_best": 1.0, "single_to_best": 1.0}
    return {"rates": [one], "choices": [choice]}


def test_targets_are_judged() -> None:
    """64 KiB pieces must reach 0.95 of plain copies by the path that is chosen, in batches of 16 MiB and more."""
    assert [one.met for one in summary.rate_rows(rates())] == [True, True]
    assert [one.met for one in summary.rate_rows(rates(to_plain=0.94))] == [False, True]
    assert len(list(summary.rate_rows(rates(count=16)))) == 1
    assert len(list(summary.rate_rows(rates(path="kernel")))) == 1


def test_work_that_outlasted_the_copies_says_nothing() -> None:
    one = {"work": "matrix products", "path": "auto", "direction": "offload", "piece_bytes": 65536, "speed": 0.99}
    one |= {"speed_low": 0.99, "speed_high": 0.99, "copies_gb_s": 50.0, "copies_outlasted_work": True}
    assert [row.met for row in summary.interference_rows({"interference": [one]})] == [True]
    one["copies_outlasted_work"] = False
    assert [row.met for row in summary.interference_rows({"interference": [one]})] == [None]
