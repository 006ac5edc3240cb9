"""The path of a CUDA engine, on a real engine that computes on the CPU.

With the drill `fake_cuda` the engine's host memory plays a device: its copies are done late, in pieces and in any order
that streams and events allow, and whatever a CUDA program may not do is noted.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cache_server import CacheServer
from tests.e2e.crashes import shared_folder
from tests.e2e.options import EngineOptions
from tests.e2e.scenario import Scenarios
from tests.models import prompt

PROMPTS = [prompt(seed, 300) for seed in range(2)]
L1 = {"capacity": "64MiB", "drill": "fake_cuda"}

Reference = Callable[..., list[list[int]]]

MODES = {
    "layerwise": EngineOptions(connector=L1 | {"load_mode": "layerwise"}),
    "async": EngineOptions(connector=L1 | {"load_mode": "async"}),
    "one-block-slots": EngineOptions(connector=L1 | {"slot_blocks": 1, "load_mode": "layerwise"}),
    "dma": EngineOptions(connector=L1 | {"load_mode": "layerwise", "copy_path": "dma"}),
    "dma_batch": EngineOptions(connector=L1 | {"load_mode": "layerwise", "copy_path": "dma_batch"}),
    "kernel": EngineOptions(connector=L1 | {"load_mode": "layerwise", "copy_path": "kernel"}),
    "late": EngineOptions(connector=L1 | {"load_mode": "layerwise", "drill": "fake_cuda,copy_bytes_per_s=1e6"}),
    "no-prefix-caching": EngineOptions(connector=L1, prefix_caching=False),
    "hybrid": EngineOptions(model="hybrid", connector=L1),
}

IN_ALL_RELEASES = ("layerwise", "async")


def _wait_for_pinning(engine: Any, deadline_s: float = 60.0) -> None:
    """Until it has ended L1 is smaller, and blocks of an earlier engine are loaded from memory that is not pinned.
    A busy machine takes longer for it than for a first request.
    """
    from tests.e2e.inside import worker_side

    store = worker_side(engine)._store
    end = time.monotonic() + deadline_s
    while store.device()["is_pinning"]:
        assert time.monotonic() < end, "pinning does not end"
        time.sleep(0.01)


def _run_twice(options: EngineOptions, full_graphs: bool = False) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import planner_stats, settle, store_stats, worker_side

    with Engine(options) as engine:
        _wait_for_pinning(engine)
        if full_graphs:
            _say_full_graph(worker_side(engine))
        first = engine.generate(PROMPTS)
        settle(engine)
        engine.forget()
        again = engine.generate(PROMPTS)
        store = worker_side(engine)._store
        return {
            "first": first,
            "again": again,
            "hits": engine.external_hit_tokens(),
            "planner": planner_stats(engine),
            "store": store_stats(engine),
            "device": store.device(),
            "problems": store.problems(),
            "violations": store.violations(),
        }


def _say_full_graph(side: Any) -> None:
    """Every step's context says that its graph is replayed; no hook is called, as none would be."""
    from types import SimpleNamespace

    from vllm.config import CUDAGraphMode

    start = side.start_loads

    def replayed(forward_context: Any) -> None:
        start(SimpleNamespace(attn_metadata={"all": 1}, cudagraph_runtime_mode=CUDAGraphMode.FULL))

    side.start_loads = replayed
    side.wait_layer = side.layer_computed = lambda name: None


def check(run: dict[str, Any], expected: list[list[int]]) -> None:
    assert run["violations"] == []
    assert 2 * 256 <= run["hits"] <= 2 * 299
    assert run["store"]["loaded_bytes"] > 0
    assert [problem for problem in run["problems"] if "copies have failed" in problem] == []
    assert (run["store"]["failed_load_jobs"], run["store"]["failed_offloads"]) == (0, 0)
    assert run["planner"]["refused"] == run["planner"]["failed_stores"] == run["planner"]["failed_loads"] == 0
    assert [completion["tokens"] for completion in run["first"]] == expected
    assert [completion["tokens"] for completion in run["again"]] == expected


