"""Ranks that hold the same bytes, because there are fewer KV heads than ranks: stored once, loaded by all."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.crashes import Death, SlabFile, fork_ranks, run_and_kill, shared_folder
from tests.e2e.options import EngineOptions
from tests.e2e.scenario import Scenarios
from tests.models import prompt

PROMPTS = [prompt(seed, 300) for seed in range(2)]
FULL_TOKENS = 256
KV_BYTES_PER_TOKEN = 4 * 2 * 64 * 2
"""Four layers, key and value, 64 numbers of two bytes: of the one head, on one rank."""


@pytest.fixture
def slab_folder() -> Iterator[Path]:
    with shared_folder() as folder:
        yield folder


def _options(model: str = "single-head", **connector: Any) -> EngineOptions:
    blocks: dict[str, Any] = {"block_tokens": 16, "step_tokens_max": 2048} if model == "mla" else {}
    connector = {"capacity": "64MiB", "slot_blocks": 4, **connector}
    return EngineOptions(model=model, tensor_parallel=2, connector=connector, **blocks)


def _slab_files_of_engines() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("kvcache-*.slab")}


def _twice(options: EngineOptions, again: bool = True) -> dict[str, Any]:
    from tests.e2e.engine import Engine

    fork_ranks()
    before = _slab_files_of_engines()
    with Engine(options) as engine:
        left = _slab_files_of_engines() - before
        first = [engine.generate([tokens])[0].tokens for tokens in PROMPTS]
        second: list[list[int]] = []
        if again:
            engine.forget()
            second = [engine.generate([tokens])[0].tokens for tokens in PROMPTS]
        counts = engine.metrics("vllm:kvcache")
        return {"first": first, "second": second, "counts": counts, "left": sorted(left)}


@pytest.mark.slow
def test_equal_ranks_load_what_one_of_them_has_stored(scenarios: Scenarios) -> None:
    """Without a slab directory: the ranks share memory of their own, without a name that outlives the engine."""
    options = _options()
    run = scenarios.run(_twice, options)
    expected = scenarios.run(_twice, options.without_connector(), False)["first"]
    assert run["left"] == []
    assert run["first"] == run["second"] == expected
    moved = 2 * FULL_TOKENS * KV_BYTES_PER_TOKEN
    assert run["counts"]["vllm:kvcache_loaded_bytes"] == 2 * moved, "by both ranks"
    # The last blocks of the answers may be stored as well.
    assert moved <= run["counts"]["vllm:kvcache_offloaded_bytes"] < 1.5 * moved, "by one rank"
    control = scenarios.run(_twice, _options(drill="claim_hits_load_nothing"))
    assert all(got != right for got, right in zip(control["second"], expected, strict=True))


def _answer_and_die(death: Death, options: EngineOptions) -> None:
    import time

    from tests.e2e.engine import Engine

    fork_ranks()
    engine = Engine(options)
    tokens = [engine.generate([tokens])[0].tokens for tokens in PROMPTS]
    time.sleep(1.0)
    death.comes_now(tokens)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["single-head", "mla"])
def test_equal_ranks_are_warm_from_one_slab(scenarios: Scenarios, slab_folder: Path, model: str) -> None:
    options = _options(model, slab_dir=str(slab_folder))
    cold = run_and_kill(scenarios, _answer_and_die, options)
    (slab,) = SlabFile.all(slab_folder)
    assert slab.path.name.endswith("rank0.slab")
    # Of all the capacity, since it is stored once.
    assert slab.slot_count * slab.slot_bytes > 0.99 * (64 << 20)
    ready = len(slab.slots(SlabFile.READY))
    assert ready >= 4
    warm = scenarios.run(_twice, options, False)
    loaded = warm["counts"]["vllm:kvcache_loaded_bytes"]
    assert loaded >= 2 * 4 * slab.slot_bytes
    assert loaded % (2 * slab.slot_bytes) == 0, "by both ranks"
    if model != "mla":
        # The CPU's rotary kernel gives latent keys that depend on the batch.
        assert warm["first"] == cold


@pytest.mark.slow
def test_bytes_damaged_in_the_shared_slab_are_computed_again(scenarios: Scenarios, slab_folder: Path) -> None:
    options = _options(slab_dir=str(slab_folder), verify_l1=True)
    cold = run_and_kill(scenarios, _answer_and_die, options)
    (slab,) = SlabFile.all(slab_folder)
    slab.flip_data(slab.slots(SlabFile.READY)[0])
    warm = scenarios.run(_twice, options, False)
    assert warm["counts"]["vllm:kvcache_failed_loads"] == 1
    assert warm["first"] == cold