@pytest.mark.parametrize(
    "mode", [pytest.param(mode, marks=[pytest.mark.matrix] if mode in IN_ALL_RELEASES else []) for mode in MODES]
)
def test_second_run_loads(scenarios: Scenarios, reference: Reference, mode: str) -> None:
    options = MODES[mode]
    run = scenarios.run(_run_twice, options)
    check(run, reference(options, PROMPTS))
    moved = {(direction, path) for direction, path, batches, _, _ in run["device"]["counts"] if batches}
    assert {direction for direction, _ in moved} == {"load", "offload"}
    if mode in ("dma", "dma_batch", "kernel"):
        assert {path for _, path in moved} == {mode}


def test_replayed_graphs_find_their_loads_there(scenarios: Scenarios, reference: Reference) -> None:
    options = MODES["layerwise"]
    check(scenarios.run(_run_twice, options, True), reference(options, PROMPTS))


def test_l1_ends_where_pinning_is_refused(scenarios: Scenarios, reference: Reference) -> None:
    """Memory is pinned in pieces of 32 MiB at most, as it is populated."""
    drill = f"fake_cuda,pin_bytes_max={300 << 20}"
    options = EngineOptions(connector={"capacity": "512MiB", "drill": drill, "load_mode": "layerwise"})
    run = scenarios.run(_run_twice, options)
    check(run, reference(options, PROMPTS))
    assert 268 << 20 < run["device"]["pinned_bytes"] <= 300 << 20
    (problem,) = run["problems"]
    assert "because no more host memory could be pinned: copy failed: drill" in problem


def _answer(options: EngineOptions) -> dict[str, Any]:
    from tests.e2e.engine import Engine
    from tests.e2e.inside import settle, store_stats, worker_side

    with Engine(options) as engine:
        _wait_for_pinning(engine)
        answers = engine.generate(PROMPTS)
        settle(engine)
        return {
            "tokens": [answer.tokens for answer in answers],
            "hits": engine.external_hit_tokens(),
            "store": store_stats(engine),
            "device": worker_side(engine)._store.device(),
            "violations": worker_side(engine)._store.violations(),
        }


@pytest.mark.parametrize("where", ["shared memory", "a cache server"])
def test_another_engine_loads(scenarios: Scenarios, reference: Reference, tmp_path: Path, where: str) -> None:
    """L1 is mapped from a file there, and values come and go over the network beside the device's copies."""
    with shared_folder() as folder, CacheServer(tmp_path / "server.log") as server:
        place = {"slab_dir": str(folder)} if where == "shared memory" else {"remote": f"tcp://{server.address}"}
        patience = {"remote_presence_wait_ms": 5000, "slot_blocks": 2, "weights_digest": "test"}
        options = EngineOptions(connector=L1 | patience | place)
        runs = [scenarios.run(_answer, options) for _ in range(2)]
    assert [run["hits"] for run in runs] == [0, 2 * 256]
    for run in runs:
        assert run["tokens"] == reference(options, PROMPTS)
        assert run["violations"] == []
        assert run["store"]["failed_load_jobs"] == run["store"]["failed_offloads"] == 0
        assert run["device"]["pageable_batches"] == 0
        assert run["device"]["pinning_failure"] is None


@pytest.mark.parametrize("drill", ["claim_hits_load_nothing", "copy_bytes_per_s=1e6,skip_waits"])
def test_answers_without_the_bytes_are_others(scenarios: Scenarios, reference: Reference, drill: str) -> None:
    """The negative control: a stream that does not wait for its loads computes on what was there before."""
    options = EngineOptions(connector=L1 | {"load_mode": "layerwise", "drill": f"fake_cuda,{drill}"})
    run = scenarios.run(_run_twice, options)
    assert run["hits"] > 0
    for expected, got in zip(reference(options, PROMPTS), run["again"], strict=True):
        assert got["tokens"] != expected


@pytest.mark.parametrize("load_mode", ["layerwise", "async"])
def test_copies_that_fail_are_computed(scenarios: Scenarios, reference: Reference, load_mode: str) -> None:
    options = EngineOptions(connector=L1 | {"load_mode": load_mode, "drill": "fake_cuda,fail_loads=1"})
    run = scenarios.run(_run_twice, options)
    assert run["store"]["failed_load_jobs"] > 0
    assert run["violations"] == []
    expected = reference(options, PROMPTS)
    assert [completion["tokens"] for completion in run["again"]] == expected
